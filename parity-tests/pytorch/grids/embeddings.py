"""Metric losses over a batch of embeddings and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch

from cases import DTYPES, Call, Draw, Object, Shape, Suite
from grids.pairs import check

LOSSES = "pytorch_metric_learning.losses"
SHAPES: tuple[Shape, ...] = ((9, 5), (2, 3), (5, 1), (40, 8), (12, 3))
FULL = ("f64", "f32")


def distance(name: str, **options) -> Object:
    return Object(f"pytorch_metric_learning.distances.{name}", options)


def reducer(name: str, **options) -> Object:
    return Object(f"pytorch_metric_learning.reducers.{name}", options)


def miner(name: str, **options) -> Object:
    return Object(f"pytorch_metric_learning.miners.{name}", options)


DISTANCES = [
    distance("LpDistance"),
    distance("LpDistance", normalize_embeddings=False),
    distance("LpDistance", p=1),
    distance("LpDistance", power=2),
    distance("LpDistance", p=3, power=0.5, normalize_embeddings=False),
    distance("SNRDistance"),
    distance("SNRDistance", normalize_embeddings=False),
    distance("CosineSimilarity"),
    distance("CosineSimilarity", power=3),
    distance("DotProductSimilarity", normalize_embeddings=False),
    distance("DotProductSimilarity", p=1),
]
REDUCERS = [
    reducer("MeanReducer"),
    reducer("AvgNonZeroReducer"),
    reducer("SumReducer"),
    reducer("ThresholdReducer", low=0.3),
    reducer("ThresholdReducer", high=0.9),
    reducer("ThresholdReducer", low=0.2, high=1.1),
]


def labels(draw: Draw, count: int, classes: int = 3) -> torch.Tensor:
    """Each label about equally often, in no order."""
    return (torch.arange(count) % classes)[torch.randperm(count, generator=draw.generator)]


def batch(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape), labels(draw, shape[0])]


def pairs(draw: Draw, shape: Shape) -> list:
    """Two views of each sample."""
    return [draw.normal(shape), labels(draw, shape[0], max(shape[0] // 2, 1))]


def clusters(draw: Draw, shape: Shape) -> list:
    """As of a model that has learnt: the embeddings of a label are near to each other."""
    found = labels(draw, shape[0])
    return [draw.normal((3, shape[1]))[found] + draw.normal(shape, 0.02), found]


def singletons(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape), torch.arange(shape[0])]


def one_label(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape), torch.full((shape[0],), -3)]


def repeated(draw: Draw, shape: Shape) -> list:
    """Equal embeddings of equal labels and of different ones."""
    return [draw.normal(shape)[torch.arange(shape[0]) % 4], labels(draw, shape[0])]


def all_equal(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape)[:1].repeat(shape[0], 1), labels(draw, shape[0])]


def zero(draw: Draw, shape: Shape) -> list:
    """An embedding of length 0, whose direction is none."""
    embeddings, found = batch(draw, shape)
    embeddings[2] = 0
    return [embeddings, found]


def huge(draw: Draw, shape: Shape) -> list:
    embeddings, found = batch(draw, shape)
    return [embeddings * (3e3 if draw.dtype == torch.float16 else 1e25), found]


def tiny(draw: Draw, shape: Shape) -> list:
    embeddings, found = batch(draw, shape)
    return [embeddings * 1e-4, found]


def of_kind(kind: torch.dtype):
    def make(draw: Draw, shape: Shape) -> list:
        embeddings, found = batch(draw, shape)
        return [embeddings, found.to(kind)]

    return make


VALUES = {
    "pairs": pairs,
    "clusters": clusters,
    "singletons": singletons,
    "one_label": one_label,
    "repeated": repeated,
    "all_equal": all_equal,
    "huge": huge,
    "tiny": tiny,
    "uint8": of_kind(torch.uint8),
    "int16": of_kind(torch.int16),
}
REJECTS = [
    (lambda draw, _: [draw.normal((6, 3)), labels(draw, 5)], {}),
    (lambda draw, _: [draw.normal((6, 3)), labels(draw, 6).view(6, 1)], {}),
    (lambda draw, _: [draw.normal((6, 3)), labels(draw, 6).view(2, 3)], {}),
    (lambda draw, _: [draw.normal((6, 3)), torch.tensor(1)], {}),
    (lambda draw, _: [draw.normal((6, 3, 2)), labels(draw, 6)], {}),
    (lambda draw, _: [draw.normal((6,)), labels(draw, 6)], {}),
]


def loss(suite: Suite, name: str, settings: Sequence[dict], *, references: bool = True, cosine: bool = False) -> None:
    """A loss with its own options, with every distance and reducer, and with references."""
    reference = f"{LOSSES}.{name}"
    last = settings[-1]
    options = [{}, *settings, *({**last, "reducer": reducer} for reducer in REDUCERS)]
    if not cosine:
        options += [{**last, "distance": distance} for distance in DISTANCES]
    options.append(last)
    check(suite, reference, batch, SHAPES, options, VALUES, REJECTS, grad=(0,), reductions=(), empty=((1, 4),))
    unreduced(suite, {"loss": name}, settings)
    if cosine:
        of_distances = lambda draw: Call(batch(draw, (6, 3)), {"distance": DISTANCES[0]})  # noqa: E731
        suite.add(reference, "reject", "f32", of_distances, expect="error")
    else:
        roots(suite, reference, last)
    zero_lengths(suite, reference, last)
    if references:
        with_references(suite, reference, [{}, *settings, *([] if cosine else [{"distance": DISTANCES[5]}])])
    for dtype in FULL:
        suite.add(
            reference,
            "better_labels",
            dtype,
            lambda draw: Call([draw.normal((6, 3)), labels(draw, 6).to(draw.dtype)]),
        )


def roots(suite: Suite, reference: str, options: dict) -> None:
    """A root of a distance that is 0, that of an embedding to itself, has no gradient."""
    for dtype in FULL:
        of_roots = {**options, "distance": distance("SNRDistance", power=0.5)}
        suite.add(
            reference, "better_root", dtype, lambda draw: Call(batch(draw, (9, 5)), of_roots, grad=(0,)), second_order=False
        )


def zero_lengths(suite: Suite, reference: str, options: dict) -> None:
    """An embedding without a length; its gradient, over 1e-12, is out of the range of f16."""
    for dtype in DTYPES:
        suite.add(
            reference,
            "zero",
            dtype,
            lambda draw, dtype=dtype: Call(zero(draw, (9, 5)), options, grad=() if dtype == "f16" else (0,)),
        )


def unreduced(suite: Suite, named: dict, settings: Sequence[dict]) -> None:
    for dtype, options in product(DTYPES, settings):
        suite.add(
            "pml.unreduced",
            named["loss"],
            dtype,
            lambda draw, options=options: Call(batch(draw, (9, 5)), {**named, **options}, grad=(0,)),
            key=named["loss"],
        )


def with_references(suite: Suite, reference: str, settings: Sequence[dict], tag: str = "references") -> None:
    for dtype, options, (count, others) in product(DTYPES, settings, ((7, 10), (4, 30), (30, 40))):

        def call(draw: Draw, options: dict = options, count: int = count, others: int = others) -> Call:
            kwargs = {"ref_emb": draw.normal((others, 5)), "ref_labels": labels(draw, others)}
            return Call([draw.normal((count, 5)), labels(draw, count)], options, kwargs, [0, "ref_emb"])

        suite.add(reference, tag, dtype, call, key=(reference, "references"))


def triplets(suite: Suite) -> None:
    settings = [{"margin": 0.3, "swap": True}, {"margin": 0.3, "smooth_loss": True}]
    settings += [{"margin": -0.1}, {"swap": True, "smooth_loss": True}, {"margin": 0.4}]
    reference = f"{LOSSES}.TripletMarginLoss"
    options = [{}, *settings, *({"margin": 0.5, "reducer": reducer} for reducer in REDUCERS)]
    options += [{"margin": 0.5, "smooth_loss": True, "reducer": reducer} for reducer in REDUCERS]
    options += [{"margin": 0.2, "distance": distance} for distance in DISTANCES]
    options += settings[-1:]
    check(suite, reference, batch, SHAPES, options, VALUES, REJECTS, grad=(0,), reductions=(), empty=((1, 4),))
    with_references(suite, reference, [{}, {"margin": 0.3, "smooth_loss": True}, {"distance": DISTANCES[7]}])
    zero_lengths(suite, reference, settings[-1])
    for dtype in FULL:
        suite.add(reference, "better_swap", dtype, lambda draw: Call(*referring(draw, {"swap": True})))
    mined(suite)


def referring(draw: Draw, options: dict) -> tuple[list, dict, dict]:
    """A batch, options, and as many references."""
    return batch(draw, (7, 5)), options, {"ref_emb": draw.normal((7, 5)), "ref_labels": labels(draw, 7)}


def mined(suite: Suite) -> None:
    """The loss behind a miner of the same margin and distance."""
    options = [{}, {"swap": True}, {"smooth_loss": True}, *({"reducer": reducer} for reducer in REDUCERS)]
    miners = (("BatchHardMiner", None), ("TripletMarginMiner", "semihard"), ("TripletMarginMiner", "hard"))
    compared = [DISTANCES[0], DISTANCES[1], DISTANCES[7]]
    for chosen, (name, triplets), distance in product(options, miners, compared):
        of_miner = {"margin": 0.3, "type_of_triplets": triplets} if triplets else {}
        of_miner["distance"] = distance
        settings = {**chosen, "margin": 0.3, "distance": distance, "miner": miner(name, **of_miner)}
        mined_cases(suite, triplets or "batch_hard", settings)
    hardest = {"loss": "TripletMarginLoss", "miner": miner("BatchHardMiner")}
    unreduced(suite, hardest, [{}, {"margin": 0.6, "swap": True}])


def mined_cases(suite: Suite, tag: str, settings: dict) -> None:
    cases = [(dtype, shape, batch) for dtype, shape in product(DTYPES, ((9, 5), (40, 8)))]
    if "reducer" not in settings:
        values = [clusters, singletons, one_label]
        # The distances of equal embeddings are equal; their cosines only nearly, and rounding picks the triplets.
        values += [repeated] if settings["distance"] is not DISTANCES[7] else []
        cases += [(dtype, (9, 5), make) for dtype, make in product(FULL, values)]
    for dtype, shape, make in cases:

        def call(draw: Draw, shape: Shape = shape, make: Callable = make) -> Call:
            return Call(make(draw, shape), settings, grad=(0,))

        suite.add("pml.mined_triplet_margin_loss", tag, dtype, call)


def add_all(suite: Suite) -> None:
    margins = [{"pos_margin": 0.2, "neg_margin": 1.2}]
    loss(suite, "ContrastiveLoss", margins)
    loss(suite, "NTXentLoss", [{"temperature": 0.5}, {"temperature": 1.0}])
    loss(suite, "SupConLoss", [{"temperature": 0.5}, {"temperature": 1.0}])
    loss(suite, "MultiSimilarityLoss", [{"alpha": 1.5, "beta": 10.0}, {"base": 0.1, "beta": 3.0}])
    loss(suite, "CircleLoss", [{"m": 0.25, "gamma": 8.0}, {"gamma": 2.0}], cosine=True)
    loss(suite, "NPairsLoss", [{}], references=False)
    loss(suite, "LiftedStructureLoss", margins, references=False)
    loss(suite, "GeneralizedLiftedStructureLoss", margins)
    triplets(suite)
    for dtype, (name, expect) in product(FULL, (("NPairsLoss", "error"), ("LiftedStructureLoss", "ok"))):
        suite.add(
            f"{LOSSES}.{name}",
            "better_references",
            dtype,
            lambda draw: Call(*referring(draw, {})),
            expect=expect,
        )
