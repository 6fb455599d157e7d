"""Focal losses: torchvision, kornia, MONAI, segmentation-models-pytorch."""

from __future__ import annotations

from cases import Suite


def add_all(suite: Suite) -> None:
    pass
