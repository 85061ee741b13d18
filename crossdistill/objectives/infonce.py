"""Contrast against the bank: the student's embedding must find its own teacher's among those of other samples.

van den Oord, Li, Vinyals: CPC, arXiv 1807.03748, equation 4, with the teacher's embedding for the positive and the
bank for the negatives, as Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699
contrast student with teacher (their critic is NCE; this is InfoNCE).

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

TEMPERATURE = 0.07


def infonce_loss(
    *, student: Tensor, teacher: Tensor, anchors: Tensor, temperature: float, is_own: Tensor | None = None
) -> Tensor:
    """``mean_b -log( e^{s·t_b/τ} / (e^{s·t_b/τ} + Σ_k e^{s·a_k/τ}) )`` of unit vectors.

    Args:
        student: [B, E], any length; gradients flow into it alone.
        teacher: [B, E], any length.
        anchors: [K, E], L2-normalised.
        temperature: τ.
        is_own: [B, K] bool, which anchors are of the sample itself in an earlier epoch: they are no negatives.
    """
    query = F.normalize(hold_short(student), dim=1)
    positive = (query * F.normalize(teacher.detach(), dim=1)).sum(dim=1, keepdim=True)
    negatives = query @ anchors.to(query.dtype).T
    if is_own is not None:
        negatives = negatives.masked_fill(is_own, -torch.inf)
    logits = torch.cat([positive, negatives], dim=1) / temperature
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


class InfoNCE(nn.Module):
    """Contrast against the bank as an objective.

    Args:
        temperature: τ.
    """

    adapter = "linear"
    compares: Compares = "features"
    needs_teacher_dim = True
    student_anchors: AnchorSource | None = "teacher"
    needs_own_anchors = True

    def __init__(self, *, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(
        self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None, is_own: Tensor | None = None
    ) -> StepOutput:
        """Compare embeddings [B, E] with each other and with the bank's valid anchors of other samples."""
        assert bank is not None
        with torch.autocast(student.device.type, enabled=False):
            loss = infonce_loss(
                student=student.float(),
                teacher=teacher.float(),
                anchors=bank.teacher_anchors,
                temperature=self.temperature,
                is_own=is_own,
            )
        return StepOutput(loss=loss, terms={"infonce": loss.detach()})
