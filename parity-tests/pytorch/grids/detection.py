"""Losses of boxes and of their scores."""

from __future__ import annotations

from cases import Suite


def add_all(suite: Suite) -> None:
    pass
