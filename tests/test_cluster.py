"""Cluster alignment against brute force and on clusters that are known."""

import itertools

import numpy as np
import pytest
import torch

from crossdistill.errors import UserError
from crossdistill.evaluation.cluster import evaluate_cluster, match_clusters


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


def test_cluster__labels_do_not_move_the_clusters():
    """With noise for labels every matching is near chance."""
    (train, _), (test, test_labels) = blobs(300, seed=0), blobs(300, seed=1)
    noise = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(2))
    result = evaluate_cluster(
        train_features=train, train_labels=noise, test_features=test, test_labels=test_labels, num_classes=3
    )
    assert result.details["train_top1"] < 0.5
    assert result.top1 in (pytest.approx(0, abs=1e-9), *(pytest.approx(share, abs=0.08) for share in (1 / 3, 2 / 3, 1)))


def test_cluster__wants_a_clip_for_every_class():
    features, labels = torch.eye(4)[:2], torch.tensor([0, 1])
    with pytest.raises(UserError, match="5 clusters need as many train clips, not 2"):
        evaluate_cluster(
            train_features=features, train_labels=labels, test_features=features, test_labels=labels, num_classes=5
        )
