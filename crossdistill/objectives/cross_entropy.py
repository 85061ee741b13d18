"""Cross-entropy with labels, for sums that add a teacher to supervised training.

MARS uses it together with ``mse:50``: Crasto, Weinzaepfel, Alahari, Schmid: MARS: Motion-Augmented RGB Stream for
Action Recognition, CVPR 2019.

Shapes: B batch, N classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Compute ``mean_b -log softmax(s_b)[y_b]``.

    Args:
        student: [B, N] logits.
        teacher: [B] int64 labels ``y``, which take the place of a teacher's output.
    """
    return F.cross_entropy(student, teacher)
