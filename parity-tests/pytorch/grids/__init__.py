"""The grid: which options, shapes, layouts and values every loss of torch.nn is checked on.

A family file describes a loss as a row of a table (`Loss`) and `sweep` crosses what is worth crossing:
options, reductions and dtypes in full on one base shape; shapes, layouts and values with a few settings.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from cases import DTYPES, LAYOUTS, Call, Draw, Shape, Suite, lay_out

REDUCTIONS = ("mean", "sum", "none")
LEGACY = [
    {"size_average": True},
    {"size_average": False},
    {"reduce": False},
    {"reduce": True},
    {"size_average": True, "reduce": False},
    {"size_average": False, "reduce": True},
]

Make = Callable[[Draw, Shape, dict], list]
"""The arguments of a call on a shape (and under options, where these limit the arguments)."""


@dataclass
class Loss:
    """One loss: how to draw its arguments and what to vary.

    An option value may be a function of (draw, shape), for tensors. The first shape is the base; layouts are
    tried on `laid_out`, or on the last shape.
    """

    cls: str
    function: str
    make: Make
    shapes: Sequence[Shape]
    grad: Sequence[int]
    large: Shape = (71, 73)
    laid_out: Sequence[Shape] = ()
    empty: Sequence[Shape] = ((0, 5),)
    empty_reductions: Sequence[str] = REDUCTIONS
    options: Sequence[dict] = ({},)
    function_options: Sequence[dict] = ()
    grad_kwargs: Sequence[str] = ()
    reductions: Sequence[str] = REDUCTIONS
    values: dict[str, Make] = field(default_factory=dict)
    rejects: Sequence[tuple[Callable[[Draw], list], dict]] = ()
    layouts: Sequence[str] = tuple(LAYOUTS)
    legacy: bool = False
    kind: str = ""

    def tag(self, what: str) -> str:
        return f"{self.kind}_{what}" if self.kind else what

    def references(self) -> Iterator[tuple[str, Sequence[dict], bool]]:
        """Both spellings, the options of each, and whether it is the function."""
        yield f"torch.nn.{self.cls}", self.options, False
        yield f"torch.nn.functional.{self.function}", [*self.options, *self.function_options], True

    def call(
        self, draw: Draw, shape: Shape, options: dict, make: Make, function: bool, layout: tuple
    ) -> Call:
        """The call with its tensors drawn; `layout` is a layout's name and how many arguments have it."""
        args = make(draw, shape, options)
        name, count = layout
        args = [lay_out(name, value) if i < count else value for i, value in enumerate(args)]
        options = {key: value(draw, shape) if callable(value) else value for key, value in options.items()}
        differentiable = [key for key in self.grad_kwargs if function and key in options]
        kwargs = {key: options.pop(key) for key in differentiable}
        return Call(args, options, kwargs, [*self.grad, *differentiable])


def sweep(suite: Suite, loss: Loss) -> None:
    for reference, settings, function in loss.references():
        base, *others = loss.shapes
        few = [{"reduction": "mean"}, {"reduction": "none"}, {**settings[-1], "reduction": "sum"}]
        few += [{"reduction": mode} for mode in loss.reductions if mode not in REDUCTIONS]
        main, side = (("f32",), ()) if function else (tuple(DTYPES), ("f64", "f32"))

        def add(
            tag: str,
            dtype: str,
            shape: Shape,
            options: dict,
            make: Make = loss.make,
            layout: tuple = (None, 0),
            **more: Any,
        ) -> None:
            def draw_call(draw: Draw) -> Call:
                return loss.call(draw, shape, options, make, function, layout)

            suite.add(reference, loss.tag(tag), dtype, draw_call, layout=layout[0], **more)

        for dtype, reduction, options in product(DTYPES, loss.reductions, settings):
            chosen = {**options, "reduction": reduction}
            key = (reduction, options == settings[-1]) if dtype == "f32" else dtype
            add("options", dtype, base, chosen, key=(loss.tag("options"), key))
        for dtype, shape, options in product(tuple(DTYPES) if not function else ("f64", "f32"), others, few):
            add("shape", dtype, shape, options)
        for dtype, reduction in [*product(main, ("mean",)), ("f32", "none")]:
            add("large", dtype, loss.large, {"reduction": reduction}, second_order=False)
        layouts = product(loss.laid_out or loss.shapes[-1:], loss.layouts, (1, 9), side or main, few)
        for shape, layout, count, dtype, options in layouts:
            add("layout", dtype, shape, options, layout=(layout, count))
        for (tag, make), dtype, options in product(loss.values.items(), main, few):
            add(tag, dtype, base, options, make=make, second_order=tag == "extreme")
        for shape, reduction, dtype in product(loss.empty, loss.empty_reductions, side or main):
            add("empty", dtype, shape, {"reduction": reduction})
        for reduction, dtype in product(loss.reductions, side or main):
            add("ones", dtype, base, {"reduction": reduction}, ones=True)
        for reduction, dtype in product(loss.reductions, ("bf16", "f32")):
            add("autocast", dtype, base, {"reduction": reduction}, autocast=True)
        for options, dtype in product(LEGACY if loss.legacy else (), side or main):
            add("legacy", dtype, base, options, second_order=False)

        rejects = [*loss.rejects, (lambda draw: loss.make(draw, base, {}), {"reduction": "average"})]
        for (arguments, options), dtype in product(rejects, side or main):
            if function or not unknown_to_class(loss, options):
                add("reject", dtype, base, options, make=without_shape(arguments), expect="error")


def without_shape(arguments: Callable[[Draw], list]) -> Make:
    return lambda draw, *_: arguments(draw)


def unknown_to_class(loss: Loss, options: dict) -> bool:
    """Whether an option exists for the function alone (the weight of MSE, L1 and Huber)."""
    function_only = {key for setting in loss.function_options for key in setting}
    return bool(options.keys() & function_only - {key for setting in loss.options for key in setting})


def classes(shape: Shape) -> int:
    """The size of the class dimension: the first of one, else the second."""
    return shape[0] if len(shape) == 1 else shape[1]


def without_classes(shape: Shape) -> Shape:
    """The shape of class indices."""
    return () if len(shape) == 1 else (shape[0], *shape[2:])


FAMILIES = (
    "regression",
    "classification",
    "divergence",
    "metric",
    "sequence",
    "differences",
    "focal",
    "overlap",
    "boundary",
    "detection",
    "multilabel",
    "embeddings",
    "preference",
    "class_vectors",
    "self_supervised",
    "robust",
    "images",
)


def add_all(suite: Suite) -> None:
    for family in FAMILIES:
        importlib.import_module(f"grids.{family}").add_all(suite)
