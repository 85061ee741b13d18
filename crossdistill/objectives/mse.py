"""Mean squared error between the embeddings of student and teacher.

Crasto, Weinzaepfel, Alahari, Schmid: MARS: Motion-Augmented RGB Stream for Action Recognition, CVPR 2019. There an RGB
student learns the features of a flow teacher before the last layer, with weight 50 beside cross-entropy.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

from torch import Tensor

from crossdistill.objectives.objective import Reduction, reduce_samples


def mse_loss(*, student: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute ``mean_be (s_be - t_be)²`` of embeddings that are not normalised.

    Args:
        student: [B, E].
        teacher: [B, E]; gets no gradient.
        reduction: See ``Reduction``.
    """
    return reduce_samples((student - teacher.detach()).square().mean(dim=1), reduction)
