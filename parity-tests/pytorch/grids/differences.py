"""Calls on which the crate differs from PyTorch on purpose; `src/differences.rs` says how and why."""

from __future__ import annotations

import torch

from cases import Call, Draw, Suite
from grids import REDUCTIONS

FULL = ("f64", "f32")
EVERY = ("f64", "f32", "bf16", "f16")
SHORT_INTEGERS = (torch.int8, torch.int16, torch.int32)


def masked_and_ignored(draw: Draw) -> list:
    """Rows of nothing but -inf, as attention masks leave them, whose targets are ignored."""
    scores, target = draw.normal((6, 5)), draw.integers((6,), 5)
    scores[1::3], target[1::3] = -float("inf"), -100
    return [scores, target]


def add_all(suite: Suite) -> None:
    for dtype in EVERY:
        for reduction in REDUCTIONS:
            options = {"reduction": reduction}
            suite.add(
                "torch.nn.CrossEntropyLoss",
                "better_ignored",
                dtype,
                lambda draw, options=options: Call(masked_and_ignored(draw), options, grad=(0,)),
                second_order=False,
            )
        suite.add(
            "torch.nn.CrossEntropyLoss",
            "better_smoothing",
            dtype,
            lambda draw: Call([draw.normal((6, 5)), draw.integers((6,), 5)], {"label_smoothing": -0.1}),
        )
    for dtype in FULL:
        integer_targets(suite, dtype)
        class_weights(suite, dtype)
        suite.add("torch.nn.MultiMarginLoss", "better_nan", dtype, lambda draw: Call(nan_scores(draw)))
        suite.add("torch.nn.CTCLoss", "better_labels", dtype, lambda draw: Call(float_labels(draw)))


def integer_targets(suite: Suite, dtype: str) -> None:
    """Class indices of the integer kinds that PyTorch does not take."""
    for reference in ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss", "MultiLabelMarginLoss"):
        for kind in SHORT_INTEGERS:
            shape = (6, 5) if reference == "MultiLabelMarginLoss" else (6,)
            suite.add(
                f"torch.nn.{reference}",
                "better_integers",
                dtype,
                lambda draw, shape=shape, kind=kind: Call(
                    [draw.normal((6, 5)).log_softmax(1), draw.integers(shape, 5, dtype=kind)]
                ),
                expect="error",
            )


def class_weights(suite: Suite, dtype: str) -> None:
    """Class weights of a floating kind that is not the input's, and logits that are masked where they have no share."""
    for reference in ("CrossEntropyLoss", "NLLLoss", "MultiMarginLoss"):
        for kind in (torch.float16, torch.bfloat16):
            suite.add(
                f"torch.nn.{reference}",
                "better_weights",
                dtype,
                lambda draw, kind=kind: Call(
                    [draw.normal((6, 5)).log_softmax(1), draw.integers((6,), 5)],
                    {"weight": draw.uniform((5,), 0.1, 2.0).to(kind)},
                ),
                expect="error",
            )
    suite.add("torch.nn.CrossEntropyLoss", "better_masks", dtype, lambda draw: Call(masked_shares(draw), grad=(0,)))
    suite.add("torch.nn.KLDivLoss", "better_masks", dtype, lambda draw: Call(masked_log_probs(draw), grad=(0,)))


def masked_shares(draw: Draw) -> list:
    """Every third class is masked and has no share of the target."""
    scores, shares = draw.normal((6, 5)), draw.uniform((6, 5), 0.1, 1.0)
    scores[:, ::3], shares[:, ::3] = -float("inf"), 0.0
    return [scores, shares / shares.sum(1, keepdim=True)]


def masked_log_probs(draw: Draw) -> list:
    scores, shares = masked_shares(draw)
    return [scores.log_softmax(1), shares]


def nan_scores(draw: Draw) -> list:
    scores = draw.normal((6, 5))
    scores[2, 3] = float("nan")
    return [scores, draw.integers((6,), 3)]


def float_labels(draw: Draw) -> list:
    """PyTorch takes labels of a floating kind and cuts off their fractions."""
    log_probs = draw.normal((9, 2, 6)).log_softmax(2)
    lengths = [torch.full((2,), 9), torch.full((2,), 3)]
    return [log_probs, draw.integers((2, 3), 6, 1).to(draw.dtype), *lengths]
