"""Cross-entropy with labels, for sums in which a teacher helps a supervised student (MARS).

Crasto, Weinzaepfel, Alahari, Schmid: MARS: Motion-Augmented RGB Stream for Action Recognition, CVPR 2019
(with ``mse:50`` beside it).

Shapes: B batch, N classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput


class CrossEntropy(nn.Module):
    """Cross-entropy of a linear classifier on the student; the only objective that needs labels."""

    adapter = "labels"
    compares: Compares = "labels"
    needs_teacher_dim = False
    student_anchors: AnchorSource | None = None

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare logits [B, N] with labels [B] int64, which stand in the teacher's place."""
        with torch.autocast(student.device.type, enabled=False):
            loss = F.cross_entropy(student.float(), teacher)
        return StepOutput(loss=loss, terms={"cross-entropy": loss.detach()})
