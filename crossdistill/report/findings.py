"""What features say: who is taken for whom, what changed against the twin, common neighbours, and a map.

Shapes: N clips, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from crossdistill.evaluation.features import Features
from crossdistill.evaluation.protocols.agreement import chance_overlap, linear_cka, nearest_others, share_of_common
from crossdistill.report.record import AbsentError
from crossdistill.report.spaces import Space, on_common_videos, predictions

NEIGHBOUR_COUNTS = (1, 2, 5, 10, 20, 50)
MAX_MAPPED_CLIPS = 1000
MAX_COMPARED_CLIPS = 4000
MIN_MAPPED_CLIPS = 5
PERPLEXITY = 30.0
NUM_ITERATIONS = 1000
"""Of t-SNE."""
NUM_COMPONENTS = 50
"""Principal components that t-SNE sees."""


def confusion(labels: Tensor, predicted: Tensor, num_classes: int) -> NDArray[np.int64]:
    """[C, C] clips, of the row's class and taken for the column's."""
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return np.asarray(counts.reshape(num_classes, num_classes).numpy())


def class_accuracies(counts_cc: NDArray[np.int64]) -> NDArray[np.float64]:
    """[C] share of each class's clips that are right; NaN for a class without clips."""
    totals = counts_cc.sum(1)
    return np.divide(np.diag(counts_cc), totals, out=np.full(len(totals), np.nan), where=totals > 0)


def confusion_of(space: Space, protocol: str) -> NDArray[np.int64]:
    """The confusion matrix of a network by a protocol; an ``AbsentError`` where it predicts no class."""
    return confusion(*predictions(space, protocol), space.sets.num_classes)


@dataclass(frozen=True)
class Confused:
    """Clips of a class that are taken for another."""

    true: int
    taken_for: int
    count: int
    total: int


def worst_confusions(counts_cc: NDArray[np.int64], num: int = 6) -> list[Confused]:
    """The pairs with most clips off the diagonal."""
    totals = counts_cc.sum(1)
    found = [
        Confused(row, column, int(counts_cc[row, column]), int(totals[row]))
        for row, column in zip(*counts_cc.nonzero(), strict=True)
        if row != column
    ]
    return sorted(found, key=lambda pair: (-pair.count, pair.true, pair.taken_for))[:num]


@dataclass(frozen=True)
class Overlap:
    """How many of a teacher's neighbours another network keeps, on the test clips that both could read."""

    role: str
    kind: str
    by_count: dict[int, float]
    """Number of neighbours to the mean share of common ones."""
    by_class: dict[int, float]
    """At ``class_k`` neighbours; empty without labels."""
    cka: float


@dataclass(frozen=True)
class Agreement:
    """Overlaps with one teacher."""

    teacher: str
    num_clips: int
    class_k: int
    chance: dict[int, float]
    """Number of neighbours to the share that unrelated spaces have in common."""
    overlaps: list[Overlap]


def agreement_with(teacher: Space, others: list[Space], *, class_k: int = 10) -> Agreement:
    """Compare networks with a teacher by the neighbours of the test clips.

    Raises:
        AbsentError: Too few clips were read by all of them.
    """
    parts = on_common_videos(*(_spread(space.sets.test, MAX_COMPARED_CLIPS) for space in (teacher, *others)))
    num = parts[0].num_clips
    counts = [k for k in NEIGHBOUR_COUNTS if k < num]
    if len(counts) < 2 or num < 4:
        raise AbsentError(f"{num} test clips are too few to compare their neighbours.")
    class_k = max(k for k in counts if k <= class_k)
    near = [nearest_others(part.features, counts[-1]) for part in parts]
    overlaps = []
    for space, part, own in zip(others, parts[1:], near[1:], strict=True):
        by_count = {k: share_of_common(near[0][:, :k], own[:, :k]) for k in counts}
        overlaps.append(
            Overlap(
                role=space.role,
                kind=space.network.kind,
                by_count={k: float(shares.mean()) for k, shares in by_count.items()},
                by_class=_class_means(by_count[class_k], part.labels),
                cka=linear_cka(parts[0].features, part.features),
            )
        )
    return Agreement(teacher.role, num, class_k, {k: chance_overlap(num, k) for k in counts}, overlaps)


def _class_means(values_n: Tensor, labels_n: Tensor) -> dict[int, float]:
    return {label: float(values_n[labels_n == label].mean()) for label in labels_n.unique().tolist() if label >= 0}


def _spread(features: Features, most: int) -> Features:
    """Some videos, the same ones in every space: by order of their names."""
    if features.num_clips <= most:
        return features
    order = sorted(range(features.num_clips), key=lambda i: features.videos[i])
    return features.select([order[i * len(order) // most] for i in range(most)])


@dataclass(frozen=True)
class Map:
    """Test clips on a plane."""

    points_n2: NDArray[np.float64]
    labels: list[int]
    videos: tuple[str, ...]


def map_of(space: Space) -> Map:
    """t-SNE of the directions of test features (van der Maaten, Hinton, JMLR 2008), the same at every call.

    Raises:
        AbsentError: There are too few clips.
    """
    test = _spread(space.sets.test, MAX_MAPPED_CLIPS)
    if test.num_clips < MIN_MAPPED_CLIPS:
        raise AbsentError(f"{test.num_clips} test clips make no map.")
    unit = torch.nn.functional.normalize(test.features, dim=1).double().numpy()
    num_components = min(NUM_COMPONENTS, *unit.shape)
    reduced = PCA(num_components, random_state=0).fit_transform(unit)
    if not np.ptp(reduced, axis=0).max() > 0:
        raise AbsentError("all clips have the same embedding.")
    perplexity = min(PERPLEXITY, (test.num_clips - 1) / 3)
    # So few clips gain nothing from threads, and on a busy machine those would wait for each other at every step.
    with threadpool_limits(1):
        placed = TSNE(2, perplexity=perplexity, init="pca", max_iter=NUM_ITERATIONS, random_state=0).fit_transform(
            reduced
        )
    return Map(np.asarray(placed, dtype=np.float64), test.labels.tolist(), test.videos)
