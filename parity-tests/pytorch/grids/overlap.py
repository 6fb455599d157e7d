"""Dice, Jaccard, Tversky and their kin: MONAI, segmentation-models-pytorch, kornia."""

from __future__ import annotations

from cases import Suite


def add_all(suite: Suite) -> None:
    pass
