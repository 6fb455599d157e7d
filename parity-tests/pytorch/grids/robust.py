"""Robust losses of regression: log-cosh, quantile, Charbonnier, Cauchy, Geman-McClure, Welsch; MSLE and MAPE."""

from __future__ import annotations

import torch

from cases import Draw, Shape, Suite
from grids.pairs import Pair, check

SHAPES: tuple[Shape, ...] = ((5, 7), (1,), (7,), (33,), (2, 3, 4), (3, 4, 6))
EMPTY: tuple[Shape, ...] = ((0, 5),)
REJECTS: list[tuple[Pair, dict]] = [
    (lambda draw, _: [draw.normal((6, 5)), draw.normal((6, 4))], {}),
    (lambda draw, _: [draw.normal((6, 5)), draw.normal((6, 5))], {"reduction": "average"}),
]
# The largest differences whose squares overflow in the dtype; in f16 there are none.
HUGE = {torch.float64: 1e200, torch.float32: 1e25, torch.bfloat16: 1e25, torch.float16: 2e4}
KORNIA = {
    "CharbonnierLoss": "charbonnier_loss",
    "CauchyLoss": "cauchy_loss",
    "GemanMcclureLoss": "geman_mcclure_loss",
    "WelschLoss": "welsch_loss",
}


def near(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 1.5), draw.normal(shape, 1.5)]


def ties(draw: Draw, shape: Shape) -> list:
    """Differences of 0, of the scales at which formulas change, and between."""
    input = draw.integers(shape, 4).to(draw.dtype)
    return [input, input + draw.choose(shape, (0.0, 1.0, -1.0, 2.0, -2.0, 0.25))]


def tiny(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 1e-4), draw.normal(shape, 1e-4)]


def extreme(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 1e4), draw.normal(shape, 1e4)]


def huge(draw: Draw, shape: Shape) -> list:
    return [draw.signs(shape) * HUGE[draw.dtype], draw.normal(shape)]


def whole(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 2.0), draw.integers(shape, 5)]


def weights(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform(shape, 0.1, 2.0)


VALUES: dict[str, Pair] = {"ties": ties, "tiny": tiny, "extreme": extreme, "whole": whole}


def kornia(suite: Suite) -> None:
    for name in [name for pair in KORNIA.items() for name in pair]:
        reference = f"kornia.losses.{name}"
        values = {key: make for key, make in VALUES.items() if key != "whole"}
        check(suite, reference, near, SHAPES, [{}], values, REJECTS, empty=EMPTY)
        named = {"reduction": None}  # It is none, but for Welsch an error.
        settings, rejects = ([{}], [(near, named)]) if "elsch" in name else ([{}, named], [])
        check(suite, reference, near, ((3, 4), (5,)), settings, {}, rejects, reductions=(), kind="unreduced")
        check(suite, reference, mixed, ((3, 4), (5,)), [{}], {}, [], dtypes=("f32", "f16"), kind="mixed")
        kind = "huge" if "elsch" in name else "better_huge"
        # In double precision there is nothing that would tell how far off the overflow is.
        check(suite, reference, huge, ((3, 4), (5,)), [{}], {}, [], dtypes=("f32", "bf16", "f16"), kind=kind)


def mixed(draw: Draw, shape: Shape) -> list:
    """The target has another dtype than the input."""
    input, target = near(draw, shape)
    return [input, target.to(torch.float64 if draw.dtype == torch.float32 else torch.float32)]


def barron(suite: Suite) -> None:
    for alpha in (0, -2, -1000):
        settings = [{"scale": 0.5}, {"scale": 3.0, "weight": weights}]
        settings = [{"alpha": alpha, **setting} for setting in settings]
        rejects = [(make, {**setting, "alpha": alpha}) for make, setting in [*REJECTS, (near, {"scale": 0.0})]]
        kind = f"alpha{abs(alpha)}"
        check(suite, "papers.robust.barron_loss", near, SHAPES, settings, VALUES, rejects, kind=kind)
    settings = [{"eps": 0.5}, {"minimum": "eps", "eps": 1e-3}, {"eps": 3.0, "weight": weights}]
    rejects = [*REJECTS, (near, {"eps": 0.0}), (near, {"eps": -1.0})]
    check(suite, "papers.robust.charbonnier_loss", near, SHAPES, settings, VALUES, rejects, empty=EMPTY)


def log_cosh(suite: Suite) -> None:
    values = {**VALUES, "huge": huge}
    settings = [{}, {"weight": weights}]
    check(suite, "papers.robust.log_cosh_loss", near, SHAPES, settings, values, REJECTS, empty=EMPTY)


def keras(suite: Suite) -> None:
    def magnitudes(draw: Draw, shape: Shape) -> list:
        return [draw.uniform(shape, 0.05, 20.0), draw.uniform(shape, 0.05, 20.0)]

    def zeros(draw: Draw, shape: Shape) -> list:
        return [draw.choose(shape, (0.0, 0.25, 3.0)), draw.choose(shape, (0.0, 0.5, 2.0))]

    def counts(draw: Draw, shape: Shape) -> list:
        return [draw.uniform(shape, 0.1, 5.0), draw.integers(shape, 5, low=1)]

    values: dict[str, Pair] = {"signed": near, "zeros": zeros, "whole": counts, "extreme": extreme}
    settings = [{}, {"eps": 0.3}, {"eps": 0.1, "weight": weights}]
    for name in ("squared_logarithmic_error", "percentage_error"):
        check(suite, f"papers.robust.{name}", magnitudes, SHAPES, settings, values, REJECTS, empty=EMPTY)


def quantile(suite: Suite) -> None:
    def several(draw: Draw, shape: Shape) -> list:
        return [draw.normal((*shape, 3), 1.5), draw.normal(shape, 1.5)]

    reference = "papers.robust.quantile_loss"
    settings = [{}, {"quantiles": 0.9}, {"quantiles": 0.25, "weight": weights}]
    rejects = [*REJECTS, (near, {"quantiles": 0.0}), (near, {"quantiles": 1.5}), (near, {"quantiles": [0.1, 0.9]})]
    check(suite, reference, near, SHAPES, settings, {**VALUES, "huge": huge}, rejects, empty=EMPTY)
    settings = [{"quantiles": [0.1, 0.5, 0.9]}, {"quantiles": [0.2, 0.3, 0.4], "weight": weights}]
    rejects = [
        (several, {"quantiles": [0.1, 0.9]}),
        (several, {"quantiles": [0.1, 0.5, 1.0]}),
        (several, {"quantiles": []}),
    ]
    check(suite, reference, several, SHAPES, settings, {}, rejects, empty=EMPTY, kind="several")


def add_all(suite: Suite) -> None:
    for add in (kornia, barron, log_cosh, keras, quantile):
        add(suite)
