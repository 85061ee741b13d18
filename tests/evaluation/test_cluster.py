"""Cluster alignment against brute force and on clusters that are known."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics.cluster import contingency_matrix

from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.protocols import PROTOCOLS, ProtocolSettings
from crossdistill.evaluation.protocols.cluster import match_clusters


def evaluate_cluster(*, seed=0, **tensors):
    (result,) = PROTOCOLS["cluster"](EmbeddedSplit.from_tensors(**tensors), ProtocolSettings(seed=seed))
    return result


@pytest.mark.parametrize("seed", range(5))
def test_match_clusters__is_the_best_of_all_permutations(seed):
    generator = np.random.default_rng(seed)
    clusters, labels = generator.integers(0, 5, 60), generator.integers(0, 5, 60)

    def value(classes):
        shares = [np.mean(labels[clusters == cluster] == classes[cluster]) for cluster in range(5)]
        return sum(shares)

    best = max(value(permutation) for permutation in itertools.permutations(range(5)))
    assert value(match_clusters(clusters, labels, 5)) == pytest.approx(best)


def blobs(num_clips, *, seed, noise=0.05):
    """Three directions, far apart; the classes are numbered against the order of the axes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (num_clips,), generator=generator)
    features = torch.eye(4)[2 - labels] + noise * torch.randn(num_clips, 4, generator=generator)
    return 7 * features, labels  # their length does not count


def test_cluster__finds_classes_that_lie_apart():
    (train, train_labels), (test, test_labels) = blobs(60, seed=0), blobs(30, seed=1)
    sets = {"train_features": train, "train_labels": train_labels, "test_features": test, "num_classes": 3}
    result = evaluate_cluster(**sets, test_labels=test_labels)
    assert result.top1 == 1 and result.details["train_top1"] == 1 and result.num_test == 30
    assert evaluate_cluster(**sets, test_labels=test_labels) == result
    wrong = evaluate_cluster(**sets, test_labels=(test_labels + 1) % 3)
    assert wrong.top1 == 0


def naive_clusters(rows, num_clusters, seed):
    """Lloyd's iterations in numpy from scikit-learn's first centres, up to 20 or until centres hardly move."""
    centres, _ = kmeans_plusplus(rows, num_clusters, random_state=seed)
    clusters = None
    for _ in range(20):
        nearest = ((rows[:, None] - centres) ** 2).sum(2).argmin(1)
        moved = np.stack([rows[nearest == c].mean(0) for c in range(num_clusters)])
        shift = ((moved - centres) ** 2).sum()
        centres = moved
        if (clusters is not None and (nearest == clusters).all()) or shift <= 1e-4 * rows.var(0).mean():
            break
        clusters = nearest
    return centres


@pytest.mark.parametrize("seed", range(4))
def test_cluster__equals_numpy_and_scipy_on_overlapping_classes(seed):
    """Twelve classes that flow into each other: the answer to every clip is that of an implementation of its own."""
    generator = np.random.default_rng(seed)
    middles = 0.6 * generator.standard_normal((12, 10))
    labels, test_labels = generator.integers(0, 12, 400), generator.integers(0, 12, 150)
    train, test = (middles[part] + generator.standard_normal((len(part), 10)) for part in (labels, test_labels))
    result = evaluate_cluster(
        train_features=torch.from_numpy(train),
        train_labels=torch.from_numpy(labels),
        test_features=torch.from_numpy(test),
        test_labels=torch.from_numpy(test_labels),
        num_classes=12,
        seed=seed,
    )

    rows, others = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, test))
    centres = naive_clusters(rows, 12, seed)
    nearest, answers = (((part[:, None] - centres) ** 2).sum(2).argmin(1) for part in (rows, others))
    counts = contingency_matrix(nearest, labels)
    class_of = linear_sum_assignment(counts / counts.sum(1, keepdims=True), maximize=True)[1]
    assert result.outcome.predicted_b.tolist() == class_of[answers].tolist()
    assert result.outcome.hits["top1"].tolist() == (class_of[answers] == test_labels).astype(float).tolist()
    assert result.top1 == pytest.approx(np.mean(class_of[answers] == test_labels), abs=1e-15)
    assert result.details["train_top1"] == pytest.approx(np.mean(class_of[nearest] == labels), abs=1e-15)
    assert 0.1 < result.top1 < 0.6  # so it is not decided by which clusters lie apart


def test_cluster__clusters_do_not_depend_on_labels():
    """With noise for labels every cluster still is one blob, whose clips are all right or all wrong."""
    (train, _), (test, test_labels) = blobs(300, seed=0), blobs(300, seed=1)
    noise = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(2))
    sets = {"train_features": train, "train_labels": noise, "num_classes": 3}
    for label in range(3):
        blob = test_labels == label
        result = evaluate_cluster(**sets, test_features=test[blob], test_labels=test_labels[blob])
        assert result.top1 in (0, 1) and result.num_test > 50
        assert result.details["train_top1"] < 0.5


def test_cluster__a_class_without_training_clips_is_never_right():
    """Three blobs, of which the third has the labels of the first: its cluster falls to the absent class by chance."""
    (train, train_labels), (test, test_labels) = blobs(60, seed=0), blobs(30, seed=1)
    result = evaluate_cluster(
        train_features=train,
        train_labels=torch.where(train_labels == 2, 0, train_labels),
        test_features=test,
        test_labels=test_labels,
        num_classes=3,
    )
    assert result.details["classes_without_training_clips"] == [2]
    assert result.top1 <= float((test_labels != 2).double().mean())


def test_cluster__refuses_fewer_clips_than_classes():
    features, labels = torch.eye(4)[:2], torch.tensor([0, 1])
    with pytest.raises(UserError, match="there are 2 train clips and 5 classes"):
        evaluate_cluster(
            train_features=features, train_labels=labels, test_features=features, test_labels=labels, num_classes=5
        )
