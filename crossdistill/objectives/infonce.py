"""InfoNCE: the student's embedding is to be closer to its own teacher embedding than to those of other samples.

van den Oord, Li, Vinyals: CPC, arXiv 1807.03748, equation 4. Deviation: the positive is the teacher's embedding and the
negatives are the anchors of the memory bank, in the manner of Tian, Krishnan, Isola: Contrastive Representation
Distillation, ICLR 2020, arXiv 1910.10699 (which uses NCE in place of InfoNCE).

Shapes: B batch, K anchors, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import Reduction, detach_short_rows, reduce_samples


def infonce_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    temperature: float,
    is_own: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute ``mean_b -log( e^{s·t_b/τ} / (e^{s·t_b/τ} + Σ_k e^{s·a_k/τ}) )`` of unit vectors; zero without anchors.

    Args:
        student: [B, E], any length.
        teacher: [B, E], any length; gets no gradient.
        anchors: [K, E], L2-normalised.
        temperature: τ.
        is_own: [B, K] bool, anchors of the sample itself from an earlier epoch; they are not negatives.
        reduction: See ``Reduction``.

    Example:
        >>> anchors = torch.tensor([[0.0, 1.0]])
        >>> embedding = torch.tensor([[1.0, 0.0]])
        >>> infonce_loss(student=embedding, teacher=embedding, anchors=anchors, temperature=1.0)
        tensor(0.3133)
    """
    query = F.normalize(detach_short_rows(student), dim=1)
    positive = (query * F.normalize(teacher.detach(), dim=1)).sum(dim=1, keepdim=True)
    negatives = query @ anchors.to(query.dtype).T
    if is_own is not None:
        negatives = negatives.masked_fill(is_own, -torch.inf)
    logits = torch.cat([positive, negatives], dim=1) / temperature
    return reduce_samples(logits.logsumexp(dim=1) - logits[:, 0], reduction)
