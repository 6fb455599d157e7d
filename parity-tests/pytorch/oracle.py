#!/usr/bin/env python3
"""Runs a case file against the Python references that it names and writes what they return.

The oracle knows no loss: a case gives its reference's import path, keyword arguments and tensors.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import multiprocessing
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch
from safetensors.torch import load, load_file, save, save_file

FORMAT = 1
CASE_FIELDS = {
    "id",
    "reference",
    "options",
    "inputs",
    "grad",
    "grad_output",
    "second_order",
    "state",
    "autocast",
    "expect",
}
VIEW_FIELDS = {"size", "stride", "offset"}
# The kind of products; none where it is the device's own.
AUTOCAST = {False: None, True: None, "bf16": torch.bfloat16, "f16": torch.float16}


class Malformed(Exception):
    """The case file breaks the format: nothing in it can be trusted, so the run stops."""


class Unsupported(Exception):
    """The reference (or an object that it needs) is not installed here."""


def resolve(path: str) -> Any:
    """Imports what `path` names; an attribute wins over a submodule of the same name."""
    first, *rest = path.split(".")
    try:
        found, dotted = importlib.import_module(first), first
        for part in rest:
            dotted = f"{dotted}.{part}"
            found = getattr(found, part) if hasattr(found, part) else importlib.import_module(dotted)
    except (ImportError, ValueError) as error:
        raise Unsupported(f"cannot import {path}: {first_line(error)}") from error
    return found


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class Arguments:
    """Turns the JSON values of one case into Python arguments on one device."""

    def __init__(self, case: dict, tensors: dict[str, torch.Tensor], device: str, upcast: bool):
        self.case, self.tensors, self.device, self.upcast = case, tensors, device, upcast

    def malformed(self, field: str, problem: str) -> Malformed:
        return Malformed(f"case {self.case.get('id')!r}, field {field!r}: {problem}")

    def decode(self, value: Any, field: str) -> Any:
        if isinstance(value, list):
            return [self.decode(item, f"{field}[{i}]") for i, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("tensor"), str) and value.keys() <= {"tensor"} | VIEW_FIELDS:
            return self.tensor(value, field)
        if isinstance(value.get("object"), str) and value.keys() <= {"object", "options"}:
            return self.object(value, field)
        raise self.malformed(field, f"neither a tensor nor an object: {json.dumps(value)[:80]}")

    def tensor(self, value: dict, field: str) -> torch.Tensor:
        """The named tensor (always a fresh copy), or the strided view of it."""
        if value["tensor"] not in self.tensors:
            raise self.malformed(field, f"no tensor named {value['tensor']!r}")
        stored = self.tensors[value["tensor"]]
        dtype = torch.float64 if self.upcast and stored.is_floating_point() else stored.dtype
        stored = stored.to(device=self.device, dtype=dtype, copy=True)
        if not value.keys() & VIEW_FIELDS:
            return stored
        try:
            return stored.as_strided(value["size"], value["stride"], value.get("offset", 0))
        except (KeyError, TypeError, RuntimeError) as error:
            raise self.malformed(
                field, f"no such view of {value['tensor']!r}: {first_line(error)}"
            ) from error

    def object(self, value: dict, field: str) -> Any:
        found = resolve(value["object"])
        if "options" in value:
            return found(**self.mapping(value["options"], field))
        if self.upcast and isinstance(found, torch.dtype) and found.is_floating_point:
            return torch.float64
        return found

    def mapping(self, value: Any, field: str) -> dict:
        if not isinstance(value, dict):
            raise self.malformed(field, "not an object")
        return {name: self.decode(item, f"{field}.{name}") for name, item in value.items()}

    def inputs(self) -> tuple[list, dict]:
        inputs = self.case["inputs"]
        if isinstance(inputs, list):
            return self.decode(inputs, "inputs"), {}
        if not isinstance(inputs, dict) or not inputs.keys() <= {"args", "kwargs"}:
            raise self.malformed("inputs", "neither a list nor {args, kwargs}")
        args = self.decode(inputs.get("args", []), "inputs.args")
        return args, self.mapping(inputs.get("kwargs", {}), "inputs.kwargs")

    def leaves(self, args: list, kwargs: dict) -> dict[int | str, torch.Tensor]:
        """Makes a leaf of every argument named in `grad`; the layout of the view stays."""
        leaves = {}
        for key in self.case.get("grad", []):
            holder = args if isinstance(key, int) else kwargs
            try:
                holder[key] = leaves[key] = holder[key].detach().requires_grad_(True)
            except (LookupError, TypeError, AttributeError, RuntimeError) as error:
                raise self.malformed(
                    "grad", f"{key!r} is no differentiable tensor: {first_line(error)}"
                ) from error
        return leaves

    def vectors(self, field: str, count: int) -> list[torch.Tensor] | None:
        """`grad_output` or `second_order`: a list of `count` tensors, or None where the case has none."""
        if self.case.get(field) is None:
            return None
        vectors = self.decode(self.case[field], field)
        if not isinstance(vectors, list) or len(vectors) != count:
            raise self.malformed(field, f"{count} tensors expected")
        return vectors


def build(arguments: Arguments, reference: Any, options: dict) -> tuple[Any, dict[str, torch.Tensor]]:
    """The callable of a class reference, and its parameters that `state` names."""
    built = reference(**options)
    state = arguments.mapping(arguments.case.get("state", {}), "state")
    if not isinstance(built, torch.nn.Module):
        return built, {}
    built = built.to(arguments.device, torch.float64 if arguments.upcast else None)
    unexpected = built.load_state_dict(state, strict=False, assign=True).unexpected_keys
    parameters = dict(built.named_parameters())
    if unexpected or parameters.keys() - state.keys():
        problem = f"unknown {unexpected}, missing {sorted(parameters.keys() - state.keys())}"
        raise arguments.malformed("state", problem)
    return built, parameters


def flatten(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        for item in output:
            yield from flatten(item)
    elif output is not None:
        yield torch.as_tensor(output)


def forward(arguments: Arguments) -> tuple[list[torch.Tensor], dict, dict]:
    """The outputs of one case, the leaves that `grad` names and the parameters that `state` names."""
    case = arguments.case
    reference = resolve(case["reference"])
    options = arguments.mapping(case.get("options", {}), "options")
    args, kwargs = arguments.inputs()
    leaves = arguments.leaves(args, kwargs)
    autocast = case.get("autocast", False)
    kind = AUTOCAST[autocast]
    with torch.autocast(torch.device(arguments.device).type, dtype=kind, enabled=autocast is not False):
        if inspect.isclass(reference):
            call, parameters = build(arguments, reference, options)
            return list(flatten(call(*args, **kwargs))), leaves, parameters
        return list(flatten(reference(*args, **kwargs, **options))), leaves, {}


def evaluate(arguments: Arguments, second_order: bool) -> tuple[int, dict[str, torch.Tensor]]:
    """Number of outputs and all result tensors of one case."""
    outputs, leaves, parameters = forward(arguments)
    results = {f"output/{i}": output for i, output in enumerate(outputs)}
    sources = list(leaves.values()) + list(parameters.values())
    names = [f"grad/{key}" for key in leaves] + [f"grad_state/{name}" for name in parameters]
    vectors = arguments.vectors("grad_output", len(outputs))
    gradients = differentiate(outputs, sources, vectors, second_order)
    results |= dict(zip(names, gradients))
    if second_order:
        directions = arguments.vectors("second_order", len(leaves))
        gradients2 = differentiate(list(gradients[: len(leaves)]), list(leaves.values()), directions, False)
        results |= {f"grad2/{key}": gradient for key, gradient in zip(leaves, gradients2)}
    return len(outputs), {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in results.items()
        if tensor is not None
    }


def differentiate(outputs: list, sources: list, vectors: list | None, create_graph: bool) -> tuple:
    """The vector-Jacobian product; None for a source that no output depends on."""
    vectors = [torch.ones_like(o) for o in outputs] if vectors is None else vectors
    pairs = [(o, v) for o, v in zip(outputs, vectors) if o is not None and o.requires_grad]
    if not pairs or not sources:
        return (None,) * len(sources)
    outputs, vectors = zip(*pairs)
    return torch.autograd.grad(outputs, sources, vectors, create_graph=create_graph, allow_unused=True)


def run_case(arguments: Arguments) -> tuple[dict, dict[str, torch.Tensor]]:
    """The result entry of a case and its tensors; a reference that raises is a result, too."""
    try:
        wanted = arguments.case.get("second_order") is not None
        unavailable = {}
        try:
            count, tensors = evaluate(arguments, wanted)
        except (Malformed, Unsupported):
            raise
        except Exception as error:
            if not wanted:
                raise
            count, tensors = evaluate(arguments, False)
            unavailable = {"second_order": f"unavailable: {first_line(error)}"}
        return {"status": "ok", "outputs": count, **unavailable}, tensors
    except Malformed:
        raise
    except Unsupported as error:
        return {"status": "unsupported", "message": str(error)}, {}
    except Exception as error:
        return {"status": "error", "message": first_line(error), "error_type": type(error).__name__}, {}


def read_cases(path: str) -> list[dict]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError) as error:
        raise Malformed(f"{path}: {first_line(error)}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Malformed(f"{path}, field 'format': {FORMAT} expected")
    cases = document.get("cases")
    if not isinstance(cases, list):
        raise Malformed(f"{path}, field 'cases': a list expected")
    seen: set[str] = set()
    for index, case in enumerate(cases):
        check_case(case, index, seen)
    return cases


def check_case(case: Any, index: int, seen: set[str]) -> None:
    """The checks of a case that need no tensors; the rest is checked when it runs."""
    if not isinstance(case, dict) or not isinstance(case.get("id"), str):
        raise Malformed(f"case number {index}, field 'id': a string expected")

    def require(field: str, good: bool, problem: str) -> None:
        if not good:
            raise Malformed(f"case {case['id']!r}, field {field!r}: {problem}")

    require("id", case["id"] not in seen, "not unique")
    seen.add(case["id"])
    for field in case:
        require(field, field in CASE_FIELDS, "unknown field")
    require("reference", isinstance(case.get("reference"), str), "an import path expected")
    require("inputs", "inputs" in case, "missing")
    grad = case.get("grad", [])
    good = isinstance(grad, list) and all(
        isinstance(key, str) or isinstance(key, int) and key >= 0 for key in grad
    )
    require("grad", good, "a list of positions and names expected")
    require("expect", case.get("expect", "ok") in ("ok", "error"), "'ok' or 'error' expected")


class Progress:
    """Lines `progress DONE TOTAL` on stderr, at most ten a second."""

    def __init__(self, total: int, shown: bool):
        self.total, self.shown, self.last = total, shown, 0.0

    def report(self, done: int) -> None:
        now = time.monotonic()
        if self.shown and (done == self.total or now - self.last >= 0.1):
            self.last = now
            print(f"progress {done} {self.total}", file=sys.stderr, flush=True)


def versions(device: str) -> dict:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": name,
        "cuda": torch.version.cuda,
    }


def run_here(cases: list[dict], inputs: dict, options: argparse.Namespace) -> Iterator[tuple[dict, dict]]:
    """The result of every case in turn; a CUDA context that a case has poisoned ends it early."""
    for case in cases:
        result, tensors = run_case(Arguments(case, inputs, options.device, options.upcast))
        yield result, tensors
        if poisoned(result, options.device):
            return


def poisoned(result: dict, device: str) -> bool:
    """Whether a CUDA failure has made every later call of this process fail."""
    message = result.get("message", "")
    return device.startswith("cuda") and ("device-side assert" in message or "CUDA error" in message)


def run_in_children(
    cases: list[dict], inputs: dict, options: argparse.Namespace
) -> Iterator[tuple[dict, dict]]:
    """The same from forked children: where one loses its CUDA context or dies, the next one goes on.

    This process itself must not touch CUDA, because a fork does not survive that.
    """
    fork = multiprocessing.get_context("fork")
    done = 0
    while done < len(cases):
        receiver, sender = fork.Pipe(duplex=False)
        child = fork.Process(target=send_results, args=(sender, cases[done:], inputs, options))
        child.start()
        sender.close()
        before = done
        while (message := receive(receiver)) is not None:
            if isinstance(message, Malformed):
                raise message
            result, tensors = message
            yield result, load(tensors)
            done += 1
        child.join()
        if done == before:
            yield (
                {
                    "status": "error",
                    "message": f"the process died with {child.exitcode}",
                    "error_type": "Crash",
                },
                {},
            )
            done += 1


def send_results(sender: Connection, cases: list[dict], inputs: dict, options: argparse.Namespace) -> None:
    try:
        for result, tensors in run_here(cases, inputs, options):
            sender.send((result, save(tensors)))
    except Malformed as error:
        sender.send(error)


def receive(receiver: Connection) -> Any:
    try:
        return receiver.recv()
    except EOFError:
        return None


def run(options: argparse.Namespace) -> None:
    inputs = load_file(options.tensors)
    part, parts = options.part
    cases = [case for case in read_cases(options.cases) if options.filter in case["id"]][part::parts]
    # A rejected call may end the CUDA context, so that it comes after everything that it could harm.
    cases.sort(key=lambda case: case.get("expect", "ok") == "error")
    results: dict[str, dict] = {}
    outputs: dict[str, torch.Tensor] = {}
    progress = Progress(len(cases), options.progress)
    runner = run_in_children if options.device.startswith("cuda") else run_here
    for case, (result, tensors) in zip(cases, runner(cases, inputs, options)):
        results[case["id"]] = result
        outputs |= {f"{case['id']}:{name}": tensor for name, tensor in tensors.items()}
        progress.report(len(results))
    save_file(outputs, options.result_tensors)
    document = {"format": FORMAT, "results": results, "versions": versions(options.device)}
    with open(options.results, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", required=True, help="the case file")
    parser.add_argument("--tensors", required=True, help="the tensors of the cases")
    parser.add_argument("--results", required=True, help="the result file to write")
    parser.add_argument("--result-tensors", required=True, help="the tensors of the results to write")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="libtorch threads; sums are split by threads")
    parser.add_argument("--upcast", action="store_true", help="compute in f64, whatever the case's dtype")
    parser.add_argument("--filter", default="", help="only cases whose id contains this")
    parser.add_argument(
        "--part",
        type=int,
        nargs=2,
        default=(0, 1),
        metavar=("I", "N"),
        help="only every N-th case, from the I-th (from 0): N calls share the work",
    )
    parser.add_argument("--progress", action="store_true", help="print 'progress DONE TOTAL' to stderr")
    return parser.parse_args()


def main() -> int:
    options = parse()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    # PyTorch's convolutions on CUDA round their arguments to 10 bits otherwise.
    torch.backends.cudnn.allow_tf32 = False
    if options.device == "cpu":
        # Without a GPU a Triton kernel needs the interpreter, which is chosen when Triton is first imported.
        os.environ["TRITON_INTERPRET"] = "1"
    if options.upcast:
        # References that go to single precision of their own accord go to double precision instead.
        torch.Tensor.float = torch.Tensor.double
    try:
        run(options)
    except Malformed as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
