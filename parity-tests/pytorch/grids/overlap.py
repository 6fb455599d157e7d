"""Dice, Jaccard, Tversky and their kin: MONAI, segmentation-models-pytorch, kornia."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch

from cases import DTYPES, LAYOUTS, Call, Draw, Object, Shape, Suite, lay_out

IMAGE: Shape = (2, 3, 4, 5)
SMP = "segmentation_models_pytorch.losses"
HALVES = ("bf16", "f16")
EDGES = (-1e4, -40.0, 0.0, 40.0, 1e4)
Target = Callable[[Draw, Shape], torch.Tensor]


def pixels(shape: Shape) -> Shape:
    return (shape[0], *shape[2:])


def labels(draw: Draw, shape: Shape) -> torch.Tensor:
    """Classes `[N, …]`, of which the last is absent from the first sample."""
    target = draw.integers(pixels(shape), shape[1])
    if shape[1] > 1 and shape[0] > 0:
        target[0] %= shape[1] - 1
    return target


def one_absent(draw: Draw, shape: Shape) -> torch.Tensor:
    """Class 1 is nowhere."""
    target = draw.integers(pixels(shape), shape[1])
    return target.masked_fill(target == 1, 0)


def background_only(_: Draw, shape: Shape) -> torch.Tensor:
    return torch.zeros(pixels(shape), dtype=torch.int64)


def some(value: int, every: int = 3) -> Callable[[torch.Tensor], torch.Tensor]:
    """Replaces every third label, say, and all of the first sample's if it is every one."""

    def replace(target: torch.Tensor) -> torch.Tensor:
        target = target.clone()
        target.view(-1)[::every] = value
        return target

    return replace


def first_sample(value: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def replace(target: torch.Tensor) -> torch.Tensor:
        target = target.clone()
        target[0] = value
        return target

    return replace


def masks(draw: Draw, shape: Shape) -> torch.Tensor:
    """Masks of zeros and ones that may overlap; the first of the first sample is empty."""
    target = draw.choose(shape, (0.0, 1.0))
    target[:1, :1] = 0
    return target


def one_hot(draw: Draw, shape: Shape) -> torch.Tensor:
    hot = torch.nn.functional.one_hot(labels(draw, shape), shape[1])
    return hot.movedim(-1, 1).to(draw.dtype).contiguous()


def soft(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform(shape, 0.05, 0.95)


def empty(draw: Draw, shape: Shape) -> torch.Tensor:
    return torch.zeros(shape, dtype=draw.dtype)


def logits(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.normal(shape, 1.5)


def edges(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.choose(shape, EDGES)


def quarters(draw: Draw, shape: Shape) -> torch.Tensor:
    """Probabilities of which many are those of the target."""
    return draw.choose(shape, (0.0, 0.25, 0.75, 1.0))


def probabilities(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform(shape, 0.05, 0.95)


def pair(
    options: dict,
    target: Target,
    shape: Shape = IMAGE,
    input: Target = logits,
    grad: Sequence[int] = (0,),
    layout: str | None = None,
    change: Callable[[torch.Tensor], torch.Tensor] = lambda target: target,
) -> Callable[[Draw], Call]:
    def make(draw: Draw) -> Call:
        arguments = [lay_out(layout, input(draw, shape)), lay_out(layout, change(target(draw, shape)))]
        return Call(arguments, dict(options), grad=grad)

    return make


def channel(target: Target) -> Target:
    """Labels as MONAI takes them, `[N, 1, …]`."""
    return lambda draw, shape: target(draw, shape).unsqueeze(1)


def monai(suite: Suite) -> None:
    dice, tversky = "monai.losses.DiceLoss", "monai.losses.TverskyLoss"
    generalized = "monai.losses.GeneralizedDiceLoss"
    own = {
        dice: [
            {},
            {"squared_pred": True},
            {"jaccard": True},
            {"jaccard": True, "squared_pred": True},
            {"soft_label": True},
            {"jaccard": True, "soft_label": True},
            {"smooth_nr": 1.0, "smooth_dr": 1.0},
            {"smooth_nr": 0.0, "smooth_dr": 1e-3},
            {"weight": [0.5, 1.0, 2.0]},
            {"weight": 3.0, "jaccard": True},
            {"weight": torch.tensor([0.5, 1.0, 2.0])},
        ],
        tversky: [
            {},
            {"alpha": 0.3, "beta": 0.7},
            {"alpha": 1.0, "beta": 1.0},
            {"soft_label": True, "beta": 0.9},
        ],
        generalized: [{}, {"w_type": "simple"}, {"w_type": "uniform"}, {"soft_label": True}],
    }
    few = ({}, {"softmax": True, "batch": True, "reduction": "sum"}, {"sigmoid": True, "reduction": "none"})
    for reference, settings in own.items():

        def add(tag: str, dtype: str, options: dict, target: Target, **more) -> None:
            kwargs = {key: more.pop(key) for key in ("expect", "second_order", "key", "ones") if key in more}
            layout = more.get("layout")
            suite.add(reference, tag, dtype, pair(options, target, **more), layout=layout, **kwargs)

        hot = {"softmax": True, "to_onehot_y": True}
        for options, batch, reduction, dtype in product(
            settings, (False, True), ("mean", "sum", "none"), DTYPES
        ):
            if dtype in HALVES and (reduction == "sum" or batch) or batch and reduction == "sum":
                continue
            options = {**options, "batch": batch, "reduction": reduction}
            key = ("options", reduction if dtype == "f32" else dtype)
            add("labels", dtype, {**options, **hot}, channel(labels), key=key)
            if reduction == "mean":
                add("masks", dtype, {**options, "sigmoid": True}, masks, grad=(0,))
        for options, dtype in product(settings, ("f64", "f32")):
            everything = {**options, "batch": True}
            # MONAI's own in-place change of the weights stops backward to the target.
            grad = (0,) if reference == generalized and options.get("w_type") != "uniform" else (0, 1)
            add("soft", dtype, {**options, "softmax": True}, soft, grad=grad)
            add("soft", dtype, {**everything, "sigmoid": True}, soft, grad=grad)
            add("probabilities", dtype, options, soft, input=probabilities, grad=grad)
            if "weight" not in options:
                add("background", dtype, {**options, **hot, "include_background": False}, channel(labels))
                add(
                    "background", dtype, {**everything, "sigmoid": True, "include_background": False}, one_hot
                )
            add("extreme", dtype, {**options, **hot}, channel(labels), input=edges)
            add("extreme", dtype, {**everything, "sigmoid": True}, masks, input=edges)
            # A negative number has no soft overlap; MONAI takes its size.
            for path in ("torch.sigmoid",) if options.get("soft_label") else ("torch.tanh", "torch.sigmoid"):
                add("other_act", dtype, {**options, "to_onehot_y": True, "other_act": Object(path)}, channel(labels))
            add("empty_masks", dtype, {**options, "sigmoid": True}, empty)
            add("empty_masks", dtype, {**options, **hot, "batch": True}, channel(background_only))
            add("absent", dtype, {**options, **hot, "batch": True}, channel(one_absent))
            add("ones", dtype, {**options, **hot}, channel(labels), ones=True)
        single = {"softmax": True, "to_onehot_y": True, "include_background": False}
        for options, dtype in product(settings, ("f64", "f32", "bf16")):
            one = (3, 1, 4, 3)
            add("single", dtype, {**options, **single}, masks, shape=one, input=probabilities)
            add("single", dtype, {**options, "sigmoid": True}, masks, shape=one)
        shapes = [(2, 4, 7), (1, 2, 3, 3, 3), (3, 5, 9), (1, 2, 17), (4, 2, 1, 1), (2, 33, 3, 5)]
        for more, shape, dtype in product(few, shapes, DTYPES):
            if dtype in HALVES and shape != shapes[-1]:
                continue
            add("shape", dtype, more, one_hot, shape=shape, input=logits if more else probabilities)
            add("shape", dtype, {**more, **hot, "sigmoid": False}, channel(labels), shape=shape)
        for layout, more, dtype in product(LAYOUTS, few, ("f64", "f32")):
            input = logits if more else probabilities
            add("layout", dtype, more, one_hot, layout=layout, input=input)
            add("layout", dtype, {**more, **hot, "sigmoid": False}, channel(labels), layout=layout)
        for more, dtype in product(few, ("f32",)):
            add(
                "large",
                dtype,
                {**more, **hot, "sigmoid": False},
                channel(labels),
                shape=(2, 3, 37, 41),
                second_order=False,
            )
        rejects = [
            ({"sigmoid": True, "softmax": True}, one_hot, IMAGE),
            ({"sigmoid": True, "reduction": "average"}, one_hot, IMAGE),
            (hot, labels, IMAGE),
            ({"softmax": True}, channel(labels), IMAGE),
            ({"softmax": True}, lambda draw, _: masks(draw, (2, 3, 4, 6)), IMAGE),
        ]
        for options, target, shape in rejects:
            add("reject", "f32", options, target, shape=shape, expect="error")
        for replace in (some(3, 7), some(-1, 7)):
            add("reject", "f32", hot, channel(labels), change=replace, expect="error")
        if reference == dice:
            for weight in ([1.0, 2.0], [1.0, -1.0, 1.0], [1.0] * 4):
                add("reject", "f32", {**hot, "weight": weight}, channel(labels), expect="error")
            for weight, dtype in product(([0.5, 2.0], 0.25), ("f64", "f32", "f16")):
                options = {**hot, "weight": weight, "include_background": False, "reduction": "none"}
                add("background", dtype, options, channel(labels))
        if reference == generalized:
            continue
        ignored = [
            (0, some(0)),
            (1, some(1)),
            (255, some(255)),
            (-1, some(-1)),
            (255, first_sample(255)),
            (255, some(255, 1)),
        ]
        for (index, change), more, dtype in product(
            ignored, ({}, {"batch": True}, {"include_background": False}), DTYPES
        ):
            if dtype in HALVES and more:
                continue
            options = {**hot, **more, "ignore_index": index}
            add("ignore_index", dtype, options, channel(labels), change=change)
        for index, more, dtype in product((0, 1, 2, 255, -1), few, ("f64", "f32")):
            options = {**more, "ignore_index": index}
            input = logits if more else probabilities
            add("ignore_pixels", dtype, options, one_hot, input=input)
            add("ignore_pixels", dtype, options, empty, input=input)
        for index, dtype in product((0, 1, 255), ("f64", "f32", "bf16")):
            one = (3, 1, 4, 3)
            add(
                "ignore_single",
                dtype,
                {"sigmoid": True, "ignore_index": index},
                masks,
                shape=one,
                change=some(index),
            )
        for dtype in ("f64", "f32"):
            options = {"softmax": True, "smooth_nr": 0.0, "smooth_dr": 0.0}
            add("no_smoothing", dtype, options, one_hot)
            add(
                "better_empty",
                dtype,
                {**hot, "smooth_nr": 0.0, "smooth_dr": 0.0, "ignore_index": 255},
                channel(labels),
                change=first_sample(255),
            )


def smp(suite: Suite) -> None:
    settings = {
        "DiceLoss": [{}],
        "JaccardLoss": [{}],
        "TverskyLoss": [
            {},
            {"alpha": 0.3, "beta": 0.7},
            {"gamma": 0.75},
            {"gamma": 1.5, "alpha": 1.0, "beta": 0.2},
        ],
    }
    common = [
        {},
        {"log_loss": True},
        {"smooth": 1.0},
        {"smooth": 0.1, "log_loss": True},
        {"eps": 1e-3},
        {"eps": 30.0, "smooth": 0.5},
    ]
    several = [
        {"classes": [0, 2]},
        {"classes": [1]},
        {"class_weights": [0.5, 1.0, 2.0]},
        {"class_weights": [0.0, 1.0, 0.25], "log_loss": True, "smooth": 0.1},
        {"class_weights": [0.5, 1.0, 2.0], "classes": [2, 1]},
    ]
    modes: dict[str, tuple[Shape, Target]] = {
        "binary": ((3, 1, 4, 5), masks),
        "multiclass": (IMAGE, labels),
        "multilabel": (IMAGE, masks),
    }
    for (name, own), (mode, (base, target)) in product(settings.items(), modes.items()):

        def add(
            tag: str, dtype: str, options: dict, target: Target = target, shape: Shape = base, **more
        ) -> None:
            kwargs = {key: more.pop(key) for key in ("expect", "second_order", "key", "ones") if key in more}
            options = {"mode": mode, **options}
            make = pair(options, target, shape, **more)
            suite.add(f"{SMP}.{name}", f"{mode}_{tag}", dtype, make, layout=more.get("layout"), **kwargs)

        dense = mode != "multiclass"
        usual = [*common, *(several if mode != "binary" else [])]
        for options, mine, dtype in product(usual, own, DTYPES):
            if dtype in HALVES and (mine or options not in usual[:3]):
                continue
            key = (f"{mode}_options", bool(options), bool(mine))
            add("options", dtype, {**options, **mine}, key=key)
        for mine, dtype in product(own, ("f64", "f32")):
            add("probabilities", dtype, {**mine, "from_logits": False}, input=probabilities)
            add("ties", dtype, {**mine, "from_logits": False}, input=quarters)
            add("extreme", dtype, mine, input=edges)
            add("extreme", dtype, {**mine, "smooth": 1.0}, input=edges)
            add("ones", dtype, mine, ones=True)
            if dense:
                add("soft", dtype, mine, soft, grad=(0, 1))
                add("soft", dtype, {**mine, "smooth": 0.5}, soft, grad=(0, 1))
            else:
                add("absent", dtype, mine, one_absent)
                add("absent", dtype, {**mine, "classes": [1, 2]}, one_absent)
                add("background", dtype, mine, background_only)
        for dtype in ("f64", "f32"):
            tag = "better_empty" if name == "TverskyLoss" else "empty_masks"
            zeros = empty if dense else lambda draw, shape: torch.full(pixels(shape), 255)
            plain = {} if dense else {"ignore_index": 255}
            add("empty_masks", dtype, plain, zeros)
            add("empty_masks", dtype, {**plain, "smooth": 1.0}, zeros)
            if name == "TverskyLoss":
                add(tag, dtype, {**plain, "gamma": 0.75}, zeros)
        shapes = [(2, 4, 7), (1, 2, 3, 3, 3), (3, 5, 9), (4, 2, 1, 1), (2, 33, 3, 5), (1, 1, 17)]
        for shape, options, dtype in product(shapes, ({}, {"smooth": 0.5, "log_loss": True}), DTYPES):
            if dtype in HALVES and (options or shape != shapes[-2]):
                continue
            # A softmax of a single class is 1 whatever the logits are.
            tag = "better_single" if mode == "multiclass" and shape[1] == 1 else "shape"
            add(tag, dtype, options, shape=(shape[0], 1, *shape[2:]) if mode == "binary" else shape)
        if mode == "binary":
            for dtype in ("f64", "f32"):
                add("shape", dtype, {}, shape=(3, 4, 5))
                add("shape", dtype, {}, lambda draw, _: masks(draw, (3, 4, 5)), shape=(3, 1, 4, 5))
        for layout, options, dtype in product(LAYOUTS, ({}, {"smooth": 0.5}), ("f64", "f32")):
            add("layout", dtype, options, layout=layout)
        add("large", "f32", {}, shape=(2, base[1], 37, 41), second_order=False)
        for index, dtype, options in product(
            (0, 1, 255, -1), DTYPES, ({}, {"smooth": 0.5, "log_loss": True})
        ):
            if dtype in HALVES and options:
                continue
            add("ignore_index", dtype, {**options, "ignore_index": index}, change=some(index))
        for dtype in ("f64", "f32"):
            add("ignore_index", dtype, {"ignore_index": 255}, change=first_sample(255))
            add("ignore_index", dtype, {"ignore_index": 7})
        rejects: list[tuple[dict, Target, Shape]] = [
            ({}, lambda draw, shape: target(draw, (5, *shape[1:])), base),
            ({}, lambda draw, shape: target(draw, (*shape[:-1], shape[-1] + 1)), base),
        ]
        if mode == "binary":
            rejects += [({"classes": [0]}, target, base), ({"class_weights": [1.0]}, target, base)]
        else:
            rejects += [({"classes": [7]}, target, base), ({"class_weights": [1.0, 2.0]}, target, base)]
        for options, wrong, shape in rejects:
            add("reject", "f32", options, wrong, shape=shape, expect="error")
        if mode == "multiclass":
            for change in (some(3, 7), some(-1, 7)):
                add("reject", "f32", {}, change=change, expect="error")
            add("reject", "f32", {"ignore_index": 255}, change=some(9, 7), expect="error")
    for name in settings:
        make = pair({"mode": "pixels"}, labels)
        suite.add(f"{SMP}.{name}", "reject", "f32", make, expect="error")


def weights(draw: Draw, count: int) -> torch.Tensor:
    return draw.uniform((count,), 0.25, 2.0)


def kornia(suite: Suite) -> None:
    dice = [{}, {"average": "macro"}, {"eps": 0.5}, {"average": "macro", "eps": 0.1}, {"eps": 0.0}]
    tversky = [
        {"alpha": 0.5, "beta": 0.5},
        {"alpha": 0.3, "beta": 0.7},
        {"alpha": 1.0, "beta": 1.0, "eps": 0.1},
        {"alpha": 0.2, "beta": 0.0, "eps": 0.0},
    ]
    references = {
        "kornia.losses.DiceLoss": dice,
        "kornia.losses.dice_loss": dice,
        "kornia.losses.TverskyLoss": tversky,
        "kornia.losses.tversky_loss": tversky,
    }
    for reference, settings in references.items():
        function = reference.endswith("_loss")
        main = ("f64", "f32") if function else tuple(DTYPES)

        def add(tag: str, dtype: str, options: dict, target: Target = labels, **more) -> None:
            kwargs = {key: more.pop(key) for key in ("expect", "second_order", "key", "ones") if key in more}
            suite.add(
                reference, tag, dtype, pair(options, target, **more), layout=more.get("layout"), **kwargs
            )

        shapes = [(2, 4, 7, 1), (3, 5, 3, 3), (4, 2, 1, 1), (2, 33, 3, 5), (2, 1, 3, 4), (1, 2, 17, 3)]
        for options, dtype in product(settings, main):
            add("options", dtype, options, key=("options", f"{options}" if dtype == "f32" else dtype))
            add("absent", dtype, options, one_absent)
            add("background", dtype, options, background_only)
            add("extreme", dtype, options, input=edges)
        for options, shape, dtype in product(settings[:2], shapes, main):
            if dtype not in HALVES or shape == shapes[3]:
                add("better_single" if shape[1] == 1 else "shape", dtype, options, shape=shape)
        for options, layout, dtype in product(settings[:2], LAYOUTS, ("f64", "f32")):
            add("layout", dtype, options, layout=layout)
        ignored = [
            (-100, some(-100)),
            (0, some(0)),
            (255, some(255)),
            (255, first_sample(255)),
            (255, some(255, 1)),
        ]
        for options, (index, change), dtype in product(settings, ignored, main):
            if dtype in HALVES and options not in settings[:2]:
                continue
            add("ignore_index", dtype, {**options, "ignore_index": index}, change=change)
        for options, dtype in product(settings, ("f64", "f32")):
            add("ignore_index", dtype, {**options, "ignore_index": None})
            add("ones", dtype, options, ones=True)
        for options in settings[:2]:
            # From 2**15 logits on kornia's Dice makes no one-hot target.
            for shape in ((2, 3, 37, 41), (2, 8, 48, 48)):
                add("large", "f32", options, shape=shape, second_order=False)
            for change in (some(3, 7), some(-1, 7)):
                add("reject", "f32", options, change=change, expect="error")
            add("reject", "f32", options, lambda draw, _: draw.integers((2, 4, 6), 3), expect="error")
            add("reject", "f32", options, shape=(2, 3, 4), expect="error")
        if settings is not dice:
            continue
        add("reject", "f32", {"average": "median"}, expect="error")
        for average, dtype, wide, index in product(("micro", "macro"), main, (False, True), (-100, 1)):

            def weighted(draw: Draw) -> Call:
                weight = weights(draw, 3)
                weight = (
                    weight.to(torch.float32 if draw.dtype.itemsize == 2 else torch.float64)
                    if wide
                    else weight
                )
                arguments = [logits(draw, IMAGE), some(index)(labels(draw, IMAGE))]
                options = {"average": average, "ignore_index": index}
                if function:
                    return Call(arguments, options, {"weight": weight}, grad=(0, "weight"))
                return Call(arguments, {**options, "weight": weight}, grad=(0,))

            suite.add(reference, "weight", dtype, weighted)
        for average, dtype in product(("micro", "macro"), main):

            def zero_weights(draw: Draw) -> Call:
                options = {"average": average, "weight": torch.zeros(3, dtype=draw.dtype)}
                return Call([logits(draw, IMAGE), labels(draw, IMAGE)], options, grad=(0,))

            suite.add(reference, "zero_weight", dtype, zero_weights)
            suite.add(
                reference,
                "reject",
                "f32",
                lambda draw: Call([logits(draw, IMAGE), labels(draw, IMAGE)], {"weight": weights(draw, 4)}),
                expect="error",
            )


def papers(suite: Suite) -> None:
    reference = "papers.focal_tversky_loss"
    settings = [{}, {"alpha": 0.5, "beta": 0.5, "gamma": 0.5}, {"gamma": 2.0, "eps": 1.0}]
    shapes = [IMAGE, (3, 4, 7), (1, 1, 3, 3, 3), (2, 33, 5)]
    for options, reduction, shape, dtype in product(settings, ("mean", "sum", "none"), shapes, DTYPES):
        options = {**options, "reduction": reduction}
        for target in (soft, labels) if shape == IMAGE or dtype == "f32" else (labels,):
            grad = (0, 1) if target is soft else (0,)
            suite.add(reference, "options", dtype, pair(options, target, shape, probabilities, grad))
    for layout, target in product(LAYOUTS, (soft, labels)):
        make = pair({}, target, input=probabilities, layout=layout)
        suite.add(reference, "layout", "f64", make, layout=layout)
    wrong = pair({}, lambda draw, _: soft(draw, (2, 3, 4, 4)), input=probabilities)
    suite.add(reference, "reject", "f32", wrong, expect="error")


def add_all(suite: Suite) -> None:
    for add in (monai, smp, kornia, papers):
        add(suite)
