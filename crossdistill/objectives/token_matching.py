"""Token matching: at every place and time the student's token points where the teacher's does.

Zhang et al.: Accessing Vision Foundation Models via ImageNet-1K (Proteus), ICLR 2025, arXiv 2407.10366, match
patch tokens beside the pooled embedding; here on the teacher's space-time grid.

Shapes: B batch, E channels, T H W the teacher's grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.directions import hold_short
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput


def token_matching_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over batch and grid of ``1 - cos`` between both sides' tokens.

    Args:
        student: [B, E, T, H, W], any length; gradients flow into it alone.
        teacher: [B, E, T, H, W], any length.
    """
    return 1 - F.cosine_similarity(hold_short(student), teacher.detach(), dim=1).mean()


class TokenMatching(nn.Module):
    """Token matching as an objective; the head resamples the student's grid to the teacher's."""

    adapter = "tokens"
    compares: Compares = "tokens"
    needs_teacher_dim = True
    student_anchors: AnchorSource | None = None

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare tokens [B, E, T, H, W]."""
        with torch.autocast(student.device.type, enabled=False):
            loss = token_matching_loss(student=student.float(), teacher=teacher.float())
        return StepOutput(loss=loss, terms={"tokens": loss.detach()})
