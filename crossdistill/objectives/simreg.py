"""SimReg: the student, through an MLP that is dropped later, gives the teacher's embedding.

Navaneet, Koohpayegani, Tejankar, Pirsiavash: SimReg: Regression as a Simple Yet Effective Tool for Self-supervised
Knowledge Distillation, BMVC 2021, arXiv 2201.05131, equation 1.

ImageNet, MoCo-v2 ResNet-50 to ResNet-18, linear / 1-NN (paper): 65.1 / 54.8.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.directions import hold_short
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput


def simreg_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_b ‖ŝ_b - t̂_b‖²`` of L2-normalised embeddings, which is ``2 - 2 cos``.

    Args:
        student: [B, E], any length; gradients flow into it alone.
        teacher: [B, E], any length.
    """
    difference = F.normalize(hold_short(student), dim=1) - F.normalize(teacher.detach(), dim=1)
    return difference.square().sum(dim=1).mean()


class SimReg(nn.Module):
    """SimReg as an objective, by default through an MLP of 4 layers."""

    adapter = "mlp4"
    compares: Compares = "features"
    needs_teacher_dim = True
    student_anchors: AnchorSource | None = None

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare embeddings [B, E]."""
        with torch.autocast(student.device.type, enabled=False):
            loss = simreg_loss(student=student.float(), teacher=teacher.float())
        return StepOutput(loss=loss, terms={"simreg": loss.detach()})
