"""Builds case files: names the cases, draws their tensors, and asks the reference how many outputs it has."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import oracle

DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
Shape = tuple[int, ...]
SMALL_ELEMENTS = 220
# The stored files hold a few cases of each reference beyond torch.nn; the live check has all of them. None in half
# precision: those are compositions, and whose rounding is the better one takes the oracle in double precision to tell.
SMALL_ACCEPTED, SMALL_REJECTED, SMALL_ELEMENTS_BEYOND = 3, 1, 160
# References that have no call of so few elements; one call of each is stored.
SMALL_ELEMENTS_OF = {
    "kornia.losses.SSIM3DLoss": 6000,
    "papers.preference.linear_kto": 6000,
    "chains.one_minus_ms_ssim": 700,
}
# Whose rounding is the better one here, too, takes double precision to tell.
NOT_STORED = ("SubCenterArcFaceLoss/options/f32/",)
NOT_SMALL = ("ones", "legacy", "large")


class Draw:
    """The random stream of one case: it depends on the seed and the id alone, so a filter changes nothing."""

    def __init__(self, seed: int, name: str, dtype: torch.dtype):
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        self.generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        self.dtype = dtype

    def normal(self, shape: Shape, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale).to(self.dtype)

    def uniform(self, shape: Shape, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        unit = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return (low + (high - low) * unit).to(self.dtype)

    def integers(
        self, shape: Shape, high: int, low: int = 0, dtype: torch.dtype = torch.int64
    ) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator).to(dtype)

    def choose(self, shape: Shape, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=self.dtype)[self.integers(shape, len(values))]

    def signs(self, shape: Shape) -> torch.Tensor:
        return self.choose(shape, (-1.0, 1.0))

    def spaced(self, shape: Shape) -> torch.Tensor:
        """Normal values; in low precision multiples of 0.3, whose differences stay clear of usual margins."""
        normal = self.normal(shape, 1.5)
        return normal if self.dtype.itemsize > 2 else ((normal / 0.3).round() * 0.3).to(self.dtype)

    def away(self, base: torch.Tensor | float, values: torch.Tensor, kinks: Sequence[float]) -> torch.Tensor:
        """Moves `values` until |base - values| is clear of every kink, where rounding picks the branch."""
        values = values.clone()
        for _ in range(50):
            distance = (base - values).abs().to(torch.float64)
            near = sum(((distance - kink).abs() < 0.04).int() for kink in kinks)
            values[near > 0] += 0.17
        return values


@dataclass
class Object:
    """An object of the reference library: a named thing, or with options one that is built."""

    path: str
    options: dict | None = None


@dataclass
class Call:
    """One call of a reference, with tensors in place."""

    args: list
    options: dict = field(default_factory=dict)
    kwargs: dict = field(default_factory=dict)
    grad: Sequence[int | str] = ()
    state: dict[str, torch.Tensor] = field(default_factory=dict)


def transposed(tensor: torch.Tensor) -> torch.Tensor:
    reverse = tuple(reversed(range(tensor.dim())))
    return tensor.permute(reverse).contiguous().permute(reverse)


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:1].clone().expand_as(tensor)


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dim() < 3 else tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def offset(tensor: torch.Tensor) -> torch.Tensor:
    """The inside of a larger tensor: an offset, and a gap after every row."""
    around = tensor.new_zeros([size + 3 for size in tensor.shape])
    inside = around[tuple(slice(2, 2 + size) for size in tensor.shape)]
    return inside.copy_(tensor)


def stepped(tensor: torch.Tensor) -> torch.Tensor:
    """Every second element of the last dimension."""
    return torch.stack((tensor, tensor), dim=-1)[..., 0]


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": transposed,
    "expanded": expanded,
    "channels_last": channels_last,
    "offset": offset,
    "stepped": stepped,
}


def lay_out(layout: str | None, value: Any) -> Any:
    """A tensor of at least one dimension and one element in the named layout; anything else as it is."""
    laid = layout is not None and isinstance(value, torch.Tensor) and value.dim() > 0 and value.numel() > 0
    return LAYOUTS[layout](value) if laid else value


class Suite:
    """Collects cases and their tensors."""

    def __init__(self, seed: int, wanted: str = "", small: bool = False):
        self.seed, self.wanted, self.small = seed, wanted, small
        self.cases: list[dict] = []
        self.tensors: dict[str, torch.Tensor] = {}
        self.surprises: list[str] = []
        self.counters: Counter[str] = Counter()
        self.chosen: set[tuple] = set()
        self.stored: Counter[tuple] = Counter()

    def add(
        self,
        reference: str,
        tag: str,
        dtype: str,
        make: Callable[[Draw], Call],
        *,
        expect: str = "ok",
        layout: str | None = None,
        ones: bool = False,
        second_order: bool = True,
        autocast: bool | str = False,
        key: Any = None,
    ) -> None:
        """Adds the case that `make` describes, unless the filter or the scale leaves it out.

        `layout` is that of the output gradient, and `ones` leaves that to its default. Of the cases with one
        `key` the small scale keeps the first.
        """
        series = f"{reference}/{tag}/{dtype}"
        name = f"{series}/{self.counters[series]}"
        self.counters[series] += 1
        if self.wanted not in name or self.small and not self.stands_for(reference, tag, dtype, key):
            return
        draw = Draw(self.seed, name, DTYPES[dtype])
        call = make(draw)
        if expect == "error":
            call.grad = ()
        if self.small and not self.is_small(name, reference, call, expect):
            return
        self.chosen.add((reference, key or tag))  # Only now: a larger case before it does not count.
        case = self.case(name, reference, call, expect)
        if autocast:
            case["autocast"] = autocast
        outputs = self.outputs(case, expect)
        if expect == "ok" and (call.grad or call.state):
            if outputs and not ones:
                vectors = [lay_out(layout, draw.normal(tuple(o.shape)).to(o.dtype)) for o in outputs]
                case["grad_output"] = self.encode(vectors, f"{name}:grad_output")
            if second_order and dtype == "f64" and call.grad:
                arguments = dict(enumerate(call.args)) | call.kwargs
                directions = [draw.normal(tuple(arguments[key].shape)) for key in call.grad]
                case["second_order"] = self.encode(directions, f"{name}:direction")
        self.cases.append(case)

    def stands_for(self, reference: str, tag: str, dtype: str, key: Any) -> bool:
        """Whether the small scale wants this case: the first of its kind, and of functions only a few."""
        function = ".functional." in reference and (tag not in ("options", "reject") or dtype != "f32")
        return not function and tag not in NOT_SMALL and (reference, key or tag) not in self.chosen

    def is_small(self, name: str, reference: str, call: Call, expect: str) -> bool:
        """Whether the small scale has room for the case."""
        if reference.startswith("torch.nn"):
            return elements(call) <= SMALL_ELEMENTS
        if any(f"/{dtype}/" in name for dtype in ("bf16", "f16")):
            return False
        if any(part in name for part in NOT_STORED):
            return False
        room = SMALL_REJECTED if expect == "error" else SMALL_ACCEPTED
        most = SMALL_ELEMENTS_BEYOND
        if reference in SMALL_ELEMENTS_OF:
            room, most = 1, SMALL_ELEMENTS_OF[reference]
        if elements(call) > most or self.stored[reference, expect] == room:
            return False
        self.stored[reference, expect] += 1
        return True

    def case(self, name: str, reference: str, call: Call, expect: str) -> dict:
        case: dict[str, Any] = {"id": name, "reference": reference}
        case["options"] = {key: self.encode(value, f"{name}:{key}") for key, value in call.options.items()}
        case["inputs"] = [self.encode(value, f"{name}:{i}") for i, value in enumerate(call.args)]
        if call.kwargs:
            kwargs = {key: self.encode(value, f"{name}:{key}") for key, value in call.kwargs.items()}
            case["inputs"] = {"args": case["inputs"], "kwargs": kwargs}
        case["grad"] = list(call.grad)
        if call.state:
            case["state"] = {key: self.encode(value, f"{name}:{key}") for key, value in call.state.items()}
        case["expect"] = expect
        return case

    def encode(self, value: Any, name: str) -> Any:
        """The JSON of a value; tensors are stored under `name`, with the layout that they have."""
        if isinstance(value, torch.Tensor):
            return self.store(value.detach(), name)
        if isinstance(value, Object):
            encoded = {"object": value.path}
            if value.options is not None:
                encoded["options"] = {
                    key: self.encode(item, f"{name}.{key}") for key, item in value.options.items()
                }
            return encoded
        if isinstance(value, (list, tuple)):
            return [self.encode(item, f"{name}.{i}") for i, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: numbers of a case file are finite")
        return value

    def store(self, tensor: torch.Tensor, name: str) -> dict:
        length = tensor.untyped_storage().nbytes() // tensor.element_size()
        if tensor.is_contiguous() and length == tensor.numel():
            self.tensors[name] = tensor.clone()
            return {"tensor": name}
        self.tensors[name] = tensor.as_strided((length,), (1,), 0).clone()
        return {
            "tensor": name,
            "size": list(tensor.shape),
            "stride": list(tensor.stride()),
            "offset": tensor.storage_offset(),
        }

    def outputs(self, case: dict, expect: str) -> list[torch.Tensor]:
        """What the reference returns, or nothing where it raises; an expectation that fails is remembered."""
        try:
            outputs, _, _ = oracle.forward(oracle.Arguments(case, self.tensors, "cpu", False))
        except oracle.Malformed:
            raise
        except oracle.Unsupported:
            return []
        except Exception as error:
            message = oracle.first_line(error)
            if expect == "ok" and "not implemented for" not in message:
                self.surprises.append(f"{case['id']}: {message}")
            return []
        if expect == "error":
            self.surprises.append(f"{case['id']}: accepted")
        return outputs

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors, folder / "tensors.safetensors")
        lines = ",\n".join(json.dumps(case, allow_nan=False) for case in self.cases)
        text = f'{{"format": {oracle.FORMAT}, "cases": [\n{lines}\n]}}\n'
        (folder / "cases.json").write_text(text, encoding="utf-8")
        for surprise in self.surprises:
            print(f"unexpected: {surprise}", file=sys.stderr)


def elements(call: Call) -> int:
    """How much a call would take in a stored file, without its parameters."""
    values = [*call.args, *call.options.values(), *call.kwargs.values()]
    return sum(value.numel() for value in values if isinstance(value, torch.Tensor))
