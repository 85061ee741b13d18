"""Cosine distance between the embeddings of student and teacher.

Feature loss of UNIC (Sariyildiz et al., ECCV 2024, arXiv 2408.05088, sec. 3) and RADIO (Ranzinger et al., CVPR 2024,
arXiv 2312.06709, equation 2). Both papers add smooth-L1 to it, which is an objective of its own here.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, detach_short_rows, reduce_samples


def cosine_loss(*, student: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute ``mean_b 1 - cos(s_b, t_b)``.

    Args:
        student: [B, E], any length.
        teacher: [B, E], any length; gets no gradient.
        reduction: See ``Reduction``.

    Example:
        >>> import torch
        >>> cosine_loss(student=torch.tensor([[1.0, 0.0]]), teacher=torch.tensor([[0.0, 2.0]]))
        tensor(1.)
    """
    return reduce_samples(1 - F.cosine_similarity(detach_short_rows(student), teacher.detach(), dim=1), reduction)
