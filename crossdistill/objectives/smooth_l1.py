"""Smooth-L1 distance between the student's embedding and the teacher's, in the teacher's own units.

Girshick: Fast R-CNN, ICCV 2015, arXiv 1504.08083, equation 3; a feature loss of UNIC (arXiv 2408.05088) beside cosine.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def smooth_l1_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_be d² / 2`` where the difference ``|d| < 1``, else ``|d| - 1/2``.

    Args:
        student: [B, E]; gradients flow into it alone.
        teacher: [B, E], not normalised: its length is part of what is matched.
    """
    return F.smooth_l1_loss(student, teacher.detach())
