"""Protocols of several students, few labels and sweeps, against independent implementations on random features."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from crossdistill.data.held_out import held_out_part
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.linear_probe import class_scores, train_on
from crossdistill.evaluation.protocols import ProtocolSettings
from crossdistill.evaluation.protocols.agreement import compare_students
from crossdistill.evaluation.protocols.finetune import classify
from crossdistill.evaluation.protocols.fusion import common_videos, fuse
from crossdistill.evaluation.protocols.linear import evaluate_linear
from crossdistill.evaluation.protocols.linear_sweep import evaluate_linear_sweep
from crossdistill.evaluation.protocols.lowshot import low_shot
from crossdistill.evaluation.protocols.retrieval import centred_unit, retrieve
from crossdistill.evaluation.results import accuracy_from_scores
from crossdistill.evaluation.settings import Shots
from crossdistill.evaluation.views import TestViews

NUM_CLASSES = 6


def features(num, *, seed, dim=12, num_views=1, distance=0.6, with_groups=True):
    """Gaussian classes; the centres are those of every seed."""
    generator = torch.Generator().manual_seed(99)
    centres = distance * torch.randn(NUM_CLASSES, dim, generator=generator)
    generator.manual_seed(seed)
    labels = torch.arange(num) % NUM_CLASSES
    views = centres[labels][:, None] + torch.randn(num, num_views, dim, generator=generator)
    groups = tuple(f"g{i // NUM_CLASSES % 5}" if with_groups else None for i in range(num))
    names = tuple(f"v{i}" for i in range(num))
    return Features(views, labels, {}, names, groups, TestViews(num_views, 1))


def sets(*, seed=0, num_train=120, num_test=90, **options):
    train, test = features(num_train, seed=seed, **options), features(num_test, seed=seed + 1, **options)
    return EmbeddedSplit(train, test, NUM_CLASSES)


def linear(split, *, seed):
    return evaluate_linear(split, ProtocolSettings(seed=seed))[0]


def linear_sweep(split, **options):
    return evaluate_linear_sweep(split, ProtocolSettings(), **options)[0]


def test_accuracy__equals_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    scores, labels = torch.randn(200, 9, generator=generator), torch.randint(0, 9, (200,), generator=generator)
    found = accuracy_from_scores(scores, labels)
    assert found.top1 == pytest.approx(top_k_accuracy_score(labels, scores, k=1), abs=1e-15)
    assert found.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5), abs=1e-15)
    assert found.mean_class == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)), abs=1e-15)


def test_accuracy__equals_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(2)
    scores, labels = torch.randn(200, 9, generator=generator), torch.randint(0, 9, (200,), generator=generator)
    found, options = accuracy_from_scores(scores, labels), {"num_classes": 9}
    for ours, average, k in ((found.top1, "micro", 1), (found.top5, "micro", 5), (found.mean_class, "macro", 1)):
        theirs = metrics.multiclass_accuracy(scores, labels, average=average, top_k=k, **options)
        assert ours == pytest.approx(theirs.item(), abs=1e-7)  # float32 there


def test_retrieval__equals_scikit_learn_and_numpy():
    both = sets(num_views=3)
    result = retrieve([both])
    gallery, queries = (x.views_nvd.numpy().astype(np.float64).mean(1) for x in (both.train, both.test))
    gallery, queries = gallery - gallery.mean(0), queries - queries.mean(0)
    near = NearestNeighbors(metric="cosine", algorithm="brute").fit(gallery).kneighbors(queries, 50)[1]
    is_right = both.train.labels.numpy()[near] == both.test.labels.numpy()[:, None]
    expected = {str(k): is_right[:, :k].any(1).mean() for k in (1, 5, 10, 20, 50)}
    assert result.details["recall"] == pytest.approx(expected, abs=1e-15)
    assert 0.3 < expected["1"] < expected["5"] < 1
    assert (result.top1, result.top5) == (result.details["recall"]["1"], result.details["recall"]["5"])
    by_class = [is_right[both.test.labels.numpy() == c, 0].mean() for c in range(NUM_CLASSES)]
    assert result.mean_class == pytest.approx(np.mean(by_class), abs=1e-15)


def test_retrieval__centres_each_set_by_its_own_mean():
    both = sets()
    moved = both.test.views_nvd + 50
    result = retrieve([both])
    assert retrieve([replace(both, test=Features(moved, *_rest(both.test)))]).details == result.details
    assert centred_unit(torch.ones(1, 3)).norm() == pytest.approx(1)


def _rest(part):
    return part.labels, part.unreadable, part.videos, part.groups, part.views


def test_linear__several_views_average_probabilities():
    both = sets(num_views=3)
    probe = train_on(both.train, NUM_CLASSES, seed=4)
    logits = np.stack([probe.scores(both.test.views_nvd[:, v]).numpy() for v in range(3)])
    expected = softmax(logits.astype(np.float64), axis=2).mean(0)
    np.testing.assert_allclose(class_scores(probe, both.test.views_nvd).exp().numpy() / 3, expected, atol=1e-6)
    result = linear(both, seed=4)
    assert result.top1 == pytest.approx(np.mean(expected.argmax(1) == both.test.labels.numpy()), abs=1e-15)
    one = linear(EmbeddedSplit(_centre(both.train), _centre(both.test), NUM_CLASSES), seed=4)
    assert result.top1 > one.top1  # three looks say more than one


def _centre(part):
    return Features(part.views_nvd[:, :1], *_rest(part))


def test_linear_sweep__never_sees_the_test_set_and_holds_groups_out():
    both = sets()
    lrs = {"lrs": (1e-4, 0.03), "weight_decays": (0.0, 1e-3)}
    result = linear_sweep(both, **lrs)
    assert (result.details["lr"], result.details["held_out_by"], result.details["num_held_out"]) == (0.03, "group", 24)
    shuffled = Features(both.test.views_nvd.flip(0), *_rest(both.test))
    other = linear_sweep(EmbeddedSplit(both.train, shuffled, NUM_CLASSES), **lrs)
    assert {k: other.details[k] for k in ("lr", "weight_decay", "held_out_top1")} == {
        k: result.details[k] for k in ("lr", "weight_decay", "held_out_top1")
    }
    assert other.top1 < result.top1


def test_held_out_part__of_ungrouped_clips_is_a_fifth_of_every_class():
    labels = torch.arange(NUM_CLASSES).repeat_interleave(10)
    is_held, by = held_out_part(labels, [None] * 60, share=0.2, seed=0, advice="")
    assert by == "video" and labels[is_held].bincount().tolist() == [2] * NUM_CLASSES
    groups = [f"g{i % 10}" for i in range(60)]
    is_held, by = held_out_part(labels, groups, share=0.2, seed=0, advice="")
    held, kept = ({g for g, h in zip(groups, is_held.tolist(), strict=True) if h is side} for side in (True, False))
    assert by == "group" and len(held) == 2 and not held & kept
    is_held, by = held_out_part(labels, [None, *groups[1:]], share=0.2, seed=0, advice="")
    held, kept = (
        {g for g, h in zip(groups[1:], is_held[1:].tolist(), strict=True) if h is side} for side in (True, False)
    )
    assert by == "group" and not held & kept, "one clip without a group must not split the others"
    with pytest.raises(UserError, match="2 training clips are too few to hold out 20 % of them: remove it"):
        held_out_part(torch.tensor([0, 1]), [None, None], share=0.2, seed=0, advice="remove it")


@pytest.mark.parametrize(("text", "each"), [("1%", 1), ("10%", 3), ("25%", 8), ("4", 4), ("99", 30), ("100%", 30)])
def test_shots__are_drawn_from_every_class(text, each):
    labels = torch.arange(3).repeat_interleave(30)
    drawn = Shots.parse(text).draw(labels, seed=1)
    assert labels[drawn].bincount().tolist() == [each] * 3 and len(drawn.unique()) == len(drawn)
    assert str(Shots.parse(text)) == text
    assert torch.equal(drawn, Shots.parse(text).draw(labels, seed=1))


@pytest.mark.parametrize("text", ["0", "0%", "101%", "x", "-1", "1.5", ""])
def test_shots__other_texts_are_one_sentence(text):
    with pytest.raises(UserError, match="neither a share nor a number"):
        Shots.parse(text)


def test_low_shot__is_the_mean_of_its_draws_and_all_labels_are_linear():
    both = sets(with_groups=False)
    result = low_shot(both, Shots(number=2), num_draws=3, seed=5)
    draws = [low_shot(both, Shots(number=2), num_draws=1, seed=seed).top1 for seed in (5, 6, 7)]
    assert result.details["draws"] == draws and len(set(draws)) > 1
    assert result.top1 == pytest.approx(np.mean(draws), abs=1e-12)
    assert result.details["sd"] == pytest.approx(np.std(draws, ddof=1), abs=1e-12)
    assert result.details["num_labelled"] == 2 * NUM_CLASSES and result.protocol == "lowshot-2"
    whole = low_shot(both, Shots(share=1.0), num_draws=1, seed=0)
    assert whole.top1 == linear(both, seed=0).top1 > result.top1


def naive_draw(labels, shots, seed):
    """Of every class, in order, the first clips of a shuffled list of its own."""
    generator, drawn = torch.Generator().manual_seed(seed), []
    for label in sorted(set(labels)):
        clips = [i for i, other in enumerate(labels) if other == label]
        wanted = int(shots) if "%" not in shots else max(1, round(float(shots[:-1]) / 100 * len(clips)))
        drawn += [clips[i] for i in torch.randperm(len(clips), generator=generator).tolist()[:wanted]]
    return sorted(drawn)


def naive_layer(rows, labels, num_classes, seed):
    """The head of linear_probe.py line by line in numpy: [N, D] rows to a function from rows to logits."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    mean, std = unit.mean(0), np.sqrt(unit.var(0, ddof=1) + 1e-5)
    inputs, targets = (unit - mean) / std, np.eye(num_classes)[labels]
    weight = np.zeros((num_classes, rows.shape[1] + 1))  # the bias is the last column
    speed, inputs = np.zeros_like(weight), np.hstack([inputs, np.ones((len(inputs), 1))])
    size = min(256, max(8, len(rows) // 32))
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(40):
        lr = 0.01 if epoch < 15 else 0.001 if epoch < 30 else 0.0001
        order = torch.randperm(len(rows), generator=generator).numpy()
        for start in range(0, len(rows), size):
            batch = order[start : start + size]
            gradient = (softmax(inputs[batch] @ weight.T, axis=1) - targets[batch]).T @ inputs[batch] / len(batch)
            speed = 0.9 * speed + gradient + 1e-4 * weight
            weight -= lr * speed

    def logits(others):
        scaled = (others / np.linalg.norm(others, axis=-1, keepdims=True) - mean) / std
        return scaled @ weight[:, :-1].T + weight[:, -1]

    return logits


@pytest.mark.parametrize(("shots", "num_views"), [("1%", 1), ("10%", 1), ("3", 2)])
def test_low_shot__equals_a_naive_implementation_of_its_definition(shots, num_views):
    """Classes of unequal size and overlapping clips: per clip, the share of draws in which it is right."""
    both = sets(num_train=310, num_test=97, num_views=num_views, distance=0.4, with_groups=False)
    few = [i for i in range(310) if int(both.train.labels[i]) != 4 or i % 4 == 0]  # class 4 has half of its clips
    train = both.train.select(few)
    train, test = (replace(part, views_nvd=part.views_nvd.double()) for part in (train, both.test))
    result = low_shot(replace(both, train=train, test=test), Shots.parse(shots), num_draws=3, seed=7)

    labels, right = test.labels.numpy(), {"top1": [], "top5": []}
    recalls = []
    for seed in (7, 8, 9):
        drawn = naive_draw(train.labels.tolist(), shots, seed)
        rows = train.views_nvd.numpy()[drawn].reshape(-1, 12)
        layer = naive_layer(rows, np.repeat(train.labels.numpy()[drawn], num_views), NUM_CLASSES, seed)
        shares = softmax(layer(test.views_nvd.numpy()), axis=2).mean(1)
        ranked = np.argsort(-shares, axis=1)
        right["top1"].append(ranked[:, 0] == labels)
        right["top5"].append((ranked[:, :5] == labels[:, None]).any(1))
        recalls.append(balanced_accuracy_score(labels, ranked[:, 0]))
    for name, draws in right.items():
        assert result.outcome.hits[name].tolist() == np.mean(draws, axis=0).tolist()
    assert result.details["draws"] == np.mean(right["top1"], axis=1).tolist()
    assert result.details["num_labelled"] == len(drawn)
    assert (result.top1, result.top5) == pytest.approx((np.mean(right["top1"]), np.mean(right["top5"])), abs=1e-15)
    assert result.mean_class == pytest.approx(np.mean(recalls), abs=1e-15)
    assert 0.2 < result.top1 < 0.95


def test_classify__equals_a_naive_loop_over_videos_views_and_classes():
    """A layer with classes that no training clip shows: they are never the answer, and take no probability."""
    both = sets(num_test=300, num_views=3)
    kept = (both.train.labels != 1).nonzero()[:, 0].tolist()
    both = replace(both, train=both.train.select(kept))
    generator = torch.Generator().manual_seed(5)
    layer = Classifier(torch.randn(NUM_CLASSES, 12, generator=generator), torch.randn(NUM_CLASSES, generator=generator))
    result = classify(both, layer, details={"epochs": 3})

    allowed = [c for c in range(NUM_CLASSES) if c != 1]
    right, near, by_class = [], [], {}
    for views, label in zip(both.test.views_nvd.double().tolist(), both.test.labels.tolist(), strict=True):
        total = dict.fromkeys(allowed, 0.0)
        for view in views:
            powers = {
                c: math.exp(
                    sum(w * x for w, x in zip(layer.weight[c].tolist(), view, strict=True)) + float(layer.bias[c])
                )
                for c in allowed
            }
            for c in allowed:
                total[c] += powers[c] / sum(powers.values()) / len(views)
        ranked = sorted(allowed, key=lambda c: -total[c])
        right.append(float(ranked[0] == label))
        near.append(float(label in ranked[:5]))
        by_class.setdefault(label, []).append(right[-1])
    assert result.outcome.hits["top1"].tolist() == right and result.outcome.hits["top5"].tolist() == near
    assert (result.top1, result.top5) == pytest.approx((np.mean(right), np.mean(near)), abs=1e-15)
    assert result.mean_class == pytest.approx(np.mean([np.mean(each) for each in by_class.values()]), abs=1e-15)
    assert by_class[1] == [0.0] * len(by_class[1]) and 0.1 < result.top1 < 0.9
    assert result.details["classes_without_training_clips"] == [1] and result.details["epochs"] == 3
    with pytest.raises(UserError, match="classifier has 5 classes, but the dataset has 6"):
        classify(both, Classifier(layer.weight[:5], layer.bias[:5]), details={})


def test_low_shot_and_sweep__without_a_description_print_nothing(capsys):
    low_shot(sets(), Shots(number=1), num_draws=2, seed=0)
    linear_sweep(sets(), lrs=(0.1,), weight_decays=(0.0,))
    assert capsys.readouterr().out == ""
    low_shot(replace(sets(), description="a student"), Shots(number=1), num_draws=2, seed=0)
    assert "a student, lowshot-1" in capsys.readouterr().out


def test_low_shot__a_class_without_training_clips_is_counted_wrong():
    both = sets(with_groups=False)
    kept = (both.train.labels != 2).nonzero()[:, 0].tolist()
    result = low_shot(
        EmbeddedSplit(both.train.select(kept), both.test, NUM_CLASSES), Shots(number=1), num_draws=1, seed=0
    )
    assert result.details["classes_without_training_clips"] == [2]
    assert not result.outcome.hits["top1"][both.test.labels == 2].any()
    assert not result.outcome.hits["top5"][both.test.labels == 2].any()
    fewer = EmbeddedSplit(both.train.select(kept), both.test, NUM_CLASSES)
    fused = {result.protocol: result for result in fuse([fewer, fewer], ProtocolSettings(ks=(1,)))}["fusion-linear"]
    assert not fused.outcome.hits["top5"][both.test.labels == 2].any()


def unit(rows):
    rows = rows.numpy().astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_fusion__sums_similarities_and_averages_probabilities():
    a, b = sets(seed=0), sets(seed=10, dim=7)
    found = {result.protocol: result for result in fuse([a, b], ProtocolSettings(ks=(1, 5)))}
    assert list(found) == ["fusion-1-nn", "fusion-5-nn", "fusion-linear", "fusion-retrieval"]
    train, test = (np.hstack([unit(x.features) for x in side]) for side in ((a.train, b.train), (a.test, b.test)))
    labels, right = a.train.labels.numpy(), a.test.labels.numpy()
    nearest = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(train, labels)
    assert found["fusion-1-nn"].top1 == pytest.approx(nearest.score(test, right), abs=1e-15)
    logits = [train_on(x.train, NUM_CLASSES, seed=0).scores(x.test.features).numpy().astype(np.float64) for x in (a, b)]
    probabilities = sum(softmax(each, axis=1) for each in logits) / 2
    expected = top_k_accuracy_score(right, probabilities, k=1)
    assert found["fusion-linear"].top1 == pytest.approx(expected, abs=1e-15)
    sums = sum(centred_unit(x.test.features) @ centred_unit(x.train.features).T for x in (a, b)).numpy()
    is_right = labels[(-sums).argsort(1, kind="stable")] == right[:, None]
    recall = {str(k): is_right[:, :k].any(1).mean() for k in (1, 5, 10, 20, 50)}
    assert found["fusion-retrieval"].details["recall"] == pytest.approx(recall, abs=1e-15)
    assert found["fusion-linear"].top1 > max(linear(x, seed=0).top1 for x in (a, b))


def test_common_videos__excludes_videos_that_one_student_could_not_read():
    a, b = sets(seed=0), sets(seed=10)
    lacking = EmbeddedSplit(b.train, b.test.select(range(1, 90)), NUM_CLASSES)
    lacking.test.unreadable["data/v0"] = "cut short"
    both = common_videos([a, lacking])
    assert all(each.test.videos == tuple(f"v{i}" for i in range(1, 90)) for each in both)
    assert both[0].test.unreadable == {"data/v0": "cut short"} and both[0].test.coverage == 89 / 90
    assert torch.equal(both[0].test.views_nvd, a.test.views_nvd[1:])


def test_agreement__of_a_space_with_its_rotation_is_1():
    part = features(40, seed=3)
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0)))[0]
    turned = Features(part.views_nvd @ rotation * 5, *_rest(part))
    names = [f"class {c}" for c in range(NUM_CLASSES)]
    options = {"classes": names, "settings": ProtocolSettings(num_bootstrap_draws=100)}
    same = compare_students(("a", "b"), part, turned, **options)
    assert same.overlap == 1 and same.cka == pytest.approx(1) and same.overlap_interval == (1, 1)
    other = compare_students(("a", "b"), part, features(40, seed=4, distance=0), **options)
    low, high = other.overlap_interval
    assert low < other.overlap < high and other.overlap == pytest.approx(other.chance_overlap, abs=0.1)
    assert set(other.overlap_by_class) == set(names)
