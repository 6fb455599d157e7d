#!/usr/bin/env python3
"""Writes cases.json and tensors.safetensors: this project's grid and PyTorch's own samples of its losses."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

import torch

import grids
from cases import Suite


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--filter", default="", help="only cases whose id contains this")
    parser.add_argument("--suite", choices=("grid", "module_db", "all"), default="all")
    parser.add_argument(
        "--scale", choices=("small", "full"), default="full", help="small: a thin subset to store"
    )
    return parser.parse_args()


def main() -> int:
    options = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["TRITON_INTERPRET"] = "1"  # As in the oracle: it runs the references on the CPU.
    suite = Suite(options.seed, options.filter, options.scale == "small")
    if options.suite in ("grid", "all"):
        grids.add_all(suite)
    if options.suite in ("module_db", "all"):
        import module_db  # Only here: PyTorch's test tools need a package that the grid does not.

        module_db.add_all(suite)
    suite.write(options.out)
    print(f"{len(suite.cases)} cases, {len(suite.tensors)} tensors in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
