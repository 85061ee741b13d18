"""Analysis of embeddings: confusion matrix, accuracy by class, agreement with a teacher, and t-SNE.

Shapes: B test clips, N clips, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from crossdistill.evaluation.features import Features
from crossdistill.evaluation.protocols.agreement import chance_overlap, linear_cka, nearest_others, share_of_common
from crossdistill.evaluation.protocols.fusion import common_features
from crossdistill.report.embeddings import Embedding
from crossdistill.report.networks import Kind
from crossdistill.report.record import UnavailableError

NEIGHBOUR_COUNTS = (1, 2, 5, 10, 20, 50)
MAX_TSNE_CLIPS = 1000
MAX_GROUPS, MIN_GROUP_SIZE = 8, 8  # of k-means on clips without labels
MAX_COMPARED_CLIPS = 4000
MIN_TSNE_CLIPS = 5
PERPLEXITY = 30.0
NUM_ITERATIONS = 1000  # of t-SNE
NUM_COMPONENTS = 50  # principal components that t-SNE gets


def confusion_matrix(labels: Tensor, predicted: Tensor, num_classes: int) -> NDArray[np.int64]:
    """Count clips [C, C] by true class (row) and predicted class (column)."""
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return np.asarray(counts.reshape(num_classes, num_classes).numpy())


def class_accuracies(counts_cc: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the accuracy [C] within each class; NaN for a class without clips."""
    totals = counts_cc.sum(1)
    return np.divide(np.diag(counts_cc), totals, out=np.full(len(totals), np.nan), where=totals > 0)


def confusion_of(embedding: Embedding, protocol: str) -> NDArray[np.int64]:
    """Compute the confusion matrix [C, C] of a network; a protocol without classes raises an ``UnavailableError``."""
    result = embedding.evaluation.results.get(protocol)
    outcome = None if result is None else result.outcome
    if outcome is None or outcome.predicted_b is None:
        raise UnavailableError(f"the protocol {protocol} predicts no class.")
    return confusion_matrix(outcome.labels_b.long(), outcome.predicted_b, embedding.split.num_classes)


@dataclass(frozen=True)
class ConfusedPair:
    """Test clips of one class that are predicted as another: ``count`` of ``total`` clips of the true class."""

    true: int
    predicted: int
    count: int
    total: int


def worst_confusions(counts_cc: NDArray[np.int64], num: int = 6) -> list[ConfusedPair]:
    """Return the pairs of different classes with the most clips."""
    totals = counts_cc.sum(1)
    found = [
        ConfusedPair(row, column, int(counts_cc[row, column]), int(totals[row]))
        for row, column in zip(*counts_cc.nonzero(), strict=True)
        if row != column
    ]
    return sorted(found, key=lambda pair: (-pair.count, pair.true, pair.predicted))[:num]


@dataclass(frozen=True)
class NeighbourOverlap:
    """Neighbours that a network has in common with a teacher, on the test clips that both could read."""

    role: str
    kind: Kind
    by_count: dict[int, float]
    """Mean share of common neighbours by number of neighbours."""
    by_class: dict[int, float]
    """The same by class, with ``class_k`` neighbours; empty without labels."""
    cka: float


@dataclass(frozen=True)
class TeacherAgreement:
    """Agreement of several networks with one teacher."""

    teacher: str
    num_clips: int
    class_k: int
    chance: dict[int, float]
    """Expected share of common neighbours of unrelated networks, by number of neighbours."""
    overlaps: list[NeighbourOverlap]


def agreement_with(teacher: Embedding, others: list[Embedding], *, class_k: int = 10) -> TeacherAgreement:
    """Compare networks with a teacher by the nearest neighbours of the test clips; by class with ``class_k`` of them.

    Raise an ``UnavailableError`` if all networks together could read too few clips.
    """
    parts = common_features([subset(embedding.split.test, MAX_COMPARED_CLIPS) for embedding in (teacher, *others)])
    num = parts[0].num_clips
    counts = [k for k in NEIGHBOUR_COUNTS if k < num]
    if len(counts) < 2 or num < 4:
        raise UnavailableError(f"{num} test clips are too few to compare neighbours.")
    class_k = max(k for k in counts if k <= class_k)
    near = [nearest_others(part.features, counts[-1]) for part in parts]
    overlaps = []
    for embedding, part, own in zip(others, parts[1:], near[1:], strict=True):
        by_count = {k: share_of_common(near[0][:, :k], own[:, :k]) for k in counts}
        overlaps.append(
            NeighbourOverlap(
                role=embedding.role,
                kind=embedding.network.kind,
                by_count={k: float(shares.mean()) for k, shares in by_count.items()},
                by_class=_class_means(by_count[class_k], part.labels),
                cka=linear_cka(parts[0].features, part.features),
            )
        )
    return TeacherAgreement(teacher.role, num, class_k, {k: chance_overlap(num, k) for k in counts}, overlaps)


def _class_means(values_n: Tensor, labels_n: Tensor) -> dict[int, float]:
    return {label: float(values_n[labels_n == label].mean()) for label in labels_n.unique().tolist() if label >= 0}


def groups_of(embedding: Embedding) -> dict[str, int]:
    """Map each video to its group by k-means on the unit features with a fixed seed, the largest group first.

    For a page without labels; ``MAX_GROUPS`` or fewer groups of ``MIN_GROUP_SIZE`` clips on average.
    """
    test = embedding.split.test
    num_groups = max(1, min(MAX_GROUPS, test.num_clips // MIN_GROUP_SIZE))
    unit = torch.nn.functional.normalize(test.features, dim=1).double().numpy()
    with threadpool_limits(1):
        found = KMeans(num_groups, n_init=4, random_state=0).fit_predict(unit).tolist()
    order = sorted(set(found), key=lambda group: (-found.count(group), group))
    return {video: order.index(group) for video, group in zip(test.videos, found, strict=True)}


def near_videos(embedding: Embedding, k: int) -> dict[str, set[str]]:
    """Map each test video to its k nearest other test videos; fewer if there are fewer."""
    test = embedding.split.test
    k = min(k, test.num_clips - 1)
    if k < 1:
        return {}
    near = nearest_others(test.features, k).tolist()
    return {video: {test.videos[i] for i in row} for video, row in zip(test.videos, near, strict=True)}


def subset(features: Features, most: int) -> Features:
    """Select at most ``most`` videos by the order of their names, so that every network gets the same ones."""
    if features.num_clips <= most:
        return features
    order = sorted(range(features.num_clips), key=lambda i: features.videos[i])
    return features.select([order[i * len(order) // most] for i in range(most)])


@dataclass(frozen=True)
class Projection:
    """Clips as points of a plane."""

    points_n2: NDArray[np.float64]
    labels: list[int]
    videos: tuple[str, ...]


def tsne_of(embedding: Embedding) -> Projection:
    """Compute t-SNE of the L2-normalised test features (van der Maaten, Hinton, JMLR 2008), with a fixed seed.

    Raise an ``UnavailableError`` if there are too few clips, or if all have the same embedding.
    """
    test = subset(embedding.split.test, MAX_TSNE_CLIPS)
    if test.num_clips < MIN_TSNE_CLIPS:
        raise UnavailableError(f"{test.num_clips} test clips are too few for t-SNE.")
    unit = torch.nn.functional.normalize(test.features, dim=1).double().numpy()
    reduced = PCA(min(NUM_COMPONENTS, *unit.shape), random_state=0).fit_transform(unit)
    if not np.ptp(reduced, axis=0).max() > 0:
        raise UnavailableError("all clips have the same embedding.")
    perplexity = min(PERPLEXITY, (test.num_clips - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=NUM_ITERATIONS, random_state=0)
    # So few clips gain nothing from threads, which wait for each other at every step on a busy machine.
    with threadpool_limits(1):
        placed = tsne.fit_transform(reduced)
    return Projection(np.asarray(placed, dtype=np.float64), test.labels.tolist(), test.videos)
