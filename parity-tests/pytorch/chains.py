"""Chains of PyTorch's operations that a user writes where torch.nn has no loss of that name; the benchmark calls them."""

from __future__ import annotations

import torch
from torch.nn import functional


def linear_then_cross_entropy(
    input: torch.Tensor, linear_weight: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """The last layer of a language model and its loss, with all logits in memory."""
    return functional.cross_entropy(functional.linear(input, linear_weight), target)
