"""Knowledge distillation: the student gives the teacher's softened class probabilities.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv 1503.02531, sec. 2.

Shapes: B batch, N classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput

TEMPERATURE = 4.0


def kd_loss(*, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``τ² mean_b KL(softmax(t_b/τ) ‖ softmax(s_b/τ))``; τ² keeps the gradient's size when τ changes.

    Args:
        student: [B, N] logits; gradients flow into it alone.
        teacher: [B, N] logits.
        temperature: τ.
    """
    log_p_s = F.log_softmax(student / temperature, dim=1)
    log_p_t = F.log_softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p_s, log_p_t, log_target=True, reduction="batchmean")


class KD(nn.Module):
    """Hinton's distillation as an objective; the student's head is a classifier that is dropped like any other.

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
            loss = kd_loss(student=student.float(), teacher=teacher.float(), temperature=self.temperature)
        return StepOutput(loss=loss, terms={"kd": loss.detach()})
