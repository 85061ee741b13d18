"""What a protocol reports: accuracies, how they follow from class scores, and how they are stored.

Shapes: B test clips, C classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

NUM_RANKED = 5
"""Ranks that count for top-5 accuracy."""


@dataclass(frozen=True)
class Accuracies:
    """Fractions in [0, 1]."""

    top1: float
    """Share of clips whose best class is the right one."""
    top5: float
    """Share of clips whose right class is among the best min(5, C)."""
    mean_class: float
    """Top-1 within each class, averaged over the classes that the test set holds."""


@dataclass(frozen=True)
class ProtocolResult:
    """The outcome of one protocol on one test set; accuracies are fractions in [0, 1]."""

    protocol: str
    """For example ``1-nn`` or ``linear``."""
    top1: float
    top5: float
    """With fewer than five classes: among the best min(5, C), which is 1 where no class is absent from training."""
    mean_class: float
    """Top-1 within each class, averaged over the classes that the test set holds."""
    num_test: int
    details: dict[str, Any] = field(default_factory=dict)
    """What else the number depends on; every value can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Give a plain dictionary that ``json.dumps`` takes."""
        return dataclasses.asdict(self)


def accuracy_from_scores(scores_bc: Tensor, labels_b: Tensor) -> Accuracies:
    """Compute top-1, top-5 and mean-class accuracy.

    The rank of the right class is the number of classes with a higher score, plus the number of
    lower class indices with an equal score: of equal scores the lower index comes first, on every
    device. A right class that scores -inf ("cannot be predicted") or NaN is never a hit.

    Args:
        scores_bc: [B, C] class scores, higher is better.
        labels_b: [B] int64 in [0, C).
    """
    num_classes = scores_bc.shape[1]
    labels_b = labels_b.to(scores_bc.device)
    right_b1 = scores_bc.gather(1, labels_b[:, None])
    is_lower_index_bc = torch.arange(num_classes, device=scores_bc.device) < labels_b[:, None]
    is_ahead_bc = (scores_bc > right_b1) | ((scores_bc == right_b1) & is_lower_index_bc)
    can_hit_b = (right_b1[:, 0] > -torch.inf).double()
    rank_b = is_ahead_bc.sum(1)
    hit1_b = (rank_b < 1) * can_hit_b
    hit5_b = (rank_b < NUM_RANKED) * can_hit_b
    count_c = torch.bincount(labels_b, minlength=num_classes)
    hits_c = torch.zeros(num_classes, dtype=torch.float64, device=scores_bc.device).index_add_(0, labels_b, hit1_b)
    recall = hits_c[count_c > 0] / count_c[count_c > 0]
    return Accuracies(top1=hit1_b.mean().item(), top5=hit5_b.mean().item(), mean_class=recall.mean().item())
