"""CTC, linear cross entropy, adaptive log-softmax: losses whose arguments need tables of their own."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch

from cases import DTYPES, LAYOUTS, Call, Draw, Object, Suite, lay_out
from grids import REDUCTIONS

CTC = ("torch.nn.CTCLoss", "torch.nn.functional.ctc_loss")
# The low precisions have no kernel: their cases under `options` say so, and more of them would say no more.
CTC_DTYPES = ("f64", "f32")


def ctc_arguments(
    draw: Draw,
    form: str = "padded",
    steps: int = 9,
    batch: int = 4,
    labels: int = 6,
    length: int = 3,
    blank: int = 0,
    scale: float = 1.0,
    lengths: str = "tensor",
    index: torch.dtype = torch.int64,
) -> list:
    """Log-probabilities, targets and lengths in one of the forms that CTC takes. Every label is in range."""
    log_probs = draw.normal((steps, batch, labels), scale).log_softmax(2)
    targets = draw.integers((batch, length), labels - 1)
    targets = (targets + (targets >= blank)).to(index)
    input_lengths = draw.integers((batch,), steps + 1, max(1, steps - 1)).to(index)
    target_lengths = draw.integers((batch,), length + 1, min(1, length)).to(index)
    if form == "concatenated":
        rows = zip(targets, target_lengths.tolist())
        targets = torch.cat([row[:size] for row, size in rows])
    if form == "unbatched":
        log_probs, targets = log_probs[:, 0].contiguous(), targets[0, : target_lengths[0]].contiguous()
        input_lengths, target_lengths = input_lengths[0].clone(), target_lengths[0].clone()
    if lengths == "list":
        return [log_probs, targets, input_lengths.tolist(), target_lengths.tolist()]
    return [log_probs, targets, input_lengths, target_lengths]


def ctc(suite: Suite) -> None:
    blanks = [{}, {"blank": 5}, {"zero_infinity": True}, {"blank": 2, "zero_infinity": True}]
    forms = ("padded", "concatenated", "unbatched")

    def add(
        tag: str,
        dtype: str,
        options: dict,
        layout: str | None = None,
        count: int = 1,
        change: Callable[[list], list] | None = None,
        **more: Any,
    ) -> None:
        def make(draw: Draw) -> Call:
            args = ctc_arguments(draw, blank=options.get("blank", 0), **more)
            args = [lay_out(layout, value) if i < count else value for i, value in enumerate(args)]
            return Call(change(args) if change else args, options, grad=(0,))

        for reference in CTC:
            suite.add(reference, tag, dtype, make, key=(tag, options.get("reduction"), more.get("form")))

    for dtype, reduction in product(DTYPES, REDUCTIONS):
        mode = {"reduction": reduction}
        for form, options in product(forms, blanks):
            add("options", dtype, {**options, **mode}, form=form)
        if dtype not in CTC_DTYPES:
            continue
        for index, form in product((torch.int32, torch.int64), forms):
            add("index", dtype, mode, form=form, index=index)
        for form, options in product(("padded", "concatenated"), ({}, {"zero_infinity": True})):
            add("lists", dtype, {**options, **mode}, form=form, lengths="list")
        sizes = [(1, 1, 2, 1), (5, 1, 3, 2), (12, 7, 33, 4), (20, 2, 5, 9), (40, 3, 40, 12), (7, 2, 4, 0)]
        for (steps, batch, labels, length), form in product(sizes, ("padded", "concatenated")):
            size = {"steps": steps, "batch": batch, "labels": labels, "length": length}
            add("shape", dtype, mode, form=form, **size)
        for options in ({}, {"zero_infinity": True}):
            add("impossible", dtype, {**options, **mode}, steps=3, length=4)
            add("extreme", dtype, {**options, **mode}, scale=100.0)
            add("repeated", dtype, {**options, **mode}, change=repeat_label)
            add("empty_target", dtype, {**options, **mode}, change=no_targets)
        add("unnormalised", dtype, mode, change=lambda args: [args[0] * 0.5 - 0.3, *args[1:]])
        for layout in LAYOUTS:
            add("layout", dtype, mode, layout=layout)
        add("layout", dtype, mode, layout="stepped", count=4)
        add("layout", dtype, mode, layout="offset", count=4)
    ctc_rejects(suite)


def repeat_label(args: list) -> list:
    """Equal neighbours need a blank between them."""
    args[1][:] = 1
    return args


def no_targets(args: list) -> list:
    args[3][:2] = 0
    return args


def ctc_rejects(suite: Suite) -> None:
    """Calls that PyTorch checks before it reads memory. It checks no labels: all of them are in range."""

    def replace(position: int, value: Callable[[Draw, list], Any]) -> Callable[[Draw], list]:
        def arguments(draw: Draw) -> list:
            args = ctc_arguments(draw)
            args[position] = value(draw, args)
            return args

        return arguments

    rejects = [
        (ctc_arguments, {"blank": 6}),
        (ctc_arguments, {"blank": -1}),
        (ctc_arguments, {"reduction": "average"}),
        (replace(2, lambda draw, args: torch.full((4,), 10)), {}),
        (replace(2, lambda draw, args: torch.full((3,), 9)), {}),
        (replace(3, lambda draw, args: torch.full((5,), 1)), {}),
        (replace(3, lambda draw, args: torch.full((4,), 4)), {}),
        (replace(1, lambda draw, args: args[1][:3]), {}),
        (replace(2, lambda draw, args: args[2].to(draw.dtype)), {}),
        (replace(0, lambda draw, args: args[0][:, :0]), {}),
    ]
    for reference, (arguments, options), dtype in product(CTC, rejects, CTC_DTYPES):
        suite.add(reference, "reject", dtype, lambda draw: Call(arguments(draw), options), expect="error")


CHUNKED = "torch.nn.LinearCrossEntropyOptions"


def linear_cross_entropy(suite: Suite) -> None:
    weight, smoothing = {"weight": True}, {"label_smoothing": 0.1}
    plain = [
        {},
        weight,
        smoothing,
        {"ignore_index": 1},
        {"ignore_index": -1, **weight},
        {"ignore_index": 1, **weight, **smoothing},
    ]
    chunked = [
        {},
        {"batch_chunk_size": 2},
        {"chunking_method": "aspect_ratio"},
        {"chunking_method": "aspect_ratio:2"},
        {"acc_policy": "accurate"},
        {"acc_policy": "balanced", "batch_chunk_size": 3},
        {"acc_policy": "compact", "allow_retain_graph": True},
    ]

    def add(
        tag: str, dtype: str, options: dict, key: Any = None, second_order: bool = True, **sizes: Any
    ) -> None:
        for reference, call in (
            ("torch.nn.LinearCrossEntropyLoss", linear_module),
            ("torch.nn.functional.linear_cross_entropy", linear_function),
        ):

            def make(draw: Draw) -> Call:
                return call(linear_arguments(draw, options, **sizes), options)

            suite.add(reference, tag, dtype, make, key=key, second_order=second_order)

    for dtype, reduction in product(DTYPES, REDUCTIONS):
        mode = {"reduction": reduction}
        key = ("options", reduction if dtype == "f32" else dtype)
        for options, bias in product(plain, (False, True)):
            add("options", dtype, {**options, **mode}, key, bias=bias)
        # Half precision throughout rounds after every step, so that no two orders of the steps are equal.
        acc_dtype = Object("torch.float64" if dtype == "f64" else "torch.float32")
        possible = [*chunked, {"acc_dtype": acc_dtype}, {"acc_dtype": acc_dtype, "acc_policy": "accurate"}]
        for options, bias in product(possible, (False, True)):
            chunk = {"options": Object(CHUNKED, options), **mode}
            add("chunked", dtype, chunk, second_order=False, bias=bias)
            add("chunked", dtype, {**chunk, **weight, "ignore_index": 1}, second_order=False, bias=bias)
        for target, out, bias in product(("indices", "probabilities"), ((), (3,), (2, 3)), (False, True)):
            add("out_features", dtype, {**mode, **weight}, target=target, out=out, bias=bias)
        for options in ({}, smoothing):
            add("probability", dtype, {**options, **mode}, target="probabilities", bias=True)
        for batch, features, classes in ((None, 5, 4), (1, 1, 1), (0, 4, 5), (7, 3, 40), (33, 7, 5)):
            sizes = {"batch": batch, "features": features, "classes": classes}
            tag = "empty" if batch == 0 else "shape"
            add(tag, dtype, mode, bias=True, **sizes)
            if batch != 0:
                add(tag, dtype, mode, target="probabilities", **sizes)
                chunk = {"options": Object(CHUNKED, {}), **mode}
                add(tag, dtype, chunk, second_order=False, **sizes)
        add("extreme", dtype, mode, scale=100.0)
        if dtype in ("f64", "f32"):
            for layout in ("transposed", "expanded", "offset", "stepped"):
                add("layout", dtype, mode, layout=layout)
                add(
                    "layout",
                    dtype,
                    {"options": Object(CHUNKED, {}), **mode},
                    second_order=False,
                    layout=layout,
                )
    for dtype in ("f32", "bf16"):
        for options in ({"reduction": "mean"}, {"reduction": "mean", "options": Object(CHUNKED, {})}):
            add("large", dtype, options, second_order=False, batch=40, features=16, classes=125)
    linear_rejects(suite)


def linear_arguments(
    draw: Draw,
    options: dict,
    batch: int | None = 6,
    features: int = 4,
    classes: int = 5,
    out: tuple = (),
    bias: bool = False,
    target: str = "indices",
    scale: float = 1.0,
    layout: str | None = None,
) -> dict:
    """What the module and the function share; the linear weight is (classes, *out, features)."""
    rows = () if batch is None else (batch,)
    labels = draw.integers((*rows, *out), classes)
    if "ignore_index" in options and labels.dim():
        labels[: max(1, len(labels) // 3)] = options["ignore_index"]
    spread = draw.normal((*rows, classes, *out)).softmax(len(rows))
    return {
        "input": lay_out(layout, draw.normal((*rows, features), scale)),
        "linear_weight": draw.normal((classes, *out, features), 0.5),
        "linear_bias": draw.normal((classes, *out)) if bias else None,
        "target": labels if target == "indices" else spread,
        "weight": draw.uniform((classes,), 0.2, 2.0) if options.get("weight") is True else None,
    }


def linear_options(arguments: dict, options: dict) -> dict:
    weight = {} if arguments["weight"] is None else {"weight": arguments["weight"]}
    return {key: value for key, value in options.items() if key != "weight"} | weight


def linear_function(arguments: dict, options: dict) -> Call:
    args = [arguments[name] for name in ("input", "linear_weight", "target")]
    grad: list[int | str] = [0, 1, 2] if arguments["target"].is_floating_point() else [0, 1]
    kwargs = {} if arguments["linear_bias"] is None else {"linear_bias": arguments["linear_bias"]}
    return Call(args, linear_options(arguments, options), kwargs, [*grad, *kwargs])


def linear_module(arguments: dict, options: dict) -> Call:
    """The module keeps its weight flat: (classes * out_features, features)."""
    classes, *out, features = arguments["linear_weight"].shape
    sizes = {"in_features": features, "num_classes": classes}
    state = {"linear.weight": arguments["linear_weight"].reshape(math.prod(out, start=classes), features)}
    if out:
        sizes["out_features"] = out
    if arguments["linear_bias"] is not None:
        sizes["bias"] = True
        state["linear.bias"] = arguments["linear_bias"].flatten()
    grad = (0, 1) if arguments["target"].is_floating_point() else (0,)
    args = [arguments["input"], arguments["target"]]
    return Call(args, sizes | linear_options(arguments, options), grad=grad, state=state)


def linear_rejects(suite: Suite) -> None:
    def changed(**changes: Callable[[Draw], torch.Tensor]) -> Callable[[Draw], dict]:
        def arguments(draw: Draw) -> dict:
            return linear_arguments(draw, {}) | {name: change(draw) for name, change in changes.items()}

        return arguments

    valid = changed()
    both = [
        (valid, {"label_smoothing": 1.5}),
        (valid, {"reduction": "average"}),
        (valid, {"options": Object(CHUNKED, {"acc_policy": "best"})}),
        (valid, {"options": Object(CHUNKED, {"batch_chunk_size": 0})}),
        (valid, {"options": Object(CHUNKED, {"chunking_method": "half"})}),
        (changed(weight=lambda draw: draw.uniform((4,))), {}),
        (changed(input=lambda draw: draw.normal((6, 3))), {}),
        (changed(input=lambda draw: draw.normal((2, 6, 4))), {}),
        (changed(target=lambda draw: draw.integers((5,), 5)), {}),
        (changed(target=lambda draw: torch.full((6,), 5)), {}),
        (changed(target=lambda draw: torch.zeros(6, 5, dtype=torch.int64)), {}),
        (changed(target=lambda draw: draw.uniform((6, 5))), {"ignore_index": 1}),
    ]
    # The module checks what the function lets pass.
    module_only = [(valid, {"label_smoothing": -0.5})]
    function_only = [
        (changed(linear_weight=lambda draw: draw.normal((4,))), {}),
        (changed(linear_bias=lambda draw: draw.normal((4,))), {}),
        (
            changed(linear_weight=lambda draw: draw.normal((5, 2, 4)), input=lambda draw: draw.normal((4,))),
            {},
        ),
    ]
    for dtype in ("f64", "f32"):
        for arguments, options in both + module_only:
            add_reject(suite, "torch.nn.LinearCrossEntropyLoss", dtype, linear_module, arguments, options)
        for arguments, options in both + function_only:
            add_reject(
                suite, "torch.nn.functional.linear_cross_entropy", dtype, linear_function, arguments, options
            )


def add_reject(
    suite: Suite, reference: str, dtype: str, call: Callable, arguments: Callable, options: dict
) -> None:
    suite.add(reference, "reject", dtype, lambda draw: call(arguments(draw), options), expect="error")


FORMULA = "papers.linear_cross_entropy"
LIGER = "liger.fused_linear_cross_entropy"


def linear_cross_entropy_of_language_models(suite: Suite) -> None:
    """Z-loss and soft cap: by the formula in every dtype, and by Liger's kernel, which computes in single precision."""
    additions = [
        {"lse_square_scale": 0.1},
        {"softcap": 2.0},
        {"lse_square_scale": 0.05, "softcap": 3.0},
    ]
    settings = [
        {},
        {"weight": True},
        {"label_smoothing": 0.1},
        {"ignore_index": 1},
        {"weight": True, "label_smoothing": 0.3, "ignore_index": 1},
    ]

    def add(reference: str, tag: str, dtype: str, options: dict, more: dict, **sizes: Any) -> None:
        def make(draw: Draw) -> Call:
            call = linear_function(linear_arguments(draw, options, **sizes), options)
            # A gradient of class probabilities would end the chunks.
            grad = [position for position in call.grad if position != 2 or not more]
            return dataclasses.replace(call, options=call.options | more, grad=grad)

        suite.add(reference, tag, dtype, make, second_order=reference == FORMULA)

    for reduction, added, setting, bias in product(REDUCTIONS, additions, settings, (False, True)):
        options = {**added, **setting, "reduction": reduction}
        for dtype in DTYPES:
            add(FORMULA, "options", dtype, options, {}, bias=bias)
            add(FORMULA, "chunked", dtype, options, {"chunk": 4}, bias=bias)
        add(LIGER, "options", "f32", options, {}, bias=bias)
    for reduction, smoothing, weight, chunk in product(REDUCTIONS, (0.0, 0.2), (False, True), ({}, {"chunk": 4})):
        options = {"label_smoothing": smoothing, "weight": weight, "reduction": reduction}
        for dtype, target, out in product(("f64", "f32"), ("indices", "probabilities"), ((), (3,), (2, 2))):
            sizes = {"target": target, "out": out, "bias": True}
            add(FORMULA, "places", dtype, {**options, **additions[2]}, chunk, **sizes)
            add(FORMULA, "plain", dtype, options, chunk, **sizes)
    for dtype, chunk in product(("f64", "f32"), ({}, {"chunk": 4})):
        add(FORMULA, "single", dtype, additions[2], chunk, batch=None)
        add(FORMULA, "extreme", dtype, {"softcap": 30.0, "lse_square_scale": 1e-4}, chunk, scale=100.0)
        for layout in ("transposed", "expanded", "offset", "stepped"):
            add(FORMULA, "layout", dtype, additions[2], chunk, layout=layout)


AT_ONCE = "papers.chunked_linear_cross_entropy"


def linear_cross_entropy_under_autocast(suite: Suite) -> None:
    """The weights are of single precision, and the hidden states what the layer before makes: that or half precision."""
    settings = [{}, {"weight": True, "ignore_index": 1}, {"label_smoothing": 0.1}]

    def add(reference: str, cast: str, hidden: str, options: dict, more: dict, **sizes: Any) -> None:
        def make(draw: Draw) -> Call:
            arguments = linear_arguments(draw, options, **sizes)
            arguments["input"] = arguments["input"].to(DTYPES[hidden])
            made = linear_module if reference.endswith("LinearCrossEntropyLoss") else linear_function
            call = made(arguments, options)
            return dataclasses.replace(call, options=call.options | more)

        tag = f"autocast_{cast}_of_{hidden}"
        key = (tag, sizes["bias"])
        suite.add(reference, tag, "f32", make, key=key, second_order=False, autocast=cast)

    for cast, hidden, setting, bias in product(("bf16", "f16"), ("f32", "bf16", "f16"), settings, (True, False)):
        for reduction in REDUCTIONS:
            options = {**setting, "reduction": reduction}
            for reference in ("torch.nn.LinearCrossEntropyLoss", "torch.nn.functional.linear_cross_entropy"):
                add(reference, cast, hidden, options, {}, bias=bias)
            add(AT_ONCE, cast, hidden, options, {"chunk": 4}, bias=bias)
            add(AT_ONCE, cast, hidden, options, {"chunk": 16}, bias=bias, batch=40, features=16, classes=125)


ADAPTIVE = "torch.nn.AdaptiveLogSoftmaxWithLoss"


def adaptive_state(draw: Draw, options: dict) -> dict[str, torch.Tensor]:
    """The parameters under PyTorch's state-dict names."""
    features, classes = options["in_features"], options["n_classes"]
    bounds = [*options["cutoffs"], classes]
    head = bounds[0] + len(bounds) - 1
    state = {"head.weight": draw.normal((head, features), 0.3)}
    if options.get("head_bias"):
        state["head.bias"] = draw.normal((head,))
    for i, (low, high) in enumerate(zip(bounds, bounds[1:])):
        hidden = int(features // options.get("div_value", 4.0) ** (i + 1))
        state[f"tail.{i}.0.weight"] = draw.normal((hidden, features), 0.3)
        state[f"tail.{i}.1.weight"] = draw.normal((high - low, hidden), 0.5)
    return state


def adaptive_log_softmax(suite: Suite) -> None:
    sizes = {"in_features": 16, "n_classes": 20}
    settings = [
        {"cutoffs": [5]},
        {"cutoffs": [5, 10]},
        {"cutoffs": [4, 8, 12], "div_value": 2.0},
        {"cutoffs": [1, 19], "div_value": 1.5},
    ]

    def add(
        tag: str,
        dtype: str,
        options: dict,
        rows: int | None = 9,
        high: int = 20,
        low: int = 0,
        layout: str | None = None,
        scale: float = 1.0,
        **more: Any,
    ) -> None:
        options = sizes | options

        def make(draw: Draw) -> Call:
            shape = () if rows is None else (rows,)
            given = lay_out(layout, draw.normal((*shape, options["in_features"]), scale))
            target = lay_out(layout, draw.integers(shape, high, low))
            return Call([given, target], options, grad=(0,), state=adaptive_state(draw, options))

        suite.add(ADAPTIVE, tag, dtype, make, **more)

    for dtype, setting, bias in product(DTYPES, settings, (False, True)):
        options = {**setting, "head_bias": True} if bias else setting
        add("options", dtype, options, key=("options", dtype))
        add("ones", dtype, options, ones=True)
        for rows in (None, 1, 2, 33):
            add("shape", dtype, options, rows=rows)
        add("shortlist", dtype, options, high=setting["cutoffs"][0])
        add("tail", dtype, options, low=setting["cutoffs"][-1])
        add("empty", dtype, options, rows=0)
        add("extreme", dtype, options, scale=100.0)
        for layout in ("transposed", "expanded", "offset", "stepped"):
            add("layout", dtype, options, layout=layout)
    add("large", "f32", {"cutoffs": [20, 100], "in_features": 32, "n_classes": 150}, rows=40, high=150)
    adaptive_rejects(suite, sizes)


def adaptive_rejects(suite: Suite, sizes: dict) -> None:
    def rejected(args: Callable[[Draw], list], cutoffs: list[int], state: bool = True) -> None:
        options = {**sizes, "cutoffs": cutoffs}

        def make(draw: Draw) -> Call:
            return Call(args(draw), options, state=adaptive_state(draw, options) if state else {})

        for dtype in ("f64", "f32"):
            suite.add(ADAPTIVE, "reject", dtype, make, expect="error")

    for cutoffs in ([], [0], [-1, 5], [20], [5, 3], [5, 5], [25]):
        rejected(lambda draw: [draw.normal((3, 16)), draw.integers((3,), 20)], cutoffs, state=False)
    for args in (
        lambda draw: [draw.normal((3, 16)), torch.tensor([0, 1, 20])],
        lambda draw: [draw.normal((3, 16)), torch.tensor([0, -1, 2])],
        lambda draw: [draw.normal((3, 16)), draw.integers((4,), 20)],
        lambda draw: [draw.normal((3, 16)), draw.integers((3, 1), 20)],
        lambda draw: [draw.normal((3, 2, 16)), draw.integers((3,), 20)],
        lambda draw: [draw.normal((3, 16)), draw.integers((), 20)],
        lambda draw: [draw.normal((3, 15)), draw.integers((3,), 20)],
    ):
        rejected(args, [5, 10])


def add_all(suite: Suite) -> None:
    for add in (
        ctc,
        linear_cross_entropy,
        linear_cross_entropy_of_language_models,
        linear_cross_entropy_under_autocast,
        adaptive_log_softmax,
    ):
        add(suite)
