"""L1, MSE, smooth L1, Huber, Poisson NLL, Gaussian NLL."""

from __future__ import annotations

from itertools import product

import torch

from cases import Call, Draw, Shape, Suite
from grids import REDUCTIONS, Loss, Make, sweep

SHAPES: tuple[Shape, ...] = ((5, 7), (), (1,), (7,), (33,), (2, 3, 4), (2, 3, 4, 5), (3, 4, 6))
EMPTY: tuple[Shape, ...] = ((0,), (0, 5), (3, 0))


def pair(*kinks: float) -> Make:
    """An input and a target whose distance is clear of the kinks."""

    def make(draw: Draw, shape: Shape, _: dict) -> list:
        prediction = draw.normal(shape, 1.5)
        return [prediction, draw.away(prediction, draw.normal(shape, 1.5), kinks)]

    return make


def ties(distance: float) -> Make:
    """Half of the targets lie exactly at the distance where the formula changes."""

    def make(draw: Draw, shape: Shape, _: dict) -> list:
        prediction = draw.integers(shape, 4).to(draw.dtype)
        step = draw.choose(shape, (0.0, distance, -distance, 0.25))
        return [prediction, prediction + step]

    return make


def extreme(draw: Draw, shape: Shape, _: dict) -> list:
    return [draw.normal(shape, 1e4), draw.normal(shape, 1e4)]


def infinite(draw: Draw, shape: Shape, _: dict) -> list:
    """Infinite predictions of finite targets; nothing that makes inf - inf."""
    prediction = draw.normal(shape)
    prediction.view(-1)[::3] = float("inf")
    prediction.view(-1)[1::3] = -float("inf")
    return [prediction, draw.normal(shape)]


def positive(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform(shape, 0.1, 2.0)


def mismatched(draw: Draw) -> list:
    return [draw.normal((3, 4)), draw.normal((3, 5))]


def same(draw: Draw) -> list:
    return [draw.normal((3, 4)), draw.normal((3, 4))]


def whole_numbers(draw: Draw) -> list:
    return [draw.integers((3, 4), 9), draw.integers((3, 4), 9)]


WEIGHT = {"weight": positive}
WRONG_WEIGHT = (same, {"weight": lambda draw, shape: draw.uniform((4,))})


def pointwise(cls: str, function: str, kinks: tuple, tie: float, **more) -> Loss:
    rejects = [(mismatched, {}), *more.pop("rejects", ())]
    return Loss(
        cls,
        function,
        pair(*kinks),
        SHAPES,
        grad=(0, 1),
        empty=EMPTY,
        rejects=rejects,
        values={"extreme": extreme, "infinite": infinite, "ties": ties(tie)},
        **more,
    )


def l1(suite: Suite) -> None:
    more = {
        "function_options": [WEIGHT],
        "grad_kwargs": ["weight"],
        "rejects": [WRONG_WEIGHT],
        "legacy": True,
    }
    sweep(suite, pointwise("L1Loss", "l1_loss", (0,), 0.0, **more))


def mse(suite: Suite) -> None:
    rejects = [WRONG_WEIGHT, (whole_numbers, {})]
    more = {"function_options": [WEIGHT], "grad_kwargs": ["weight"], "rejects": rejects, "legacy": True}
    sweep(suite, pointwise("MSELoss", "mse_loss", (), 0.0, **more))


def smooth_l1(suite: Suite) -> None:
    options = [{}, {"beta": 0.5}, {"beta": 2.0}, {"beta": 0.0}]
    rejects = [(same, {"beta": -1.0})]
    sweep(
        suite,
        pointwise("SmoothL1Loss", "smooth_l1_loss", (0, 0.5, 1, 2), 1.0, options=options, rejects=rejects),
    )


def huber(suite: Suite) -> None:
    options = [{}, {"delta": 0.5}, {"delta": 2.0}]
    weighted = [WEIGHT, {"delta": 0.5, **WEIGHT}]
    rejects = [(same, {"delta": 0.0}), (same, {"delta": -1.0}), WRONG_WEIGHT]
    sweep(
        suite,
        pointwise(
            "HuberLoss",
            "huber_loss",
            (0, 0.5, 1, 2),
            1.0,
            options=options,
            function_options=weighted,
            grad_kwargs=["weight"],
            rejects=rejects,
        ),
    )


def broadcast(suite: Suite) -> None:
    """PyTorch warns and broadcasts; a runner may do so when it is asked to."""
    losses = [
        ("L1Loss", "l1_loss"),
        ("MSELoss", "mse_loss"),
        ("SmoothL1Loss", "smooth_l1_loss"),
        ("HuberLoss", "huber_loss"),
    ]
    shapes = [((4, 1), (4,)), ((3, 4), (4,)), ((2, 1, 3), (5, 1))]
    for (cls, function), (left, right), reduction in product(losses, shapes, REDUCTIONS):

        def make(draw: Draw) -> Call:
            args = [draw.normal(left), draw.normal(right)]
            return Call(args, {"reduction": reduction}, grad=(0, 1))

        for reference in (f"torch.nn.{cls}", f"torch.nn.functional.{function}"):
            suite.add(reference, "broadcast", "f64", make)
            suite.add(reference, "broadcast", "f32", make)


def poisson_nll(suite: Suite) -> None:
    def rates(draw: Draw, shape: Shape, options: dict) -> list:
        logs = options.get("log_input", True)
        rate = draw.normal(shape) if logs else draw.uniform(shape, 0.1, 4.0)
        return [rate, draw.away(0.0, draw.uniform(shape, 0.05, 6.0), (1,))]

    def counts(draw: Draw, shape: Shape, options: dict) -> list:
        return [rates(draw, shape, options)[0], draw.integers(shape, 4).to(draw.dtype)]

    def large(draw: Draw, shape: Shape, options: dict) -> list:
        rate, _ = rates(draw, shape, options)
        return [rate * 8, draw.uniform(shape, 100.0, 1e4)]

    full, linear = {"full": True}, {"log_input": False}
    sweep(
        suite,
        Loss(
            "PoissonNLLLoss",
            "poisson_nll_loss",
            rates,
            SHAPES,
            grad=(0, 1),
            empty=EMPTY,
            options=[{}, full, linear, {**linear, "eps": 1e-3}, {**full, **linear}],
            values={"extreme": large, "ties": counts},
            rejects=[(mismatched, {})],
        ),
    )


def gaussian_nll(suite: Suite) -> None:
    def make(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape), draw.normal(shape), draw.uniform(shape, 0.2, 3.0)]

    def clamped(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape), draw.normal(shape), draw.choose(shape, (0.0, 1e-8, 0.5, 2.0))]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 100.0), draw.normal(shape, 100.0), draw.uniform(shape, 1e-2, 1e4)]

    def with_var(draw: Draw, var) -> list:
        return [draw.normal((3, 4)), draw.normal((3, 4)), var]

    rejects = [
        (lambda draw: with_var(draw, -draw.uniform((3, 4), 0.1)), {}),
        (lambda draw: with_var(draw, -1.0), {}),
        (lambda draw: with_var(draw, draw.uniform((4,), 0.1)), {}),
        (lambda draw: with_var(draw, draw.uniform((2, 4), 0.1)), {}),
        (lambda draw: with_var(draw, draw.uniform((1, 1), 0.1)), {}),
        (lambda draw: [*mismatched(draw), draw.uniform((3, 4), 0.1)], {}),
    ]
    loss = Loss(
        "GaussianNLLLoss",
        "gaussian_nll_loss",
        make,
        SHAPES,
        grad=(0, 1, 2),
        empty=EMPTY,
        options=[{}, {"full": True}, {"eps": 0.1}, {"full": True, "eps": 1e-3}],
        values={"extreme": extreme, "clamped": clamped},
        rejects=rejects,
    )
    sweep(suite, loss)
    gaussian_variances(suite, loss)


def gaussian_variances(suite: Suite, loss: Loss) -> None:
    """Every shape that a variance may have, and the variance as a number."""
    shapes = [(4, 3, 5), (4, 3), (4, 3, 1), (4, 1, 5), (1, 3, 5), None]
    for (reference, _, _), shape, reduction in product(loss.references(), shapes, REDUCTIONS):

        def make(draw: Draw) -> Call:
            var = 2.5 if shape is None else draw.uniform(shape, 0.2, 3.0)
            args = [draw.normal((4, 3, 5)), draw.normal((4, 3, 5)), var]
            return Call(args, {"reduction": reduction}, grad=(0, 1) if shape is None else (0, 1, 2))

        for dtype in ("f64", "f32", "bf16"):
            suite.add(reference, "var", dtype, make, key=("var", shape) if dtype == "f32" else "var")


def add_all(suite: Suite) -> None:
    for add in (l1, mse, smooth_l1, huber, broadcast, poisson_nll, gaussian_nll):
        add(suite)
