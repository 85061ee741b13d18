"""Attention transfer: the student is excited at the places and times where the teacher is.

Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928, equations 1 and 2, with p = 2 and
on the space-time grid of the last features.

Shapes: B batch, S student channels, E teacher channels, T H W the teacher's grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput


def attention_map(tokens: Tensor) -> Tensor:
    """Sum of squares over channels, as a unit vector over the grid: [B, S, T, H, W] to [B, T * H * W]."""
    return F.normalize(tokens.square().sum(dim=1).flatten(1), dim=1)


def attention_transfer_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_b ‖ Q_s - Q_t ‖₂`` of both sides' attention maps.

    Args:
        student: [B, S, T, H, W]; gradients flow into it alone.
        teacher: [B, E, T, H, W].
    """
    difference = attention_map(student) - attention_map(teacher.detach())
    # The root of zero has no gradient; a map that is equal already needs none.
    return difference.square().sum(dim=1).clamp(min=torch.finfo(difference.dtype).tiny).sqrt().mean()


class AttentionTransfer(nn.Module):
    """Attention transfer as an objective; nothing is trained between both sides."""

    adapter = "grid"
    compares: Compares = "tokens"
    needs_teacher_dim = False
    student_anchors: AnchorSource | None = None

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare tokens [B, S, T, H, W] and [B, E, T, H, W]."""
        with torch.autocast(student.device.type, enabled=False):
            loss = attention_transfer_loss(student=student.float(), teacher=teacher.float())
        return StepOutput(loss=loss, terms={"attention": loss.detach()})
