"""Cross entropy, NLL, the binary cross entropies and the (multi-label) margin losses."""

from __future__ import annotations

from itertools import product

import torch

from cases import Call, Draw, Shape, Suite
from grids import REDUCTIONS, Loss, Make, classes, sweep, without_classes
from grids.regression import EMPTY, SHAPES, mismatched, positive

LOGITS: tuple[Shape, ...] = (
    (6, 5),
    (5,),
    (1, 1),
    (4, 1),
    (1, 7),
    (33, 7),
    (3, 33),
    (2, 1700),
    (2, 4, 3),
    (2, 3, 2, 2, 2),
    (2, 3, 4, 5),
)
EMPTY_LOGITS: tuple[Shape, ...] = ((0, 5), (0, 5, 3), (2, 5, 0))


def class_weight(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform((classes(shape),), 0.1, 2.0)


def indices(draw: Draw, shape: Shape, options: dict, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Class indices; where the options name a class to ignore, about a third are that."""
    target = draw.integers(without_classes(shape), classes(shape))
    if "ignore_index" in options:
        ignored = draw.integers(tuple(target.shape), 3) == 0
        target[ignored] = options["ignore_index"]
        target.view(-1)[:1] = 0
    return target.to(dtype)


def logits(dtype: torch.dtype = torch.int64) -> Make:
    return lambda draw, shape, options: [draw.normal(shape, 2.0), indices(draw, shape, options, dtype)]


def log_probabilities(dtype: torch.dtype = torch.int64) -> Make:
    def make(draw: Draw, shape: Shape, options: dict) -> list:
        return [
            draw.normal(shape, 2.0).log_softmax(min(1, len(shape) - 1)),
            indices(draw, shape, options, dtype),
        ]

    return make


def all_ignored(draw: Draw, shape: Shape, options: dict) -> list:
    target = torch.full(without_classes(shape), options.get("ignore_index", -100))
    return [draw.normal(shape), target]


def some_ignored(draw: Draw, shape: Shape, options: dict) -> list:
    return [draw.normal(shape), indices(draw, shape, {"ignore_index": -100, **options})]


def huge_logits(draw: Draw, shape: Shape, options: dict) -> list:
    return [draw.normal(shape, 1e4), indices(draw, shape, options)]


def equal_logits(draw: Draw, shape: Shape, options: dict) -> list:
    return [draw.choose(shape, (0.0, 1.0)), indices(draw, shape, options)]


def masked_logits(draw: Draw, shape: Shape, _: dict) -> list:
    """Classes other than the target may be masked with -inf; no target is ignored."""
    scores, target = draw.normal(shape), indices(draw, shape, {})
    masked = draw.integers(shape, 3) == 0
    masked.scatter_(min(1, len(shape) - 1), target.unsqueeze(min(1, len(shape) - 1)), False)
    return [scores.masked_fill(masked, -float("inf")), target]


def index_rejects(extra: list) -> list:
    """Calls that every loss of class indices rejects."""

    def out_of_range(value: int, dtype: torch.dtype = torch.int64):
        return lambda draw: [draw.normal((2, 3)), torch.tensor([0, value], dtype=dtype)]

    return [
        (out_of_range(3), {}),
        (out_of_range(-1), {}),
        (out_of_range(200, torch.uint8), {}),
        (lambda draw: [draw.normal((2, 3)), draw.integers((3,), 3)], {}),
        (lambda draw: [draw.normal((2, 3)), draw.normal((2,))], {}),
        (lambda draw: [draw.normal((2, 3, 5)), draw.integers((2, 4), 3)], {}),
        (lambda draw: [draw.normal((2, 3)), draw.integers((2,), 3)], {"weight": wrong_class_weight}),
        *extra,
    ]


def wrong_class_weight(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform((2,), 0.1, 2.0)


def cross_entropy(suite: Suite) -> None:
    weight, smoothing = {"weight": class_weight}, {"label_smoothing": 0.1}
    options = [
        {},
        weight,
        {"ignore_index": 1},
        {"ignore_index": -1},
        smoothing,
        {"label_smoothing": 1.0},
        {**weight, **smoothing},
        {"ignore_index": 2, **smoothing},
        {"ignore_index": 255, **weight},
        {"ignore_index": 1, **weight, **smoothing},
    ]
    rejects = index_rejects(
        [
            (lambda draw: [draw.normal((2, 3)), draw.integers((2,), 3)], {"label_smoothing": 1.5}),
            (lambda draw: [draw.normal((2, 3)), torch.zeros(2, 3, dtype=torch.int64)], {}),
            (lambda draw: [draw.normal((2, 3)), draw.normal((2, 3)).softmax(1)], {"ignore_index": 1}),
            (lambda draw: [draw.normal((3,)), draw.integers((1,), 3)], {"weight": wrong_class_weight}),
        ]
    )
    values = {
        "extreme": huge_logits,
        "all_ignored": all_ignored,
        "ignored": some_ignored,
        "ties": equal_logits,
        "masked": masked_logits,
    }
    names = ("CrossEntropyLoss", "cross_entropy")
    sweep(
        suite,
        Loss(
            *names,
            logits(),
            LOGITS,
            grad=(0,),
            large=(70, 71),
            laid_out=[(6, 5), (2, 3, 4, 5)],
            empty=EMPTY_LOGITS,
            options=options,
            values=values,
            rejects=rejects,
            legacy=True,
        ),
    )
    sweep(
        suite,
        Loss(
            *names,
            logits(torch.uint8),
            LOGITS[:3],
            grad=(0,),
            options=[{}, {"ignore_index": 255, **weight}],
            kind="u8",
        ),
    )
    probability_targets(suite, names)


def probability_targets(suite: Suite, names: tuple[str, str]) -> None:
    def probabilities(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 2.0), draw.normal(shape).softmax(min(1, len(shape) - 1))]

    def one_hot(draw: Draw, shape: Shape, _: dict) -> list:
        hot = torch.nn.functional.one_hot(
            draw.integers(without_classes(shape), classes(shape)), classes(shape)
        )
        return [draw.normal(shape, 2.0), hot.movedim(-1, min(1, len(shape) - 1)).to(draw.dtype)]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 1e4), probabilities(draw, shape, {})[1]]

    weight, smoothing = {"weight": class_weight}, {"label_smoothing": 0.1}
    sweep(
        suite,
        Loss(
            *names,
            probabilities,
            [shape for shape in LOGITS if shape != (2, 1700)],
            grad=(0, 1),
            large=(70, 71),
            empty=EMPTY_LOGITS,
            options=[{}, smoothing, {"ignore_index": -5}],
            function_options=[weight, {**weight, **smoothing}],
            grad_kwargs=["weight"],
            values={"extreme": extreme, "one_hot": one_hot},
            kind="probability",
        ),
    )
    for dtype, reduction, more in product(("f64", "f32", "bf16", "f16"), REDUCTIONS, ({}, smoothing)):

        def make(draw: Draw) -> Call:
            options = {"weight": class_weight(draw, (6, 5)), "reduction": reduction, **more}
            return Call(probabilities(draw, (6, 5), {}), options, grad=(0, 1))

        suite.add("torch.nn.CrossEntropyLoss", "probability_weight", dtype, make)


def nll(suite: Suite) -> None:
    weight = {"weight": class_weight}
    names = ("NLLLoss", "nll_loss")
    values = {"extreme": huge_logits, "all_ignored": all_ignored, "ignored": some_ignored}
    # The backward of PyTorch's NLL takes no strided input of four dimensions.
    sweep(
        suite,
        Loss(
            *names,
            log_probabilities(),
            LOGITS,
            grad=(0,),
            large=(70, 71),
            laid_out=[(6, 5), (2, 4, 3)],
            empty=EMPTY_LOGITS,
            values=values,
            options=[{}, weight, {"ignore_index": 1}, {"ignore_index": 255, **weight}],
            rejects=index_rejects([]),
            legacy=True,
        ),
    )
    sweep(
        suite,
        Loss(
            *names,
            log_probabilities(torch.uint8),
            LOGITS[:3],
            grad=(0,),
            kind="u8",
            options=[{}, {"ignore_index": 255, **weight}],
        ),
    )


def last_dimension(draw: Draw, shape: Shape) -> torch.Tensor:
    return draw.uniform(shape[-1:], 0.1, 2.0)


def bce(suite: Suite) -> None:
    def make(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.uniform(shape, 0.02, 0.98), draw.uniform(shape)]

    def saturated(draw: Draw, shape: Shape, _: dict) -> list:
        """Probabilities of exactly 0 and 1, where the logarithm is clamped at -100."""
        return [draw.choose(shape, (0.0, 1.0, 0.5)), draw.choose(shape, (0.0, 1.0))]

    def tiny(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.choose(shape, (1e-7, 1e-5, 0.999)), draw.choose(shape, (0.0, 1.0))]

    def with_values(left: float, right: float):
        return lambda draw: [
            torch.tensor([0.5, left], dtype=draw.dtype),
            torch.tensor([0.5, right], dtype=draw.dtype),
        ]

    rejects = [
        (mismatched, {}),
        (with_values(1.5, 0.5), {}),
        (with_values(-0.5, 0.5), {}),
        (with_values(0.5, 1.5), {}),
        (with_values(0.5, -0.5), {}),
        (lambda draw: [draw.uniform((3, 1)), draw.uniform((3, 4))], {}),
        (lambda draw: [draw.uniform((3, 4)), draw.integers((3, 4), 2)], {}),
        (lambda draw: [draw.uniform((3, 4)), draw.uniform((3, 4))], {"weight": wrong_class_weight}),
    ]
    sweep(
        suite,
        Loss(
            "BCELoss",
            "binary_cross_entropy",
            make,
            SHAPES,
            grad=(0, 1),
            empty=EMPTY,
            rejects=rejects,
            legacy=True,
            options=[{}, {"weight": positive}, {"weight": last_dimension}],
            values={"saturated": saturated, "extreme": tiny},
        ),
    )


def bce_with_logits(suite: Suite) -> None:
    def make(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 2.0), draw.uniform(shape)]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 1e4), draw.choose(shape, (0.0, 1.0, 0.5))]

    def ties(draw: Draw, shape: Shape, _: dict) -> list:
        return [torch.zeros(shape, dtype=draw.dtype), draw.choose(shape, (0.0, 1.0))]

    def valid(draw: Draw) -> list:
        return make(draw, (3, 4), {})

    rejects = [
        (mismatched, {}),
        (lambda draw: [draw.normal((3, 1)), draw.uniform((3, 4))], {}),
        (lambda draw: [draw.normal((3, 4)), draw.integers((3, 4), 2)], {}),
        (valid, {"weight": wrong_class_weight}),
        (valid, {"pos_weight": wrong_class_weight}),
    ]
    sweep(
        suite,
        Loss(
            "BCEWithLogitsLoss",
            "binary_cross_entropy_with_logits",
            make,
            SHAPES,
            grad=(0, 1),
            empty=EMPTY,
            options=[
                {},
                {"weight": positive},
                {"weight": last_dimension},
                {"pos_weight": positive},
                {"pos_weight": last_dimension},
                {"weight": positive, "pos_weight": last_dimension},
            ],
            values={"extreme": extreme, "ties": ties},
            rejects=rejects,
            legacy=True,
        ),
    )


def soft_margin(suite: Suite) -> None:
    def make(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 2.0), draw.signs(shape)]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        """Far from zero, yet below the exponential's overflow in the dtype."""
        limit = {torch.float64: 600.0, torch.float16: 9.0}.get(draw.dtype, 70.0)
        return [draw.uniform(shape, -limit, limit), draw.signs(shape)]

    def overflow(draw: Draw, shape: Shape, _: dict) -> list:
        """Beyond it: PyTorch answers inf, and NaN in the gradient."""
        signs = draw.signs(shape)
        return [draw.uniform(shape, 100.0, 200.0) * -signs, signs]

    sweep(
        suite,
        Loss(
            "SoftMarginLoss",
            "soft_margin_loss",
            make,
            SHAPES,
            grad=(0,),
            empty=EMPTY,
            rejects=[(mismatched, {})],
            values={"extreme": extreme, "overflow": overflow},
            legacy=True,
        ),
    )


MARGIN_SHAPES: tuple[Shape, ...] = ((6, 5), (5,), (1, 7), (3, 1), (33, 7), (4, 33), (5, 6))
MARGIN_LAYOUTS = ("transposed", "expanded", "offset", "stepped")


def multi_margin(suite: Suite) -> None:
    def make(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.spaced(shape), indices(draw, shape, {})]

    def ties(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.choose(shape, (0.0, 1.0, 2.0)), indices(draw, shape, {})]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 1e3), indices(draw, shape, {})]

    def valid(draw: Draw) -> list:
        return [draw.normal((2, 3)), draw.integers((2,), 3)]

    rejects = [
        (valid, {"p": 3}),
        (valid, {"p": 0}),
        (valid, {"weight": wrong_class_weight}),
        (valid, {"weight": lambda draw, shape: draw.uniform((1, 3))}),
        (lambda draw: [draw.normal((2, 3)), torch.tensor([0, 3])], {}),
        (lambda draw: [draw.normal((2, 3)), torch.tensor([0, -1])], {}),
        (lambda draw: [draw.normal((2, 3)), draw.integers((3,), 3)], {}),
        (lambda draw: [draw.normal((2, 3, 4)), draw.integers((2,), 3)], {}),
        (lambda draw: [draw.normal((2, 3)), draw.normal((2,))], {}),
    ]
    sweep(
        suite,
        Loss(
            "MultiMarginLoss",
            "multi_margin_loss",
            make,
            MARGIN_SHAPES,
            grad=(0,),
            large=(70, 71),
            rejects=rejects,
            options=[
                {},
                {"p": 2},
                {"margin": 0.5},
                {"weight": class_weight},
                {"p": 2, "margin": 2.0, "weight": class_weight},
            ],
            # On an empty batch the mean and the sum of PyTorch are memory that was never written.
            empty_reductions=("none",),
            layouts=MARGIN_LAYOUTS,
            values={"extreme": extreme, "ties": ties},
            legacy=True,
        ),
    )


def label_lists(draw: Draw, shape: Shape) -> torch.Tensor:
    """Rows of distinct classes in any order, ended by -1; what follows the end counts for nothing."""
    order = draw.uniform(shape).argsort(-1)
    length = draw.integers((*shape[:-1], 1), shape[-1] + 1)
    position = torch.arange(shape[-1]).expand(shape)
    return order.masked_fill(position == length, -1)


def multi_label_margin(suite: Suite) -> None:
    def make(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.spaced(shape), label_lists(draw, shape)]

    def no_labels(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape), torch.full(shape, -1)]

    def all_labels(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape), draw.uniform(shape).argsort(-1)]

    def repeated(draw: Draw, shape: Shape, _: dict) -> list:
        target = draw.integers(shape, shape[-1])
        target[..., -1] = -1
        return [draw.spaced(shape), target]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 1e3), label_lists(draw, shape)]

    rejects = [
        (lambda draw: [draw.normal((2, 3)), torch.tensor([[0, 3, -1], [1, -1, -1]])], {}),
        (lambda draw: [draw.normal((2, 3)), torch.tensor([[0, -2, -1], [1, -1, -1]])], {}),
        (lambda draw: [draw.normal((2, 3)), draw.integers((2, 4), 3)], {}),
        (lambda draw: [draw.normal((2, 3)), draw.integers((2,), 3)], {}),
        (lambda draw: [draw.normal((2, 3, 4)), draw.integers((2, 3, 4), 3)], {}),
        (lambda draw: [draw.normal((2, 3)), draw.normal((2, 3))], {}),
    ]
    sweep(
        suite,
        Loss(
            "MultiLabelMarginLoss",
            "multilabel_margin_loss",
            make,
            MARGIN_SHAPES,
            grad=(0,),
            large=(70, 71),
            rejects=rejects,
            empty_reductions=("none",),
            layouts=MARGIN_LAYOUTS,
            values={
                "extreme": extreme,
                "no_labels": no_labels,
                "all_labels": all_labels,
                "repeated": repeated,
            },
        ),
    )


def multi_label_soft_margin(suite: Suite) -> None:
    def make(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 2.0), draw.uniform(shape)]

    def hard(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 2.0), draw.choose(shape, (0.0, 1.0))]

    def extreme(draw: Draw, shape: Shape, _: dict) -> list:
        return [draw.normal(shape, 1e3), draw.choose(shape, (0.0, 1.0))]

    rejects = [
        (mismatched, {}),
        (lambda draw: [draw.normal(()), draw.normal(())], {}),
        (lambda draw: [draw.normal((2, 3)), draw.uniform((2, 3))], {"weight": wrong_class_weight}),
    ]
    sweep(
        suite,
        Loss(
            "MultiLabelSoftMarginLoss",
            "multilabel_soft_margin_loss",
            make,
            (*MARGIN_SHAPES, (2, 3, 4)),
            grad=(0, 1),
            options=[{}, {"weight": last_dimension}],
            grad_kwargs=["weight"],
            rejects=rejects,
            legacy=True,
            values={"extreme": extreme, "hard": hard},
        ),
    )


def add_all(suite: Suite) -> None:
    for add in (
        cross_entropy,
        nll,
        bce,
        bce_with_logits,
        soft_margin,
        multi_margin,
        multi_label_margin,
        multi_label_soft_margin,
    ):
        add(suite)
