"""UNIC's loss: cosine distance and smooth-L1 distance of the same outputs, half each.

Sariyildiz, Weinzaepfel, Lucas, Larlus, Kalantidis: UNIC: Universal Classification Models via Multi-teacher
Distillation, ECCV 2024, arXiv 2408.05088, sec. 3. The paper standardises the teacher's features by running statistics,
and sums heads on several blocks of the student. Deviations: the statistics are those of the training clips, measured
before training (``--standardize mean-variance``), and the head is one MLP on the features.

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

from torch import Tensor

from crossdistill.objectives.cosine import cosine_loss
from crossdistill.objectives.smooth_l1 import smooth_l1_loss


def unic_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Compute ``(1 - cos) / 2 + smooth-L1 / 2``, each the mean over the batch.

    Args:
        student: [B, E].
        teacher: [B, E], standardised; gets no gradient.

    Example:
        >>> import torch
        >>> unic_loss(student=torch.tensor([[2.0, 0.0]]), teacher=torch.tensor([[0.0, 2.0]]))  # 1 / 2 + 1.5 / 2
        tensor(1.2500)
    """
    return (cosine_loss(student=student, teacher=teacher) + smooth_l1_loss(student=student, teacher=teacher)) / 2
