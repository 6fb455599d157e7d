"""The sweep over a loss of an input and a target, class or function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from cases import DTYPES, LAYOUTS, Call, Draw, Shape, Suite, lay_out
from grids import REDUCTIONS

Pair = Callable[[Draw, Shape], list]
"""An input and a target."""


def check(
    suite: Suite,
    reference: str,
    make: Pair,
    shapes: Sequence[Shape],
    options: Sequence[dict],
    values: dict[str, Pair],
    rejects: Sequence[tuple[Pair, dict]],
    *,
    grad: Sequence[int] = (0, 1),
    dtypes: Sequence[str] = tuple(DTYPES),
    reductions: Sequence[str] = REDUCTIONS,
    empty: Sequence[Shape] = (),
    kind: str = "",
    second_order: bool = True,
) -> None:
    """Options, reductions and dtypes in full on the first shape; the rest with a few of them.

    `kind` goes before the tags of the cases.
    """
    base, *others = shapes
    few = [{"reduction": mode} for mode in reductions] if reductions else [{}]
    few = [{**options[0], **setting} for setting in few]
    few[-1] |= options[-1]

    def add(tag: str, dtype: str, shape: Shape, chosen: dict, pair: Pair = make, layout=(None, 0), **more):
        def call(draw: Draw) -> Call:
            args = pair(draw, shape)
            args = [lay_out(layout[0], value) if i < layout[1] else value for i, value in enumerate(args)]
            plain = {key: value(draw, shape) if callable(value) else value for key, value in chosen.items()}
            differentiable = [i for i in grad if args[i].is_floating_point()]
            return Call(args, plain, grad=differentiable)

        suite.add(reference, f"{kind}_{tag}" if kind else tag, dtype, call, layout=layout[0], second_order=second_order, **more)

    for dtype, reduction, chosen in product(dtypes, reductions or (None,), options):
        chosen = chosen if reduction is None else {**chosen, "reduction": reduction}
        add("options", dtype, base, chosen, key=(kind, "options", reduction if dtype == "f32" else dtype))
    fully = [dtype for dtype in dtypes if dtype in ("f64", "f32")]
    settings = [(dtype, chosen) for dtype in dtypes for chosen in (few if dtype in fully else few[:1])]
    for shape, (dtype, chosen) in product(others, settings):
        add("shape", dtype, shape, chosen)
    for (tag, pair), (dtype, chosen) in product(values.items(), settings):
        add(tag, dtype, base, chosen, pair)
    for layout, count, dtype, chosen in product(LAYOUTS, (1, 2), fully, few[-2:]):
        add("layout", dtype, others[-1], chosen, layout=(layout, count))
    for shape, dtype, chosen in product(empty, dtypes, few):
        add("empty", dtype, shape, chosen)
    for dtype in dtypes:
        add("ones", dtype, base, few[0], ones=True)
    for (pair, chosen), dtype in product(rejects, fully):
        add("reject", dtype, base, chosen, pair, expect="error")
