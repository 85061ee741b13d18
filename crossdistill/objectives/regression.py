"""A distance between embeddings, sample by sample, as an objective: the module around cosine, smooth-L1 and MSE.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput


class Regression(nn.Module):
    """Give the teacher's own embedding, through a linear head because sizes may differ; no bank.

    Args:
        name: Of the term in curves.
        distance: Of ``student`` and ``teacher`` [B, E], a mean over the batch that gives the teacher no gradient.
    """

    adapter = "linear"
    compares: Compares = "features"
    needs_teacher_dim = True
    student_anchors: AnchorSource | None = None

    def __init__(self, name: str, distance: Callable[..., Tensor]) -> None:
        super().__init__()
        self.name = name
        self.distance = distance

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare embeddings [B, E]."""
        with torch.autocast(student.device.type, enabled=False):
            loss = self.distance(student=student.float(), teacher=teacher.float())
        return StepOutput(loss=loss, terms={self.name: loss.detach()})
