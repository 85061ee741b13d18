"""BINGO: contrast the student with the sample's teacher embedding and with the teacher's nearest neighbours (its bag).

Xu, Zhang, Zhang, Xie, Tian: Bag of Instances Aggregation Boosts Self-supervised Distillation, ICLR 2022,
arXiv 2107.01691. Deviation: the paper searches the bags once in the whole dataset and samples one member per batch;
here the bag is searched among the anchors of the memory bank and all its members are used.

Shapes: B batch, K anchors, M members of a bag, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, detach_short_rows, reduce_samples


def bingo_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    temperature: float,
    num_members: int,
    is_own: Tensor | None = None,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """Contrast the student with the sample's own embedding and with its bag, each against all anchors.

    With ``p(x) = e^{s·x/τ} / (e^{s·t_b/τ} + Σ_k e^{s·a_k/τ})`` the first term is ``mean_b -log p(t_b)`` and the second
    ``mean_b mean_{m in bag(b)} -log p(a_m)``. The bag holds the M anchors nearest to ``t_b``. The second term is zero
    without anchors. The loss is the weighted sum of both.

    Args:
        student: [B, E], any length.
        teacher: [B, E], any length; gets no gradient.
        anchors: [K, E], L2-normalised.
        temperature: τ.
        num_members: M; all anchors if K is smaller.
        is_own: [B, K] bool, anchors of the sample itself from an earlier epoch; they are neither members nor negatives.
        reduction: See ``Reduction``; it is that of both values.
    """
    query, own = F.normalize(detach_short_rows(student), dim=1), F.normalize(teacher.detach(), dim=1)
    anchors = anchors.to(query.dtype)
    positive = (query * own).sum(dim=1, keepdim=True)
    to_student, to_teacher = query @ anchors.T, own @ anchors.T
    if is_own is not None:
        to_student, to_teacher = (values.masked_fill(is_own, -torch.inf) for values in (to_student, to_teacher))
    log_p = F.log_softmax(torch.cat([positive, to_student], dim=1) / temperature, dim=1)
    similarity, bag = to_teacher.topk(min(num_members, len(anchors)), dim=1)
    is_member = similarity > -torch.inf
    # Mask before the mean: log_p of a masked anchor is -inf, and its gradient would be NaN.
    members = log_p[:, 1:].gather(1, bag).masked_fill(~is_member, 0.0)
    counts = is_member.sum(dim=1).clamp(min=1)
    return reduce_samples(-log_p[:, 0], reduction), reduce_samples(-members.sum(dim=1) / counts, reduction)
