"""Liger's own Triton kernel of linear cross entropy; without a GPU it is run by Triton's interpreter: real, and slow.

The interpreter hands numbers to a kernel as Python's, where a compiled kernel gets single precision, and it has no tanh; both
are supplied here. Nothing of Liger is changed or written anew.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from liger_kernel.ops import cross_entropy
from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
from triton.runtime import interpreter

plain_conversion = interpreter._implicit_cvt


def tensor(values: np.ndarray, like: tl.dtype) -> tl.tensor:
    return tl.tensor(interpreter.TensorHandle(values, like.scalar), like)


def convert(argument: object) -> object:
    if isinstance(argument, float):
        return tensor(np.array([argument], np.float32), tl.float32)
    return plain_conversion(argument)


if triton.knobs.runtime.interpret:
    interpreter._implicit_cvt = convert
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
