"""Knowledge distillation: match the teacher's softened class probabilities.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv 1503.02531, sec. 2.

Shapes: B batch, N classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, reduce_samples


def kd_loss(*, student: Tensor, teacher: Tensor, temperature: float, reduction: Reduction = "mean") -> Tensor:
    """Compute ``τ² mean_b KL(softmax(t_b/τ) ‖ softmax(s_b/τ))``. The factor τ² keeps the size of the gradient.

    Args:
        student: [B, N] logits.
        teacher: [B, N] logits; gets no gradient.
        temperature: τ.
        reduction: See ``Reduction``.
    """
    log_p_s = F.log_softmax(student / temperature, dim=1)
    log_p_t = F.log_softmax(teacher.detach() / temperature, dim=1)
    divergence = F.kl_div(log_p_s, log_p_t, log_target=True, reduction="none").sum(dim=1)
    return temperature**2 * reduce_samples(divergence, reduction)
