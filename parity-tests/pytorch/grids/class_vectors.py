"""Metric losses with parameters: a weight or proxy for each class."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch

from cases import DTYPES, LAYOUTS, Call, Draw, Shape, Suite, lay_out
from grids.embeddings import DISTANCES, LOSSES, distance, reducer, tuple_of

FULL = ("f64", "f32")
HALF = ("bf16", "f16")
# Embeddings, features and classes.
SIZES = ((1, 3, 2), (17, 2, 5), (30, 12, 3), (3, 5, 40))
# All angles between vectors of one feature are 0 or π.
ON_A_LINE = (4, 1, 3)
REDUCERS = [
    reducer("MeanReducer"),
    reducer("SumReducer"),
    reducer("AvgNonZeroReducer"),
    reducer("ThresholdReducer", low=0.7),
]
Vectors = Callable[[Draw, torch.Tensor, torch.Tensor], torch.Tensor]
"""From random vectors of the classes, and the classes of the embeddings, to the embeddings."""


def near(draw: Draw, vectors: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """As of a model that has learnt."""
    return vectors[classes] * 1.5 + draw.normal((len(classes), vectors.shape[1]), 0.05)


def opposite(draw: Draw, vectors: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Beyond π less the margin."""
    return -vectors[classes] + draw.normal((len(classes), vectors.shape[1]), 0.05)


def equal(_: Draw, vectors: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return vectors[classes].clone()


def long(draw: Draw, vectors: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return draw.normal((len(classes), vectors.shape[1]), 100.0)


def short(draw: Draw, vectors: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return draw.normal((len(classes), vectors.shape[1]), 1e-2)


class Module:
    """A loss of pytorch-metric-learning, with its parameter under `name`."""

    def __init__(self, suite: Suite, cls: str, name: str):
        self.suite, self.reference, self.name = suite, f"{LOSSES}.{cls}", name

    def add(
        self,
        tag: str,
        dtype: str,
        options: dict,
        size: tuple[int, int, int] = (7, 5, 4),
        vectors: Vectors | None = None,
        kind: torch.dtype = torch.int64,
        layout: str | None = None,
        labels: Callable[[Draw], torch.Tensor] | None = None,
        shape: Shape | None = None,
        named_pairs: str | None = None,
        **more: Any,
    ) -> None:
        rows, features, classes = size
        named = {"num_classes": classes, "embedding_size": features, **options}

        def make(draw: Draw) -> Call:
            of_classes = draw.normal((classes * options.get("sub_centers", self.sub_centers(classes)), features))
            found = draw.integers((rows,), classes)
            first = found * (len(of_classes) // classes)
            embeddings = vectors(draw, of_classes, first) if vectors else draw.normal((rows, features))
            embeddings = embeddings if shape is None else draw.normal(shape)
            found = labels(draw) if labels else found.to(kind)
            parameter = of_classes.t().contiguous() if self.name == "W" else of_classes
            arguments = [lay_out(layout, embeddings), found]
            kwargs = {"indices_tuple": tuple_of(draw, named_pairs, found)} if named_pairs else {}
            return Call(arguments, named, kwargs, grad=(0,), state={self.name: parameter})

        self.suite.add(self.reference, tag, dtype, make, **more)

    def sub_centers(self, _: int) -> int:
        return 3 if "SubCenter" in self.reference else 1

    def sweep(self, settings: list[dict], values: dict[str, Vectors]) -> None:
        few = [{}, settings[-1]]
        for dtype, options in product(DTYPES, [{}, *settings]):
            self.add("options", dtype, options, key=("options", dtype))
        for dtype, options, size in product(DTYPES, few, SIZES):
            self.add("shape", dtype, options, size)
        for dtype, options, (tag, vectors) in product(DTYPES, few, values.items()):
            self.add(tag, dtype, options, vectors=vectors)
        for dtype, options, layout in product(FULL, few, LAYOUTS):
            self.add("layout", dtype, options, layout=layout)
        for dtype, options, kind, size in product(DTYPES, few, ("pairs", "triplets"), ((12, 5, 4), (30, 12, 3))):
            self.add("tuples", dtype, options, size, named_pairs=kind, key=("tuples", kind))
        for dtype in DTYPES:
            self.add("ones", dtype, {}, ones=True)
        for dtype, wrong in product(FULL, ((6,), (7, 1), ())):
            self.add("reject", dtype, {}, labels=lambda draw, wrong=wrong: draw.integers(wrong, 4), expect="error")
        for dtype, shape in product(FULL, ((7,), (7, 5, 2), (7, 4))):
            self.add("reject", dtype, {}, shape=shape, expect="error")


def angles(suite: Suite) -> None:
    values = {"long": long, "short": short}
    saturated = {"near": near, "opposite": opposite}
    reducers = [{"scale": 4, "reducer": reducer} for reducer in REDUCERS]
    arc = [{"margin": 10}, {"margin": 0}, {"margin": 90, "scale": 2}, {"scale": 1}, *reducers]
    for cls, settings in (
        ("ArcFaceLoss", [*arc, {"margin": 45.0, "scale": 8.0}]),
        ("SubCenterArcFaceLoss", [*arc, {"sub_centers": 1}, {"sub_centers": 2, "margin": 45.0, "scale": 8.0}]),
        ("CosFaceLoss", [{"margin": 0.1}, {"margin": 0}, {"scale": 1}, *reducers, {"margin": 0.5, "scale": 8.0}]),
    ):
        module, rounded = Module(suite, cls, "W"), cls != "CosFaceLoss"
        module.sweep(settings, values)
        for dtype, options, (tag, vectors) in product(DTYPES, ({}, settings[-1]), saturated.items()):
            # In half precision the cosines are rounded to 1 and -1.
            tag = "better_saturated" if rounded and dtype in HALF else tag
            module.add(tag, dtype, options, vectors=vectors)
        for dtype in FULL:
            for outside in (4, -1):
                labels = lambda draw, outside=outside: torch.tensor([0, 1, outside, 2, 3, 0, 1])  # noqa: E731
                module.add("reject", dtype, {}, labels=labels, expect="error")
            module.add("better_integers", dtype, {}, kind=torch.int32, expect="error")
            module.add("better_empty", dtype, {}, (0, 5, 4))
            # In half precision nothing would tell which rounding is better: double precision is NaN, too.
            tag = "better_saturated" if rounded else "equal"
            module.add(tag, dtype, {"scale": 2}, vectors=equal, second_order=not rounded)
            module.add(tag, dtype, {}, ON_A_LINE, second_order=not rounded)


def proxies(suite: Suite) -> None:
    values = {"near": near, "opposite": opposite, "long": long, "short": short}
    reducers = [{"reducer": reducer} for reducer in REDUCERS]
    compared = [{"distance": other} for other in DISTANCES]
    anchor = Module(suite, "ProxyAnchorLoss", "proxies")
    few = [{"margin": 0.3}, {"alpha": 4}, {"margin": 0.0, "alpha": 1.0}]
    # Its mean over all classes is another one; see the differences of the loss.
    anchor.sweep([*few, *({**options, "alpha": 4} for options in [*reducers[1:], *compared]), few[-1]], values)
    nca = Module(suite, "ProxyNCALoss", "proxies")
    few = [{"softmax_scale": 3}, {"softmax_scale": 0.5}]
    nca.sweep([*few, *reducers, *compared, {"softmax_scale": 8, "distance": distance("CosineSimilarity")}], values)
    for dtype in FULL:
        labels = lambda draw: torch.tensor([0, 1, 4, 2, 3, 0, 1])  # noqa: E731
        anchor.add("reject", dtype, {}, labels=labels, expect="error")
        nca.add("better_classes", dtype, {}, labels=labels)
        for kind in (torch.int32, torch.uint8):
            nca.add("integers", dtype, {}, kind=kind)
            anchor.add("better_integers", dtype, {}, kind=kind, expect="error")
        anchor.add("empty", dtype, {}, (0, 5, 4))
        nca.add("better_empty", dtype, {}, (0, 5, 4), second_order=False)
        for module in (anchor, nca):
            module.add("line", dtype, {}, ON_A_LINE)
    for dtype in DTYPES:
        nca.add("equal", dtype, {}, vectors=equal, second_order=False)
        anchor.add("equal", dtype, {}, vectors=equal, second_order=False)


def add_all(suite: Suite) -> None:
    for add in (angles, proxies):
        add(suite)
