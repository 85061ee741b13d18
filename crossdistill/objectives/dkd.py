"""Decoupled knowledge distillation: weigh the target class and the distribution over the other classes separately.

Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679, equation 7. The paper uses
weights 1 and 8 and temperature 4. Deviation: the target is the teacher's most probable class, because there are no
labels.

Shapes: B batch, N classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, reduce_samples


def dkd_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    target_weight: float,
    rest_weight: float,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute ``τ² mean_b ( α KL(target or not) + β KL(among the other classes) )``.

    Args:
        student: [B, N] logits.
        teacher: [B, N] logits, the largest is the target; gets no gradient.
        temperature: τ.
        target_weight: α.
        rest_weight: β.
        reduction: See ``Reduction``.

    Example:
        >>> student, teacher = torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[2.0, 0.0, 1.0]])
        >>> dkd_loss(student=student, teacher=teacher, temperature=4.0, target_weight=1.0, rest_weight=8.0)
        tensor(4.4488)
    """
    target = teacher.argmax(dim=1, keepdim=True)
    target_s, rest_s = _split(student / temperature, target)
    target_t, rest_t = _split(teacher.detach() / temperature, target)
    target_kl = F.kl_div(target_s, target_t, log_target=True, reduction="none").sum(dim=1)
    rest_kl = F.kl_div(rest_s, rest_t, log_target=True, reduction="none").sum(dim=1)
    return temperature**2 * reduce_samples(target_weight * target_kl + rest_weight * rest_kl, reduction)


def _split(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of "target" and "not target" [B, 2], and of the classes among the others [B, N - 1]."""
    is_other = torch.ones_like(logits, dtype=torch.bool).scatter_(1, target, value=False)
    others = logits[is_other].view(len(logits), -1)
    pair = torch.cat([logits.gather(1, target), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(pair, dim=1), F.log_softmax(others, dim=1)
