"""CosPress: a head brings the teacher into the student's dimension, and the student follows the head.

Mannix, Hodgkinson, Bondell: CosPress, arXiv 2411.15239. The head ``h(t) = Linear(LayerNorm(t))`` keeps the teacher's
cosine similarities between the samples of a batch; the student itself then has no head that would hide what it did not
learn.

Shapes: B batch, E teacher features, D student features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.cosine import cosine_loss
from crossdistill.objectives.objective import detach_short_rows

TEMPERATURES = tuple(i / 100 for i in range(1, 11))


def cospress_loss(*, student: Tensor, teacher: Tensor, reduced: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss of the head and that of the student.

    The head's is the mean over τ in 0.01, 0.02, ... 0.10 of ``KL(P ‖ Q) / 2 + KL(Q ‖ P) / 2``. P is the softmax over
    all ordered pairs of different samples of the teacher's cosine similarities, divided by τ; Q is that of the head.
    The student's is the mean of ``1 - cos(s, h(t))``.

    Args:
        student: [B, D].
        teacher: [B, E]; gets no gradient.
        reduced: [B, D], the head's output ``h(t)``; gets no gradient from the student's loss.
    """
    return _loss_of_head(teacher.detach(), reduced), cosine_loss(student=student, teacher=reduced)


def _loss_of_head(teacher: Tensor, reduced: Tensor) -> Tensor:
    if len(teacher) < 2:
        return reduced.sum() * 0  # no pairs; the head stays part of the graph
    cosines_of_both = [_cosines_of_pairs(side) for side in (teacher, detach_short_rows(reduced))]
    losses = []
    for temperature in TEMPERATURES:
        log_p, log_q = (F.log_softmax(cosines / temperature, dim=0) for cosines in cosines_of_both)
        losses.append(((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum() / 2)
    return torch.stack(losses).mean()


def _cosines_of_pairs(rows_bd: Tensor) -> Tensor:
    """[B, D] to [B * (B - 1)], the cosines of all ordered pairs of different rows."""
    unit_bd = F.normalize(rows_bd, dim=1)
    is_pair_bb = ~torch.eye(len(rows_bd), dtype=torch.bool, device=rows_bd.device)
    return (unit_bd @ unit_bd.T)[is_pair_bb]
