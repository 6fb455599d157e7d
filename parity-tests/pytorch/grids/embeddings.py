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
    """An embedding without a length; its gradient is over 1e-12 there."""
    for dtype in DTYPES:
        suite.add(reference, "zero", dtype, lambda draw: Call(zero(draw, (9, 5)), options))
    for dtype in FULL:
        of_zero = lambda draw: Call(zero(draw, (9, 5)), options, grad=(0,))  # noqa: E731
        suite.add(reference, "better_zero", dtype, of_zero, second_order=False)


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


def tuple_of(draw: Draw, kind: str, own: torch.Tensor, others: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Some pairs or triplets of labels, in no order, a few of them twice; among themselves, or of others."""
    columns = own if others is None else others
    same = own[:, None] == columns[None]
    apart = torch.ones_like(same) if others is not None else ~torch.eye(len(own), dtype=torch.bool)
    some = lambda shape: torch.rand(shape, generator=draw.generator) < 0.4  # noqa: E731
    twice = lambda count: torch.cat([torch.randperm(count, generator=draw.generator), torch.arange(min(count, 3))])  # noqa: E731
    if kind == "pairs":
        lists = [torch.nonzero(mask & some(mask.shape), as_tuple=True) for mask in (same & apart, ~same)]
        return tuple(index[order] for pair in lists for order in [twice(len(pair[0]))] for index in pair)
    mined = (same & apart)[:, :, None] & ~same[:, None, :]
    triplets = torch.nonzero(mined & some(mined.shape), as_tuple=True)
    order = twice(len(triplets[0]))
    return tuple(index[order] for index in triplets)


def with_tuples(suite: Suite, name: str, settings: Sequence[dict], *, references: bool = True, labelled: bool = False) -> None:
    """Pairs and triplets by hand, with and without labels, among a batch and with a memory of others."""
    reference = f"{LOSSES}.{name}"
    sizes = ((8, 0), (5, 9), (12, 6)) if references else ((8, 0), (14, 0))
    for dtype, options, kind, (count, others) in product(DTYPES, settings, ("pairs", "triplets"), sizes):

        def call(
            draw: Draw, options: dict = options, kind: str = kind, count: int = count, others: int = others
        ) -> Call:
            found = labels(draw, count)
            memory = labels(draw, others) if others else None
            kwargs = {"indices_tuple": tuple_of(draw, kind, found, memory)}
            grad: list = [0]
            if others:
                kwargs["ref_emb"] = draw.normal((others, 5))
                grad.append("ref_emb")
            args = [draw.normal((count, 5))]
            # Labels beside a tuple are not looked at, but by N-pairs.
            if labelled or (kind == "pairs" and not others):
                args.append(found)
            return Call(args, options, kwargs, grad)

        suite.add(reference, "tuples", dtype, call, key=(reference, "tuples", kind))
    for dtype in FULL:
        nothing = torch.zeros(0, dtype=torch.int64)
        for empty in ((nothing,) * 3, (nothing,) * 4):
            of_nothing = lambda draw, empty=empty: Call(batch(draw, (6, 3)), {}, {"indices_tuple": empty}, [0])  # noqa: E731
            suite.add(reference, "tuples_empty", dtype, of_nothing)
        outside = (torch.tensor([0, 1, 6]),) * 3
        of_outside = lambda draw: Call(batch(draw, (6, 3)), {}, {"indices_tuple": outside})  # noqa: B023,E731
        suite.add(reference, "reject", dtype, of_outside, expect="error")


def per_anchor(suite: Suite, name: str, options: dict) -> None:
    for dtype, inner in product(DTYPES, (None, REDUCERS[1], REDUCERS[2], REDUCERS[5])):
        of_anchors = reducer("PerAnchorReducer", **({} if inner is None else {"reducer": inner}))
        chosen = {**options, "reducer": of_anchors}
        for shape, make in (((9, 5), batch), ((7, 4), clusters), ((6, 3), singletons)):
            of_batch = lambda draw, shape=shape, make=make: Call(make(draw, shape), chosen, grad=(0,))  # noqa: B023,E731
            suite.add(f"{LOSSES}.{name}", "per_anchor", dtype, of_batch, key=(name, "per_anchor"))


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
    loss(suite, "NCALoss", [{"softmax_scale": 0.5}, {"softmax_scale": 4.0}])
    loss(suite, "MultiSimilarityLoss", [{"alpha": 1.5, "beta": 10.0}, {"base": 0.1, "beta": 3.0}])
    loss(suite, "CircleLoss", [{"m": 0.25, "gamma": 8.0}, {"gamma": 2.0}], cosine=True)
    loss(suite, "NPairsLoss", [{}], references=False)
    loss(suite, "LiftedStructureLoss", margins)
    loss(suite, "GeneralizedLiftedStructureLoss", margins)
    triplets(suite)
    for name, options in (
        ("ContrastiveLoss", [*margins, {"distance": DISTANCES[7], "pos_margin": 1, "neg_margin": 0}]),
        ("NTXentLoss", [{"temperature": 0.5}, {"distance": DISTANCES[1]}]),
        ("SupConLoss", [{"temperature": 0.5}, {"distance": DISTANCES[0]}]),
        ("MultiSimilarityLoss", [{"base": 0.1, "beta": 3.0}]),
        ("CircleLoss", [{"gamma": 2.0}]),
        ("LiftedStructureLoss", [{}, *margins]),
        ("GeneralizedLiftedStructureLoss", [{}, *margins]),
        ("TripletMarginLoss", [{"margin": 0.4}, {"margin": 0.4, "smooth_loss": True, "reducer": REDUCERS[0]}]),
    ):
        with_tuples(suite, name, options)
        # The reducer knows no triplets, and does not take the losses of lifted structures, which have a dimension more.
        if name not in ("TripletMarginLoss", "LiftedStructureLoss"):
            per_anchor(suite, name, options[0])
    with_tuples(suite, "TripletMarginLoss", [{"margin": 0.4, "swap": True}], references=False)
    with_tuples(suite, "NPairsLoss", [{}], references=False, labelled=True)
    for dtype in FULL:
        suite.add(
            f"{LOSSES}.NPairsLoss", "reject", dtype, lambda draw: Call(*referring(draw, {})), expect="error"
        )
