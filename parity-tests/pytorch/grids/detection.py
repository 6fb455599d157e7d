"""Losses of boxes and of their scores."""

from __future__ import annotations

import torch

from cases import Draw, Shape, Suite
from grids.pairs import check

SHAPES: tuple[Shape, ...] = ((6, 4), (4,), (1, 4), (37, 4), (2, 3, 4), (2, 3, 2, 4))
SCORES: tuple[Shape, ...] = ((6, 5), (7,), (), (37,), (2, 3, 5), (1, 1))
BINS: tuple[Shape, ...] = ((6, 5), (2,), (1, 17), (37, 8), (2, 4, 9), (3, 2, 2, 3))


def boxes(draw: Draw, shape: Shape, spread: float = 1.0, size: float = 1.0) -> torch.Tensor:
    """Boxes with an area."""
    corner = draw.normal((*shape[:-1], 2), spread)
    extent = draw.uniform((*shape[:-1], 2), 0.2 * size, 2.0 * size)
    return torch.cat((corner, corner + extent), -1)


def pair(draw: Draw, shape: Shape) -> list:
    return [boxes(draw, shape), boxes(draw, shape)]


def near(draw: Draw, shape: Shape) -> list:
    """As of a model that has learnt: a few hundredths apart."""
    target = boxes(draw, shape)
    return [target + draw.normal(shape, 0.03), target]


def pixels(draw: Draw, shape: Shape) -> list:
    target = boxes(draw, shape, 50.0, 100.0) + 300
    return [target + draw.normal(shape, 20.0), target]


def relative(draw: Draw, shape: Shape) -> list:
    """As shares of a large image: small boxes, whose areas come near to ε."""
    return [boxes(draw, shape, 0.01, 0.02), boxes(draw, shape, 0.01, 0.02)]


def equal(draw: Draw, shape: Shape) -> list:
    target = boxes(draw, shape)
    return [target.clone(), target]


def far(draw: Draw, shape: Shape) -> list:
    return [boxes(draw, shape, 1.0, 1e3) - 1e4, boxes(draw, shape, 1.0, 1e3) + 1e4]


def touching(draw: Draw, shape: Shape) -> list:
    """Boxes of whole numbers: nested, with common sides and corners."""
    corners = [draw.integers((*shape[:-1], 2), 3).to(draw.dtype) for _ in range(2)]
    return [
        torch.cat((corner, corner + draw.integers(tuple(corner.shape), 4, 1).to(draw.dtype)), -1)
        for corner in corners
    ]


def inverted(draw: Draw, shape: Shape) -> list:
    """Boxes of a model that does not know yet which corner comes first; the target is larger than they are."""
    flipped = boxes(draw, shape, 0.3, 0.5)[..., [2, 1, 0, 3]]
    return [flipped, boxes(draw, shape, 0.3, 3.0) + torch.tensor([-1, -1, 1, 1], dtype=draw.dtype)]


def flat(draw: Draw, shape: Shape) -> list:
    """Boxes without a width."""
    left, right = pair(draw, shape)
    left[..., 2] = left[..., 0]
    return [left, right]


def degenerate(draw: Draw, shape: Shape) -> list:
    """Boxes without a height, and single points, equal ones among them."""
    left, right = pair(draw, shape)
    left[..., 3] = left[..., 1]
    left[::2, 2] = left[::2, 0]
    right[1::3] = left[1::3]
    return [left, right]


BOX_VALUES = {
    "near": near,
    "pixels": pixels,
    "relative": relative,
    "equal": equal,
    "far": far,
    "touching": touching,
    "inverted": inverted,
    "flat": flat,
    "degenerate": degenerate,
}


def box_losses(suite: Suite) -> None:
    rejects = [
        (lambda draw, _: [draw.normal((6, 3)), draw.normal((6, 3))], {}),
        (lambda draw, _: [draw.normal((6, 5)), draw.normal((6, 5))], {}),
        (lambda draw, _: [draw.normal(()), draw.normal(())], {}),
        (lambda draw, _: [draw.normal((6, 4)), draw.normal((5, 4))], {}),
        (pair, {"reduction": "average"}),
    ]
    for name in ("generalized", "distance", "complete"):
        check(
            suite,
            f"torchvision.ops.{name}_box_iou_loss",
            pair,
            SHAPES,
            [{}, {"eps": 1e-3}, {"eps": 0.0}, {"eps": 0.5}],
            BOX_VALUES,
            rejects,
            empty=((0, 4), (2, 0, 4)),
        )


def qualities(draw: Draw, shape: Shape) -> list:
    """Logits, and qualities of which half are 0, as beside the class that a box holds."""
    target = draw.uniform(shape, 0.05, 1.0) * draw.integers(shape, 2)
    return [draw.normal(shape, 2.0), target]


def labels(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 2.0), draw.integers(shape, 2).to(draw.dtype)]


def saturated(draw: Draw, shape: Shape) -> list:
    return [draw.signs(shape) * draw.uniform(shape, 20.0, 200.0), qualities(draw, shape)[1]]


def huge(draw: Draw, shape: Shape) -> list:
    return [draw.signs(shape) * 1e4, labels(draw, shape)[1]]


def mismatched(draw: Draw, _: Shape) -> list:
    return [draw.normal((6, 5)), draw.uniform((6, 4))]


def score_losses(suite: Suite) -> None:
    settings = {
        "quality_focal_loss": [{}, {"beta": 0.0}, {"beta": 0.5}, {"beta": 1.0}, {"beta": 1.7}, {"beta": 3.0}],
        "varifocal_loss": [{}, {"alpha": 0.25}, {"gamma": 0.0}, {"gamma": 0.5}, {"alpha": 1.0, "gamma": 1.5}],
    }
    for name, options in settings.items():
        check(
            suite,
            f"papers.{name}",
            qualities,
            SCORES,
            options,
            {"labels": labels, "saturated": saturated, "huge": huge},
            [(mismatched, {}), (qualities, {"reduction": "average"})],
            empty=((0, 5),),
        )


def positions(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 2.0), draw.uniform(shape[:-1], 0.0, shape[-1] - 1.0)]


def whole(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 2.0), draw.integers(shape[:-1], shape[-1]).to(draw.dtype)]


def huge_bins(draw: Draw, shape: Shape) -> list:
    return [draw.signs(shape) * 1e4, positions(draw, shape)[1]]


def distribution_focal(suite: Suite) -> None:
    outside = [(lambda draw, _, by=by: [draw.normal((6, 5)), draw.uniform((6,)) + by], {}) for by in (4.1, -1.1)]
    check(
        suite,
        "papers.distribution_focal_loss",
        positions,
        BINS,
        [{}],
        {"whole": whole, "huge": huge_bins},
        [*outside, (lambda draw, _: [draw.normal((6, 5)), draw.uniform((5,))], {})],
        empty=((0, 5),),
    )


def add_all(suite: Suite) -> None:
    for add in (box_losses, score_losses, distribution_focal):
        add(suite)
