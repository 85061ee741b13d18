"""DIST: match the teacher's relations between the classes of a sample and between the samples of a class.

Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv 2205.10536, equations 7
to 10. On ImageNet the paper uses temperature 1 and weight 2 for both relations.

Shapes: B batch, N classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import detach_short_rows


def dist_loss(*, student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute τ² times one minus Pearson's correlation of the probabilities, over classes and over samples.

    The first term is the mean over samples, the second the mean over classes; both are without their weights.

    Args:
        student: [B, N] logits.
        teacher: [B, N] logits; gets no gradient.
        temperature: τ.

    Example:
        >>> import torch
        >>> teacher = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
        >>> dist_loss(student=torch.eye(3), teacher=teacher, temperature=1.0)
        (tensor(0.1667), tensor(0.1023))
    """
    p_s, p_t = (F.softmax(logits / temperature, dim=1) for logits in (student, teacher.detach()))
    between_classes = 1 - _correlation(p_s, p_t).mean()
    within_class = 1 - _correlation(p_s.T, p_t.T).mean()
    return temperature**2 * between_classes, temperature**2 * within_class


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of each row; 0 if a row of either side is constant."""
    a, b = (rows - rows.mean(dim=1, keepdim=True) for rows in (a, b))
    return F.cosine_similarity(detach_short_rows(a), b, dim=1)
