"""Mean squared error of embeddings as they are, their length included.

Crasto, Weinzaepfel, Alahari, Schmid: MARS: Motion-Augmented RGB Stream for Action Recognition, CVPR 2019:
an RGB student gives the features of a flow teacher; there 50 times, beside cross-entropy, between features before the
last layer.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def mse_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """``mean_be (s_be - t_be)²``.

    Args:
        student: [B, E]; gradients flow into it alone.
        teacher: [B, E].
    """
    return F.mse_loss(student, teacher.detach())
