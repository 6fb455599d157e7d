"""Asymmetric, soft-target, JSD, poly and hinge losses of classification."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cases import Draw, Shape, Suite
from grids.pairs import Pair, check

LABELS: tuple[Shape, ...] = ((6, 5), (1, 1), (4, 1), (33, 7), (3, 33), (2, 3, 4))
LOGITS: tuple[Shape, ...] = ((6, 5), (1, 1), (1, 7), (33, 7), (3, 33))
IMAGES: tuple[Shape, ...] = ((3, 4, 2, 3), (2, 1, 3, 3), (1, 7, 5, 1), (2, 3, 4, 5))
BATCHMEAN = ("batchmean", "mean", "sum", "none")
MULTI_LABEL_REJECTS: list[tuple[Pair, dict]] = [
    (lambda draw, _: [draw.normal((6, 5)), draw.uniform((6, 4))], {}),
    (lambda draw, _: [draw.normal((6, 5)), draw.uniform((5, 5))], {}),
]


def hard(draw: Draw, shape: Shape) -> list:
    """Logits and labels of which few are present."""
    return [draw.normal(shape, 2.0), (draw.integers(shape, 3) == 0).to(draw.dtype)]


def soft(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 2.0), draw.uniform(shape, 0.02, 0.98)]


def of_kind(dtype: torch.dtype) -> Pair:
    return lambda draw, shape: [hard(draw, shape)[0], draw.integers(shape, 2).to(dtype)]


def saturated(draw: Draw, shape: Shape) -> list:
    return [draw.signs(shape) * draw.uniform(shape, 12.0, 60.0), hard(draw, shape)[1]]


def huge(draw: Draw, shape: Shape) -> list:
    return [draw.signs(shape) * 1e4, hard(draw, shape)[1]]


MULTI_LABEL_VALUES: dict[str, Pair] = {
    "soft": soft,
    "saturated": saturated,
    "huge": huge,
    "integers": of_kind(torch.int64),
    "bytes": of_kind(torch.uint8),
}


def per_class(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform((shape[-1],), 0.1, 2.0)


def asymmetric_multi_label(suite: Suite) -> None:
    reference = "timm.loss.AsymmetricLossMultiLabel"
    check(
        suite,
        reference,
        hard,
        LABELS,
        [
            {},
            {"gamma_neg": 2.0, "gamma_pos": 2.0},
            {"gamma_neg": 0, "gamma_pos": 0},
            {"gamma_neg": 1.5, "gamma_pos": 0},
            {"clip": None},
            {"clip": 0.2},
            {"clip": 0.0, "eps": 1e-4},
            {"disable_torch_grad_focal_loss": True},
            {"smoothing": 0.1},
            {"pos_weight": 2.5},
            {"weight": per_class, "pos_weight": per_class, "smoothing": 0.2},
        ],
        MULTI_LABEL_VALUES,
        [
            *MULTI_LABEL_REJECTS,
            (hard, {"reduction": "average"}),
            (hard, {"smoothing": 1.0}),
            (hard, {"smoothing": -0.1}),
        ],
        grad=(0,),
        reductions=BATCHMEAN,
        empty=((0, 5),),
    )
    # The slope of the focus in the target has the logarithm of what the clip makes 0.
    check(suite, reference, soft, ((6, 5), (3, 7)), [{"clip": None}, {"clip": 0, "gamma_pos": 3}], {}, [], kind="soft")
    few = {"gamma_neg": 0.5, "gamma_pos": 0.3}
    steep(suite, reference, [few, {**few, "clip": 0.0}, {**few, "gamma_pos": 0}], hard, huge)


def steep(suite: Suite, reference: str, options: list[dict], *values: Pair) -> None:
    """Exponents below 1, whose powers have a vertical tangent where a probability is 0 or 1."""
    shapes = ((6, 5), (3, 7))
    for kind, make in zip(("steep", "steep_huge"), values, strict=True):
        plain = kind == "steep"
        check(suite, reference, make, shapes, options, {}, [], grad=(0,), reductions=(), kind=kind, second_order=plain)


def classes(draw: Draw, shape: Shape) -> list:
    """Logits, and class indices without the last dimension."""
    return [draw.normal(shape, 2.0), draw.integers(shape[:-1], shape[-1])]


def probabilities(draw: Draw, shape: Shape) -> list:
    return [draw.normal(shape, 2.0), draw.normal(shape, 2.0).softmax(-1)]


def confident(draw: Draw, shape: Shape) -> list:
    logits, target = classes(draw, shape)
    return [logits * 20, target]


def huge_classes(draw: Draw, shape: Shape) -> list:
    return [draw.signs(shape) * 1e4, classes(draw, shape)[1]]


def class_rejects(*kinds: str) -> list[tuple[Pair, dict]]:
    rejects: dict[str, Callable[[Draw], list]] = {
        "high": lambda draw: [draw.normal((2, 3)), torch.tensor([0, 3])],
        "low": lambda draw: [draw.normal((2, 3)), torch.tensor([-1, 0])],
        "rows": lambda draw: [draw.normal((2, 3)), torch.tensor([0, 1, 2])],
    }
    return [(lambda draw, _, make=make: make(draw), {}) for kind, make in rejects.items() if kind in kinds]


def single_label(suite: Suite) -> None:
    all_rejects = class_rejects("high", "low", "rows")
    check(
        suite,
        "timm.loss.AsymmetricLossSingleLabel",
        classes,
        LOGITS,
        [{}, {"eps": 0.0}, {"eps": 0.5}, {"gamma_pos": 0, "gamma_neg": 0}, {"gamma_pos": 2, "gamma_neg": 1}],
        {"confident": confident, "huge": huge_classes},
        all_rejects,
        reductions=("mean", "none"),
        empty=((0, 5),),
    )
    few = {"gamma_pos": 0.5, "gamma_neg": 0.3}
    steep(suite, "timm.loss.AsymmetricLossSingleLabel", [few], classes, huge_classes)
    check(
        suite,
        "timm.loss.LabelSmoothingCrossEntropy",
        classes,
        LOGITS,
        [{}, {"smoothing": 0.0}, {"smoothing": 0.7}],
        {"huge": huge_classes},
        [*all_rejects, (classes, {"smoothing": 1.0})],
        reductions=(),
        empty=((0, 5),),
    )
    check(
        suite,
        "timm.loss.SoftTargetCrossEntropy",
        probabilities,
        (*LOGITS, (2, 3, 5), (2, 3, 2, 4)),
        [{}],
        {"hard": hard, "huge": huge},
        [(lambda draw, _: [draw.normal((6, 5)), draw.uniform((6, 4))], {})],
        reductions=(),
        empty=((0, 5),),
    )


def poly(suite: Suite) -> None:
    for tag, make in (("indices", classes), ("probabilities", probabilities)):
        check(
            suite,
            "timm.loss.PolyCrossEntropy",
            make,
            (*LOGITS, (2, 3, 5), (2, 3, 2, 4)),
            [{}, {"epsilon": -1.0}, {"epsilon": 0.0}, {"smoothing": 0.1}, {"epsilon": 1.0, "smoothing": 0.5}],
            {"huge": huge_classes if tag == "indices" else huge, "confident": confident},
            [
                *class_rejects("high", "low", "rows"),
                (classes, {"reduction": "batchmean"}),
                (classes, {"smoothing": 1.0}),
            ],
            empty=((0, 5),),
            kind=tag,
        )
    check(
        suite,
        "timm.loss.PolyBinaryCrossEntropy",
        hard,
        LABELS,
        [
            {},
            {"epsilon": -1.0, "gamma": 2.0, "alpha": 0.25},
            {"epsilon": 0.0},
            {"gamma": 1.0},
            {"gamma": 1.5, "smoothing": 0.1},
            {"alpha": 0.0},
            {"smoothing": 0.3, "alpha": 0.7},
        ],
        MULTI_LABEL_VALUES,
        [
            *MULTI_LABEL_REJECTS,
            (hard, {"reduction": "average"}),
            (hard, {"smoothing": 1.0}),
            (hard, {"alpha": 1.5}),
        ],
        reductions=BATCHMEAN,
        empty=((0, 5),),
    )
    options = [{"gamma": 0.5}, {"gamma": 0.3, "alpha": 0.25}]
    steep(suite, "timm.loss.PolyBinaryCrossEntropy", options, hard, huge)


def jsd(suite: Suite) -> None:
    reference = "timm.loss.JsdCrossEntropy"
    settings = [{}, {"smoothing": None}, {"smoothing": 0.0}, {"alpha": 1.0}, {"num_splits": 2, "smoothing": 0.3}]
    settings += [{"num_splits": 1}, {"num_splits": 6, "alpha": 0.0}]
    rejects = [
        *class_rejects("high", "low"),
        (lambda draw, _: classes(draw, (7, 5)), {}),
    ]
    check(
        suite,
        reference,
        classes,
        ((6, 5), (6, 1), (12, 7), (6, 33)),
        settings,
        {"better_confident": lambda draw, shape: [v * 0.2 if v.is_floating_point() else v for v in confident(draw, shape)]},
        rejects,
        reductions=(),
    )
    check(suite, reference, huge_classes, ((6, 5), (12, 7)), [{}], {}, [], reductions=(), kind="better_huge")


def dense_or_indices(suite: Suite) -> None:
    """timm's binary cross entropy."""
    for tag, make in (("dense", soft), ("indices", classes)):
        check(
            suite,
            "timm.loss.BinaryCrossEntropy",
            make,
            LOGITS,
            [
                {},
                {"smoothing": 0.0},
                {"smoothing": 0.3, "smooth_dense": True},
                {"target_threshold": 0.4},
                {"sum_classes": True},
                {"pos_weight": 2.0},
                {"weight": per_class, "pos_weight": per_class, "smoothing": 0.2},
            ],
            {"huge": huge if tag == "dense" else huge_classes},
            [
                (make, {"reduction": "average"}),
                (make, {"smoothing": 1.0}),
                (lambda draw, _: [draw.normal((6, 5)), draw.uniform((5, 5))], {}),
                (lambda draw, _: [draw.normal((6, 5)), draw.integers((5,), 5)], {}),
                (lambda draw, _: [draw.normal((2, 3)), torch.tensor([0, 3])], {}),
            ],
            kind=tag,
        )


def image_mask(ignored: int) -> Pair:
    """Logits and a mask of the same shape, of which about a third is ignored."""

    def make(draw: Draw, shape: Shape) -> list:
        target = draw.integers(shape, 2).to(draw.dtype)
        target[draw.integers(shape, 3) == 0] = ignored
        return [draw.normal(shape, 2.0), target]

    return make


def channel(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform((shape[1], *[1] * (len(shape) - 2)), 0.1, 2.0)


def soft_binary(suite: Suite) -> None:
    all_ignored = {"all_ignored": lambda draw, shape: [draw.normal(shape), torch.full(shape, -100.0).to(draw.dtype)]}
    for tag, make, ignored in (("default", image_mask(-100), {}), ("void", image_mask(255), {"ignore_index": 255})):
        check(
            suite,
            "segmentation_models_pytorch.losses.SoftBCEWithLogitsLoss",
            make,
            (*IMAGES, (4, 3)),
            [
                ignored,
                {**ignored, "smooth_factor": 0.1},
                {**ignored, "weight": channel},
                {**ignored, "smooth_factor": 0.4, "pos_weight": channel},
            ]
            if tag == "default"
            else [ignored, {**ignored, "smooth_factor": 0.1}],
            {**all_ignored, "huge": huge, "soft": soft} if tag == "default" else {"huge": huge},
            [(lambda draw, _: [draw.normal((2, 3, 4)), draw.uniform((2, 3, 5))], {})],
            grad=(0,),
            kind=tag,
        )
    check(
        suite,
        "segmentation_models_pytorch.losses.SoftBCEWithLogitsLoss",
        soft,
        IMAGES,
        [{"ignore_index": None}, {"ignore_index": None, "smooth_factor": 0.1}],
        {},
        [],
        kind="nothing_ignored",
    )


def pixel_classes(ignored: int | None) -> Pair:
    """Logits `[N, C, ...]` and class indices, of which about a third is ignored."""

    def make(draw: Draw, shape: Shape) -> list:
        target = draw.integers((shape[0], *shape[2:]), shape[1])
        if ignored is not None:
            target[draw.integers(tuple(target.shape), 3) == 0] = ignored
        return [draw.normal(shape, 2.0), target]

    return make


def soft_classes(suite: Suite) -> None:
    reference = "segmentation_models_pytorch.losses.SoftCrossEntropyLoss"
    settings = {"default": (-100, {}), "void": (255, {"ignore_index": 255}), "none": (None, {"ignore_index": None})}

    def all_ignored(draw: Draw, shape: Shape) -> list:
        return [draw.normal(shape), torch.full((shape[0], *shape[2:]), -100)]

    def huge_pixels(draw: Draw, shape: Shape) -> list:
        return [draw.signs(shape) * 1e4, pixel_classes(None)(draw, shape)[1]]

    def keeping(draw: Draw, shape: Shape) -> list:
        logits, target = pixel_classes(-100)(draw, shape)
        return [logits, target.unsqueeze(1)]

    for tag, (ignored, options) in settings.items():
        values = {"huge": huge_pixels}
        if tag == "default":
            values |= {"all_ignored": all_ignored, "keeping": keeping}
        check(
            suite,
            reference,
            pixel_classes(ignored),
            (*IMAGES, (4, 3), (2, 5, 3)),
            [{**options, "smooth_factor": factor} for factor in (0.0, 0.1, 0.7)],
            values,
            [
                (lambda draw, _: [draw.normal((2, 3)), torch.tensor([0, 3])], {"smooth_factor": 0.1}),
                (lambda draw, _: [draw.normal((2, 3)), torch.tensor([-1, 0])], {"smooth_factor": 0.1}),
            ],
            kind=tag,
        )
    check(suite, reference, classes, ((2, 3, 4, 5), (6, 4)), [{"dim": -1, "smooth_factor": 0.1}], {}, [], kind="last")


def hinges(suite: Suite) -> None:
    def scores(draw: Draw, shape: Shape, labels: tuple[float, ...] = (-1.0, 1.0)) -> list:
        return [draw.away(0.0, draw.normal(shape, 1.5), (1,)), draw.choose(shape, labels)]

    values: dict[str, Pair] = {
        "binary": lambda draw, shape: scores(draw, shape, (0.0, 1.0)),
        "ones": lambda draw, shape: scores(draw, shape, (1.0,)),
        "mixed": lambda draw, shape: scores(draw, shape, (-1.0, 0.0, 1.0)),
        "soft": soft,
        "integers": of_kind(torch.int64),
        "extreme": lambda draw, shape: [draw.normal(shape, 1e4), draw.signs(shape)],
    }
    for name in ("hinge_loss", "squared_hinge_loss"):
        few = {key: make for key, make in values.items() if name == "hinge_loss" or key != "extreme"}
        check(
            suite,
            f"papers.{name}",
            scores,
            (*LABELS, (7,)),
            [{}],
            few,
            [*MULTI_LABEL_REJECTS, (scores, {"reduction": "average"})],
            empty=((0, 5),),
        )
    for tag, make in (("indices", classes), ("vectors", probabilities)):
        check(
            suite,
            "papers.categorical_hinge_loss",
            make,
            (*LOGITS, (7,), (2, 3, 5), (2, 3, 2, 4)),
            [{}],
            {"hard": hard, "extreme": huge_classes, "negative": lambda d, s: [-d.uniform(s, 0.5, 3.0), make(d, s)[1]]},
            [*class_rejects("high", "low", "rows"), (classes, {"reduction": "average"})],
            empty=((0, 5),),
            kind=tag,
        )


def add_all(suite: Suite) -> None:
    for add in (
        asymmetric_multi_label,
        single_label,
        poly,
        jsd,
        dense_or_indices,
        soft_binary,
        soft_classes,
        hinges,
    ):
        add(suite)
