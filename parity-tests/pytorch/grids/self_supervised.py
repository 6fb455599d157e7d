"""Losses of two views, DINO's of several, and those of images and texts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch

from cases import DTYPES, LAYOUTS, Call, Draw, Shape, Suite, lay_out
from grids import REDUCTIONS
from grids.pairs import check

FULL = ("f64", "f32")
ROWS: tuple[Shape, ...] = ((6, 5), (2, 3), (17, 1), (40, 9), (5, 12))


def views(draw: Draw, shape: Shape) -> list:
    """Two views of the same samples."""
    view = draw.normal(shape)
    return [view, view + draw.normal(shape, 0.4)]


def unrelated(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape), draw.normal(shape)]


def equal(draw: Draw, shape: Shape) -> list:
    view = draw.normal(shape)
    return [view, view.clone()]


def large(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 30.0), draw.normal(shape, 30.0)]


def small(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 1e-3), draw.normal(shape, 1e-3)]


def shifted(draw: Draw, shape: Shape) -> list:
    """Features whose mean is far larger than their deviation."""
    return [draw.normal(shape) + 30.0, draw.normal(shape) - 30.0]


def collapsed(draw: Draw, shape: Shape) -> list:
    """All samples of a view are the same."""
    return [draw.normal(shape)[:1].repeat(shape[0], *[1] * (len(shape) - 1)), draw.normal(shape)]


def zeros(draw: Draw, shape: Shape) -> list:
    left, right = views(draw, shape)
    left[0] = 0
    return [left, right]


VALUES = {
    "unrelated": unrelated,
    "equal": equal,
    "large": large,
    "small": small,
    "shifted": shifted,
    "collapsed": collapsed,
}


def of(*shapes: Shape) -> tuple[Callable, dict]:
    return (lambda draw, _: [draw.normal(shape) for shape in shapes]), {}


def losses_of_views(suite: Suite) -> None:
    wide: tuple[Shape, ...] = ((6, 5), (2, 3), (17, 1), (4, 3, 5), (3, 2, 2, 6), (40, 9))
    check(
        suite,
        "lightly.loss.BarlowTwinsLoss",
        views,
        ROWS,
        [{}, {"lambda_param": 0.0}, {"lambda_param": 1.5}],
        VALUES,
        [of((1, 5), (1, 5)), of((5,), (5,)), of((4, 3, 5), (4, 3, 5)), of((6, 5), (4, 5))],
        reductions=(),
    )
    check(
        suite,
        "lightly.loss.VICRegLoss",
        views,
        wide,
        [
            {},
            {"lambda_param": 0.0},
            {"mu_param": 0.0},
            {"nu_param": 0.0},
            {"eps": 1e-2},
            {"lambda_param": 1.5, "mu_param": 0.5, "nu_param": 2.0, "eps": 1e-3},
        ],
        VALUES,
        [of((1, 5), (1, 5)), of((0, 5), (0, 5)), of((5,), (5,)), of((6, 5), (4, 5)), of((6, 5), (1, 5))],
        reductions=(),
    )
    check(
        suite,
        "lightly.loss.NegativeCosineSimilarity",
        views,
        ((6, 5), (1, 3), (17, 1), (2, 3, 4), (40, 9)),
        [{}, {"dim": 0}, {"dim": -1}, {"eps": 0.5}],
        VALUES,
        [of((5,), (5,)), of((6, 5), (4, 5)), of((6, 5), (6, 4))],
        reductions=(),
        empty=((0, 5), (6, 0)),
    )
    for dtype in DTYPES:
        of_zeros = lambda draw: Call(zeros(draw, (6, 5)), grad=(0, 1))  # noqa: E731
        suite.add("lightly.loss.NegativeCosineSimilarity", "better_zeros", dtype, of_zeros)
    for dtype in FULL:
        empty = Call([torch.zeros(0, 5, dtype=DTYPES[dtype])] * 2)
        suite.add("lightly.loss.BarlowTwinsLoss", "better_empty", dtype, lambda draw, call=empty: call)
        suite.add(
            "lightly.loss.VICRegLoss",
            "better_eps",
            dtype,
            lambda draw: Call(views(draw, (6, 5)), {"eps": 0.0}),
        )


def dino(suite: Suite) -> None:
    def add(
        tag: str,
        dtype: str,
        options: dict,
        crops: tuple[int, int] = (2, 5),
        batch: int = 3,
        features: int = 7,
        scale: float = 1.0,
        layout: str | None = None,
        **more: Any,
    ) -> None:
        def make(draw: Draw) -> Call:
            teacher, student = (draw.normal((count, batch, features), scale) for count in crops)
            center = draw.normal((1, 1, features), 0.3)
            return Call([lay_out(layout, teacher), lay_out(layout, student), center], options, grad=(0, 1))

        suite.add("dino.loss_and_center", tag, dtype, make, **more)

    settings: list[dict] = [
        {},
        {"teacher_temp": 0.07},
        {"student_temp": 0.5},
        {"center_momentum": 0.0},
        {"center_momentum": 0.996, "student_temp": 1.0, "teacher_temp": 1.0},
        {"call_temp": 0.25},
        {"epoch": 0, "warmup_teacher_temp": 0.125},
        {"epoch": 30, "warmup_teacher_temp": 0.125},
        # Binary fractions, because the steps of the warm-up are computed in single precision there.
        *(
            {
                "epoch": epoch,
                "warmup_teacher_temp": 0.25,
                "teacher_temp": 0.5,
                "warmup_teacher_temp_epochs": 5,
            }
            for epoch in (1, 3, 4, 5)
        ),
    ]
    for dtype, options in product(DTYPES, settings):
        add("options", dtype, options, key=("options", dtype))
    for dtype in DTYPES:
        for crops, batch, features in (
            ((1, 2), 3, 7),
            ((2, 1), 3, 7),
            ((2, 2), 1, 1),
            ((3, 3), 2, 33),
            ((2, 10), 9, 64),
        ):
            add("shape", dtype, {}, crops=crops, batch=batch, features=features)
        add("extreme", dtype, {}, scale=30.0)
        add("ones", dtype, {}, ones=True)
    for dtype, layout in product(FULL, LAYOUTS):
        add("layout", dtype, {"teacher_temp": 0.5}, layout=layout)
    for dtype in FULL:
        add("reject", dtype, {}, crops=(1, 1), expect="error")
        add("reject", dtype, {}, crops=(0, 2), expect="error")
        add("reject", dtype, {}, crops=(2, 0), expect="error")


def images_and_texts(suite: Suite) -> None:
    """As tensors with a gradient, scale and bias are arguments; as numbers they are options."""
    learnt = {
        "papers.contrastive.clip_loss": ("logit_scale",),
        "papers.contrastive.siglip_loss": ("logit_scale", "logit_bias"),
    }
    values = {"logit_scale": 14.3, "logit_bias": -8.0}

    def add(
        reference: str,
        tag: str,
        dtype: str,
        options: dict,
        shape: Shape = (6, 5),
        pair: Callable = views,
        fixed: bool = False,
        layout: str | None = None,
        **more: Any,
    ) -> None:
        names = learnt[reference]

        def make(draw: Draw) -> Call:
            args = [lay_out(layout, view) for view in pair(draw, shape)]
            numbers = {name: options.get(name, values[name]) for name in names}
            others = {name: value for name, value in options.items() if name not in names}
            if fixed:
                return Call(args, {**numbers, **others}, grad=(0, 1))
            tensors = {name: torch.tensor(number, dtype=draw.dtype) for name, number in numbers.items()}
            return Call(args, others, tensors, grad=(0, 1, *names))

        suite.add(reference, tag, dtype, make, **more)

    for reference in learnt:
        clip = reference.endswith("clip_loss")
        settings: list[dict] = [{}, {"normalize": False, "logit_scale": 1.5}, {"logit_scale": 1.0}]
        settings += [{"label_smoothing": 0.1}] if clip else [{"logit_bias": 0.0}, {"logit_bias": 2.5}]
        for dtype, reduction, options, fixed in product(DTYPES, REDUCTIONS, settings, (False, True)):
            key = (reference, "options", reduction if dtype == "f32" else dtype)
            add(reference, "options", dtype, {**options, "reduction": reduction}, fixed=fixed, key=key)
        for dtype, shape, reduction in product(DTYPES, ((1, 3), (2, 1), (17, 4), (33, 40)), ("mean", "none")):
            add(reference, "shape", dtype, {"reduction": reduction}, shape)
        tags = {**VALUES, "zeros": zeros}
        # Where gradients cancel or logits are large, single precision has too few digits left to compare.
        for (tag, pair), fixed in product(tags.items(), (False, True)):
            # The gradient of a norm of 0 has no derivative.
            add(reference, tag, "f64", {}, pair=pair, fixed=fixed, second_order=tag != "zeros")
        for dtype, layout, reduction in product(FULL, LAYOUTS, ("mean", "none")):
            add(reference, "layout", dtype, {"reduction": reduction}, layout=layout)
        for scale in (100.0, 1e4):
            add(reference, "extreme", "f64", {"logit_scale": scale, "reduction": "none"}, pair=unrelated)
        for dtype in DTYPES:
            add(reference, "ones", dtype, {}, ones=True)
            for reduction in REDUCTIONS:
                add(reference, "empty", dtype, {"reduction": reduction}, (0, 5))
        for dtype in FULL:
            for shapes in (((6, 5), (4, 5)), ((6, 5), (6, 4)), ((5,), (5,)), ((2, 3, 4), (2, 3, 4))):
                pair, _ = of(*shapes)
                add(reference, "reject", dtype, {}, pair=pair, expect="error")
            add(reference, "reject", dtype, {"reduction": "average"}, expect="error")


def open_clip(suite: Suite) -> None:
    """open_clip's own modules, which have the mean alone, of embeddings that have norm 1 already."""
    learnt = {
        "open_clip.loss.ClipLoss": {"logit_scale": 14.3},
        "open_clip.loss.SigLipLoss": {"logit_scale": 10.0, "logit_bias": -8.0},
    }

    def unit(draw: Draw, shape: Shape) -> list:
        return [torch.nn.functional.normalize(view, dim=-1) for view in views(draw, shape)]

    def add(
        reference: str, tag: str, dtype: str, pair: Callable = unit, shape: Shape = (6, 5), scale: float = 1.0, **more
    ) -> None:
        def make(draw: Draw) -> Call:
            numbers = {name: scale * value for name, value in learnt[reference].items()}
            tensors = {name: torch.tensor(number, dtype=draw.dtype) for name, number in numbers.items()}
            return Call([lay_out(more.get("layout"), view) for view in pair(draw, shape)], {}, tensors, (0, 1, *tensors))

        suite.add(reference, tag, dtype, make, **more)

    for reference, dtype in product(learnt, FULL):
        for shape in ((6, 5), (1, 3), (2, 1), (17, 4), (33, 40)):
            add(reference, "shape", dtype, shape=shape)
        for scale in (0.0, 0.1, 7.0):
            add(reference, "options", dtype, scale=scale)
        for layout in LAYOUTS:
            add(reference, "layout", dtype, layout=layout)
        add(reference, "ones", dtype, ones=True)
        for shapes in (((6, 5), (6, 4)), ((2, 3, 4), (2, 3, 4))):
            pair, _ = of(*shapes)
            add(reference, "reject", dtype, pair=pair, expect="error")


def add_all(suite: Suite) -> None:
    for add in (losses_of_views, dino, images_and_texts, open_clip):
        add(suite)
