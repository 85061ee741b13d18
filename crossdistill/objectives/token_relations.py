"""Relations inside a sample: each token's similarities to the other tokens of its own clip.

The form is that of CompRess, with the tokens of a clip as anchors. lightly-train's distillation (v3) compares tokens
this way; the Gram loss of DINOv3 (Simeoni et al., arXiv 2508.10104, sec. 4) is the squared error of the same matrices.

Between modalities only times correspond: what is at a place in RGB need not be there in flow. ``time_relations_loss``
pools every time over space and compares the times.

Shapes: B batch, S student channels, E teacher channels, T H W the teacher's grid, N tokens.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, detach_short_rows, reduce_samples


def token_relations_loss(
    *, student: Tensor, teacher: Tensor, temperature: float, reduction: Reduction = "mean"
) -> Tensor:
    """Compute ``mean_b mean_i KL(softmax(T_i Tᵀ / τ) ‖ softmax(S_i Sᵀ / τ))`` over all tokens i of a clip.

    T and S are the tokens [N, E] and [N, S] of one clip as unit vectors.

    Args:
        student: [B, S, T, H, W].
        teacher: [B, E, T, H, W]; gets no gradient.
        temperature: τ.
        reduction: See ``Reduction``.
    """
    return _relations_loss(student.flatten(2), teacher.flatten(2), temperature, reduction)


def time_relations_loss(
    *, student: Tensor, teacher: Tensor, temperature: float, reduction: Reduction = "mean"
) -> Tensor:
    """Compute ``token_relations_loss`` of the mean over space of each time.

    Args:
        student: [B, S, T, H, W].
        teacher: [B, E, T, H, W]; gets no gradient.
        temperature: τ.
        reduction: See ``Reduction``.
    """
    return _relations_loss(student.mean(dim=(3, 4)), teacher.mean(dim=(3, 4)), temperature, reduction)


def _relations_loss(student_bsn: Tensor, teacher_ben: Tensor, temperature: float, reduction: Reduction) -> Tensor:
    log_student_bnn, log_teacher_bnn = (
        F.log_softmax(unit.transpose(1, 2) @ unit / temperature, dim=2)
        for unit in (F.normalize(detach_short_rows(student_bsn), dim=1), F.normalize(teacher_ben.detach(), dim=1))
    )
    divergence_bn = F.kl_div(log_student_bnn, log_teacher_bnn, reduction="none", log_target=True).sum(dim=2)
    return reduce_samples(divergence_bn.mean(dim=1), reduction)
