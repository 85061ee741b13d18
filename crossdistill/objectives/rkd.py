"""Relational knowledge distillation: match the distances and angles between the samples of a batch.

Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068, equations 5 to 9. The paper's
experiments use weight 25 for distances and 50 for angles, so in a sum of objectives RKD is that much larger.

Shapes: B batch, D student features, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.objectives.objective import detach_short_rows


def rkd_loss(*, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``rkd_distance_loss`` and ``rkd_angle_loss``, without their weights; zero for a batch of one sample.

    Args:
        student: [B, D].
        teacher: [B, E]; gets no gradient.

    Example:
        >>> student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        >>> teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
        >>> rkd_loss(student=student, teacher=teacher)
        (tensor(0.0208), tensor(0.0267))
    """
    if len(student) < 2:
        return student.sum() * 0.0, student.sum() * 0.0
    return rkd_distance_loss(student=student, teacher=teacher), rkd_angle_loss(student=student, teacher=teacher)


def rkd_distance_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the distances of all pairs, each side divided by its mean distance (equations 5 to 7)."""
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()))


def rkd_angle_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles of all triples of samples (equations 8 and 9)."""
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher.detach()))


def _relative_distances(points: Tensor) -> Tensor:
    """[B * (B - 1) / 2]: each pair once. The square root has no gradient at the distance zero of a point to itself."""
    distances = F.pdist(points)
    return distances / distances.mean().clamp(min=torch.finfo(points.dtype).eps)


def _cosines(points: Tensor) -> Tensor:
    """[B, B, B]: for each sample, cosines between the directions to all samples."""
    directions = F.normalize(detach_short_rows(points[None, :, :] - points[:, None, :], dim=2), dim=2)
    return directions @ directions.transpose(1, 2)
