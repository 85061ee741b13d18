"""Mutual information against closed forms, naive implementations and scikit-learn."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from crossdistill.evaluation.information import (
    MAX_COMPONENTS,
    NUM_FOLDS,
    Information,
    SharedInformation,
    folds_of,
    leading_components,
    predicted_classes,
    predicted_embedding,
    shared_information,
)

NUM_CLIPS = 400
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "results_schema.md"


def gaussians(rho, num_dims, num_clips=NUM_CLIPS, *, seed=0):
    """Two embeddings whose dimensions correlate in pairs, the second one rotated."""
    generator = torch.Generator().manual_seed(seed)
    one, noise = (torch.randn(num_clips, num_dims, generator=generator, dtype=torch.float64) for _ in range(2))
    rotation = torch.linalg.qr(torch.randn(num_dims, num_dims, generator=generator, dtype=torch.float64)).Q
    return one, (rho * one + math.sqrt(1 - rho**2) * noise) @ rotation


def classes_of_gaussians(apart, num_classes=2, num_clips=NUM_CLIPS, *, seed=0):
    """Classes whose means lie on a line, ``apart`` standard deviations from each other."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(num_classes, (num_clips,), generator=generator)
    noise = torch.randn(num_clips, 1, generator=generator, dtype=torch.float64)
    return noise + apart * classes[:, None], classes


def information_of_classes(apart, num_classes=2):
    def density(x):
        return sum(norm.pdf(x - apart * c) for c in range(num_classes)) / num_classes

    entropy = quad(lambda x: -density(x) * math.log(density(x)), -8, 8 + apart * num_classes)[0]
    return entropy - 0.5 * math.log(2 * math.pi * math.e)


def own_groups(num_clips=NUM_CLIPS):
    return torch.arange(num_clips)


@pytest.mark.parametrize(("rho", "num_dims"), [(0.0, 1), (0.5, 1), (0.9, 1), (0.5, 4), (0.9, 4), (0.5, 8), (0.9, 8)])
def test_information__of_gaussians_is_known(rho, num_dims):
    known = -num_dims / 2 * math.log(1 - rho**2)
    found = []
    for seed in range(5):
        student, teacher = gaussians(rho, num_dims, seed=seed)
        found.append(float(predicted_embedding(student, teacher, folds_of(own_groups())).mean()))
    # What is fitted costs a little: the figure is too low rather than too high.
    cost = num_dims**2 / (2 * NUM_CLIPS)
    assert known - 2 * cost - 0.08 < np.mean(found) < known + 0.05


@pytest.mark.parametrize(("apart", "num_classes"), [(0.0, 2), (1.0, 2), (3.0, 2), (1.5, 8)])
def test_information__of_classes_of_gaussians_is_known(apart, num_classes):
    found = []
    for seed in range(5):
        student, classes = classes_of_gaussians(apart, num_classes, seed=seed)
        found.append(float(predicted_classes(student, classes, folds_of(own_groups())).mean()))
    assert np.mean(found) == pytest.approx(information_of_classes(apart, num_classes), abs=0.05)


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_information__of_two_numbers_is_that_of_scikit_learn(rho):
    student, teacher = gaussians(rho, 1, 2000)
    other = mutual_info_regression(student.numpy(), teacher[:, 0].numpy(), random_state=0)[0]
    found = float(predicted_embedding(student, teacher, folds_of(own_groups(2000))).mean())
    assert found == pytest.approx(other, abs=0.06)


@pytest.mark.parametrize("apart", [0.0, 1.0, 2.0])
def test_information__of_a_number_and_classes_is_that_of_scikit_learn(apart):
    student, classes = classes_of_gaussians(apart, 4, 2000)
    other = mutual_info_classif(student.numpy(), classes.numpy(), random_state=0)[0]
    found = float(predicted_classes(student, classes, folds_of(own_groups(2000))).mean())
    assert found == pytest.approx(other, abs=0.06)


def naive_embedding(source, target, folds):
    found = np.zeros(len(source))
    for i in range(len(source)):
        train = folds != folds[i]
        logs = []
        for inputs in (np.c_[np.ones(len(source)), source], np.ones((len(source), 1))):
            weights = np.linalg.pinv(inputs[train]) @ target[train]
            left = target[train] - inputs[train] @ weights
            covariance = left.T @ left / (train.sum() - inputs.shape[1]) * (1 + inputs.shape[1] / train.sum())
            logs.append(multivariate_normal.logpdf(target[i], inputs[i] @ weights, covariance))
        found[i] = logs[0] - logs[1]
    return found


def naive_classes(source, classes, folds):
    found, names = np.zeros(len(source)), range(classes.max() + 1)
    for i in range(len(source)):
        train = folds != folds[i]
        means = {c: source[train & (classes == c)].mean(0) for c in names}
        left = np.array([source[j] - means[classes[j]] for j in np.flatnonzero(train)])
        covariance = left.T @ left / (train.sum() - len(names))
        counts = {c: (train & (classes == c)).sum() for c in names}
        priors = {c: (counts[c] + 1) / (train.sum() + len(names)) for c in names}
        joint = {
            c: priors[c] * multivariate_normal.pdf(source[i], means[c], covariance * (1 + 1 / counts[c])) for c in names
        }
        found[i] = math.log(joint[classes[i]] / sum(joint.values())) - math.log(priors[classes[i]])
    return found


def test_predictions__equal_naive_implementations():
    student, teacher = gaussians(0.7, 3, 60)
    folds = folds_of(own_groups(60))
    expected = naive_embedding(student.numpy(), teacher.numpy(), folds.numpy())
    np.testing.assert_allclose(predicted_embedding(student, teacher, folds).numpy(), expected, rtol=1e-5, atol=1e-7)
    classes = (student[:, 0] > 0).long() + (student[:, 1] > 0.5).long()
    expected = naive_classes(student.numpy(), classes.numpy(), folds.numpy())
    np.testing.assert_allclose(predicted_classes(student, classes, folds).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_leading_components__are_those_of_the_singular_value_decomposition():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9, 5, 3, 1, 1, 1]) + 3
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    scores = np.linalg.svd((unit - unit.mean(0)).numpy())[0][:, :2]
    found = leading_components(features, 2).numpy()
    np.testing.assert_allclose(np.abs(found / np.sqrt(50)), np.abs(scores), atol=1e-9)
    np.testing.assert_allclose(found.T @ found / 50, np.eye(2), atol=1e-9)
    assert leading_components(torch.ones(50, 6), 2).shape == (50, 0), "one point has no direction"


def embeddings(rho, *, seed=0, num_clips=NUM_CLIPS):
    student, teacher = gaussians(rho, MAX_COMPONENTS, num_clips, seed=seed)
    # Far from the origin unit length changes hardly anything.
    return (torch.cat([part, torch.full((num_clips, 1), 40.0)], 1).float() for part in (teacher, student))


def test_shared_information__its_interval_covers_what_is_known_and_chance_is_below():
    known = -MAX_COMPONENTS / 2 * math.log(1 - 0.8**2)
    is_covered, is_above_chance = [], []
    for seed in range(20):
        teacher, student = embeddings(0.8, seed=seed)
        found = shared_information(teacher, student, torch.full((NUM_CLIPS,), -1), own_groups(), num_shuffles=3)
        is_covered.append(abs(found.with_teacher.nats - known) < found.with_teacher.half_interval + 0.1)
        teacher, student = embeddings(0.0, seed=seed)
        found = shared_information(teacher, student, torch.full((NUM_CLIPS,), -1), own_groups(), num_shuffles=19)
        is_above_chance.append(found.with_teacher.is_above_chance)
    assert sum(is_covered) >= 17 and sum(is_above_chance) <= 4


def test_shared_information__says_which_is_larger():
    teacher, student = embeddings(0.8)
    labels = (student[:, 0] > 0).long()  # at most log 2
    found = shared_information(teacher, student, labels, own_groups(), num_shuffles=5)
    assert found.num_components == MAX_COMPONENTS and found.with_labels.is_above_chance
    assert found.difference[0] == pytest.approx(found.with_teacher.nats - found.with_labels.nats)
    assert found.difference[0] > 2 * found.difference[1] > 0
    apart = shared_information(teacher[torch.randperm(NUM_CLIPS)], student, labels, own_groups(), num_shuffles=5)
    assert apart.difference[0] < -2 * apart.difference[1] and apart.with_labels == found.with_labels


def test_shared_information__clips_of_one_group_do_not_tell_each_other():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(40, 5, generator=generator).repeat_interleave(10, 0) for _ in range(2))
    student, teacher = (one + 0.01 * torch.randn(NUM_CLIPS, 5, generator=generator) for one in (student, teacher))
    labels, groups = torch.randint(4, (40,), generator=generator).repeat_interleave(10), own_groups() // 10
    apart = shared_information(teacher, student, labels, own_groups(), num_shuffles=9)
    together = shared_information(teacher, student, labels, groups, num_shuffles=9)
    assert apart.with_teacher.is_above_chance and apart.with_labels.nats > 0
    assert together.with_teacher.nats < 0 and together.with_labels.nats < 0
    assert together.with_teacher.standard_error > 2 * apart.with_teacher.standard_error


def test_shared_information__takes_fewer_components_of_fewer_clips_and_none_of_too_few():
    teacher, student = embeddings(0.8, num_clips=60)
    labels = torch.arange(60) % 3
    found = shared_information(teacher, student, labels, own_groups(60), num_shuffles=2)
    assert found.num_components == 2 and found.with_labels is not None
    assert (
        shared_information(teacher, student, torch.arange(60) % 20, own_groups(60), num_shuffles=2).difference is None
    )
    few = shared_information(teacher, student, torch.where(labels == 0, 0, -1), own_groups(60), num_shuffles=2)
    assert few.with_labels is None, "one class says nothing"
    assert shared_information(teacher[:24], student[:24], labels[:24], own_groups(24), num_shuffles=2) is None
    assert shared_information(teacher, student, labels, torch.zeros(60, dtype=torch.int64), num_shuffles=2) is None
    assert shared_information(torch.ones(60, 3), student, labels, own_groups(60), num_shuffles=2) is None


def test_shared_information__of_some_labels_uses_their_clips():
    teacher, student = embeddings(0.8)
    labels = (student[:, 0] > 0).long()
    labels[200:] = -1
    found = shared_information(teacher, student, labels, own_groups(), num_shuffles=2)
    assert found.with_labels.standard_error > 0
    assert found.difference[0] == pytest.approx(found.with_teacher.nats - found.with_labels.nats, abs=0.3)


@pytest.mark.parametrize("kind", [SharedInformation, Information])
def test_fields__are_the_documented_ones(kind):
    section = PAGE.read_text(encoding="utf-8").partition(f"## {kind.__name__}\n")[2].partition("\n## ")[0]
    documented = [line.split("`")[1] for line in section.splitlines() if line.startswith("| `")]
    assert documented == [field.name for field in dataclasses.fields(kind)]


def test_folds__hold_whole_groups():
    groups = torch.arange(NUM_CLIPS) // 7
    folds = folds_of(groups)
    assert all(len(folds[groups == group].unique()) == 1 for group in groups.unique())
    sizes = folds.bincount()
    assert len(sizes) == NUM_FOLDS and int(sizes.min()) >= 5 * 7 - 6
