"""KL divergence."""

from __future__ import annotations

import torch

from cases import Draw, Shape, Suite
from grids import Loss, sweep
from grids.regression import EMPTY, SHAPES, mismatched


def distributions(draw: Draw, shape: Shape, options: dict) -> list:
    """Log-probabilities and (log-)probabilities over the last dimension."""
    prediction = normalised(draw, shape)
    target = normalised(draw, shape)
    return [prediction, target if options.get("log_target") else target.exp()]


def normalised(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.normal(shape).log_softmax(-1) if shape else draw.uniform(shape, -2.0, -0.1)


def zeros(draw: Draw, shape: Shape, options: dict) -> list:
    """Target probabilities of exactly zero contribute nothing; as a logarithm they are very negative."""
    prediction, target = distributions(draw, shape, options)
    target.view(-1)[::2] = -1e4 if options.get("log_target") else 0.0
    return [prediction, target]


def extreme(draw: Draw, shape: Shape, options: dict) -> list:
    _, target = distributions(draw, shape, options)
    return [draw.normal(shape, 1e3), target]


def kl_div(suite: Suite) -> None:
    sweep(
        suite,
        Loss(
            "KLDivLoss",
            "kl_div",
            distributions,
            SHAPES,
            grad=(0, 1),
            empty=EMPTY,
            options=[{}, {"log_target": True}],
            reductions=("mean", "sum", "none", "batchmean"),
            legacy=True,
            empty_reductions=("mean", "sum", "none"),
            values={"zeros": zeros, "extreme": extreme},
            rejects=[(mismatched, {})],
        ),
    )


def add_all(suite: Suite) -> None:
    kl_div(suite)
