"""Token matching: cosine distance between tokens at the same place and time.

Zhang et al.: Accessing Vision Foundation Models via ImageNet-1K (Proteus), ICLR 2025, arXiv 2407.10366, match patch
tokens and the pooled embedding. Deviation: the tokens lie on the teacher's space-time grid, to which the head resamples
the student's tokens.

Shapes: B batch, E teacher channels, T H W the teacher's grid.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, detach_short_rows, reduce_samples


def token_matching_loss(*, student: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute the mean of ``1 - cos`` over batch and grid.

    Args:
        student: [B, E, T, H, W], any length.
        teacher: [B, E, T, H, W], any length; gets no gradient.
        reduction: See ``Reduction``.
    """
    distance_bthw = 1 - F.cosine_similarity(detach_short_rows(student), teacher.detach(), dim=1)
    return reduce_samples(distance_bthw.flatten(1).mean(dim=1), reduction)
