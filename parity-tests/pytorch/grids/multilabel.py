"""Asymmetric, soft-target, JSD, poly and hinge losses of classification."""

from __future__ import annotations

from cases import Suite


def add_all(suite: Suite) -> None:
    pass
