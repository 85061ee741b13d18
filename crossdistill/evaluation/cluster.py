"""Cluster alignment: do clusters that nobody named agree with the classes?

The protocol of CompRess (NeurIPS 2020, sec. 4.2, after ISD): k-means on L2-normalised train features with one cluster a
class, clusters matched one to one with classes so that the shares ``|cluster ∩ class| / |cluster|`` add up to most
(Hungarian method), accuracy on the test set with that matching. Scikit-learn clusters and scipy matches; k-means starts
from k-means++ and stops after the paper's 20 iterations, or sooner where the centres move less than scikit-learn's
tolerance (1e-4 of the features' mean variance, summed over centres and squared).

Shapes: N train clips, B test clips, D features, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import check_split, classes_without_training_clips
from crossdistill.evaluation.results import ProtocolResult, accuracy_from_scores, hits_from_scores, result_of

NUM_ITERATIONS = 20


def match_clusters(clusters_n: NDArray[np.int64], labels_n: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Give every cluster a class of its own.

    Args:
        clusters_n: [N] in [0, C).
        labels_n: [N] in [0, C).
        num_classes: C.

    Returns:
        [C]: the class of each cluster; the sum of the clusters' shares of their classes is the largest there is.
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (clusters_n, labels_n), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    _, classes = linear_sum_assignment(-shares)
    return np.asarray(classes, dtype=np.int64)


def evaluate_cluster(
    *,
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    num_classes: int,
    seed: int = 0,
) -> ProtocolResult:
    """Cluster the train set, match clusters with classes, classify the test set by its nearest cluster.

    ``details`` holds ``seed``, ``num_train``, ``train_top1`` and ``classes_without_training_clips``.

    Args:
        train_features: [N, D].
        train_labels: [N] int64; used for the matching alone.
        test_features: [B, D].
        test_labels: [B] int64.
        num_classes: C.
        seed: Of the first centres.

    Raises:
        UserError: Features or labels that ``check_split`` rejects, or fewer train clips than classes.
    """
    check_split(
        train_features=train_features,
        train_labels=train_labels,
        test_features=test_features,
        test_labels=test_labels,
        num_classes=num_classes,
    )
    if len(train_features) < num_classes:
        raise UserError(
            f"{num_classes} clusters need as many train clips, not {len(train_features)}: leave cluster out"
        )
    train, test = (_unit(features) for features in (train_features, test_features))
    kmeans = KMeans(num_classes, init="k-means++", n_init=1, max_iter=NUM_ITERATIONS, random_state=seed).fit(train)
    labels = train_labels.cpu().numpy().astype(np.int64)
    classes = match_clusters(kmeans.labels_.astype(np.int64), labels, num_classes)
    is_absent = np.bincount(labels, minlength=num_classes) == 0  # such a class has a cluster, but by chance alone

    def scores(features: NDArray[np.float64]) -> Tensor:
        """[B, C]: minus the distance to the cluster of each class."""
        by_class = np.empty((len(features), num_classes))
        by_class[:, classes] = -kmeans.transform(features)
        by_class[:, is_absent] = -np.inf
        return torch.from_numpy(by_class)

    details = {
        "seed": seed,
        "num_train": len(train_features),
        "train_top1": accuracy_from_scores(scores(train), train_labels.cpu()).top1,
        "classes_without_training_clips": classes_without_training_clips(
            train_labels=train_labels, test_labels=test_labels
        ),
    }
    return result_of("cluster", hits_from_scores(scores(test), test_labels), details)


def _unit(features_nd: Tensor) -> NDArray[np.float64]:
    return torch.nn.functional.normalize(features_nd.double(), dim=1).cpu().numpy()
