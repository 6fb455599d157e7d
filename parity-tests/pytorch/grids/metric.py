"""Hinge embedding, cosine embedding, margin ranking and the triplet margins."""

from __future__ import annotations

from itertools import product

from cases import Call, Draw, Object, Shape, Suite
from grids import REDUCTIONS, Loss, sweep
from grids.regression import EMPTY, SHAPES, mismatched

VECTORS: tuple[Shape, ...] = ((5, 7), (7,), (1, 3), (3, 1), (4, 33), (6, 5))
LAYOUTS = ("transposed", "expanded", "offset", "stepped")


def hinge_embedding(suite: Suite) -> None:
    def make(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.away(0.0, draw.normal(shape, 1.5), (0.5, 1, 2)), draw.signs(shape)]

    def neither(draw: Draw, shape: Shape, _: dict) -> list:
        return [make(draw, shape, {})[0], draw.choose(shape, (-1.0, 1.0, 0.0, 2.0))]

    def ties(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.choose(shape, (0.0, 1.0, 0.5)), draw.signs(shape)]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 1e4), draw.signs(shape)]

    sweep(
        suite,
        Loss(
            "HingeEmbeddingLoss",
            "hinge_embedding_loss",
            make,
            SHAPES,
            grad=(0,),
            empty=EMPTY,
            options=[{}, {"margin": 0.5}, {"margin": 2.0}],
            rejects=[(mismatched, {})],
            legacy=True,
            values={"extreme": extreme, "neither": neither, "ties": ties},
        ),
    )


def cosine_embedding(suite: Suite) -> None:
    def labels(shape: Shape) -> Shape:
        return shape[:-1]

    def make(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape), draw.normal(shape), draw.signs(labels(shape))]

    def zeros(draw: Draw, shape: Shape, _: dict) -> list:
        left, right, target = make(draw, shape, {})
        left[0] = 0
        return [left, right, target]

    def neither(draw: Draw, shape: Shape, _: dict) -> list:
        return [*make(draw, shape, {})[:2], draw.choose(labels(shape), (-1.0, 1.0, 0.0))]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 100.0), draw.normal(shape, 1e-3), draw.signs(labels(shape))]

    rejects = [
        (lambda draw: [draw.normal((3, 5)), draw.normal((3, 4)), draw.signs((3,))], {}),
        (lambda draw: [draw.normal((3, 5)), draw.normal((3, 5)), draw.signs((2,))], {}),
        (lambda draw: [draw.normal((3, 5)), draw.normal((3, 5)), draw.signs((3, 1))], {}),
        (lambda draw: [draw.normal((3, 5)), draw.normal((3, 5)), draw.signs(())], {}),
        (lambda draw: [draw.normal((5,)), draw.normal((5,)), draw.signs((1,))], {}),
    ]
    sweep(
        suite,
        Loss(
            "CosineEmbeddingLoss",
            "cosine_embedding_loss",
            make,
            VECTORS,
            grad=(0, 1),
            layouts=LAYOUTS,
            options=[{}, {"margin": 0.3}, {"margin": -0.4}],
            rejects=rejects,
            values={"extreme": extreme, "neither": neither, "zeros": zeros},
        ),
    )


def margin_ranking(suite: Suite) -> None:
    def make(draw: Draw, shape: Shape, _: dict) -> list:
        left = draw.spaced(shape)
        return [left, draw.away(left, draw.spaced(shape), (0, 0.5, 2)), draw.signs(shape)]

    def ties(draw: Draw, shape: Shape, _: dict) -> list:
        left = draw.integers(shape, 3).to(draw.dtype)
        return [left, left + draw.choose(shape, (0.0, 0.5, -0.5)), draw.signs(shape)]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 1e4), draw.normal(shape, 1e4), draw.signs(shape)]

    rejects = [
        (lambda draw: [*mismatched(draw), draw.signs((3, 4))], {}),
        (lambda draw: [draw.normal((3, 4)), draw.normal((3, 4)), draw.signs((3,))], {}),
        (lambda draw: [draw.normal((3, 4)), draw.normal((4,)), draw.signs((3, 4))], {}),
    ]
    sweep(
        suite,
        Loss(
            "MarginRankingLoss",
            "margin_ranking_loss",
            make,
            SHAPES,
            grad=(0, 1, 2),
            empty=EMPTY,
            options=[{}, {"margin": 0.5}, {"margin": 2.0}],
            rejects=rejects,
            values={"extreme": extreme, "ties": ties},
        ),
    )


def triplet(draw: Draw, shape: Shape, _: dict) -> list:
    anchor = draw.normal(shape)
    return [anchor, *(draw.away(anchor, draw.normal(shape), (0,)) for _ in range(2))]


def far_triplet(draw: Draw, shape: Shape, _: dict) -> list:
    return [draw.normal(shape, 100.0) for _ in range(3)]


def equal_triplet(draw: Draw, shape: Shape, _: dict) -> list:
    """The positive is the anchor: only the epsilon is left in the norm."""
    anchor = draw.normal(shape)
    return [anchor, anchor.clone(), draw.normal(shape)]


TRIPLET_VALUES = {"extreme": far_triplet, "ties": equal_triplet}
TRIPLET_REJECTS = [
    (lambda draw: triplet(draw, (3, 4), {}), {"margin": 0.0}),
    (lambda draw: triplet(draw, (3, 4), {}), {"margin": -1.0}),
    (lambda draw: [draw.normal((3, 4)), draw.normal((3, 4)), draw.normal((3, 5))], {}),
    (lambda draw: [draw.normal((3, 4)), draw.normal((3, 4)), draw.normal((4,))], {}),
]


def triplet_margin(suite: Suite) -> None:
    sweep(
        suite,
        Loss(
            "TripletMarginLoss",
            "triplet_margin_loss",
            triplet,
            VECTORS,
            grad=(0, 1, 2),
            layouts=LAYOUTS,
            options=[
                {},
                {"margin": 0.5},
                {"p": 1.0},
                {"p": 3.0},
                {"eps": 1e-2},
                {"swap": True},
                {"margin": 2.0, "p": 1.5, "swap": True},
            ],
            values=TRIPLET_VALUES,
            rejects=TRIPLET_REJECTS,
            legacy=True,
        ),
    )


def triplet_margin_with_distance(suite: Suite) -> None:
    """Distance functions cross as objects: modules with options and plain functions."""
    manhattan = {"distance_function": Object("torch.nn.PairwiseDistance", {"p": 1.0})}
    loss = Loss(
        "TripletMarginWithDistanceLoss",
        "triplet_margin_with_distance_loss",
        triplet,
        VECTORS,
        grad=(0, 1, 2),
        layouts=LAYOUTS,
        values=TRIPLET_VALUES,
        rejects=TRIPLET_REJECTS,
        options=[
            {},
            {"margin": 0.5},
            {"swap": True},
            manhattan,
            {"distance_function": Object("torch.nn.PairwiseDistance", {"p": 2.0, "eps": 1e-3})},
            {"distance_function": Object("torch.nn.CosineSimilarity", {})},
            {"distance_function": Object("torch.nn.functional.pairwise_distance")},
            {
                "distance_function": Object("torch.nn.functional.cosine_similarity"),
                "swap": True,
                "margin": 0.5,
            },
            {**manhattan, "swap": True},
        ],
    )
    sweep(suite, loss)
    keepdim = Object("torch.nn.PairwiseDistance", {"keepdim": True})
    for (reference, _, _), reduction in product(loss.references(), REDUCTIONS):

        def make(draw: Draw) -> Call:
            options = {"distance_function": keepdim, "reduction": reduction}
            return Call(triplet(draw, (5, 7), {}), options, grad=(0, 1, 2))

        suite.add(reference, "keepdim", "f32", make)


def add_all(suite: Suite) -> None:
    for add in (
        hinge_embedding,
        cosine_embedding,
        margin_ranking,
        triplet_margin,
        triplet_margin_with_distance,
    ):
        add(suite)
