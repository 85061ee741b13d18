"""Decoupled knowledge distillation: how sure the teacher is, and how it divides the rest, weighed apart.

Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679, equation 7, with the paper's
weights 1 and 8 and temperature 4. The target is the teacher's own first choice, since no labels are given here.

Shapes: B batch, N classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput

TARGET_WEIGHT, REST_WEIGHT, TEMPERATURE = 1.0, 8.0, 4.0


def dkd_loss(
    *, student: Tensor, teacher: Tensor, temperature: float, target_weight: float, rest_weight: float
) -> Tensor:
    """``τ² mean_b ( α KL(target or not) + β KL(among the others) )``.

    Args:
        student: [B, N] logits; gradients flow into it alone.
        teacher: [B, N] logits; its largest is the target.
        temperature: τ.
        target_weight: α.
        rest_weight: β.
    """
    target = teacher.argmax(dim=1, keepdim=True)
    (target_s, rest_s), (target_t, rest_t) = (
        _split(logits / temperature, target) for logits in (student, teacher.detach())
    )
    target_kl = F.kl_div(target_s, target_t, log_target=True, reduction="batchmean")
    rest_kl = F.kl_div(rest_s, rest_t, log_target=True, reduction="batchmean")
    return temperature**2 * (target_weight * target_kl + rest_weight * rest_kl)


def _split(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of target and not [B, 2], and among the others [B, N - 1]."""
    is_other = torch.ones_like(logits, dtype=torch.bool).scatter_(1, target, value=False)
    others = logits[is_other].view(len(logits), -1)
    pair = torch.cat([logits.gather(1, target), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(pair, dim=1), F.log_softmax(others, dim=1)


class DKD(nn.Module):
    """Decoupled distillation as an objective.

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
            loss = dkd_loss(
                student=student.float(),
                teacher=teacher.float(),
                temperature=self.temperature,
                target_weight=TARGET_WEIGHT,
                rest_weight=REST_WEIGHT,
            )
        return StepOutput(loss=loss, terms={"dkd": loss.detach()})
