"""Mean squared error of embeddings as they are, their length included.

Crasto, Weinzaepfel, Alahari, Schmid: MARS: Motion-Augmented RGB Stream for Action Recognition, CVPR 2019:
an RGB student gives the features of a flow teacher; there 50 times, beside cross-entropy, between features before the
last layer.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.adapters import Compares
from crossdistill.memory_bank import MemoryBank
from crossdistill.objectives.base import AnchorSource
from crossdistill.types import StepOutput


def mse_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_be (s_be - t_be)²``.

    Args:
        student: [B, E]; gradients flow into it alone.
        teacher: [B, E].
    """
    return F.mse_loss(student, teacher.detach())


class MSE(nn.Module):
    """Mean squared error as an objective, through a linear head because sizes may differ."""

    adapter = "linear"
    compares: Compares = "features"
    needs_teacher_dim = True
    student_anchors: AnchorSource | None = None

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare embeddings [B, E]."""
        with torch.autocast(student.device.type, enabled=False):
            loss = mse_loss(student=student.float(), teacher=teacher.float())
        return StepOutput(loss=loss, terms={"mse": loss.detach()})
