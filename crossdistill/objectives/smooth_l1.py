"""Smooth-L1 distance between the embeddings of student and teacher.

Girshick: Fast R-CNN, ICCV 2015, arXiv 1504.08083, equation 3. UNIC (arXiv 2408.05088) adds it to the cosine distance.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, reduce_samples


def smooth_l1_loss(*, student: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute the mean of ``d² / 2`` where ``|d| < 1`` and ``|d| - 1/2`` elsewhere, with ``d = s - t``.

    Args:
        student: [B, E], not normalised: the loss also matches the length of the embedding.
        teacher: [B, E]; gets no gradient.
        reduction: See ``Reduction``.
    """
    return reduce_samples(F.smooth_l1_loss(student, teacher.detach(), reduction="none").mean(dim=1), reduction)
