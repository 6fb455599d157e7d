"""Losses that a user makes of what PyTorch or another library has, where that is none by itself."""

from __future__ import annotations

import torch
from torch.nn import functional

from papers import reduced


def linear_then_cross_entropy(
    input: torch.Tensor, linear_weight: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """The last layer of a language model and its loss, with all logits in memory."""
    return functional.cross_entropy(functional.linear(input, linear_weight), target)


def one_minus_ms_ssim(input: torch.Tensor, target: torch.Tensor, reduction: str = "mean", **options) -> torch.Tensor:
    """The loss of MONAI's metric."""
    from monai.metrics.regression import compute_ms_ssim

    return reduced(1 - compute_ms_ssim(input, target, **options).flatten(), reduction)
