"""lightly's DINO loss with what it takes and changes made visible: views as one tensor, the centre as argument and result."""

from __future__ import annotations

import torch
from lightly.loss import DINOLoss


def loss_and_center(
    teacher_out: torch.Tensor,
    student_out: torch.Tensor,
    center: torch.Tensor,
    call_temp: float | None = None,
    epoch: int | None = None,
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of views `[views, batch, features]`, and the centre after the call."""
    criterion = DINOLoss(center.shape[-1], **options)
    criterion.center = center.clone()
    loss = criterion(list(teacher_out), list(student_out), teacher_temp=call_temp, epoch=epoch)
    return loss, criterion.center
