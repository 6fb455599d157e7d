"""Losses of regression that no installable package has, or not with all options."""

from __future__ import annotations

import math

import torch

from papers import in_single, matching, reduced


def of_elements(losses, weight, reduction: str) -> torch.Tensor:
    """Reduces losses times their weights; the mean is over the sum of the weights."""
    if weight is None:
        return reduced(losses, reduction)
    weighted = losses * weight.to(losses.dtype)
    return weighted.sum() / weight.to(losses.dtype).sum() if reduction == "mean" else reduced(weighted, reduction)


def of_rows(losses, weight, reduction: str) -> torch.Tensor:
    """Keras takes the mean over the last dimension first; it has no weights of elements."""
    return reduced(losses.mean(-1), reduction) if weight is None else of_elements(losses, weight, reduction)


@in_single
def log_cosh_loss(input, target, weight=None, reduction: str = "mean") -> torch.Tensor:
    """keras.losses.LogCosh."""
    matching(input, target)
    difference = input - target
    losses = difference + torch.nn.functional.softplus(-2 * difference) - math.log(2)
    return of_rows(losses, weight, reduction)


@in_single
def squared_logarithmic_error(input, target, eps: float = 1e-7, weight=None, reduction: str = "mean"):
    """keras.losses.MeanSquaredLogarithmicError."""
    matching(input, target)
    logarithms = [torch.log(numbers.clamp(min=eps) + 1) for numbers in (input, target)]
    return of_rows((logarithms[0] - logarithms[1]) ** 2, weight, reduction)


@in_single
def percentage_error(input, target, eps: float = 1e-7, weight=None, reduction: str = "mean") -> torch.Tensor:
    """keras.losses.MeanAbsolutePercentageError."""
    matching(input, target)
    return of_rows(100 * ((target - input) / target.abs().clamp(min=eps)).abs(), weight, reduction)


@in_single
def quantile_loss(input, target, quantiles=0.5, weight=None, reduction: str = "mean") -> torch.Tensor:
    """Koenker and Bassett, Regression Quantiles, 1978; several quantiles are the last dimension of the input."""
    several = isinstance(quantiles, list)
    chosen = quantiles if several else [quantiles]
    if not chosen or not all(0 < quantile < 1 for quantile in chosen):
        raise ValueError(f"quantiles {quantiles}")
    columns = input if several else input.unsqueeze(-1)
    if columns.shape != (*target.shape, len(chosen)):
        raise ValueError(f"target has shape {tuple(target.shape)}, input {tuple(input.shape)}")
    chosen = torch.tensor(chosen, dtype=input.dtype, device=input.device)
    above = target.unsqueeze(-1) - columns
    losses = torch.maximum(chosen * above, (chosen - 1) * above)
    if weight is not None:
        weight = weight.unsqueeze(-1).expand_as(losses)
    result = of_elements(losses, weight, reduction)
    return result.squeeze(-1) if reduction == "none" and not several else result


@in_single
def barron_loss(input, target, alpha: float, scale: float = 1.0, weight=None, reduction: str = "mean"):
    """Equation 8 of https://arxiv.org/abs/1701.03077; an alpha of -1000 stands for minus infinity."""
    matching(input, target)
    if not scale > 0:
        raise ValueError(f"scale {scale}")
    square = ((input - target) / scale) ** 2
    if alpha == 0:
        losses = torch.log(square / 2 + 1)
    elif alpha == -1000:
        losses = 1 - torch.exp(-square / 2)
    else:
        b = abs(alpha - 2)
        losses = b / alpha * ((square / b + 1) ** (alpha / 2) - 1)
    return of_elements(losses, weight, reduction)


@in_single
def charbonnier_loss(
    input, target, eps: float = 1.0, minimum: str = "zero", weight=None, reduction: str = "mean"
) -> torch.Tensor:
    """Equation 2 of https://arxiv.org/abs/1704.03915, from which `minimum` "zero" takes eps."""
    matching(input, target)
    if not eps > 0:
        raise ValueError(f"eps {eps}")
    losses = torch.sqrt((input - target) ** 2 + eps**2)
    return of_elements(losses - eps if minimum == "zero" else losses, weight, reduction)
