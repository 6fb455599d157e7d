"""Lovász, MCC, clDice, Hausdorff, and the sums of Dice with another loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch

from cases import DTYPES, LAYOUTS, Call, Draw, Shape, Suite, lay_out

SMP = "segmentation_models_pytorch.losses"
FULL = ("f64", "f32")
IMAGE: Shape = (2, 3, 4, 5)
SHAPES: tuple[Shape, ...] = ((1, 2, 3, 3), (3, 5, 2, 7), (4, 2, 1, 1), (2, 33, 2, 3))
Values = Callable[[Draw, Shape], torch.Tensor]


def pixels(shape: Shape) -> Shape:
    return (shape[0], *shape[2:])


def logits(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.normal(shape, 1.5)


def distinct(draw: Draw, shape: Shape) -> torch.Tensor:
    """Logits of different sizes: Lovász weights of errors that are equal depend on how they are sorted."""
    count = torch.Size(shape).numel()
    ranks = torch.randperm(count, generator=draw.generator).to(torch.float64)
    signs = draw.integers((count,), 2) * 2 - 1
    return ((ranks + 0.5) * (4.0 / max(count, 1)) * signs).to(draw.dtype).view(shape)


def saturated(draw: Draw, shape: Shape) -> torch.Tensor:
    """Logits whose softmax is 0 or 1 in most places."""
    return draw.choose(shape, (-1e4, 0.0, 40.0, 1e4)) + draw.normal(shape)


def edges(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.choose(shape, (-1e4, -40.0, 0.0, 40.0, 1e4))


def extremes(draw: Draw, shape: Shape) -> torch.Tensor:
    return distinct(draw, shape) * 1e4


def probabilities(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform(shape, 0.02, 0.98)


def labels(draw: Draw, shape: Shape) -> torch.Tensor:
    """Classes `[N, …]`, of which the last is absent from the first sample."""
    target = draw.integers(pixels(shape), shape[1])
    if shape[0] > 0 and shape[1] > 1:
        target[0] %= shape[1] - 1
    return target


def channel(draw: Draw, shape: Shape) -> torch.Tensor:
    """Labels as MONAI takes them, `[N, 1, …]`."""
    return labels(draw, shape).unsqueeze(1)


def masks(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.choose(shape, (0.0, 1.0))


def one_hot(draw: Draw, shape: Shape) -> torch.Tensor:
    return torch.nn.functional.one_hot(labels(draw, shape), shape[1]).movedim(-1, 1).to(draw.dtype).contiguous()


def constant(value: float) -> Values:
    return lambda draw, shape: torch.full(shape, value, dtype=draw.dtype)


def pair(
    input: Values,
    target: Values,
    shape: Shape,
    options: dict | None = None,
    *,
    grad: Sequence[int] = (0,),
    layout: str | None = None,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda target: target,
) -> Callable[[Draw], Call]:
    """A call of an input and a target; an option may be a function of the random stream, for tensors."""

    def make(draw: Draw) -> Call:
        args = [lay_out(layout, input(draw, shape)), lay_out(layout, change(target(draw, shape)))]
        drawn = {name: value(draw) if callable(value) else value for name, value in (options or {}).items()}
        return Call(args, drawn, grad=grad)

    return make


def every(value: float, step: int = 3) -> Callable[[torch.Tensor], torch.Tensor]:
    """Replaces one value of `step`."""

    def replace(target: torch.Tensor) -> torch.Tensor:
        target = target.clone()
        target.view(-1)[::step] = value
        return target

    return replace


def first_sample(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def replace(target: torch.Tensor) -> torch.Tensor:
        target = target.clone()
        target[0] = value
        return target

    return replace


def lovasz_hinge(suite: Suite) -> None:
    """smp's for two modes, whose weights are in single precision: f64 is checked against kornia and `papers`."""
    reference = f"{SMP}.LovaszLoss"
    kinds = ("f32", "bf16", "f16")

    def right(draw: Draw, shape: Shape) -> torch.Tensor:
        """Right by more than the margin, with `signs`: the loss is 0."""
        return signs(draw, shape) * 3.0 - 1.5

    def signs(draw: Draw, shape: Shape) -> torch.Tensor:
        return masks(Draw(1, "signs", draw.dtype), shape)

    def integers(draw: Draw, shape: Shape) -> torch.Tensor:
        return draw.integers(shape, 2)

    settings = [{}, {"per_image": True}, {"from_logits": False}]
    ignored = [{"ignore_index": index, "per_image": image} for index in (255, 0, 1, -1) for image in (False, True)]
    for mode, base in (("binary", (3, 1, 4, 5)), ("multilabel", IMAGE)):

        def add(tag: str, dtype: str, make: Callable[[Draw], Call], **more: Any) -> None:
            suite.add(reference, f"{mode}_{tag}", dtype, make, **more)

        for options, dtype in product(settings, kinds):
            given = {"mode": mode, **options}
            add("options", dtype, pair(distinct, masks, base, given), key=(mode, "options", dtype))
            add("integers", dtype, pair(distinct, integers, base, given))
            add("extreme", dtype, pair(extremes, masks, base, given))
            add("empty_masks", dtype, pair(distinct, constant(0.0), base, given))
            add("full_masks", dtype, pair(distinct, constant(1.0), base, given))
            add("target", dtype, pair(distinct, masks, base, given, grad=(0, 1)))
            add("separated", dtype, pair(right, signs, base, given))
        for options, dtype in product(ignored, kinds):
            change = every(options["ignore_index"])
            add("ignore_index", dtype, pair(distinct, masks, base, {"mode": mode, **options}, change=change))
        for options in ignored:
            change = first_sample(options["ignore_index"])
            add("ignored_image", "f32", pair(distinct, masks, base, {"mode": mode, **options}, change=change))
            change = every(options["ignore_index"], 1)
            add("all_ignored", "f32", pair(distinct, masks, base, {"mode": mode, **options}, change=change))
        shapes = ((7, 1), (1, 1, 17), (2, 1, 3, 3, 2), (5,), (3, 1, 1, 1), (2, 1, 9, 11), (3, 4, 5))
        for shape, options, dtype in product(shapes, settings[:2], kinds):
            add("shape", dtype, pair(distinct, masks, shape, {"mode": mode, **options}))
        for layout, options in product(LAYOUTS, settings[:2]):
            make = pair(distinct if layout != "expanded" else logits, masks, base, {"mode": mode, **options}, layout=layout)
            if layout != "expanded" or options:  # Equal images have equal errors.
                add("layout", "f32", make, layout=layout)
        add("ones", "f32", pair(distinct, masks, base, {"mode": mode}), ones=True)
        add("large", "f32", pair(distinct, masks, (2, 1, 37, 41), {"mode": mode}))
        add("better_double", "f64", pair(distinct, integers, base, {"mode": mode}), expect="error")
        wrong = pair(distinct, lambda draw, _: masks(draw, (3, 1, 4, 6)), base, {"mode": mode})
        add("reject", "f32", wrong, expect="error")

    def channel_missing(draw: Draw) -> Call:
        return Call([distinct(draw, (3, 1, 4, 5)), masks(draw, (3, 4, 5))], {"mode": "binary"}, grad=(0,))

    def booleans(draw: Draw, shape: Shape) -> torch.Tensor:
        return masks(draw, shape) > 0

    suite.add(reference, "binary_shape", "f32", channel_missing)
    suite.add(reference, "binary_reject", "f32", pair(logits, masks, IMAGE, {"mode": "other"}), expect="error")
    suite.add(reference, "better_masks", "f32", pair(logits, booleans, IMAGE, {"mode": "binary"}), expect="error")
    suite.add(reference, "better_values", "f32", pair(logits, masks, IMAGE, {"mode": "binary"}, change=every(2.0)))

    formula = "papers.lovasz_hinge_loss"
    for image, ignore, (target, shape), dtype in product(
        (False, True), (None, 255, 0), ((masks, (2, 1, 3, 4)), (integers, (3, 2, 5)), (masks, (2, 9))), FULL
    ):
        options = {"per_image": image, "ignore_index": ignore}
        change = every(ignore) if ignore is not None else lambda target: target
        make = pair(distinct, target, shape, options, change=change)
        suite.add(formula, "options", dtype, make, key=(image, ignore))
        if ignore is not None:
            suite.add(formula, "ignored_image", dtype, pair(distinct, target, shape, options, change=first_sample(ignore)))


def lovasz_softmax(suite: Suite) -> None:
    """smp's, whose weights are in single precision: f64 is checked against kornia and `papers`.

    A batch or an image that is ignored altogether is left out: smp's loss of it is an empty tensor.
    """
    reference = f"{SMP}.LovaszLoss"
    settings = [{}, {"per_image": True}]

    def add(tag: str, make: Callable[[Draw], Call], **more: Any) -> None:
        suite.add(reference, f"multiclass_{tag}", more.pop("dtype", "f32"), make, **more)

    for options in settings:
        given = {"mode": "multiclass", **options}
        for _ in range(3):
            add("options", pair(logits, labels, IMAGE, given))
        add("extreme", pair(extremes, labels, IMAGE, given))
        add("saturated", pair(saturated, labels, IMAGE, given))
        add("ones", pair(logits, labels, IMAGE, given), ones=True)
        for value in (0, 2):
            add("one_class", pair(logits, labels, IMAGE, given, change=every(value, 1)))
        for index in (255, 0, 2, -1):
            change = every(index)
            add("ignore_index", pair(logits, labels, IMAGE, {**given, "ignore_index": index}, change=change))
        for shape in (*SHAPES, (7, 4), (1, 2, 3, 2, 3), (6, 2), (2, 3, 9, 11)):
            add("shape", pair(logits, labels, shape, given))
        for layout in LAYOUTS:
            if layout != "expanded" or options:  # Equal images have equal errors.
                add("layout", pair(logits, labels, IMAGE, given, layout=layout), layout=layout)
    for dtype in ("bf16", "f16", "f64"):
        make = pair(logits, labels, IMAGE, {"mode": "multiclass"})
        add("better_dtype", make, dtype=dtype, expect="error")
    add("better_line", pair(logits, labels, (2, 3, 7), {"mode": "multiclass"}), expect="error")
    for wrong in ((2, 3, 4, 6), (3, 3, 4, 5)):
        make = pair(logits, lambda draw, _, wrong=wrong: labels(draw, wrong), IMAGE, {"mode": "multiclass"})
        add("reject", make, expect="error")
    add("better_classes", pair(logits, labels, IMAGE, {"mode": "multiclass"}, change=every(3, 7)))

    # The function under it has the options of the paper's code, and takes probabilities.
    function, formula = f"{SMP}.lovasz._lovasz_softmax", "papers.lovasz_softmax_loss"
    for classes, image, ignore in product(("present", "all", [0, 2], [1], [2, 2, 0]), (False, True), (None, 1, 255)):
        change = every(ignore, 4) if ignore is not None else lambda target: target
        options = {"classes": classes, "per_image": image, "ignore": ignore}
        suite.add(function, "options", "f32", pair(probabilities, labels, IMAGE, options, change=change), key=str(classes))
        options = {"classes": classes, "per_image": image, "ignore_index": ignore}
        for shape, dtype in product((IMAGE, (2, 3, 7), (5, 3)), FULL):
            make = pair(logits, labels, shape, options, change=change)
            suite.add(formula, "options", dtype, make, key=(str(classes), ignore))
    for _ in range(2):
        suite.add(function, "softmax", "f32", pair(lambda draw, shape: logits(draw, shape).softmax(1), labels, IMAGE))
        suite.add(function, "outside", "f32", pair(logits, labels, IMAGE, {"classes": "all"}))


def mcc(suite: Suite) -> None:
    reference = f"{SMP}.MCCLoss"
    small: Shape = (2, 1, 2, 4)  # In f16 smp's product of four counts overflows soon.

    def base(dtype: str) -> Shape:
        return small if dtype == "f16" else (3, 1, 4, 5)

    for options, dtype in product(({}, {"eps": 1e-2}, {"eps": 1.0}), DTYPES):
        shape = base(dtype)
        suite.add(reference, "options", dtype, pair(probabilities, masks, shape, options), key=("options", dtype))
        suite.add(reference, "soft", dtype, pair(probabilities, probabilities, shape, options, grad=(0, 1)))
        tag = "better_half" if dtype == "f16" and not options else "perfect"
        suite.add(reference, tag, dtype, pair(constant(1.0), constant(1.0), shape, options))
        suite.add(reference, "empty_masks", dtype, pair(probabilities, constant(0.0), shape, options))
        suite.add(reference, "full_masks", dtype, pair(probabilities, constant(1.0), shape, options))
        suite.add(reference, "outside", dtype, pair(logits, masks, shape, options))
    for shape, dtype in product(((2, 3), (1, 1), (2, 3, 4), (7,), (1, 1, 17), (2, 2, 3, 3), (1, 1, 2, 3, 2)), DTYPES):
        if dtype != "f16" or shape in ((2, 3), (1, 1), (7,)):
            suite.add(reference, "shape", dtype, pair(probabilities, masks, shape))
    for layout, dtype in product(LAYOUTS, FULL):
        make = pair(probabilities, probabilities, (3, 2, 4, 5), grad=(0, 1), layout=layout)
        suite.add(reference, "layout", dtype, make, layout=layout)
    for dtype in FULL:
        suite.add(reference, "ones", dtype, pair(probabilities, masks, base(dtype)), ones=True)
        suite.add(reference, "integers", dtype, pair(probabilities, lambda draw, shape: draw.integers(shape, 2), (3, 4, 5)))

        def channel_missing(draw: Draw) -> Call:
            return Call([probabilities(draw, (3, 1, 4, 5)), masks(draw, (3, 4, 5))], grad=(0,))

        suite.add(reference, "shape", dtype, channel_missing)
    suite.add(reference, "large", "f32", pair(probabilities, masks, (2, 1, 37, 41)), second_order=False)
    suite.add(reference, "better_half", "f16", pair(probabilities, masks, (3, 1, 6, 7)))
    booleans = pair(probabilities, lambda draw, shape: masks(draw, shape) > 0, (3, 4, 5))
    suite.add(reference, "better_booleans", "f32", booleans, expect="error")
    wrong = pair(probabilities, lambda draw, _: masks(draw, (3, 1, 4, 4)), (3, 1, 4, 5))
    suite.add(reference, "reject", "f32", wrong, expect="error")
    suite.add(reference, "better_eps", "f32", pair(probabilities, masks, (3, 1, 4, 5), {"eps": 0.0}))


def kornia(suite: Suite) -> None:
    def weight(draw: Draw) -> torch.Tensor:
        return draw.uniform((3,), 0.2, 2.0)

    def one_channel(input: Values) -> Values:
        return lambda draw, shape: input(draw, (shape[0], 1, *shape[1:]))

    hinge = ("kornia.losses.LovaszHingeLoss", "kornia.losses.lovasz_hinge_loss")
    flat: Shape = (3, 4, 5)
    for reference, dtype in product(hinge, DTYPES):

        def add(tag: str, input: Values, target: Values, shape: Shape = flat, **more: Any) -> None:
            make = {key: more.pop(key) for key in ("layout", "change", "grad") if key in more}
            layout = make.get("layout")
            suite.add(reference, tag, dtype, pair(one_channel(input), target, shape, **make), layout=layout, **more)

        add("options", distinct, masks, key=("options", dtype))
        add("target", distinct, masks, grad=(0, 1))
        add("integers", distinct, lambda draw, shape: draw.integers(shape, 2))
        add("booleans", distinct, lambda draw, shape: draw.integers(shape, 2) > 0)
        add("extreme", extremes, masks)
        add("empty_masks", distinct, constant(0.0))
        add("full_masks", distinct, constant(1.0))
        add("ones", distinct, masks, ones=True)
        for shape in ((1, 1, 1), (2, 3, 3), (1, 9, 11), (5, 1, 7)):
            add("shape", distinct, masks, shape)
        for layout in LAYOUTS if dtype in FULL else ():
            add("layout", distinct, masks, layout=layout)
        add("reject", logits, lambda draw, _: masks(draw, (3, 4, 4)), expect="error")
        add("reject", logits, lambda draw, _: masks(draw, (2, 4, 5)), expect="error")
        add("better_values", logits, masks, change=every(2.0))
    for reference in hinge:
        suite.add(reference, "reject", "f32", pair(logits, masks, (3, 1, 4, 5)), expect="error")
        suite.add(reference, "reject", "f32", pair(logits, labels, (3, 2, 4, 5)), expect="error")

    softmax = ("kornia.losses.LovaszSoftmaxLoss", "kornia.losses.lovasz_softmax_loss")
    for reference, dtype, options in product(softmax, DTYPES, ({}, {"weight": weight})):

        def add_softmax(tag: str, input: Values, shape: Shape = IMAGE, **more: Any) -> None:
            make = {key: more.pop(key) for key in ("layout", "change") if key in more}
            layout = make.get("layout")
            suite.add(reference, tag, dtype, pair(input, labels, shape, options, **make), layout=layout, **more)

        add_softmax("options", logits, key=("options", dtype, bool(options)))
        add_softmax("extreme", extremes)
        if dtype in FULL:
            add_softmax("saturated", saturated)
        add_softmax("one_class", logits, change=every(1, 1))
        add_softmax("ones", logits, ones=True)
        for shape in ((1, 3, 1, 1), (3, 3, 2, 7), (2, 3, 9, 11)):
            add_softmax("shape", logits, shape)
        for layout in LAYOUTS if dtype in FULL else ():
            add_softmax("layout", logits, layout=layout)
        for value in (3, -1):
            add_softmax("reject", logits, change=every(value, 7), expect="error")
    for reference, shape, dtype in product(softmax, SHAPES, FULL):
        suite.add(reference, "shape", dtype, pair(logits, labels, shape))
    for reference in softmax:
        suite.add(reference, "reject", "f32", pair(logits, labels, (3, 1, 4, 5)), expect="error")
        suite.add(reference, "reject", "f32", pair(logits, labels, (2, 3, 7)), expect="error")
        wrong = pair(logits, labels, IMAGE, {"weight": lambda draw: draw.uniform((2,))})
        suite.add(reference, "reject", "f32", wrong, expect="error")
        single = {"weight": lambda draw: draw.uniform((3,)).to(torch.float32)}
        for dtype in ("bf16", "f64"):
            suite.add(reference, "weight", dtype, pair(logits, labels, IMAGE, single))

        def one_image(draw: Draw) -> Call:
            return Call([logits(draw, (1, 3, 4, 5)), labels(draw, IMAGE)], grad=(0,))

        suite.add(reference, "better_broadcast", "f32", one_image)


REDUCED = ("mean", "sum", "none")
HOT = {"softmax": True, "to_onehot_y": True}


def lines(values: Values) -> Values:
    """Images of a single column, whose distances are whole numbers."""
    return lambda draw, shape: values(draw, (*shape[:2], 9, 1))


def hausdorff(suite: Suite) -> None:
    """MONAI keeps distances in single precision, so that with f64 its images are lines here; the formula in
    `papers` has all others."""
    settings: list[dict] = [
        {},
        {"alpha": 1.0},
        {"alpha": 0.5, "include_background": True},
        {"alpha": 0.0},
        {"include_background": True, "batch": True},
        {"alpha": 3.0, "batch": True},
    ]

    def soft(options: dict) -> dict:
        return options | {"softmax": True}

    for name, options, reduction, dtype in product(
        ("HausdorffDTLoss", "LogHausdorffDTLoss"), settings, REDUCED, DTYPES
    ):
        reference = f"monai.losses.{name}"
        if reduction == "sum" and (dtype not in FULL or "alpha" in options):
            continue
        if name.startswith("Log") and len(options) != 1:
            continue
        options = options | {"reduction": reduction}
        shaped = lines if dtype == "f64" else lambda values: values

        def add(tag: str, input: Values, target: Values, chosen: dict, shape: Shape = IMAGE, **more: Any) -> None:
            grad = more.pop("grad", (0,))
            suite.add(reference, tag, dtype, pair(shaped(input), shaped(target), shape, chosen, grad=grad), **more)

        add("labels", logits, channel, options | HOT, key=("labels", reduction, dtype))
        add("masks", logits, masks, options | {"sigmoid": True})
        add("probabilities", probabilities, probabilities, options, grad=(0, 1))
        if reduction == "mean" and dtype in FULL:
            add("extreme", edges, channel, options | HOT)
            add("empty_masks", logits, constant(0.0), soft(options))
            add("full_masks", logits, constant(1.0), options | {"sigmoid": True})
            add("ones", logits, one_hot, soft(options), ones=True)
            add("single", logits, masks, options | {"sigmoid": True}, (3, 1, 5, 4))
            add("single", probabilities, masks, options | HOT, (3, 1, 5, 4))
    for name, dtype, options in product(("HausdorffDTLoss", "LogHausdorffDTLoss"), ("f32", "bf16"), ({}, {"batch": True})):
        reference = f"monai.losses.{name}"
        for shape in (*SHAPES, (1, 2, 3, 4, 3), (2, 3, 1, 5, 2), (1, 3, 9, 11)):
            suite.add(reference, "shape", dtype, pair(logits, channel, shape, options | HOT))
            suite.add(reference, "shape", dtype, pair(logits, one_hot, shape, soft(options)))
        for layout in LAYOUTS if dtype == "f32" else ():
            suite.add(reference, "layout", dtype, pair(logits, channel, IMAGE, options | HOT, layout=layout), layout=layout)
            suite.add(reference, "layout", dtype, pair(logits, masks, IMAGE, soft(options), layout=layout), layout=layout)
    for name in ("HausdorffDTLoss", "LogHausdorffDTLoss"):
        reference = f"monai.losses.{name}"
        rejects = [
            pair(logits, channel, (2, 3, 7), HOT),
            pair(logits, channel, IMAGE, {"softmax": True}),
            pair(logits, labels, IMAGE, HOT),
            pair(logits, masks, IMAGE, {"softmax": True, "sigmoid": True}),
            pair(logits, masks, IMAGE, {"reduction": "average"}),
            pair(logits, channel, IMAGE, HOT, change=every(3, 7)),
            pair(logits, channel, IMAGE, HOT, change=every(-1, 7)),
        ]
        for make in rejects:
            suite.add(reference, "reject", "f32", make, expect="error")

    formula = "papers.hausdorff_dt_loss"
    for alpha, log, batch, reduction in product((2.0, 1.0, 0.5, 3.0), (False, True), (False, True), REDUCED):
        options = {"alpha": alpha, "log": log, "batch": batch, "reduction": reduction}
        for shape in (IMAGE, (1, 2, 3, 4, 2)):
            make = pair(lambda draw, shape: logits(draw, shape).softmax(1), one_hot, shape, options, grad=(0, 1))
            suite.add(formula, "options", "f64", make, key=(alpha, log))


def centre_lines(suite: Suite) -> None:
    """clDice, and its sum with Dice."""
    common: list[dict] = [
        {},
        {"iter_": 0},
        {"iter_": 1, "smooth": 1e-2},
        {"smooth_nr": 0.5, "smooth_dr": 2.0},
        {"smooth_nr": 0.0, "smooth_dr": 1e-3, "smooth": 1e-6},
    ]
    single, both = "monai.losses.SoftclDiceLoss", "monai.losses.SoftDiceclDiceLoss"
    own = {single: [{}], both: [{}, {"alpha": 0.2}, {"alpha": 1.0}, {"alpha": 0.0}]}
    for reference, settings in own.items():
        for options, mine, reduction, dtype in product(common, settings, REDUCED, DTYPES):
            if reduction == "none" and reference == both or mine and (options or reduction == "sum"):
                continue
            if reduction == "sum" and (options or dtype not in FULL) or dtype not in FULL and len(options) > 1:
                continue
            chosen = options | mine | {"reduction": reduction}

            def add(tag: str, input: Values, target: Values, options: dict, shape: Shape = IMAGE, **more: Any) -> None:
                grad = more.pop("grad", (0,))
                suite.add(reference, tag, dtype, pair(input, target, shape, options, grad=grad), **more)

            add("labels", logits, channel, chosen | HOT, key=("labels", reduction, dtype))
            add("masks", logits, masks, chosen | {"sigmoid": True})
            if dtype in FULL:
                add("probabilities", probabilities, probabilities, chosen, grad=(0, 1))
                add("background", logits, channel, chosen | HOT | {"include_background": False})
            if dtype in FULL and reduction == "mean":
                add("extreme", edges, channel, chosen | HOT)
                add("empty_masks", logits, constant(0.0), chosen | {"sigmoid": True})
                add("full_masks", logits, constant(1.0), chosen | {"softmax": True})
                add("perfect", one_hot, one_hot, chosen)
                add("ones", logits, one_hot, chosen | {"softmax": True}, ones=True)
                add("single", logits, masks, chosen | {"sigmoid": True}, (3, 1, 5, 4))
                add("single", probabilities, masks, chosen | HOT | {"include_background": False}, (3, 1, 5, 4))
        for shape, dtype in product((*SHAPES, (1, 2, 3, 4, 3), (2, 3, 1, 5, 2), (1, 3, 9, 11)), DTYPES):
            suite.add(reference, "shape", dtype, pair(logits, channel, shape, HOT))
            suite.add(reference, "shape", dtype, pair(logits, masks, shape, {"sigmoid": True}))
        for layout, dtype in product(LAYOUTS, FULL):
            suite.add(reference, "layout", dtype, pair(logits, channel, IMAGE, HOT, layout=layout), layout=layout)
            make = pair(logits, masks, IMAGE, {"sigmoid": True}, layout=layout)
            suite.add(reference, "layout", dtype, make, layout=layout)
        rejects = [
            pair(logits, channel, IMAGE, {"softmax": True}),
            pair(logits, labels, IMAGE, HOT),
            pair(logits, masks, IMAGE, {"softmax": True, "sigmoid": True}),
            pair(logits, masks, IMAGE, {"reduction": "average"}),
            pair(logits, masks, IMAGE, {"iter_": -1}),
            pair(logits, masks, IMAGE, {"smooth": 0.0}),
            pair(logits, channel, IMAGE, HOT, change=every(3, 7)),
            pair(logits, channel, IMAGE, HOT, change=every(-1, 7)),
        ]
        if reference == both:
            rejects += [pair(logits, masks, IMAGE, {"alpha": alpha}) for alpha in (-0.1, 1.1)]
            suite.add(reference, "better_none", "f32", pair(logits, masks, IMAGE, {"sigmoid": True, "reduction": "none"}))
        for make in rejects:
            suite.add(reference, "reject", "f32", make, expect="error")
        if reference == single:
            bare = {"smooth_nr": 0.0, "smooth_dr": 0.0}
            for dtype in FULL:
                suite.add(reference, "better_empty", dtype, pair(probabilities, constant(0.0), IMAGE, bare))


def dice_cross_entropy(suite: Suite) -> None:
    reference = "monai.losses.DiceCELoss"

    def weight(count: int) -> Callable[[Draw], torch.Tensor]:
        return lambda draw: draw.uniform((count,), 0.3, 2.0)

    settings: list[dict] = [
        {},
        {"lambda_dice": 0.5, "lambda_ce": 2.0},
        {"lambda_dice": 0.0},
        {"lambda_ce": 0.0},
        {"label_smoothing": 0.2},
        {"weight": weight(3)},
        {"weight": weight(3), "label_smoothing": 0.1, "batch": True},
        {"include_background": False},
        {"include_background": False, "weight": weight(3)},
        {"jaccard": True, "smooth_nr": 0.5, "smooth_dr": 1.0},
        {"squared_pred": True, "batch": True},
    ]
    for options, reduction, dtype in product(settings, ("mean", "sum"), DTYPES):
        if reduction == "sum" and (dtype not in FULL or "lambda_ce" in options):
            continue
        chosen = options | {"reduction": reduction}

        def add(tag: str, input: Values, target: Values, options: dict, shape: Shape = IMAGE, **more: Any) -> None:
            grad = more.pop("grad", (0,))
            suite.add(reference, tag, dtype, pair(input, target, shape, options, grad=grad), **more)

        add("labels", logits, channel, chosen | HOT, key=("labels", reduction, dtype))
        add("masks", logits, one_hot, chosen | {"softmax": True})
        add("sigmoid", logits, channel, chosen | {"sigmoid": True, "to_onehot_y": True})
        if dtype in FULL and reduction == "mean":
            add("probabilities", logits, lambda draw, shape: logits(draw, shape).softmax(1), chosen | {"softmax": True}, grad=(0, 1))
            add("no_activation", logits, channel, chosen | {"to_onehot_y": True})
            add("extreme", edges, channel, chosen | HOT)
            if "squared_pred" not in options:  # MONAI takes the norm of the target there.
                integers = lambda draw, shape: one_hot(draw, shape).to(torch.int64)  # noqa: E731
                add("integers", logits, integers, chosen | {"softmax": True})
            add("ones", logits, channel, chosen | HOT, ones=True)
    one: Shape = (3, 1, 4, 5)
    for options, dtype in product(({}, {"weight": weight(1)}, {"jaccard": True}, {"reduction": "sum"}), DTYPES):
        for flags in ({"sigmoid": True}, {"sigmoid": True, "to_onehot_y": True, "include_background": False}):
            suite.add(reference, "single", dtype, pair(logits, masks, one, options | flags))
        if dtype in FULL:
            suite.add(reference, "single", dtype, pair(extremes, masks, one, options | {"sigmoid": True}))
            integers = pair(logits, lambda draw, shape: draw.integers(shape, 2), one, options | {"sigmoid": True})
            suite.add(reference, "single", dtype, integers)
    for dtype in FULL:
        two = {"include_background": False, "weight": weight(2)}
        suite.add(reference, "background", dtype, pair(logits, channel, (2, 2, 4, 5), two | HOT))
    for shape, dtype in product((*SHAPES, (2, 4, 7), (1, 2, 3, 4, 3), (1, 3, 9, 11)), DTYPES):
        suite.add(reference, "shape", dtype, pair(logits, channel, shape, HOT))
        suite.add(reference, "shape", dtype, pair(logits, one_hot, shape, {"softmax": True}))
    for layout, dtype in product(LAYOUTS, FULL):
        suite.add(reference, "layout", dtype, pair(logits, channel, IMAGE, HOT, layout=layout), layout=layout)
        suite.add(reference, "layout", dtype, pair(logits, one_hot, IMAGE, {"softmax": True}, layout=layout), layout=layout)
    rejects = [
        pair(logits, channel, IMAGE, {"softmax": True}),
        pair(logits, labels, IMAGE, HOT),
        pair(logits, masks, IMAGE, {"softmax": True, "sigmoid": True}),
        pair(logits, channel, IMAGE, HOT | {"reduction": "none"}),
        pair(logits, channel, IMAGE, HOT | {"lambda_ce": -1.0}),
        pair(logits, channel, IMAGE, HOT | {"lambda_dice": -1.0}),
        pair(logits, channel, IMAGE, HOT | {"weight": weight(2)}),
        pair(logits, channel, IMAGE, HOT | {"label_smoothing": 1.5}),
        pair(logits, channel, IMAGE, HOT, change=every(3, 7)),
        pair(logits, channel, IMAGE, HOT, change=every(-1, 7)),
    ]
    for make in rejects:
        suite.add(reference, "reject", "f32", make, expect="error")


def dice_focal(suite: Suite) -> None:
    """MONAI's focal loss is computed in single precision, whatever comes: f64 is checked against `papers`."""
    dice, generalized = "monai.losses.DiceFocalLoss", "monai.losses.GeneralizedDiceFocalLoss"
    common: list[dict] = [
        {},
        {"lambda_focal": 2.0},
        {"lambda_focal": 0.0},
        {"gamma": 0.0},
        {"gamma": 1.5, "batch": True},
        {"include_background": False},
        {"weight": [0.5, 1.0, 2.0]},
        {"weight": 0.5},
        {"include_background": False, "weight": [0.5, 2.0]},
    ]
    own: dict[str, list[dict]] = {
        dice: [
            {"alpha": 0.25},
            {"lambda_dice": 0.5, "alpha": 0.7, "include_background": False},
            {"jaccard": True, "smooth_nr": 0.5, "smooth_dr": 1.0},
            {"squared_pred": True},
        ],
        generalized: [{"lambda_gdl": 0.5}, {"w_type": "simple"}, {"w_type": "uniform"}],
    }
    kinds = ("f32", "bf16", "f16")
    for reference, settings in own.items():
        for options, reduction, dtype in product([*common, *settings], REDUCED, kinds):
            if dtype != "f32" and (reduction == "sum" or options.get("gamma") == 0.0 or "weight" in options):
                continue
            # MONAI adds the classes' losses of a batch to its samples' there.
            if reference == generalized and options.get("batch") and reduction == "none":
                continue
            chosen = options | {"reduction": reduction}

            def add(tag: str, input: Values, target: Values, options: dict, shape: Shape = IMAGE, **more: Any) -> None:
                suite.add(reference, tag, dtype, pair(input, target, shape, options), **more)

            add("labels", logits, channel, chosen | HOT, key=("labels", reduction, dtype))
            add("masks", logits, masks, chosen | {"sigmoid": True})
            if dtype == "f32" and reduction == "mean":
                add("no_activation", probabilities, one_hot, chosen)
                add("extreme", edges, channel, chosen | HOT)
                add("ones", logits, channel, chosen | HOT, ones=True)
        one: Shape = (3, 1, 4, 5)
        for options, dtype in product(({}, {"weight": 2.0}, {"include_background": False}, {"gamma": 0.5}), kinds):
            suite.add(reference, "single", dtype, pair(logits, masks, one, options | {"sigmoid": True}))
            suite.add(reference, "single", dtype, pair(logits, masks, one, options | HOT | {"softmax": False, "sigmoid": True}))
        for shape, dtype in product((*SHAPES, (2, 4, 7), (1, 2, 3, 4, 3), (1, 3, 9, 11)), kinds):
            suite.add(reference, "shape", dtype, pair(logits, channel, shape, HOT))
            suite.add(reference, "shape", dtype, pair(logits, one_hot, shape, {"softmax": True, "reduction": "sum"}))
        for layout in LAYOUTS:
            suite.add(reference, "layout", "f32", pair(logits, channel, IMAGE, HOT, layout=layout), layout=layout)
            make = pair(logits, masks, IMAGE, {"sigmoid": True}, layout=layout)
            suite.add(reference, "layout", "f32", make, layout=layout)
        rejects = [
            pair(logits, channel, IMAGE, {"softmax": True}),
            pair(logits, labels, IMAGE, HOT),
            pair(logits, masks, IMAGE, {"softmax": True, "sigmoid": True}),
            pair(logits, channel, IMAGE, HOT | {"reduction": "average"}),
            pair(logits, channel, IMAGE, HOT | {"lambda_focal": -1.0}),
            pair(logits, channel, IMAGE, HOT | {"lambda_dice" if reference == dice else "lambda_gdl": -1.0}),
            pair(logits, channel, IMAGE, HOT | {"weight": [1.0, 2.0]}),
            pair(logits, masks, one, {"sigmoid": True, "weight": [1.0]}),
            pair(logits, channel, IMAGE, HOT, change=every(3, 7)),
        ]
        for make in rejects:
            suite.add(reference, "reject", "f32", make, expect="error")

    formula = "papers.dice_focal_loss"
    for gamma, softmax, dice_factor, reduction in product((2.0, 0.0, 1.5), (False, True), (1.0, 0.25), ("mean", "sum")):
        options = {"gamma": gamma, "softmax": softmax, "lambda_dice": dice_factor, "reduction": reduction}
        for dtype in ("f64", "f32"):
            target = labels if softmax else masks
            suite.add(formula, "options", dtype, pair(logits, target, IMAGE, options), key=(softmax, dtype))
            for shape in (SHAPES[1], (2, 4, 7)):
                suite.add(formula, "shape", dtype, pair(logits, target, shape, options))


def add_all(suite: Suite) -> None:
    for add in (
        lovasz_hinge,
        lovasz_softmax,
        mcc,
        kornia,
        hausdorff,
        centre_lines,
        dice_cross_entropy,
        dice_focal,
    ):
        add(suite)
