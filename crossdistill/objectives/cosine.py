"""Cosine distance between the student's embedding and the teacher's.

The feature loss of UNIC (Sariyildiz et al., ECCV 2024, arXiv 2408.05088, sec. 3) and RADIO (Ranzinger et al., CVPR
2024, arXiv 2312.06709, equation 2), which add smooth-L1 to it.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.directions import hold_short


def cosine_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_b 1 - cos(s_b, t_b)``.

    Args:
        student: [B, E], any length; gradients flow into it alone.
        teacher: [B, E], any length.
    """
    return 1 - F.cosine_similarity(hold_short(student), teacher.detach(), dim=1).mean()
