"""Lovász, MCC, clDice, Hausdorff, and the sums of Dice with another loss."""

from __future__ import annotations

from cases import Suite


def add_all(suite: Suite) -> None:
    pass
