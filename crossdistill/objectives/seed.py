"""SEED: match the teacher's similarity distribution over the memory bank and the sample itself.

Fang, Wang, Wang, Zhang, Yang, Liu: SEED: Self-supervised Distillation for Visual Representation, ICLR 2021,
arXiv 2101.04731, equations 3 to 5. The paper uses temperature 0.2 for the student and 0.01 for the teacher. Deviation:
KL divergence in place of cross-entropy. The gradient is the same, and a perfect student has loss zero.

Shapes: B batch, K anchors, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, detach_short_rows, reduce_samples


def seed_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    temperature: float,
    teacher_temperature: float,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute ``mean_b KL(p_t ‖ p_s)`` over K anchors and the sample's own teacher embedding; zero without anchors.

    Args:
        student: [B, E], any length.
        teacher: [B, E], any length; gets no gradient.
        anchors: [K, E], L2-normalised.
        temperature: τ of the student.
        teacher_temperature: τ of the teacher.
        reduction: See ``Reduction``.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        >>> anchors = torch.tensor([[0.0, 1.0]])
        >>> seed_loss(student=student, teacher=teacher, anchors=anchors, temperature=0.2, teacher_temperature=0.2)
        tensor(0.6530)
    """
    s, t = F.normalize(detach_short_rows(student), dim=1), F.normalize(teacher.detach(), dim=1)
    anchors = anchors.to(s.dtype)
    own_s, own_t = ((side * t).sum(dim=1, keepdim=True) for side in (s, t))
    log_p_s = F.log_softmax(torch.cat([own_s, s @ anchors.T], dim=1) / temperature, dim=1)
    log_p_t = F.log_softmax(torch.cat([own_t, t @ anchors.T], dim=1) / teacher_temperature, dim=1)
    return reduce_samples(F.kl_div(log_p_s, log_p_t, log_target=True, reduction="none").sum(dim=1), reduction)
