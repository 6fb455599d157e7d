#!/usr/bin/env python3
"""Saves modules with parameters as a training program would, and beside each a call of it with its loss.

Writes NAME.safetensors (the state dict) and NAME.call.safetensors (input, target, loss) for the tests that load weights.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

MODULES = {
    "adaptive_log_softmax": lambda: torch.nn.AdaptiveLogSoftmaxWithLoss(
        8, 20, [4, 10], div_value=2.0, head_bias=True
    ),
    "linear_cross_entropy": lambda: torch.nn.LinearCrossEntropyLoss(8, 20, bias=True),
}


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in MODULES.items():
        torch.manual_seed(0)
        module, data, target = build(), torch.randn(6, 8), torch.randint(20, (6,))
        result = module(data, target)
        loss = result if isinstance(result, torch.Tensor) else result.loss
        save_file(module.state_dict(), folder / f"{name}.safetensors")
        save_file(
            {"input": data, "target": target, "loss": loss.detach()}, folder / f"{name}.call.safetensors"
        )


if __name__ == "__main__":
    main()
