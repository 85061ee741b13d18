"""Cluster alignment: whether k-means clusters agree with the classes.

The protocol of CompRess (NeurIPS 2020, sec. 4.2, after ISD): k-means on L2-normalised train features with one cluster
per class; clusters are matched one to one with classes so that the sum of the shares ``|cluster ∩ class| / |cluster|``
is largest (Hungarian method); the result is the accuracy on the test set with that matching. scikit-learn clusters and
scipy matches. k-means starts from k-means++ and stops after the paper's 20 iterations, or earlier where the centres
move less than scikit-learn's tolerance (1e-4 of the features' mean variance, summed over centres and squared).

Shapes: N train clips, B test clips, D features, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import normalize

from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.results import ProtocolResult, accuracy_from_scores, hits_from_scores
from crossdistill.evaluation.settings import ProtocolSettings

NUM_ITERATIONS = 20


def match_clusters(clusters_n: NDArray[np.int64], labels_n: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Assign a class of its own to every cluster; the sum of the clusters' shares of their classes is largest.

    Clusters and labels are [N] in [0, C); the result is the class [C] of each cluster.
    """
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (clusters_n, labels_n), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    _, classes = linear_sum_assignment(-shares)
    return np.asarray(classes, dtype=np.int64)


def evaluate_cluster(split: EmbeddedSplit, settings: ProtocolSettings) -> list[ProtocolResult]:
    """Cluster the train set, match clusters with classes, classify the test set by its nearest cluster.

    Labels of the train set serve the matching alone. ``details`` holds ``seed`` and ``train_top1``. Fewer train clips
    than classes are a ``UserError``.
    """
    split.check()
    num_train, num_classes = split.train.num_clips, split.num_classes
    if num_train < num_classes:
        raise UserError(
            f"the protocol cluster needs at least one train clip per class, but there are {num_train} train clips and "
            f"{num_classes} classes: remove cluster from --protocols"
        )
    train, test = (normalize(part.features.double()).cpu().numpy() for part in (split.train, split.test))
    kmeans = KMeans(num_classes, init="k-means++", n_init=1, max_iter=NUM_ITERATIONS, random_state=settings.seed)
    kmeans.fit(train)
    labels = split.train.labels.cpu().numpy().astype(np.int64)
    classes = match_clusters(kmeans.labels_.astype(np.int64), labels, num_classes)
    # A class without training clips gets a cluster by chance only, so it is never predicted.
    is_absent = np.bincount(labels, minlength=num_classes) == 0

    def scores(features: NDArray[np.float64]) -> Tensor:
        """[B, C]: minus the distance to the cluster of each class."""
        by_class = np.empty((len(features), num_classes))
        by_class[:, classes] = -kmeans.transform(features)
        by_class[:, is_absent] = -np.inf
        return torch.from_numpy(by_class)

    train_top1 = accuracy_from_scores(scores(train), split.train.labels.cpu()).top1
    outcome = hits_from_scores(scores(test), split.test.labels)
    return [split.result("cluster", outcome, {"seed": settings.seed, "train_top1": train_top1})]
