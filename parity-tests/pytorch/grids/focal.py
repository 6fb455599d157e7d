"""Focal losses: torchvision, kornia, MONAI, segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from cases import DTYPES, LAYOUTS, Call, Draw, Shape, Suite, lay_out
from grids import REDUCTIONS, classes, without_classes

Make = Callable[[Draw, Shape], list]


@dataclass
class Focal:
    """One reference with one kind of arguments, and what to vary.

    An option value may be a function of (draw, shape), for tensors. `kind` stands before the tags. Options
    named in `grad_options` are differentiated, which takes a function as reference. `thin` leaves out what
    another sweep of the reference has: layouts and the default gradient.
    """

    reference: str
    make: Make
    shapes: Sequence[Shape]
    options: Sequence[dict]
    grad: Sequence[int] = (0,)
    grad_options: Sequence[str] = ()
    values: dict[str, Make] = field(default_factory=dict)
    value_options: Sequence[dict] = ({},)
    rejects: Sequence[tuple[Make, dict]] = ()
    base: dict = field(default_factory=dict)
    dtypes: Sequence[str] = tuple(DTYPES)
    empty: Sequence[Shape] = ()
    kind: str = ""
    thin: bool = False

    def tag(self, what: str) -> str:
        return f"{self.kind}_{what}" if self.kind else what

    def call(self, draw: Draw, shape: Shape, options: dict, make: Make, layout: str | None) -> Call:
        args = [lay_out(layout, value) for value in make(draw, shape)]
        options = self.base | options
        options = {key: value(draw, shape) if callable(value) else value for key, value in options.items()}
        kwargs = {key: options.pop(key) for key in self.grad_options if key in options}
        grad = [key for key in self.grad if args[key].is_floating_point()]
        return Call(args, options, kwargs, [*grad, *kwargs])


def sweep(suite: Suite, loss: Focal) -> None:
    base, *others = loss.shapes
    few = [{"reduction": "mean"}, {"reduction": "none"}, {**loss.options[-1], "reduction": "sum"}]

    def add(
        tag: str,
        dtype: str,
        shape: Shape,
        options: dict,
        make: Make = loss.make,
        layout: str | None = None,
        **more,
    ) -> None:
        def draw_call(draw: Draw) -> Call:
            return loss.call(draw, shape, options, make, layout)

        if loss.thin and tag != "reject":
            more["key"] = loss.tag("thin")  # One case stands for them where few are stored.
        suite.add(loss.reference, loss.tag(tag), dtype, draw_call, layout=layout, **more)

    for dtype, reduction, options in product(loss.dtypes, REDUCTIONS, loss.options):
        key = (loss.tag("options"), reduction, options == loss.options[-1]) if dtype == "f32" else dtype
        add("options", dtype, base, {**options, "reduction": reduction}, key=key)
    some = [dtype for dtype in loss.dtypes if dtype in ("f64", "f32", "bf16")]
    for dtype, shape, options in product(
        some if loss.thin else loss.dtypes, others, few[:1] if loss.thin else few
    ):
        add("shape", dtype, shape, options)
    for layout, dtype, options in product(() if loss.thin else LAYOUTS, some[:2], few):
        add("layout", dtype, loss.shapes[-1], options, layout=layout)
    settings = [*product(loss.value_options, ("none",)), ({}, "mean"), (loss.value_options[-1], "sum")]
    for (tag, make), dtype, (options, reduction) in product(loss.values.items(), loss.dtypes, settings):
        add(tag, dtype, base, {**options, "reduction": reduction}, make=make, second_order=False)
    for shape, reduction, dtype in product(loss.empty, REDUCTIONS, some[:2]):
        add("empty", dtype, shape, {"reduction": reduction})
    for reduction, dtype in product(REDUCTIONS, () if loss.thin else some):
        add("ones", dtype, base, {"reduction": reduction}, ones=True)
    for (make, options), dtype in product(loss.rejects, some[:2]):
        add("reject", dtype, base, options, make=make, expect="error")


def sizes(draw: Draw, shape: Shape) -> torch.Tensor:
    """Positive weights, one for each class."""
    return draw.uniform((classes(shape),), 0.2, 2.0)


def column(draw: Draw, shape: Shape) -> torch.Tensor:
    """The same as a column, which kornia takes, too."""
    return draw.uniform((classes(shape), 1), 0.2, 2.0)


def logits(draw: Draw, shape: Shape) -> torch.Tensor:
    """Usual logits, none of which has a probability of 1 in low precision."""
    return draw.normal(shape, 1.5).clamp(-4.0, 4.0)


def huge(draw: Draw, shape: Shape) -> torch.Tensor:
    """Saturated logits; in f16 such that their multiples, which the references form, do not overflow.

    There `half_precision` has those of 1e4.
    """
    most = 1e3 if draw.dtype == torch.float16 else 1e4
    return draw.choose(shape, (most, -most, 30.0, -30.0, 0.0))


def bits(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.choose(shape, (0.0, 1.0))


def hard(draw: Draw, shape: Shape) -> list:
    return [logits(draw, shape), bits(draw, shape)]


def soft(draw: Draw, shape: Shape) -> list:
    return [logits(draw, shape), draw.uniform(shape, 0.02, 0.98)]


def extreme(draw: Draw, shape: Shape) -> list:
    return [huge(draw, shape), bits(draw, shape)]


def saturated(draw: Draw, shape: Shape) -> list:
    """Probabilities of 0 and 1, and none so near to them that 1 - p has lost its digits."""
    return [draw.choose(shape, (1e4, -1e4, 1.0, 0.0)), bits(draw, shape)]


def saturated_indices(draw: Draw, shape: Shape) -> list:
    return [saturated(draw, shape)[0], draw.integers(without_classes(shape), classes(shape))]


def saturated_labels(draw: Draw, shape: Shape) -> list:
    input, target = saturated_indices(draw, shape)
    return [input, target.unsqueeze(1)]


def extreme_integers(draw: Draw, shape: Shape) -> list:
    """Integers: the gradient for a target is a difference of large terms where such losses are normalised."""
    return [huge(draw, shape), draw.integers(shape, 2)]


def extreme_soft(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 30.0), draw.choose(shape, (0.0, 0.25, 0.75, 1.0))]


def all_negative(draw: Draw, shape: Shape) -> list:
    return [logits(draw, shape), torch.zeros(shape, dtype=draw.dtype)]


def integers(draw: Draw, shape: Shape) -> list:
    return [logits(draw, shape), draw.integers(shape, 2)]


def mostly(make: Make, value: float, share: float = 0.4) -> Make:
    """The arguments of `make` with `value` for a share of the target."""

    def marked(draw: Draw, shape: Shape) -> list:
        input, target = make(draw, shape)
        places = draw.uniform(tuple(target.shape)) < share
        return [input, target.masked_fill(places, value)]

    return marked


def indices(draw: Draw, shape: Shape) -> list:
    return [logits(draw, shape), draw.integers(without_classes(shape), classes(shape))]


def extreme_indices(draw: Draw, shape: Shape) -> list:
    return [huge(draw, shape), draw.integers(without_classes(shape), classes(shape))]


def equal_indices(draw: Draw, shape: Shape) -> list:
    return [torch.zeros(shape, dtype=draw.dtype), draw.integers(without_classes(shape), classes(shape))]


def mismatched(draw: Draw, shape: Shape) -> list:
    return [logits(draw, shape), bits(draw, (*shape[:-1], shape[-1] + 1))]


def mismatched_indices(draw: Draw, shape: Shape) -> list:
    input, target = indices(draw, shape)
    return [input, target[:-1]]


def outside(value: int) -> Make:
    def make(draw: Draw, shape: Shape) -> list:
        input, target = indices(draw, shape)
        target.view(-1)[0] = value
        return [input, target]

    return make


FLAT: tuple[Shape, ...] = ((4, 5), (7,), (), (1, 1), (3, 33), (2, 3, 5), (2, 3, 3, 5), (2, 2, 2, 2, 3))
CLASSES: tuple[Shape, ...] = ((4, 3, 5), (5, 4), (1, 2), (3, 1), (2, 33), (2, 3, 3, 5), (2, 3, 2, 2, 3))
BALANCES: list[dict] = [
    {},
    {"gamma": 0.0},
    {"gamma": 0.5},
    {"gamma": 1.0},
    {"alpha": 0.75, "gamma": 3.5},
    {"alpha": 0.0, "gamma": 1.5},
    {"alpha": 1.0, "gamma": 1.0},
]


def torchvision(suite: Suite) -> None:
    reference = "torchvision.ops.sigmoid_focal_loss"
    sweep(
        suite,
        Focal(
            reference,
            hard,
            FLAT,
            [*BALANCES, {"alpha": -1, "gamma": 0.0}, {"alpha": -1}],
            grad=(0, 1),
            values={"soft": soft, "extreme": extreme, "extreme_soft": extreme_soft, "negative": all_negative},
            value_options=[{}, {"gamma": 0.0}, {"alpha": -1, "gamma": 1.0}, {"gamma": 5.0}],
            empty=((0, 5), (3, 0)),
            rejects=[
                (mismatched, {}),
                (hard, {"alpha": 1.5}),
                (hard, {"alpha": -0.5}),
                (hard, {"reduction": "average"}),
            ],
        ),
    )
    for dtype, gamma, reduction in product(("f64", "f32"), (0.25, 0.5, 0.9), REDUCTIONS):
        options = {"gamma": gamma, "reduction": reduction}
        suite.add(
            reference,
            "better_saturated",
            dtype,
            lambda draw, options=options: Call(saturated(draw, (4, 5)), options, grad=(0, 1)),
            second_order=False,
        )
    for dtype in ("f64", "f32"):
        suite.add(
            reference, "better_integers", dtype, lambda draw: Call(integers(draw, (4, 5)), {}), expect="error"
        )


def kornia_softmax(suite: Suite) -> None:
    options = [
        {"alpha": None, "gamma": 0.0},
        {"alpha": None},
        {"alpha": 0.25},
        {"alpha": 0.75, "gamma": 0.5},
        {"alpha": 1.0, "gamma": 1.0},
        {"alpha": 0.5, "gamma": 3.5, "ignore_index": 1},
        {"alpha": 0.5, "ignore_index": None},
        {"alpha": None, "weight": sizes},
        {"alpha": 0.3, "gamma": 1.5, "weight": column, "ignore_index": 0},
    ]
    ignoring = mostly(indices, -100)
    for name in ("FocalLoss", "focal_loss"):
        reference = f"kornia.losses.{name}"
        function = name == "focal_loss"
        sweep(
            suite,
            Focal(
                reference,
                indices,
                CLASSES,
                options,
                base={"alpha": 0.5},
                grad_options=("weight",) if function else (),
                dtypes=("f64",) if function else tuple(DTYPES),
                thin=function,
                values={
                    "ignored": ignoring,
                    "all_ignored": mostly(indices, -100, 2.0),
                    "extreme": extreme_indices,
                    "extreme_ignored": mostly(extreme_indices, -100),
                    "equal": equal_indices,
                },
                value_options=[
                    {},
                    {"gamma": 0.0},
                    {"gamma": 0.5, "weight": sizes},
                    {"alpha": None, "gamma": 0.1},
                ],
                rejects=[
                    (mismatched_indices, {}),
                    (outside(3), {}),
                    (outside(-1), {}),
                    (ignoring, {"ignore_index": None}),
                    (hard, {}),
                    (indices, {"reduction": "average"}),
                    (indices, {"reduction": None}),
                    (indices, {"weight": lambda draw, shape: draw.uniform((2,))}),
                    (lambda draw, _: indices(draw, (4,)), {}),
                ],
            ),
        )
        for dtype, integer in product(("f64", "f32"), (torch.int32, torch.uint8, torch.int16)):

            def narrow(draw: Draw, integer: torch.dtype = integer) -> Call:
                input, target = indices(draw, (4, 3, 5))
                return Call([input, target.to(integer)], {"alpha": 0.5})

            suite.add(reference, "better_integers", dtype, narrow, expect="error")


def kornia_sigmoid(suite: Suite) -> None:
    options = [
        {"alpha": None, "gamma": 0.0},
        {"alpha": None},
        {"alpha": 0.25},
        {"alpha": 0.75, "gamma": 0.5},
        {"alpha": 1.0, "gamma": 1.0},
        {"alpha": 0.5, "ignore_index": 1},
        {"alpha": 0.5, "ignore_index": None},
        {"alpha": None, "weight": sizes},
        {"alpha": 0.5, "gamma": 3.5, "pos_weight": sizes},
        {"alpha": 0.3, "gamma": 1.5, "weight": column, "pos_weight": column, "ignore_index": 0},
    ]
    for name in ("BinaryFocalLossWithLogits", "binary_focal_loss_with_logits"):
        reference = f"kornia.losses.{name}"
        function = name == "binary_focal_loss_with_logits"
        sweep(
            suite,
            Focal(
                reference,
                hard,
                CLASSES,
                [*options, *([{}] if function else [])],
                base={} if function else {"alpha": 0.25},
                grad=(0, 1),
                grad_options=("weight", "pos_weight") if function else (),
                dtypes=("f64",) if function else tuple(DTYPES),
                thin=function,
                values={
                    "soft": soft,
                    "integers": integers,
                    "ignored": mostly(hard, -100),
                    "soft_ignored": mostly(soft, -100),
                    "all_ignored": mostly(hard, -100, 2.0),
                    "extreme": extreme,
                    "extreme_soft": extreme_soft,
                },
                value_options=[
                    {},
                    {"gamma": 0.0},
                    {"gamma": 0.5, "pos_weight": sizes},
                    {"alpha": None, "weight": sizes},
                ],
                rejects=[
                    (mismatched, {}),
                    (hard, {"reduction": "average"}),
                    (hard, {"reduction": None}),
                    (hard, {"weight": lambda draw, shape: draw.uniform((2,))}),
                    (hard, {"pos_weight": lambda draw, shape: draw.uniform((2,))}),
                    (lambda draw, _: hard(draw, (4,)), {}),
                ],
            ),
        )


def labels(draw: Draw, shape: Shape) -> list:
    """MONAI's class indices, which have a channel of their own."""
    input, target = indices(draw, shape)
    return [input, target.unsqueeze(1)]


def extreme_labels(draw: Draw, shape: Shape) -> list:
    input, target = extreme_indices(draw, shape)
    return [input, target.unsqueeze(1)]


def one_hot(draw: Draw, shape: Shape) -> list:
    input, target = labels(draw, shape)
    return [input, torch.zeros(shape, dtype=draw.dtype).scatter_(1, target, 1.0)]


def partly_one_hot(draw: Draw, shape: Shape) -> list:
    """Some pixels have no class at all."""
    input, target = one_hot(draw, shape)
    return [input, target * (draw.uniform((shape[0], 1, *shape[2:])) < 0.6)]


def share(draw: Draw, shape: Shape) -> list:
    """Class probabilities, without a 1 among them."""
    return [logits(draw, shape), draw.normal(shape).softmax(1)]


MONAI: tuple[Shape, ...] = ((2, 3, 5), (4, 3), (3, 4), (2, 3, 3, 5), (2, 3, 2, 2, 3))


MONAI_PLAIN: list[dict] = [
    {},
    {"gamma": 0.0},
    {"gamma": 1.0},
    {"gamma": 3.5},
    {"weight": 0.7},
    {"weight": [0.5, 1.0, 2.5]},
    {"alpha": 0.25},
    {"alpha": 0.75, "gamma": 0.5},
    {"alpha": [0.2, 0.5, 0.9], "gamma": 1.5},
]
MONAI_WITHOUT_BACKGROUND: list[dict] = [
    {"include_background": False},
    {"include_background": False, "alpha": 0.3},
    {"include_background": False, "weight": [0.5, 2.0], "alpha": [0.4, 0.9]},
]
MONAI_REJECTS: list[tuple[Make, dict]] = [
    (mismatched, {}),
    (hard, {"weight": [1.0, 2.0]}),
    (hard, {"weight": [1.0, -2.0, 1.0]}),
    (hard, {"weight": -1.0}),
    (hard, {"alpha": [0.5, 0.5]}),
    (hard, {"reduction": "average"}),
    (hard, {"reduction": None}),
]
MONAI_DTYPES = ("f32", "bf16")  # MONAI computes in f32 whatever comes: f64 has no precision to compare.


def no_labels(draw: Draw, shape: Shape) -> list:
    """Labels of which some are no class."""
    return [logits(draw, shape), draw.integers((shape[0], 1, *shape[2:]), 9, 3)]


def labels_for_channels(draw: Draw, shape: Shape) -> list:
    return [logits(draw, shape), draw.integers(shape, 3)]


def monai(suite: Suite, softmax: bool) -> None:
    base = {"use_softmax": True} if softmax else {}
    kind = "softmax" if softmax else "sigmoid"
    three = tuple(shape for shape in MONAI if shape[1] == 3)

    def full(part: str, make: Make, options: list, grad: Sequence[int] = (0,), **more: Any) -> None:
        more = {"base": base, "shapes": three, "dtypes": MONAI_DTYPES, "kind": f"{kind}_{part}"} | more
        sweep(suite, Focal("monai.losses.FocalLoss", make, options=options, grad=grad, **more))

    def thin(part: str, make: Make, options: list, grad: Sequence[int] = (0,), **more: Any) -> None:
        full(part, make, options, grad, thin=True, **more)

    full(
        "channels",
        one_hot if softmax else hard,
        [*MONAI_PLAIN, *MONAI_WITHOUT_BACKGROUND],
        values={} if softmax else {"extreme": extreme},
        value_options=[{}, {"gamma": 0.5}],
        rejects=MONAI_REJECTS,
    )
    full(
        "labels",
        labels,
        [
            *MONAI_PLAIN,
            *MONAI_WITHOUT_BACKGROUND,
            {"ignore_index": 1},
            {"ignore_index": 0, "include_background": False},
        ],
        base=base | {"to_onehot_y": True},
        values={"extreme": extreme_labels},
        value_options=[{}, {"gamma": 0.0}, {"alpha": 0.5}],
        rejects=[(no_labels, {}), (labels_for_channels, {})],
    )
    thin("soft", share if softmax else soft, MONAI_PLAIN[:8], (0, 1), shapes=MONAI)
    thin("partly", partly_one_hot, [{"ignore_index": -1}, {"ignore_index": 7, "alpha": 0.3}])
    thin("masked", one_hot, [{"ignore_index": 1}, {"ignore_index": 0, "weight": 2.0}])
    ignoring = base | {"to_onehot_y": True, "ignore_index": 255}
    for part, portion in (("ignored", 0.4), ("all_ignored", 2.0)):
        options = [{}, {"include_background": False}, {"alpha": 0.25, "weight": 2.0, "gamma": 1.0}]
        thin(part, mostly(labels, 255, portion), options, base=ignoring)
    single = [{"ignore_index": 255}, {"ignore_index": 255, "to_onehot_y": True, "include_background": False}]
    thin("single", mostly(hard, 255, 0.3), single, shapes=((2, 1, 5), (3, 1), (2, 1, 3, 3)))


def monai_saturated(suite: Suite) -> None:
    for dtype, gamma in product(MONAI_DTYPES, (0.25, 0.5)):
        options = {"gamma": gamma, "use_softmax": True, "to_onehot_y": True}
        add_case(
            suite, "monai.losses.FocalLoss", "better_saturated", dtype, saturated_labels, (4, 3, 5), options
        )


def smp(suite: Suite) -> None:
    reference = "segmentation_models_pytorch.losses.FocalLoss"
    plain: list[dict] = [
        {},
        {"gamma": 0.0},
        {"gamma": 1.0},
        {"gamma": 3.5, "normalized": True},
        {"alpha": 0.25},
        {"alpha": 0.75, "gamma": 0.5},
        {"reduced_threshold": 0.5},
        {"reduced_threshold": 0.3, "gamma": 1.5, "normalized": True},
        {"alpha": 0.6, "reduced_threshold": 1.0},
    ]
    values = [{}, {"gamma": 1.0, "alpha": 0.3}, {"reduced_threshold": 0.5}, {"normalized": True}]

    def probabilities(make: Make) -> Make:
        return lambda draw, shape: [draw.uniform(shape, 0.05, 0.95), make(draw, shape)[1]]

    sweep(
        suite,
        Focal(
            reference,
            hard,
            FLAT,
            plain,
            base={"mode": "binary"},
            grad=(0, 1),
            values={
                "soft": soft,
                "extreme": extreme_integers,
                "integers": integers,
                "negative": all_negative,
            },
            value_options=values,
            rejects=[(mismatched, {}), (hard, {"class_weights": [1.0]}), (hard, {"mode": "other"})],
            kind="binary",
        ),
    )
    weights = [
        {"class_weights": [0.5, 1.0, 2.5]},
        {"class_weights": [1, 2, 3], "alpha": 0.3, "normalized": True},
    ]
    three = tuple(shape for shape in CLASSES if shape[1] == 3)
    sweep(
        suite,
        Focal(
            reference,
            hard,
            CLASSES,
            plain,
            base={"mode": "multilabel"},
            dtypes=("f64", "f32", "bf16"),
            grad=(0, 1),
            values={"soft": soft, "extreme": extreme_integers, "integers": integers},
            value_options=values,
            rejects=[(mismatched, {})],
            kind="multilabel",
        ),
    )
    sweep(
        suite,
        Focal(
            reference,
            indices,
            CLASSES,
            plain,
            base={"mode": "multiclass"},
            values={"extreme": extreme_indices},
            value_options=values,
            rejects=[(mismatched_indices, {})],
            kind="multiclass",
        ),
    )
    for dtype, shape in product(DTYPES, three):
        for mode, make in (("multilabel", hard), ("multiclass", indices)):
            for options, reduction in product(weights, ("mean", "sum")):
                chosen = {"mode": mode, "reduction": reduction, **options}
                add_case(suite, reference, "weights", dtype, make, shape, chosen)
    for dtype, reduction, portion in product(
        ("f64", "f32", "bf16"), (*REDUCTIONS, "batchwise_mean"), (0.4, 2.0)
    ):
        tag = "ignored" if portion < 1 else "all_ignored"
        for mode, make in (("binary", hard), ("multiclass", indices)):
            for options in plain[3:7]:
                chosen = {"mode": mode, "ignore_index": 255, "reduction": reduction, **options}
                add_case(suite, reference, tag, dtype, mostly(make, 255, portion), (4, 3, 5), chosen)
    for dtype, (mode, make) in product(
        DTYPES, (("binary", hard), ("multilabel", hard), ("multiclass", indices))
    ):
        for shape, options in product(
            ((4, 3), (4, 3, 5), (2, 3, 2, 3)), ({}, {"alpha": 0.3, "normalized": True})
        ):
            chosen = {"mode": mode, "reduction": "batchwise_mean", **options}
            add_case(suite, reference, "batchwise", dtype, make, shape, chosen)
        for options in ({}, {"alpha": 0.3, "eps": 1e-3}):
            chosen = {"mode": mode, "from_logits": False, **options}
            add_case(suite, reference, "probabilities", dtype, probabilities(make), (4, 3, 5), chosen)
    for dtype, (mode, make) in product(
        ("f64", "f32"), (("binary", saturated), ("multilabel", saturated), ("multiclass", saturated_indices))
    ):
        for gamma, normalized in product((0.25, 0.5), (False, True)):
            options = {"mode": mode, "gamma": gamma, "normalized": normalized}
            add_case(
                suite, reference, "better_saturated", dtype, make, (4, 3, 5), options, second_order=False
            )
    for dtype in ("f64", "f32"):
        options = {"mode": "multilabel", "ignore_index": 255}
        add_case(
            suite, reference, "better_ignored", dtype, mostly(hard, 255), (4, 3, 5), options, expect="error"
        )
        add_case(suite, reference, "better_classes", dtype, outside(3), (4, 3, 5), {"mode": "multiclass"})


def half_precision(suite: Suite) -> None:
    """Logits of ±1e4 in f16, of which γ times the loss is the greatest number that a reference forms.

    The gradient is that of a mean, so that no factor is on top of that, and nothing is added up. MONAI computes in
    f32.
    """

    def most(draw: Draw, shape: Shape) -> torch.Tensor:
        return draw.choose(shape, (1e4, -1e4))

    def masks(draw: Draw, shape: Shape) -> list:
        return [most(draw, shape), draw.integers(shape, 2).to(draw.dtype)]

    def classes_of(draw: Draw, shape: Shape) -> list:
        return [most(draw, shape), indices(draw, shape)[1]]

    smp_reference = "segmentation_models_pytorch.losses.FocalLoss"
    families = (
        ("torchvision.ops.sigmoid_focal_loss", masks, {}, 0.25, "extreme"),
        ("kornia.losses.BinaryFocalLossWithLogits", masks, {}, 0.25, "extreme"),
        ("kornia.losses.FocalLoss", classes_of, {}, 0.5, "extreme"),
        (smp_reference, masks, {"mode": "binary"}, None, "binary_extreme"),
        (smp_reference, classes_of, {"mode": "multiclass"}, None, "multiclass_extreme"),
    )
    for (reference, make, base, alpha, tag), gamma in product(families, (0.0, 1.0, 2.0, 5.0)):
        for reduction, grad in (("none", ()), ("mean", (0,))):
            options = {**base, "alpha": alpha, "gamma": gamma, "reduction": reduction}

            def call(draw: Draw, make: Make = make, options: dict = options, grad: tuple = grad) -> Call:
                return Call(make(draw, (4, 3, 5)), options, grad=grad)

            suite.add(reference, tag, "f16", call, ones=True)


def add_case(
    suite: Suite, reference: str, tag: str, dtype: str, make: Make, shape: Shape, options: dict, **more: Any
) -> None:
    suite.add(reference, tag, dtype, lambda draw: Call(make(draw, shape), options, grad=(0,)), **more)


def balances(suite: Suite) -> None:
    """A balance that is no share."""
    for dtype in ("f64", "f32"):
        for name in ("kornia.losses.BinaryFocalLossWithLogits", "kornia.losses.FocalLoss"):
            make = hard if "Binary" in name else indices
            add_case(suite, name, "better_alpha", dtype, make, (4, 3, 5), {"alpha": 2.0})
        options = {"mode": "binary", "alpha": 2.0}
        add_case(
            suite,
            "segmentation_models_pytorch.losses.FocalLoss",
            "better_alpha",
            dtype,
            hard,
            (4, 3),
            options,
        )
        add_case(suite, "monai.losses.FocalLoss", "better_alpha", dtype, hard, (4, 3), {"alpha": 2.0})


def papers_softmax(suite: Suite) -> None:
    reference = "papers.softmax_focal_loss"
    options = [
        dict(chosen)
        for chosen in settings(
            alpha=(None, 0.3, sizes), gamma=(0.0, 0.5, 2.0), weight=(None, sizes), label_smoothing=(0.0, 0.2)
        )
    ]
    shapes = ((4, 3, 5), (5,), (3, 7), (2, 3, 2, 2))
    for kind, make in (
        ("indices", mostly(indices, 1, 0.2)),
        ("ignored", mostly(indices, -100)),
        ("shares", share),
    ):
        grad = (0, 1) if kind == "shares" else (0,)
        for shape, chosen, reduction in product(shapes, options, REDUCTIONS):
            if (
                kind == "shares"
                and len(shape) == 1
                or shape != shapes[0]
                and (chosen["gamma"], reduction) != (2.0, "mean")
            ):
                continue
            add_paper(suite, reference, kind, make, shape, {**chosen, "reduction": reduction}, grad)
    for gamma in (0.0, 0.1, 1.0):
        add_paper(suite, reference, "ignored_all", mostly(indices, -100, 2.0), (4, 3), {"gamma": gamma}, (0,))


def papers_sigmoid(suite: Suite) -> None:
    reference = "papers.sigmoid_focal_loss"
    one = {"soft_targets": ("expectation", "terms", "margin", "likelihood")}
    norms = (None, "all", "classes")
    for chosen in settings(
        alpha=(None, 0.3, shares), normalization=norms, reduced_threshold=(None, 0.4), **one
    ):
        for make, reduction in ((hard, "mean"), (soft, "sum"), (soft, "none")):
            add_paper(
                suite, reference, "options", make, (4, 3, 5), {**chosen, "reduction": reduction}, (0, 1)
            )
    for chosen in settings(
        alpha=(0.3, shares), ignore_index=(None, 255), masked=(False, True), normalization=norms
    ):
        for shape, reduction in (((4, 3), "mean"), ((3,), "sum"), ((2, 3, 2, 2), "mean"), ((4, 3), "none")):
            masked = {"mask": lambda draw, shape: draw.uniform(shape) < 0.7} if chosen["masked"] else {}
            options = {key: value for key, value in chosen.items() if key != "masked"} | masked
            make = mostly(hard, 255, 0.3) if options["ignore_index"] else hard
            add_paper(suite, reference, "ignored", make, shape, {**options, "reduction": reduction}, (0,))


def papers_one_vs_rest(suite: Suite) -> None:
    reference = "papers.one_vs_rest_focal_loss"
    norms = (None, "all", "classes")
    for chosen in settings(
        alpha=(None, 0.3, shares), normalization=norms, weight=(None, sizes), gamma=(0.0, 0.5, 2.0)
    ):
        for shape, reduction in (((4, 3, 5), "mean"), ((4, 3), "sum"), ((3,), "none"), ((4, 3, 5), "none")):
            make = mostly(indices, -100, 0.3) if len(shape) > 1 else indices
            add_paper(suite, reference, "options", make, shape, {**chosen, "reduction": reduction}, (0,))


def reject_papers(suite: Suite, reference: str, make: Make) -> None:
    """Arguments that do not fit together."""

    def call(draw: Draw) -> Call:
        input, target = make(draw, (4, 3, 5))
        return Call([input, target[:-1]], {})

    suite.add(reference, "reject", "f64", call, expect="error")


def shares(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform((classes(shape),), 0.1, 0.9)


def settings(**choices: Sequence) -> Iterator[dict]:
    """Every combination of the choices."""
    for values in product(*choices.values()):
        yield dict(zip(choices, values))


def add_paper(
    suite: Suite, reference: str, tag: str, make: Make, shape: Shape, options: dict, grad: tuple
) -> None:
    def call(draw: Draw) -> Call:
        chosen = {key: value(draw, shape) if callable(value) else value for key, value in options.items()}
        args = make(draw, shape)
        return Call(args, chosen, grad=[key for key in grad if args[key].is_floating_point()])

    suite.add(reference, tag, "f64", call)


def add_all(suite: Suite) -> None:
    torchvision(suite)
    kornia_softmax(suite)
    kornia_sigmoid(suite)
    monai(suite, softmax=False)
    monai(suite, softmax=True)
    monai_saturated(suite)
    smp(suite)
    balances(suite)
    half_precision(suite)
    papers_softmax(suite)
    papers_sigmoid(suite)
    papers_one_vs_rest(suite)
    reject_papers(suite, "papers.sigmoid_focal_loss", hard)
    reject_papers(suite, "papers.softmax_focal_loss", indices)
    reject_papers(suite, "papers.one_vs_rest_focal_loss", indices)
