"""Attention transfer: match the maps of activation energy of student and teacher.

Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, arXiv 1612.03928, equations 1 and 2 with p = 2.
Deviation: the map covers time as well as space, and only the last features are compared.

Shapes: B batch, S student channels, E teacher channels, T H W the teacher's grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, reduce_samples


def attention_transfer_loss(*, student: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute ``mean_b ‖ Q_s - Q_t ‖₂``. The attention map Q is the sum of squares over channels, as a unit vector.

    Args:
        student: [B, S, T, H, W].
        teacher: [B, E, T, H, W]; gets no gradient.
        reduction: See ``Reduction``.

    Example:
        >>> student, teacher = torch.zeros(1, 2, 1, 1, 2), torch.zeros(1, 3, 1, 1, 2)
        >>> student[..., 0], teacher[..., 1] = 1.0, 5.0  # at different places
        >>> attention_transfer_loss(student=student, teacher=teacher)
        tensor(1.4142)
    """
    difference = _attention_map(student) - _attention_map(teacher.detach())
    # The square root has no gradient at zero. The clamp stops the gradient of maps that are equal.
    length_b = difference.square().sum(dim=1).clamp(min=torch.finfo(difference.dtype).tiny).sqrt()
    return reduce_samples(length_b, reduction)


def _attention_map(tokens: Tensor) -> Tensor:
    """[B, C, T, H, W] to [B, T * H * W]."""
    return F.normalize(tokens.square().sum(dim=1).flatten(1), dim=1)
