"""Losses of language models: preferences between answers, and distillation; by their formulas and by Liger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch

from cases import DTYPES, LAYOUTS, Call, Draw, Shape, Suite, lay_out
from grids import REDUCTIONS

FORMULA = "papers.preference"
LIGER = "liger_kernel.chunked_loss"
# Liger computes double precision in single precision.
LIGER_DTYPES = ("f32", "bf16", "f16")
FULL = ("f64", "f32")
VARIANTS: list[dict] = [
    {},
    {"label_smoothing": 0.2},
    {"variant": "hinge"},
    {"variant": "exo_pair", "label_smoothing": 1e-3},
    {"variant": "exo_pair", "label_smoothing": 0.3},
    {"variant": "nca_pair"},
    {"variant": "robust"},
    {"variant": "robust", "label_smoothing": 0.2},
    {"variant": "bco_pair"},
    {"variant": "sppo_hard"},
    {"variant": "apo_zero"},
    {"variant": "apo_down"},
    {"variant": "discopop"},
    {"variant": "discopop", "tau": 0.5},
]
PAIR_LOSSES: dict[str, tuple[bool, list[dict]]] = {
    "dpo_loss": (True, VARIANTS),
    "ipo_loss": (True, [{}]),
    "orpo_loss": (False, [{}]),
    "simpo_loss": (False, [{}, {"gamma": 1.5}, {"label_smoothing": 0.1}]),
    "cpo_loss": (False, [{}, {"label_smoothing": 0.1}]),
}
Log = Callable[[Draw, Shape], torch.Tensor]


def log_probs(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform(shape, -4.0, -0.3)


def huge(draw: Draw, shape: Shape) -> torch.Tensor:
    """Answers that are all but impossible beside likely ones."""
    return draw.choose(shape, (-6e3, -400.0, -30.0, -1e-3))


def pair_losses(suite: Suite) -> None:
    for name, (referenced, settings) in PAIR_LOSSES.items():

        def add(
            tag: str,
            dtype: str,
            options: dict,
            shapes: Sequence[Shape] = ((5,),) * 4,
            values: Log = log_probs,
            layout: str | None = None,
            reference: bool = referenced,
            **more: Any,
        ) -> None:
            def make(draw: Draw) -> Call:
                count = 4 if reference else 2
                args = [lay_out(layout, values(draw, shape)) for shape in shapes[:count]]
                return Call(args, options, grad=tuple(range(count)))

            suite.add(f"{FORMULA}.{name}", tag, dtype, make, layout=layout, **more)

        for dtype, reduction, options, beta in product(DTYPES, REDUCTIONS, settings, (0.1, 2.0)):
            add("options", dtype, {**options, "reduction": reduction, "beta": beta})
        for dtype, options in product(DTYPES, settings):
            add("alone", dtype, options, reference=False)
            # The formula has no second derivative where the sigmoid is 0.
            add("huge", dtype, options, values=huge, second_order=False)
            add("huge", dtype, {**options, "beta": 1.0}, values=huge, second_order=False)
            add("ones", dtype, options, ones=True)
        for dtype, reduction in product(FULL, REDUCTIONS):
            options = {**settings[-1], "reduction": reduction}
            for shape in ((1,), (), (6,), (33,), (0,)):
                add("shape", dtype, options, (shape,) * 4)
            for layout in LAYOUTS:
                add("layout", dtype, options, ((12,),) * 4, layout=layout)
        for dtype in FULL:
            for beta in (0.0, -0.1):
                add("reject", dtype, {"beta": beta}, expect="error")
            add("reject", dtype, {}, ((5,), (4,), (5,), (5,)), expect="error")
            add("reject", dtype, {}, ((5,), (1,), (5,), (5,)), expect="error")
            if referenced:
                add("reject", dtype, {}, ((5,), (5,), (5,), (1,)), expect="error")
    for dtype, options in product(
        FULL, ({"variant": "robust", "label_smoothing": 0.5}, {"variant": "other"})
    ):
        suite.add(
            f"{FORMULA}.dpo_loss",
            "reject",
            dtype,
            lambda draw: Call([log_probs(draw, (5,)) for _ in range(4)], options),
            expect="error",
        )


def kto_loss(suite: Suite) -> None:
    def add(
        tag: str,
        dtype: str,
        options: dict,
        shape: Shape = (6,),
        kl: Shape | None = (),
        reference: bool = True,
        values: Log = log_probs,
        change: Callable[[list], list] = lambda args: args,
        **more: Any,
    ) -> None:
        def make(draw: Draw) -> Call:
            policy, given = values(draw, shape), values(draw, shape) if reference else None
            labels = draw.integers(shape, 2).bool()
            divergence = None if kl is None else draw.uniform(kl, 0.0, 2.0)
            args = change([policy, given, labels, divergence])
            return Call(args, options, grad=(0, 1) if reference else (0,))

        suite.add(f"{FORMULA}.kto_loss", tag, dtype, make, **more)

    weighted = {"desirable_weight": 1.3, "undesirable_weight": 0.4}
    for dtype, reduction, options, beta in product(DTYPES, REDUCTIONS, ({}, weighted), (0.1, 2.0)):
        for kl, reference in product((None, (), (6,)), (False, True)):
            options = {**options, "reduction": reduction, "beta": beta}
            add("options", dtype, options, kl=kl, reference=reference)
        add("huge", dtype, options, values=huge, second_order=False)
    for dtype, shape in product(FULL, ((1,), (), (6,), (0,))):
        add("shape", dtype, {}, shape=shape)
    for dtype in FULL:
        add("reject", dtype, {"beta": 0.0}, expect="error")
        add("reject", dtype, {}, change=lambda args: [args[0], args[1][:5], *args[2:]], expect="error")
        add("reject", dtype, {}, change=lambda args: [*args[:2], args[2][:1], args[3]], expect="error")
        add("reject", dtype, {}, change=lambda args: [*args[:2], args[2].long(), args[3]], expect="error")


def answers(
    draw: Draw,
    count: int = 6,
    tokens: int = 5,
    features: int = 4,
    vocabulary: int = 7,
    bias: bool = True,
    scale: float = 1.0,
    ignore_index: int = -100,
    empty: int | None = None,
    layout: str | None = None,
) -> dict:
    """A policy, a wider reference model, and answers of different lengths; the one at `empty` has no tokens."""
    target = draw.integers((count, tokens), vocabulary)
    # Ignored: a prompt, as long as the number of the answer says, and in every second answer the last token.
    for number in range(count):
        target[number, : number % max(tokens - 1, 1)] = ignore_index
        target[number, tokens - 1 :] = ignore_index if number % 2 and tokens > 1 else target[number, tokens - 1 :]
        if tokens:
            target[number, tokens // 2] = number % 3
    if empty is not None:
        target[empty] = ignore_index
    return {
        "input": lay_out(layout, draw.normal((count, tokens, features), scale)),
        "weight": lay_out(layout, draw.normal((vocabulary, features), 0.7)),
        "bias": draw.normal((vocabulary,)) if bias else None,
        "target": target,
        "ref_input": draw.normal((count, tokens, features + 2), scale),
        "ref_weight": draw.normal((vocabulary, features + 2), 0.7),
        "ref_bias": draw.normal((vocabulary,)) if bias else None,
        "labels": draw.integers((count,), 2).bool(),
        "kl": draw.uniform((), 0.0, 1.0),
    }


# The reference of each loss: the order of its tensors, and whether it takes a reference model.
POLICY = ("lin_weight", "_input", "target", "bias")
REFERENCE = ("ref_input", "ref_weight", "ref_bias")
LIGER_PAIRS: dict[str, tuple[tuple[str, ...], list[dict]]] = {
    "LigerFusedLinearDPOLoss": (
        (*POLICY, *REFERENCE),
        [
            *({"loss_type": o.pop("variant"), **o} for o in map(dict, VARIANTS[2:-1])),
            {},
            {"label_smoothing": 0.3},
            {"average_log_prob": True, "beta": 0.5},
            {"use_ref_model": False},
            {"compute_nll_loss": True},
            {"compute_nll_loss": True, "alpha": 0.3, "average_log_prob": True},
            {"loss_type": "discopop", "discopop_tau": 0.5},
        ],
    ),
    "LigerFusedLinearORPOLoss": (POLICY, [{}, {"beta": 1.0}, {"compute_nll_loss": False}]),
    "LigerFusedLinearSimPOLoss": (
        POLICY,
        [{}, {"beta": 2.0, "gamma": 1.0}, {"compute_nll_loss": False}, {"alpha": 0.3, "label_smoothing": 0.1}],
    ),
    "LigerFusedLinearCPOLoss": (
        POLICY,
        [
            {},
            {"beta": 1.0, "average_log_prob": True},
            {"compute_nll_loss": False},
            {"alpha": 0.3, "label_smoothing": 0.1},
        ],
    ),
}
NAMES = {"lin_weight": "weight", "_input": "input", "preference_labels": "labels"}


def of_liger(names: Sequence[str], tensors: dict, options: dict, chunk_size: int = 1) -> Call:
    """The call of a chunked loss, with gradients of what is there of input, weight and bias."""
    args = [tensors[NAMES.get(name, name)] for name in names]
    wanted = ("lin_weight", "_input", "bias")
    grad = [at for at, name in enumerate(names) if name in wanted and args[at] is not None]
    return Call(args, {"compiled": False, "chunk_size": chunk_size, **options}, grad=grad)


def liger_pairs(suite: Suite) -> None:
    for name, (names, settings) in LIGER_PAIRS.items():

        def add(
            tag: str,
            dtype: str,
            options: dict,
            chunk_size: int = 1,
            change: Callable[[dict], dict] = lambda tensors: tensors,
            expect: str = "ok",
            **sizes: Any,
        ) -> None:
            def make(draw: Draw) -> Call:
                tensors = change(answers(draw, **sizes))
                return of_liger(names, tensors, options, chunk_size)

            suite.add(f"{LIGER}.{name}", tag, dtype, make, second_order=False, expect=expect)

        averaged = name in ("LigerFusedLinearORPOLoss", "LigerFusedLinearSimPOLoss")
        for dtype, options, bias in product(LIGER_DTYPES, settings, (False, True)):
            add("options", dtype, options, bias=bias)
        for dtype, options in product(LIGER_DTYPES, settings[:2]):
            add("chunk", dtype, options, chunk_size=2, count=8)
            add("chunk", dtype, options, chunk_size=9)
            add("ignore", dtype, {**options, "ignore_index": 3}, ignore_index=3)
            add("one_pair", dtype, options, count=2)
            add("one_token", dtype, options, tokens=1)
            add("long", dtype, options, tokens=40, vocabulary=33, features=8)
            empty = "better_empty" if averaged or options.get("average_log_prob") else "empty"
            add(empty, dtype, options, empty=1)
            add(empty, dtype, options, empty=4)
            add("huge", dtype, options, scale=30.0)
        for layout in ("transposed", "expanded", "offset", "stepped"):
            add("layout", "f32", settings[0], layout=layout)
        for change in (
            lambda tensors: {**tensors, "target": torch.full_like(tensors["target"], 7)},
            lambda tensors: {**tensors, "weight": tensors["weight"][:, :3]},
            lambda tensors: {**tensors, "bias": tensors["bias"][:6]},
        ):
            add("reject", "f32", {}, change=change, expect="error")
        # Without the negative log-likelihood nothing in Liger looks at the end of an answer.
        short = "better_target" if name == "LigerFusedLinearDPOLoss" else "reject"
        expect = "ok" if short == "better_target" else "error"
        add(short, "f32", {}, change=lambda tensors: {**tensors, "target": tensors["target"][:, :4]}, expect=expect)
        add("better_odd", "f32", {}, count=5)
        add("better_beta", "f32", {"beta": -0.1})
    for dtype, beta in product(LIGER_DTYPES, (0.1, 1.0)):

        def make(draw: Draw) -> Call:
            tensors = answers(draw)
            tokens = draw.integers((6, 5), 7)
            tokens[:, 0] = -100
            call = of_liger(POLICY, tensors, {"beta": beta})
            return Call([*call.args, tokens], call.options, grad=call.grad)

        suite.add(f"{LIGER}.LigerFusedLinearORPOLoss", "nll_target", dtype, make, second_order=False)
    for dtype, rejected in product(LIGER_DTYPES, (False, True)):

        def certain(draw: Draw) -> Call:
            """The first chosen, or rejected, answer is certain: its logits are 40 apart."""
            tensors = answers(draw, bias=False)
            number = 3 if rejected else 0
            tensors["weight"][:, 0] = 0
            tensors["weight"][2, 0] = 1
            tensors["input"][number] = 0
            tensors["input"][number, :, 0] = 40
            tensors["target"][number] = 2
            return of_liger(POLICY, tensors, {})

        suite.add(f"{LIGER}.LigerFusedLinearORPOLoss", "better_certain", dtype, certain, second_order=False)
        overflow = {"loss_type": "discopop", "beta": 20.0}
        suite.add(
            f"{LIGER}.LigerFusedLinearDPOLoss",
            "better_overflow",
            dtype,
            lambda draw: of_liger((*POLICY, *REFERENCE), answers(draw, scale=30.0), overflow),
            second_order=False,
        )
    options = {"loss_type": "ipo", "compiled": False}
    suite.add(f"{LIGER}.LigerFusedLinearDPOLoss", "reject", "f32", lambda draw: Call([], options), expect="error")


def liger_kto(suite: Suite) -> None:
    names = ("_input", "lin_weight", "target", "bias", "preference_labels", *REFERENCE, "kl")

    def add(tag: str, dtype: str, options: dict, chunk_size: int = 1, kl: Any = "one", **more: Any) -> None:
        expect = more.pop("expect", "ok")
        change = more.pop("change", lambda tensors: tensors)

        def make(draw: Draw) -> Call:
            tensors = change(answers(draw, **more))
            tensors["kl"] = {"one": tensors["kl"], "none": None}.get(kl, draw.uniform((6,), 0.0, 1.0))
            return of_liger(names, tensors, options, chunk_size)

        suite.add(f"{LIGER}.LigerFusedLinearKTOLoss", tag, dtype, make, second_order=False, expect=expect)

    model = {"use_ref_model": True}
    settings = [model, {}, {**model, "beta": 1.0}, {**model, "average_log_prob": True}]
    for dtype, options, bias, kl in product(LIGER_DTYPES, settings, (False, True), ("one", "none")):
        add("options", dtype, options, bias=bias, kl=kl)
    for dtype in LIGER_DTYPES:
        add("each", dtype, model, chunk_size=6, kl="each")
        add("chunk", dtype, model, chunk_size=4)
        add("odd", dtype, model, count=5)
        add("one", dtype, model, count=1)
        add("empty", dtype, model, empty=2)
        add("better_empty", dtype, {**model, "average_log_prob": True}, empty=2)
        add("huge", dtype, model, scale=30.0)
        add("ignore", dtype, {**model, "ignore_index": 3}, ignore_index=3)
    for change in (
        lambda tensors: {**tensors, "target": torch.full_like(tensors["target"], 7)},
        lambda tensors: {**tensors, "labels": None},
        lambda tensors: {**tensors, "labels": tensors["labels"].float()},
    ):
        add("reject", "f32", model, change=change, expect="error")
    add("better_beta", "f32", {**model, "beta": -0.1})


def formulas(suite: Suite) -> None:
    """The linear forms in every dtype, with what Liger has not: second derivatives, double precision, a soft cap."""
    losses: list[dict] = [
        {"loss": "dpo"},
        {"loss": "dpo", "label_smoothing": 0.2, "average": True, "alpha": 0.5},
        {"loss": "ipo", "average": True},
        {"loss": "orpo", "average": True, "alpha": 1.0},
        {"loss": "simpo", "average": True, "alpha": 1.0, "beta": 2.0},
        {"loss": "cpo", "alpha": 1.0},
    ]
    head = ("input", "weight", "target", "bias")

    def add(
        tag: str, dtype: str, options: dict, model: bool = False, own: bool = False, **sizes: Any
    ) -> None:
        def make(draw: Draw) -> Call:
            tensors = answers(draw, **sizes)
            names = [*head, *REFERENCE] if model else head
            args = [tensors[name] for name in names]
            kwargs = {"nll_target": draw.integers((3, 5), 7)} if own else {}
            return Call(args, options, kwargs, [0, 1] if args[3] is None else [0, 1, 3])

        suite.add(f"{FORMULA}.linear_preference", tag, dtype, make)

    for dtype, options, more in product(DTYPES, losses, ({}, {"softcap": 3.0}, {"chunk": 100})):
        add("options", dtype, options | more, options["loss"] in ("dpo", "ipo"), bias="softcap" not in more)
    for dtype, options in product(FULL, losses):
        if options["loss"] != "orpo":  # The odds of an answer without tokens are infinite.
            add("empty", dtype, options, empty=1)
            add("empty", dtype, options, empty=5)
        add("one_pair", dtype, options, count=2)
        add("unreduced", dtype, {**options, "reduction": "none"})
        add("ignore", dtype, {**options, "ignore_index": 3}, ignore_index=3)
        for layout in ("transposed", "offset", "stepped"):
            add("layout", dtype, options, layout=layout)
        if options.get("alpha"):
            add("nll_target", dtype, options, own=True)
    linear_kto(suite)


def linear_kto(suite: Suite) -> None:
    names = ("input", "weight", "target", "bias", "labels", *REFERENCE, "kl")
    weighted = {"desirable_weight": 1.3, "undesirable_weight": 0.4, "average": True}

    def add(tag: str, dtype: str, options: dict, **sizes: Any) -> None:
        def make(draw: Draw) -> Call:
            tensors = answers(draw, **sizes)
            return Call([tensors[name] for name in names], options, grad=(0, 1, 3))

        suite.add(f"{FORMULA}.linear_kto", tag, dtype, make)

    for dtype, reduction, options in product(DTYPES, REDUCTIONS, ({}, weighted, {"softcap": 3.0})):
        add("options", dtype, {**options, "reduction": reduction})
        add("empty", dtype, {**options, "reduction": reduction}, empty=2)


SOFT: list[dict] = [
    *({"divergence": "jsd", "beta": beta} for beta in (0.0, 0.1, 0.5, 1.0)),
    {"divergence": "forward"},
    {"divergence": "reverse"},
    {"divergence": "cosine"},
]


def distillation(suite: Suite) -> None:
    def add(
        tag: str,
        dtype: str,
        options: dict,
        shape: Shape = (6, 5),
        labels: bool = True,
        values: Log = lambda draw, shape: draw.normal(shape, 1.5),
        change: Callable[[list], list] = lambda args: args,
        layout: str | None = None,
        ignored: bool = True,
        **more: Any,
    ) -> None:
        def make(draw: Draw) -> Call:
            args = [lay_out(layout, values(draw, shape)) for _ in range(2)]
            places = () if len(shape) == 1 else (shape[0], *shape[2:])
            target = draw.integers(places, shape[min(1, len(shape) - 1)])
            if target.dim() and ignored:
                target[::3] = options.get("ignore_index", -100)
            return Call(change([*args, target] if labels else args), options, grad=(0, 1))

        suite.add(f"{FORMULA}.distillation_loss", tag, dtype, make, layout=layout, **more)

    tempered = {"temperature": 2.0, "temperature_squared": True, "hard_weight": 0.3, "soft_weight": 0.7}
    for dtype, reduction, soft, more in product(DTYPES, REDUCTIONS, SOFT, ({}, tempered)):
        add("options", dtype, {**soft, **more, "reduction": reduction})
    for dtype, reduction, soft in product(FULL, REDUCTIONS, SOFT):
        options = {**soft, "reduction": reduction}
        alone = {**options, "hard_weight": 0.0, "temperature": 0.5}
        add("unlabelled", dtype, alone, labels=False)
        add("ignore", dtype, {**options, "ignore_index": 2})
        for shape in ((4,), (1, 2), (3, 4, 2), (2, 33)):
            add("shape", dtype, options, shape)
            add("shape", dtype, alone, shape, labels=False)
    for dtype, soft in product(FULL, SOFT[:-1]):
        add("saturated", dtype, soft, values=lambda draw, shape: draw.choose(shape, (-90.0, 0.0, 40.0)))
        add("none", dtype, soft, change=lambda args: [*args[:2], torch.full_like(args[2], -100)])
        for layout in LAYOUTS:
            add("layout", dtype, soft, (3, 4, 2), layout=layout)
    for dtype in FULL:
        for options in ({"temperature": 0.0}, {"temperature": -1.0}, {"beta": 1.5}, {"beta": -0.1}):
            add("reject", dtype, options, expect="error")
        add("reject", dtype, {}, change=lambda args: [args[0], args[1][:, :4], args[2]], expect="error")
        add("reject", dtype, {}, change=lambda args: [*args[:2], args[2][:4]], expect="error")
        add("reject", dtype, {}, change=lambda args: [*args[:2], args[2] * 0 + 5], expect="error", ignored=False)


STUDENT = (
    "student_input",
    "student_weight",
    "teacher_input",
    "teacher_weight",
    "target",
    "student_bias",
    "teacher_bias",
)


def students(
    draw: Draw,
    rows: int = 7,
    classes: int = 6,
    teacher_classes: int = 0,
    bias: bool = True,
    scale: float = 1.0,
    ignore_index: int = -100,
    ignored: slice = slice(0, None, 3),
    layout: str | None = None,
) -> dict:
    target = draw.integers((rows,), classes)
    target[ignored] = ignore_index
    teacher_classes = teacher_classes or classes
    return {
        "student_input": lay_out(layout, draw.normal((rows, 3), scale)),
        "student_weight": lay_out(layout, draw.normal((classes, 3))),
        "teacher_input": lay_out(layout, draw.normal((rows, 5), scale)),
        "teacher_weight": lay_out(layout, draw.normal((teacher_classes, 5))),
        "target": target,
        "student_bias": draw.normal((classes,)) if bias else None,
        "teacher_bias": draw.normal((teacher_classes,)) if bias else None,
    }


def linear_distillation(suite: Suite) -> None:
    def add(reference: str, tag: str, dtype: str, options: dict, expect: str = "ok", **sizes: Any) -> None:
        change = sizes.pop("change", lambda tensors: tensors)

        def make(draw: Draw) -> Call:
            tensors = change(students(draw, **sizes))
            grad = (0, 1) if tensors["student_bias"] is None else (0, 1, 5)
            return Call([tensors[name] for name in STUDENT], options, grad=grad)

        second = reference.startswith(FORMULA)
        suite.add(reference, tag, dtype, make, second_order=second, expect=expect)

    formula = f"{FORMULA}.linear_distillation"
    tempered = {"temperature": 2.0, "temperature_squared": True, "hard_weight": 0.3, "soft_weight": 0.7}
    for dtype, soft, more, bias in product(DTYPES, SOFT, ({}, tempered), (False, True)):
        for reduction in ("mean", "sum"):
            add(formula, "options", dtype, {**soft, **more, "reduction": reduction}, bias=bias)
    for dtype, soft in product(FULL, SOFT):
        add(formula, "chunk", dtype, {**soft, "chunk": 100})
        add(formula, "none", dtype, soft, ignored=slice(None))
        for layout in ("transposed", "expanded", "offset", "stepped"):
            add(formula, "layout", dtype, soft, layout=layout)
    for name, betas in (
        ("LigerFusedLinearJSDLoss", (0.0, 0.1, 0.5, 1.0)),
        ("LigerFusedLinearCosineSimilarityLoss", (0.5, 1.0)),
    ):
        liger = f"{LIGER}.{name}"
        mixed = {"temperature": 2.0, "weight_hard_loss": 0.2, "weight_soft_loss": 0.9}
        for dtype, beta, more, bias in product(LIGER_DTYPES, betas, ({}, mixed), (False, True)):
            options = {"compiled": False, "beta": beta, **more}
            add(liger, "options", dtype, options, bias=bias)
            add(liger, "parts", dtype, {**options, "return_soft_hard_loss": True}, bias=bias)
        plain = {"compiled": False}
        for dtype in LIGER_DTYPES:
            add(liger, "soft", dtype, {**plain, "weight_hard_loss": 0.0})
            add(liger, "chunk", dtype, {**plain, "chunk_size": 2}, rows=9)
            add(liger, "ignore", dtype, {**plain, "ignore_index": 2}, ignore_index=2)
            add(liger, "none", dtype, plain, ignored=slice(None))
            add(liger, "huge", dtype, plain, scale=20.0)
            add(liger, "one", dtype, plain, rows=1, ignored=slice(0))
        add(liger, "better_vocabulary", "f32", plain, teacher_classes=8)
        add(liger, "better_temperature", "f32", {**plain, "temperature": -1.0})
        add(liger, "reject", "f32", {**plain, "temperature": 0.0}, expect="error")
        for change in (
            lambda tensors: {**tensors, "target": tensors["target"] * 0 + 6},
            lambda tensors: {**tensors, "target": tensors["target"][:4]},
            lambda tensors: {**tensors, "teacher_input": tensors["teacher_input"][:4]},
            lambda tensors: {**tensors, "student_weight": tensors["student_weight"][:, :2]},
        ):
            add(liger, "reject", "f32", plain, expect="error", change=change)


def add_all(suite: Suite) -> None:
    for add in (pair_losses, kto_loss, liger_pairs, liger_kto, formulas, distillation, linear_distillation):
        add(suite)
