"""UNIC's loss: cosine distance and smooth-L1 distance of the same outputs, half each.

Sariyildiz, Weinzaepfel, Lucas, Larlus, Kalantidis: UNIC: Universal Classification Models via Multi-teacher
Distillation, ECCV 2024, arXiv 2408.05088, sec. 3. The paper's recipe has three more parts, which other objectives can
use too: the teacher's features are standardised by running statistics (``--standardize running``), heads on several
blocks of the student are summed (``--adapter ladder``), and each sample leaves teachers out (``--teacher-drop``).
Deviation: the default head is one MLP on the features (``mlp2``).

Shapes: B batch, E teacher features.
"""

from __future__ import annotations

from torch import Tensor

from crossdistill.objectives.cosine import cosine_loss
from crossdistill.objectives.objective import Reduction
from crossdistill.objectives.smooth_l1 import smooth_l1_loss


def unic_loss(*, student: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Compute ``(1 - cos) / 2 + smooth-L1 / 2``, each the mean over the batch.

    Args:
        student: [B, E].
        teacher: [B, E], standardised; gets no gradient.
        reduction: See ``Reduction``.

    Example:
        >>> import torch
        >>> unic_loss(student=torch.tensor([[2.0, 0.0]]), teacher=torch.tensor([[0.0, 2.0]]))  # 1 / 2 + 1.5 / 2
        tensor(1.2500)
    """
    parts = [loss(student=student, teacher=teacher, reduction=reduction) for loss in (cosine_loss, smooth_l1_loss)]
    return (parts[0] + parts[1]) / 2
