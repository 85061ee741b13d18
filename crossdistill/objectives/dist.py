"""DIST: the student ranks classes within a sample, and samples within a class, as the teacher does.

Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv 2205.10536, equations 7
to 10, with the paper's weights 2 and 2 and temperature 1 on ImageNet.

Shapes: B batch, N classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.directions import hold_short
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput

BETWEEN_CLASSES_WEIGHT, WITHIN_CLASS_WEIGHT, TEMPERATURE = 2.0, 2.0, 1.0


def dist_loss(*, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One minus Pearson's correlation of probabilities: mean over samples, and (times τ²) mean over classes.

    Args:
        student: [B, N] logits; gradients flow into it alone.
        teacher: [B, N] logits.
        temperature: τ.

    Returns:
        The relation between the classes of a sample, and that between the samples of a class; both unweighted.
    """
    p_s, p_t = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher.detach()))
    between = 1 - _correlation(p_s, p_t).mean()
    within = 1 - _correlation(p_s.T, p_t.T).mean()
    return temperature**2 * between, temperature**2 * within


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row; 0 where one side does not vary."""
    return F.cosine_similarity(hold_short(a - a.mean(dim=1, keepdim=True)), b - b.mean(dim=1, keepdim=True), dim=1)


class DIST(nn.Module):
    """DIST as an objective.

    Args:
        temperature: τ.
    """

    adapter = "classifier"
    compares: Compares = "logits"
    needs_teacher_dim = True
    student_anchors: AnchorSource | None = None

    def __init__(self, *, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare logits [B, N]."""
        with torch.autocast(student.device.type, enabled=False):
            between, within = dist_loss(student=student.float(), teacher=teacher.float(), temperature=self.temperature)
        terms = {"dist_between_classes": between.detach(), "dist_within_class": within.detach()}
        return StepOutput(loss=BETWEEN_CLASSES_WEIGHT * between + WITHIN_CLASS_WEIGHT * within, terms=terms)
