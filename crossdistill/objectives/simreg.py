"""SimReg: regress the teacher's normalised embedding, through an MLP that is dropped after training.

Navaneet, Koohpayegani, Tejankar, Pirsiavash: SimReg: Regression as a Simple Yet Effective Tool for Self-supervised
Knowledge Distillation, BMVC 2021, arXiv 2201.05131, equation 1.

ImageNet, MoCo-v2 ResNet-50 to ResNet-18, linear / 1-NN (paper): 65.1 / 54.8.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, detach_short_rows, reduce_samples


def simreg_loss(*, student: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute ``mean_b ‖ŝ_b - t̂_b‖²`` of L2-normalised embeddings, which is ``2 - 2 cos``.

    Args:
        student: [B, E], any length.
        teacher: [B, E], any length; gets no gradient.
        reduction: See ``Reduction``.
    """
    difference = F.normalize(detach_short_rows(student), dim=1) - F.normalize(teacher.detach(), dim=1)
    return reduce_samples(difference.square().sum(dim=1), reduction)
