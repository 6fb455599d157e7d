#!/usr/bin/env python3
"""The Python side of `parity bench`: reads commands from stdin and answers each on stdout, one JSON object a line.

It knows no loss: a workload is a case as the oracle reads it. While it waits for a command it sleeps.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import inspect
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, TextIO

import torch
from safetensors.torch import load_file, save_file

import oracle

# How long the threads of the other side get to fall asleep.
SETTLE_SECONDS = 0.005


class Workload:
    """One case, ready to be called: the reference is imported and built."""

    def __init__(self, case: dict, tensors: dict[str, torch.Tensor], device: str):
        self.case, self.tensors, self.device = case, tensors, device
        arguments = oracle.Arguments(case, tensors, device, False)
        self.reference = oracle.resolve(case["reference"])
        self.options = arguments.mapping(case.get("options", {}), "options")
        args, kwargs = arguments.inputs()
        self.plain = list(args)
        self.leaves = list(arguments.leaves(args, kwargs).values())
        self.args = args
        if inspect.isclass(self.reference):
            self.reference, parameters = oracle.build(arguments, self.reference, self.options)
            self.leaves += parameters.values()
            self.options = {}
        self.calls = {"eager": self.eager()}

    def eager(self) -> Callable:
        return functools.partial(self.reference, **self.options) if self.options else self.reference

    def compile(self, which: str) -> dict:
        """Compiles the call for these very shapes and for one pass, and runs it once."""
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        reference, options = self.reference, self.options

        def call(*args: Any) -> torch.Tensor:
            return reference(*args, **options)

        self.calls["compile"] = torch.compile(call if options else reference, dynamic=False)
        self.run("compile", which, 1)
        return {"graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]}

    def run(self, peer: str, which: str, count: int) -> float:
        """Seconds of `count` calls."""
        call, args, plain, leaves = self.calls[peer], self.args, self.plain, self.leaves
        grad = torch.autograd.grad
        if which == "forward":
            # No argument needs a gradient, and no parameter shall.
            with torch.no_grad():
                start = self.now()
                for _ in range(count):
                    call(*plain)
                return self.now() - start
        start = self.now()
        for _ in range(count):
            grad(call(*args), leaves)
        return self.now() - start

    def now(self) -> float:
        """The time, when the device has done what it was given."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def time(self, peer: str, which: str, warm: int, count: int) -> dict:
        time.sleep(SETTLE_SECONDS)
        gc.disable()
        try:
            self.run(peer, which, warm)
            return {"seconds": self.run(peer, which, count)}
        finally:
            gc.enable()

    def memory(self, peer: str) -> dict:
        """Bytes that a forward keeps for backward, and the most that forward and backward take."""
        self.run(peer, "backward", 1)
        gc.collect()
        before = resident_bytes()
        reset_peak()
        loss = self.calls[peer](*self.args)
        kept = resident_bytes() - before
        gradients = torch.autograd.grad(loss, self.leaves)
        peak = peak_bytes() - before
        del gradients
        return {"kept": max(kept, 0), "peak": max(peak, 0)}

    def kernels(self, library: str) -> list[str]:
        """The operations of a call and of its backward pass, as the library of kernels.cpp counts them."""
        counter = ctypes.CDLL(library)
        counter.kernels_stop.restype = ctypes.c_char_p
        # What is done once is no part of a call.
        self.run("eager", "backward", 1)
        counter.kernels_start()
        loss = self.calls["eager"](*self.args)
        forward = counter.kernels_stop().decode()
        counter.kernels_start()
        torch.autograd.grad(loss, self.leaves)
        return [forward, counter.kernels_stop().decode()]

    def values(self, upcast: bool, out: str) -> dict:
        """Writes the results of the oracle for this case."""
        single = torch.Tensor.float
        if upcast:
            torch.Tensor.float = torch.Tensor.double
        try:
            arguments = oracle.Arguments(self.case, self.tensors, self.device, upcast)
            result, tensors = oracle.run_case(arguments)
        finally:
            torch.Tensor.float = single
        name = self.case["id"]
        save_file({f"{name}:{key}": tensor for key, tensor in tensors.items()}, out)
        return result


def proc_bytes(path: str, field: str) -> int:
    with open(path, encoding="ascii") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"{path} has no {field}")


def resident_bytes() -> int:
    return proc_bytes("/proc/self/smaps_rollup", "Rss")


def peak_bytes() -> int:
    return proc_bytes("/proc/self/status", "VmHWM")


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def hello(device: str) -> dict:
    """What runs here; without a C++ compiler, why torch.compile cannot."""
    compiler, problem = None, None
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        compiler = get_cpp_compiler()
    except Exception as error:
        problem = oracle.first_line(error) or type(error).__name__
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "gpu": None if device == "cpu" else torch.cuda.get_device_name(device),
        "compiler": compiler,
        "problem": problem,
    }


class Server:
    """Answers commands; a command that fails is answered with its error."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.workload: Workload | None = None

    def answer(self, command: dict) -> dict:
        verb = command.pop("do")
        if verb == "hello":
            return hello(self.device)
        if verb == "load":
            self.workload = None
            self.workload = Workload(command["case"], load_file(command["tensors"]), self.device)
            return {}
        if self.workload is None:
            raise RuntimeError("no workload is loaded")
        if verb not in ("compile", "time", "memory", "kernels", "values"):
            raise RuntimeError(f"no command {verb!r}")
        return getattr(self.workload, verb)(**command)

    def serve(self, replies: TextIO) -> None:
        for line in sys.stdin:
            try:
                reply = {"ok": self.answer(json.loads(line))}
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {oracle.first_line(error)}"}
            print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, required=True, help="libtorch threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    options = parser.parse_args()
    # What a library prints must not come between the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    Server(options.device).serve(replies)


if __name__ == "__main__":
    main()
