"""Liger's own Triton kernel of linear cross entropy, run on the CPU by Triton's interpreter: real, and slow.

The interpreter hands numbers to a kernel as Python's, where a compiled kernel gets single precision, and it has no tanh; both
are supplied here. Nothing of Liger is changed or written anew.
"""

from __future__ import annotations

import os

# Read when Triton is first imported.
os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

plain_conversion = interpreter._implicit_cvt


def tensor(values: np.ndarray, like: tl.dtype) -> tl.tensor:
    return tl.tensor(interpreter.TensorHandle(values, like.scalar), like)


def convert(argument: object) -> object:
    if isinstance(argument, float):
        return tensor(np.array([argument], np.float32), tl.float32)
    return plain_conversion(argument)


interpreter._implicit_cvt = convert

from liger_kernel.ops import cross_entropy
from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

cross_entropy.tanh = lambda x: tensor(np.tanh(x.handle.data), x.type)


def fused_linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    linear_bias: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    return LigerFusedLinearCrossEntropyFunction.apply(
        input,
        linear_weight,
        target,
        linear_bias,
        weight,
        ignore_index,
        lse_square_scale,
        label_smoothing,
        reduction,
        softcap,
    )[0]
