"""Relational knowledge distillation: the student keeps distances and angles between the samples of a batch.

Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068, equations 5 to 9; weights 25 for
distances and 50 for angles, a pair that the paper's experiments use; so in a sum its values are that much larger.

Shapes: B batch, D student features, E teacher features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.objectives.directions import hold_short
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput

DISTANCE_WEIGHT, ANGLE_WEIGHT = 25.0, 50.0


def distance_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between both sides' distances of all pairs, each divided by its own mean (equations 5 to 7).

    Args:
        student: [B, D]; gradients flow into it alone.
        teacher: [B, E].
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()))


def angle_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of the angles that all triples form (equations 8 and 9).

    Args:
        student: [B, D]; gradients flow into it alone.
        teacher: [B, E].
    """
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher.detach()))


def _relative_distances(points: Tensor) -> Tensor:
    """[pairs], each pair once: a root has no gradient at zero, so a point and itself stay out."""
    distances = F.pdist(points)
    return distances / distances.mean().clamp(min=torch.finfo(points.dtype).eps)


def _cosines(points: Tensor) -> Tensor:
    """[B, B, B]: at each sample the cosines between the directions to all others."""
    directions = F.normalize(hold_short(points[None, :, :] - points[:, None, :], dim=2), dim=2)
    return directions @ directions.transpose(1, 2)


class RKD(nn.Module):
    """Distances and angles as one objective: both sides keep their own number of features."""

    adapter = "identity"
    compares: Compares = "features"
    needs_teacher_dim = False
    student_anchors: AnchorSource | None = None

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare embeddings [B, D] and [B, E]; a batch of one has no relations and gives zero."""
        if len(student) < 2:
            return StepOutput(loss=student.sum() * 0.0)
        with torch.autocast(student.device.type, enabled=False):
            distance = distance_loss(student=student.float(), teacher=teacher.float())
            angle = angle_loss(student=student.float(), teacher=teacher.float())
        terms = {"rkd_distance": distance.detach(), "rkd_angle": angle.detach()}
        return StepOutput(loss=DISTANCE_WEIGHT * distance + ANGLE_WEIGHT * angle, terms=terms)
