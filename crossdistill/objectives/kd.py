"""Knowledge distillation: match the teacher's softened class probabilities.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, arXiv 1503.02531, sec. 2.

Shapes: B batch, N classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kd_loss(*, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute ``τ² mean_b KL(softmax(t_b/τ) ‖ softmax(s_b/τ))``. The factor τ² keeps the size of the gradient.

    Args:
        student: [B, N] logits.
        teacher: [B, N] logits; gets no gradient.
        temperature: τ.
    """
    log_p_s = F.log_softmax(student / temperature, dim=1)
    log_p_t = F.log_softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p_s, log_p_t, log_target=True, reduction="batchmean")
