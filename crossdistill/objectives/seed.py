"""SEED: the student gives the teacher's soft labels over the bank and the sample itself, each side at a temperature.

Fang, Wang, Wang, Zhang, Yang, Liu: SEED: Self-supervised Distillation for Visual Representation, ICLR 2021,
arXiv 2101.04731, equations 3 to 5; temperatures 0.2 of the student and 0.01 of the teacher as in the paper.

Shapes: B batch, K anchors, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.directions import hold_short
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput

STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.2, 0.01


def seed_loss(
    *, student: Tensor, teacher: Tensor, anchors: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """``mean_b KL(p_t ‖ p_s)`` over K anchors and the sample's own teacher embedding.

    The paper's cross-entropy less the teacher's entropy, which has no gradient: so that zero is perfect.

    Args:
        student: [B, E], any length; gradients flow into it alone.
        teacher: [B, E], any length.
        anchors: [K, E], L2-normalised.
        student_temperature: τ_s.
        teacher_temperature: τ_t.
    """
    s, t = F.normalize(hold_short(student), dim=1), F.normalize(teacher.detach(), dim=1)
    anchors = anchors.to(s.dtype)
    own_s, own_t = ((side * t).sum(dim=1, keepdim=True) for side in (s, t))
    log_p_s = F.log_softmax(torch.cat([own_s, s @ anchors.T], dim=1) / student_temperature, dim=1)
    log_p_t = F.log_softmax(torch.cat([own_t, t @ anchors.T], dim=1) / teacher_temperature, dim=1)
    return F.kl_div(log_p_s, log_p_t, log_target=True, reduction="batchmean")


class SEED(nn.Module):
    """SEED as an objective; the paper's head is an MLP of two layers.

    Args:
        student_temperature: τ_s.
        teacher_temperature: τ_t.
    """

    adapter = "mlp2"
    compares: Compares = "features"
    needs_teacher_dim = True
    student_anchors: AnchorSource | None = "teacher"

    def __init__(
        self,
        *,
        student_temperature: float = STUDENT_TEMPERATURE,
        teacher_temperature: float = TEACHER_TEMPERATURE,
    ) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare embeddings [B, E] through the bank's valid anchors."""
        assert bank is not None
        with torch.autocast(student.device.type, enabled=False):
            loss = seed_loss(
                student=student.float(),
                teacher=teacher.float(),
                anchors=bank.teacher_anchors,
                student_temperature=self.student_temperature,
                teacher_temperature=self.teacher_temperature,
            )
        return StepOutput(loss=loss, terms={"seed": loss.detach()})
