"""PyTorch's own sample inputs and error inputs of its loss modules, as cases.

The samples come from `torch.testing._internal.common_modules`, which PyTorch's test suite runs. That module
imports the package expecttest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import random
import sys
from collections import Counter
from itertools import product
from typing import Any

import torch
from torch.testing._internal.common_modules import ModuleInfo, ModuleInput, module_db

import oracle
from cases import DTYPES, Call, Draw, Object, Suite


class Skipped(Exception):
    """A sample that the case format cannot express."""


def losses() -> list[ModuleInfo]:
    return [info for info in module_db if info.module_cls.__name__.endswith("Loss")]


def reference(info: ModuleInfo) -> str:
    return f"torch.nn.{info.module_cls.__name__}"


def express(value: Any) -> Any:
    """A Python value as a value of a case; what is neither plain nor importable is skipped."""
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, (list, tuple)):
        return [express(item) for item in value]
    if isinstance(value, torch.dtype):
        return Object(str(value))
    if dataclasses.is_dataclass(value):
        options = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return Object(f"torch.nn.{type(value).__name__}", express_named(options))
    if isinstance(value, torch.nn.Module):
        raise Skipped(f"a module instance, {type(value).__name__}, without its options")
    if callable(value):
        path = f"{value.__module__}.{value.__qualname__}"
        if "<" in path:
            raise Skipped(f"a callable without an import path, {path}")
        return Object(path)
    raise Skipped(f"a value of type {type(value).__name__}")


def express_named(values: dict) -> dict:
    return {name: express(value) for name, value in values.items()}


def named_options(info: ModuleInfo, sample: ModuleInput) -> dict:
    """The constructor's arguments by name; the device is the oracle's choice."""
    given = sample.constructor_input
    bound = inspect.signature(info.module_cls).bind(*given.args, **given.kwargs)
    return {name: value for name, value in bound.arguments.items() if name != "device" and value is not None}


def parameters(info: ModuleInfo, options: dict, draw: Draw) -> dict[str, torch.Tensor]:
    """New values for the parameters of a module that has some."""
    try:
        module = info.module_cls(**options)
    except Exception:  # A construction error is what the sample is about.
        return {}
    return {name: draw.normal(tuple(value.shape), 0.5) for name, value in module.named_parameters()}


def to_call(info: ModuleInfo, sample: ModuleInput, draw: Draw) -> Call:
    options = named_options(info, sample)
    state = parameters(info, options, draw)
    args, kwargs = sample.forward_input.args, sample.forward_input.kwargs
    arguments = dict(enumerate(args)) | kwargs
    tensors = {key: value for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    grad = [key for key, value in tensors.items() if value.requires_grad]
    return Call(express(args), express_named(options), express_named(kwargs), grad, state)


def samples(info: ModuleInfo, function: Any, dtype: str, seed: int) -> list:
    """All samples of one module and dtype: one random stream makes them, so they are always drawn whole."""
    digest = hashlib.sha256(f"{seed}/{reference(info)}/{dtype}".encode()).digest()
    number = int.from_bytes(digest[:4], "little")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        random.seed(number)
        return list(function(info, device="cpu", dtype=DTYPES[dtype], requires_grad=True, training=True))


def add_all(suite: Suite) -> None:
    skipped: Counter[str] = Counter()
    for info, dtype in product(losses(), DTYPES):
        try:
            accepted = samples(info, info.module_inputs_func, dtype, suite.seed)
            errors = samples(info, info.module_error_inputs_func or no_samples, dtype, suite.seed)
        except Exception as error:
            skipped[f"{reference(info)} makes no {dtype} samples: {oracle.first_line(error)}"] += 1
            continue
        # Samples in their hundreds are shared out among the dtypes, so that each is run in one of them.
        first, step = (list(DTYPES).index(dtype), len(DTYPES)) if len(accepted) > 200 else (0, 1)
        for sample in accepted[first::step]:
            add(suite, info, sample, "module_db", dtype, "ok", skipped)
        for error in errors:
            sample = error.module_error_input
            # A construction that fails needs no inputs, but a case does.
            if sample.forward_input is None:
                sample.forward_input = accepted[0].forward_input
            add(suite, info, sample, "module_db_reject", dtype, "error", skipped)
    for reason, number in skipped.items():
        print(f"skipped {number}: {reason}", file=sys.stderr)


def no_samples(*_: Any, **__: Any) -> list:
    return []


def add(
    suite: Suite,
    info: ModuleInfo,
    sample: ModuleInput,
    tag: str,
    dtype: str,
    expect: str,
    skipped: Counter[str],
) -> None:
    # The chunked linear cross entropy has no second derivative, and PyTorch does not say so.
    second_order = "options" not in sample.constructor_input.kwargs
    try:
        suite.add(
            reference(info),
            tag,
            dtype,
            lambda draw: to_call(info, sample, draw),
            expect=expect,
            second_order=second_order,
        )
    except Skipped as reason:
        skipped[f"{reference(info)}: {reason}"] += 1
