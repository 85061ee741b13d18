"""Robustness, order, calibration, missing modality, multi-label and CSV tables against independent implementations."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support
from test_evaluate_command import error_of, evaluate, learned_from, make_encoder, numbers
from test_evaluation_protocols import NUM_CLASSES, features, linear, sets

from crossdistill.data.held_out import held_out_part
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import save_student
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.evaluation import feature_store
from crossdistill.evaluation.evaluations import evaluation_of_split, mean_of_splits
from crossdistill.evaluation.linear_probe import train_on
from crossdistill.evaluation.perturbations import FAMILIES, Perturbation
from crossdistill.evaluation.protocols import ProtocolSettings
from crossdistill.evaluation.protocols.calibration import (
    evaluate_calibration,
    expected_calibration_error,
    fit_temperature,
    probabilities,
    reliability_bins,
)
from crossdistill.evaluation.protocols.frozen_classifier import FrozenClassifier
from crossdistill.evaluation.protocols.fusion import fuse
from crossdistill.evaluation.protocols.missing_modality import fuse_without_each
from crossdistill.evaluation.protocols.multi_label import (
    average_precisions,
    evaluate_multi_label,
    multi_label_scores,
    read_label_sets,
    train_multi_label_probe,
)
from crossdistill.evaluation.protocols.order import find_pairs, measure_order, prefers, read_pairs
from crossdistill.evaluation.protocols.robustness import measure_robustness
from crossdistill.utils.files import write_text_atomically

SETTINGS = ProtocolSettings(num_bootstrap_draws=40)


class SomeDataset:
    dataset = "made"


def noisy(part, amount, *, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return replace(part, views_nvd=part.views_nvd + amount * torch.randn(part.views_nvd.shape, generator=generator))


def evaluated(both, results, split="1"):
    return evaluation_of_split("net", SomeDataset, split, both, results, SETTINGS)


# Robustness


def test_robustness__equals_a_naive_twin_for_all_families_and_severities():
    both = sets()
    perturbed = {
        Perturbation(name, severity): noisy(both.test, severity * amount, seed=severity)
        for name, amount in (("jpeg", 0.4), ("freeze", 0.9))
        for severity in (1, 3)
    }
    classifier = FrozenClassifier.of(both, None, seed=2)
    result = measure_robustness(both, perturbed, classifier, left_out={"h264": "because"})
    layer = train_on(both.train, NUM_CLASSES, seed=2)
    labels = both.test.labels.numpy()

    def accuracy(part):
        return np.mean(layer.scores(part.features).numpy().argmax(1) == labels)

    clean = accuracy(both.test)
    means = []
    for name in ("jpeg", "freeze"):
        own = [accuracy(perturbed[Perturbation(name, severity)]) for severity in (1, 3)]
        found = result.details["families"][name]
        assert found["top1"] == pytest.approx({"1": own[0], "3": own[1]}, abs=1e-15)
        assert found["mean_top1"] == pytest.approx(np.mean(own), abs=1e-15)
        assert found["absolute_robustness"] == pytest.approx(1 - (clean - np.mean(own)), abs=1e-15)
        assert found["relative_robustness"] == pytest.approx(1 - (clean - np.mean(own)) / clean, abs=1e-15)
        means.append(np.mean(own))
    assert 0.2 < means[1] < means[0] < clean
    assert result.top1 == pytest.approx(np.mean(means), abs=1e-15) and result.details["clean_top1"] == clean
    assert result.details["relative_robustness"] == pytest.approx(1 - (clean - np.mean(means)) / clean, abs=1e-15)
    assert result.details["left_out"] == {"h264": "because"} and result.details["classifier"] == "probe"
    shown = evaluated(both, [result]).results["robustness"]
    low, high = shown.intervals["freeze-3"]
    assert low < result.details["families"]["freeze"]["top1"]["3"] < high
    assert set(shown.intervals) >= {"jpeg", "jpeg-1", "jpeg-3", "freeze", "top1", "mean_class"} and shown.hits == ""


def test_robustness__of_a_useless_classifier_has_no_relative_robustness():
    both = sets()
    never = FrozenClassifier(lambda views: torch.full((len(views), NUM_CLASSES), -torch.inf), "probe")
    result = measure_robustness(both, {Perturbation("jpeg", 1): both.test}, never, left_out={})
    assert result.details["relative_robustness"] is None and result.details["absolute_robustness"] == 1
    assert json.loads(json.dumps(result.to_json()))["details"]["families"]["jpeg"]["relative_robustness"] is None


def test_robustness__counts_the_videos_that_could_always_be_read():
    both = sets()
    lacking = noisy(both.test, 0.5).select(range(10, 90))
    classifier = FrozenClassifier.of(both, None, seed=0)
    result = measure_robustness(both, {Perturbation("jpeg", 1): lacking}, classifier, left_out={})
    assert result.num_test == 80
    alone = replace(both, test=both.test.select(range(10, 90)))
    assert result.details["clean_top1"] == linear(alone, seed=0).top1
    shown = evaluated(both, [result])
    assert shown.num_test == 90 and shown.results["robustness"].num_test == 80


def test_frozen_classifier__is_the_own_layer_of_a_supervised_student():
    both, generator = sets(num_views=2), torch.Generator().manual_seed(3)
    own = Classifier(torch.randn(NUM_CLASSES, 12, generator=generator), torch.randn(NUM_CLASSES, generator=generator))
    scores = FrozenClassifier.of(both, own, seed=0).scores(both.test.views_nvd)
    logits = np.einsum("nvd,cd->nvc", both.test.views_nvd.numpy(), own.weight.numpy()) + own.bias.numpy()
    np.testing.assert_allclose(softmax(scores.numpy(), 1), softmax(logits, 2).mean(1), atol=1e-5)
    with pytest.raises(UserError, match="own classifier has 5 classes, but the dataset has 6: choose --classifier pr"):
        FrozenClassifier.of(both, Classifier(own.weight[:5], own.bias[:5]), seed=0)


def test_mean_of_splits__averages_robustness_and_order():
    one, two = sets(), sets(seed=20)
    evaluations = {}
    for split, both in (("1", one), ("2", two)):
        classifier = FrozenClassifier.of(both, None, seed=0)
        perturbed = {Perturbation("jpeg", s): noisy(both.test, s) for s in (1, 2)}
        changed = {"shuffled": noisy(both.test, 2.0), "reversed": noisy(both.test, 1.0)}
        order = measure_order(both, changed, classifier, pairs=[(0, 3)], classes=list("abcdef"))
        robustness = measure_robustness(both, perturbed, classifier, left_out={})
        calibration = evaluate_calibration(both, SETTINGS)
        evaluations[split] = evaluated(both, [robustness, *order, *calibration], split)
    mean = mean_of_splits(evaluations, SETTINGS)
    details = [each.results["robustness"].details for each in evaluations.values()]
    found = mean.results["robustness"].details
    expected = np.mean([each["families"]["jpeg"]["top1"]["2"] for each in details])
    assert found["families"]["jpeg"]["top1"]["2"] == pytest.approx(expected, abs=1e-15)
    expected = np.mean([each["relative_robustness"] for each in details])
    assert found["relative_robustness"] == pytest.approx(expected, abs=1e-15)
    assert mean.results["order-pairs"].num_test == 60  # two classes of 15 clips in each split
    low, high = mean.results["order-pairs"].intervals["top1"]
    assert low <= mean.results["order-pairs"].top1 <= high
    drops = [each.results["order-shuffled"].details["drop"] for each in evaluations.values()]
    assert mean.results["order-shuffled"].details["drop"] == pytest.approx(np.mean(drops), abs=1e-15)
    assert {"ece", "ece_scaled"} <= set(mean.results["calibration"].details)
    assert "bins" not in mean.results["calibration"].details
    low, high = mean.results["calibration"].intervals["ece_scaled"]
    assert 0 <= low < high


# Order


def test_order__equals_a_naive_twin():
    both, names = sets(distance=0.4), ["SlideLeft", "SlideRight", "Bounce", "open", "close", "Shake"]
    pairs = find_pairs(names)
    assert pairs == [(0, 1), (3, 4)]
    changed = {"shuffled": noisy(both.test, 1.0), "reversed": noisy(both.test, 0.7, seed=6)}
    results = {r.protocol: r for r in measure_order(both, changed, FrozenClassifier.of(both, None, seed=1), pairs=pairs,
                                                    classes=names)}  # fmt: skip
    layer = train_on(both.train, NUM_CLASSES, seed=1)
    partner, labels = {0: 1, 1: 0, 3: 4, 4: 3}, both.test.labels.tolist()
    clean, shuffled, turned = (
        layer.scores(part.features).numpy() for part in (both.test, changed["shuffled"], changed["reversed"])
    )
    clips = [i for i, label in enumerate(labels) if label in partner]
    right = [clean[i, labels[i]] > clean[i, partner[labels[i]]] for i in clips]
    other = [turned[i, partner[labels[i]]] > turned[i, labels[i]] for i in clips]
    found = results["order-pairs"]
    assert found.top1 == pytest.approx(np.mean(right), abs=1e-15) and found.num_test == len(clips) == 60
    assert found.details["partner_when_reversed"] == pytest.approx(np.mean(other), abs=1e-15)
    for row, pair in zip(found.details["pairs"], pairs, strict=True):
        own = [k for k, i in enumerate(clips) if labels[i] in pair]
        assert row["classes"] == [names[label] for label in pair] and row["num_test"] == len(own) == 30
        assert row["top1"] == pytest.approx(np.mean([right[k] for k in own]), abs=1e-15)
        assert row["partner_when_reversed"] == pytest.approx(np.mean([other[k] for k in own]), abs=1e-15)
    assert 0.5 < found.top1 < 1
    expected = np.mean(shuffled.argmax(1) == labels)
    assert results["order-shuffled"].top1 == pytest.approx(expected, abs=1e-15)
    drop = np.mean(clean.argmax(1) == labels) - expected
    assert results["order-shuffled"].details["drop"] == pytest.approx(drop, abs=1e-15) and drop > 0.05
    shown = evaluated(both, list(results.values()))
    assert shown.results["order-pairs"].hits == "" and len(shown.results["order-shuffled"].hits) == 90


def test_order__of_clips_without_order_has_pairs_alone():
    both = sets()
    (result,) = measure_order(both, {}, FrozenClassifier.of(both, None, seed=0), pairs=[(1, 2)], classes=list("abcdef"))
    assert result.protocol == "order-pairs" and "partner_when_reversed" not in result.details
    assert set(result.details["pairs"][0]) == {"classes", "num_test", "top1"}
    assert measure_order(both, {}, FrozenClassifier.of(both, None, seed=0), pairs=[], classes=list("abcdef")) == []


def test_prefers__gives_equal_scores_to_the_lower_class():
    scores = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-torch.inf, -torch.inf], [0.0, 2.0]])
    first, second = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 1, 0])
    assert prefers(scores, first, second).tolist() == [1, 0, 0, 1]


def test_find_pairs__reads_names_word_by_word(toy_folder):
    classes = Manifest.load(toy_folder).classes
    found = [{classes[a], classes[b]} for a, b in find_pairs(classes)]
    assert {"SpinClockwise", "SpinAnticlockwise"} in found and {"Approach", "Recede"} in found and len(found) == 5
    names = ["Pushing something from left to right", "Pulling something from right to left", "Pushing left", "leftover"]
    assert find_pairs(names) == [(0, 1)]
    assert find_pairs(["open_door", "close_door", "open_box", "closeDoor", "Stand up", "sit down"]) == [(0, 1), (4, 5)]


def test_read_pairs__from_options_and_from_a_file(tmp_path):
    classes = ["a b", "c", "d", "e"]
    assert read_pairs(["a b:d", "c:e"], classes) == [(0, 2), (1, 3)]
    path = tmp_path / "pairs.txt"
    path.write_text("a b : c\n\nd:e\n")
    assert read_pairs([str(path)], classes) == [(0, 1), (2, 3)]
    for given, said in (
        (["a b:x"], "x"),
        (["c:c"], "'c:c' is no pair of two classes: write for example Open:Close"),
        (["c:d", "d:e"], "names d twice: a class is in one pair"),
        (["c:d:e"], "is no pair"),
        ([str(tmp_path / "absent")], "absent is neither a pair such as Open:Close nor a file of pairs"),
    ):
        with pytest.raises(UserError, match=said):
            read_pairs(given, classes)


# Calibration


def test_calibration_error__equals_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    from torchmetrics.functional.classification.calibration_error import _ce_compute

    generator = torch.Generator().manual_seed(0)
    for sharpness in (0.3, 2.0, 8.0, 60.0):
        scores = (sharpness * torch.randn(500, 7, generator=generator, dtype=torch.float64)).softmax(1)
        labels = torch.randint(0, 7, (500,), generator=generator)
        theirs = metrics.multiclass_calibration_error(scores, labels, num_classes=7, n_bins=15, norm="l1")
        ours = expected_calibration_error(reliability_bins(scores, labels))
        assert ours == pytest.approx(theirs.item(), abs=2e-7)  # float32 there
        confidence, best = scores.max(1)
        assert ours == pytest.approx(_ce_compute(confidence, best == labels, 15).item(), abs=1e-14)


def test_reliability_bins__equal_a_naive_twin():
    scores = torch.tensor([[0.6, 0.4], [0.4, 0.6], [1.0, 0.0], [0.55, 0.45], [0.2, 0.8]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1])
    bins = reliability_bins(scores, labels)
    assert len(bins) == 15 and sum(each["num"] for each in bins) == 5
    for i, each in enumerate(bins):
        best = scores.max(1).values.tolist()
        own = [k for k, c in enumerate(best) if i / 15 <= c < (i + 1) / 15 or (c == 1 and i == 14)]
        assert each["num"] == len(own)
        if own:
            assert each["confidence"] == pytest.approx(np.mean([best[k] for k in own]), abs=1e-15)
            assert each["accuracy"] == np.mean([int(scores[k].argmax() == labels[k]) for k in own])


def test_calibration__fits_the_temperature_on_clips_that_the_layer_has_not_seen():
    both = sets(num_views=2, distance=0.5)
    (result,) = evaluate_calibration(both, ProtocolSettings(seed=3))
    is_held, by = held_out_part(both.train.labels, both.train.groups, share=0.2, seed=3, advice="")
    held, kept = (both.train.select(mask.nonzero()[:, 0].tolist()) for mask in (is_held, ~is_held))
    layer = train_on(kept, NUM_CLASSES, seed=3)

    def mean_probabilities(part, temperature):
        views = [layer.scores(part.views_nvd[:, v]).numpy().astype(np.float64) for v in range(2)]
        return np.mean([softmax(view / temperature, axis=1) for view in views], axis=0)

    def loss(part, temperature):
        return -np.mean(np.log(mean_probabilities(part, temperature)[np.arange(part.num_clips), part.labels]))

    grid = np.exp(np.linspace(np.log(0.2), np.log(8), 3000))
    best = grid[np.argmin([loss(held, temperature) for temperature in grid])]
    details = result.details
    assert details["temperature"] == pytest.approx(best, rel=2e-3) and not details["at_edge"]
    assert (details["held_out_by"], details["num_held_out"]) == (by, held.num_clips)
    assert details["nll"] == pytest.approx(loss(both.test, 1), abs=1e-6)
    assert details["nll_scaled"] == pytest.approx(loss(both.test, details["temperature"]), abs=1e-6)
    for suffix, temperature in (("", 1.0), ("_scaled", details["temperature"])):
        found = mean_probabilities(both.test, temperature)
        hits, confidence = found.argmax(1) == both.test.labels.numpy(), found.max(1)
        bins = np.minimum((confidence * 15).astype(int), 14)
        own = [bins == i for i in range(15) if (bins == i).any()]
        naive = sum(one.sum() * abs(hits[one].mean() - confidence[one].mean()) for one in own) / len(bins)
        assert details[f"ece{suffix}"] == pytest.approx(naive, abs=1e-6)
    assert result.top1 == np.mean(mean_probabilities(both.test, 1).argmax(1) == both.test.labels.numpy())
    intervals = evaluated(both, [result]).results["calibration"].intervals
    assert {"ece", "ece_scaled"} <= set(intervals) and intervals["ece"] != intervals["ece_scaled"]


def test_fit_temperature__of_logits_that_were_scaled_undoes_it():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 1, 5, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits[:, 0].softmax(1), 1, generator=generator)[:, 0]
    once = fit_temperature(logits, labels)
    assert once == pytest.approx(1, abs=0.1)
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * once, rel=1e-5)
    torch.testing.assert_close(probabilities(3 * logits, 3.0), logits[:, 0].softmax(1))


# Missing modality


def test_missing_modality__is_the_fusion_of_the_others():
    a, b, c = sets(seed=0), sets(seed=10, dim=7), sets(seed=30, dim=9)
    results = {r.protocol: r for r in fuse_without_each([a, b, c], ["rgb", "flow", "flow"], ProtocolSettings(ks=(1,)))}
    whole, names = {r.protocol: r for r in fuse([a, b, c], ProtocolSettings(ks=(1,)))}, ["1-nn", "linear", "retrieval"]
    assert list(results) == [f"fusion-{n}{w}" for w in ("", "-without-rgb", "-without-flow") for n in names]
    for name in names:
        assert results[f"fusion-{name}"].top1 == whole[f"fusion-{name}"].top1
        for left_out, rest in (("rgb", [b, c]), ("flow", [a])):
            (alone,) = (r for r in fuse(rest, ProtocolSettings(ks=(1,))) if r.protocol == f"fusion-{name}")
            found = results[f"fusion-{name}-without-{left_out}"]
            assert found.top1 == alone.top1 and found.details["left_out"] == left_out
            assert found.details["drop_from_fusion"] == whole[f"fusion-{name}"].top1 - alone.top1
    assert results["fusion-linear-without-flow"].top1 == linear(a, seed=0).top1
    with pytest.raises(UserError, match="leaves out one modality after the other, and all students see rgb: name stud"):
        fuse_without_each([a, b], ["rgb", "rgb"], ProtocolSettings())


# Several classes a video


def label_sets(part, *, seed):
    """A video's own class and, of a third of the videos, another."""
    generator = np.random.default_rng(seed)
    sets_of = {}
    for video, label in zip(part.videos, part.labels.tolist(), strict=True):
        more = [f"c{generator.integers(NUM_CLASSES)}"] if generator.random() < 0.3 else []
        sets_of[video] = sorted({f"c{label}", *more})
    return sets_of


def renamed(part, prefix):
    return replace(part, videos=tuple(f"{prefix}{name}" for name in part.videos))


@pytest.mark.parametrize("num_views", [1, 2])
def test_multi_label__equals_scikit_learn_and_a_naive_training(tmp_path, num_views):
    both = sets(num_views=num_views)
    both = replace(both, train=renamed(both.train, "train-"), test=renamed(both.test, "test-"))
    named = {**label_sets(both.train, seed=0), **label_sets(both.test, seed=1)}
    named["test-v3"] = []
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(named))
    (result,) = evaluate_multi_label(both, ProtocolSettings(label_sets=path, seed=2))
    classes = [f"c{i}" for i in range(NUM_CLASSES)]
    targets = np.array([[c in named[v] for c in classes] for v in both.train.videos], dtype=np.float64)
    weight, bias = _naive_sigmoids(both.train.views_nvd.flatten(0, 1).double().numpy(), targets.repeat(num_views, 0), 2)
    rows = [i for i, video in enumerate(both.test.videos) if named[video]]
    views = [_standard(both, both.test.views_nvd[rows, v].double().numpy()) @ weight + bias for v in range(num_views)]
    scores = views[0] if num_views == 1 else np.mean([1 / (1 + np.exp(-view)) for view in views], axis=0)
    truth = np.array([[c in named[both.test.videos[i]] for c in classes] for i in rows])
    theirs = [average_precision_score(truth[:, c], scores[:, c]) for c in range(NUM_CLASSES)]
    found = result.details
    assert list(found["average_precision"]) == classes
    assert list(found["average_precision"].values()) == pytest.approx(theirs, abs=2e-3)  # float32 there
    assert found["mean_average_precision"] == pytest.approx(
        np.mean(list(found["average_precision"].values())), abs=1e-15
    )
    assert (found["num_classes"], found["num_without_classes"], result.num_test) == (6, 1, 89)
    best = [truth[k, scores[k].argmax()] for k in range(len(rows))]
    assert result.top1 == pytest.approx(np.mean(best), abs=0.012)
    assert 0.4 < found["mean_average_precision"] < 1
    intervals = evaluated(both, [result]).results["multi-label"].intervals
    low, high = intervals["top1"]
    assert low < result.top1 < high
    groups = [both.test.groups[i] for i in rows]
    means = []
    for drawn in np.random.default_rng(0).integers(5, size=(40, 5)):
        own = [i for k in drawn for i, group in enumerate(groups) if group == f"g{k}"]
        means.append(np.mean([average_precision_score(truth[own, c], scores[own, c]) for c in range(NUM_CLASSES)]))
    ends = 2 * np.mean(theirs) - np.percentile(means, [97.5, 2.5])
    assert intervals["mean_average_precision"] == pytest.approx(ends, abs=4e-3)


def _standard(both, rows):
    unit = both.train.views_nvd.flatten(0, 1).double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows - unit.mean(0)) / np.sqrt(unit.var(0, ddof=1) + 1e-5)


def _naive_sigmoids(rows, targets, seed):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    inputs = (unit - unit.mean(0)) / np.sqrt(unit.var(0, ddof=1) + 1e-5)
    weight, bias = np.zeros((inputs.shape[1], targets.shape[1])), np.zeros(targets.shape[1])
    velocity = [np.zeros_like(weight), np.zeros_like(bias)]
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(40):
        lr = 0.01 * 0.1 ** ((epoch >= 15) + (epoch >= 30))
        for batch in torch.randperm(len(inputs), generator=generator).split(max(8, len(inputs) // 32)):
            x, y = inputs[batch.numpy()], targets[batch.numpy()]
            slope = (1 / (1 + np.exp(-(x @ weight + bias))) - y) / len(x)
            velocity[0] = 0.9 * velocity[0] + x.T @ slope + 1e-4 * weight
            velocity[1] = 0.9 * velocity[1] + slope.sum(0) + 1e-4 * bias
            weight, bias = weight - lr * velocity[0], bias - lr * velocity[1]
    return weight, bias


def test_average_precision__equals_torchmetrics_and_a_naive_twin():
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(60, 5, generator=generator, dtype=torch.float64)
    scores = (scores * 20).round() / 20  # equal scores
    targets = (torch.rand(60, 5, generator=generator) < 0.3).float()
    targets[:, 4] = 0
    found = average_precisions(scores, targets)
    theirs = metrics.multilabel_average_precision(scores, targets.long(), num_labels=5, average="none")
    assert list(found) == [0, 1, 2, 3]
    for i, value in found.items():
        assert value == pytest.approx(theirs[i].item(), abs=1e-6)
        naive, recall = 0.0, 0.0
        for threshold in sorted(set(scores[:, i].tolist()), reverse=True):
            chosen = scores[:, i] >= threshold
            precision = targets[chosen, i].mean().item()
            now = (targets[chosen, i].sum() / targets[:, i].sum()).item()
            naive, recall = naive + (now - recall) * precision, now
        assert value == pytest.approx(naive, abs=1e-6)


def test_label_sets__files_and_errors(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("v1,run\nv1,jump\nv2,run\n")
    assert read_label_sets(path) == {"v1": {"run", "jump"}, "v2": {"run"}}
    path.write_text("v1,run\nv2\n")
    with pytest.raises(UserError, match=r"labels.csv line 2 has 1 fields: write video,class"):
        read_label_sets(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_label_sets(tmp_path / "absent.csv")
    for text, said in (("{", "is no JSON"), ('{"v": "run"}', "write {"), ("[1]", "write {")):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(UserError, match=said):
            read_label_sets(tmp_path / "labels.json")
    (tmp_path / "labels.json").write_text('{"x": ["run"]}')
    with pytest.raises(UserError, match="names none of the train videos, such as v0: write the names of the manifest"):
        evaluate_multi_label(sets(), ProtocolSettings(label_sets=tmp_path / "labels.json"))


def test_multi_label_probe__repeats_to_the_bit():
    part = features(60, seed=0)
    targets = torch.nn.functional.one_hot(part.labels, NUM_CLASSES).float()
    one, two = (train_multi_label_probe(part, targets, seed=4) for _ in range(2))
    assert torch.equal(multi_label_scores(one, part.views_nvd), multi_label_scores(two, part.views_nvd))
    assert not torch.equal(one.weight_dc, train_multi_label_probe(part, targets, seed=5).weight_dc)


# The command


@pytest.fixture
def student(tmp_path):
    save_student(make_encoder(num_frames=4), tmp_path / "run" / "student", facts={"supervised": False})
    return tmp_path / "run"


@pytest.fixture(scope="module")
def small_folder(toy_folder, tmp_path_factory):
    """Slides to the left and right, and approach and recede."""
    folder = tmp_path_factory.mktemp("pairs") / "toy"
    folder.mkdir()
    for stream in ("rgb", "flow"):
        (folder / stream).symlink_to(toy_folder / stream)
    manifest = Manifest.load(toy_folder)
    wanted = ["SlideLeft", "SlideRight", "Approach", "Recede"]
    number = {manifest.classes.index(name): i for i, name in enumerate(wanted)}
    videos = []
    for video in manifest.videos:
        if video.label in number:
            streams = {name: video.streams[name] for name in ("rgb", "flow")}
            videos.append(replace(video, label=number[video.label], streams=streams))
    replace(manifest, root=folder, classes=tuple(wanted), videos=tuple(videos)).save()
    return folder


def read_csv(path):
    return list(csv.reader(path.read_text().splitlines()))


def test_command__robustness_is_resumed_and_tabulated(student, small_folder, tmp_path, capsys, monkeypatch):
    embedded = []
    extract = feature_store.extract_features

    def counted(encoder, entries, **options):
        embedded.append(str(options["settings"].perturbation))
        if len(embedded) == 6:  # reversal-3, after both parts and three others
            raise KeyboardInterrupt
        return extract(encoder, entries, **options)

    monkeypatch.setattr(feature_store, "extract_features", counted)
    path, folder = tmp_path / "numbers.json", tmp_path / "tables"
    options = ["--data", small_folder, "--protocols", "linear", "robustness", "order", "--families", "jpeg", "reversal",
               "--severities", 1, 3, "--json", path, "--csv", folder, "--bootstrap", 30]  # fmt: skip
    with pytest.raises(SystemExit) as exit_info:
        evaluate(student, *options)
    assert exit_info.value.code == 130 and not path.exists()
    evaluate(student, *options)
    made = ["None", "jpeg-1", "jpeg-3", "reversal-1", "reversal-3", "jumble-5"]
    assert sorted(embedded) == sorted([*made, "None", "reversal-3"]), "finished ones are read, both parts"
    capsys.readouterr()
    evaluate(student, *options)
    assert len(embedded) == len(made) + 2
    values, printed = numbers(path), capsys.readouterr().out
    found = values["results"]["robustness"]
    assert list(found["details"]["families"]) == ["jpeg", "reversal"]
    assert found["details"]["clean_top1"] == values["results"]["linear"]["top1"]
    reverse = found["details"]["families"]["reversal"]["top1"]["1"]
    assert values["results"]["order-reversed"]["top1"] == reverse
    assert "SlideLeft and SlideRight, Approach and Recede" in printed and "severity 3" in printed
    rows = read_csv(folder / "robustness.csv")
    assert rows[0][:4] == ["group", "family", "severity", "top1"] and [row[2] for row in rows[2:5]] == [
        "1",
        "3",
        "mean",
    ]
    assert float(rows[2][3]) == found["details"]["families"]["jpeg"]["top1"]["1"]
    assert [float(x) for x in rows[2][4:6]] == found["intervals"]["jpeg-1"]
    assert float(rows[-1][7]) == found["details"]["relative_robustness"]
    other = tmp_path / "other.json"
    evaluate(student, *options[:-6], "--bootstrap", 30, "--json", other, "--features", tmp_path / "elsewhere")
    assert numbers(other) == values, "another folder, the same clips"


def test_command__csv_tables_equal_scikit_learn(student, small_folder, tmp_path):
    path, folder = tmp_path / "numbers.json", tmp_path / "tables"
    evaluate(student, "--data", small_folder, "--protocols", "knn", "--k", 1, "--csv", folder, "--json", path)
    values, manifest = numbers(path), Manifest.load(small_folder)
    by_name = {video.name: video.label for video in manifest.videos}
    labels = [by_name[name] for name in values["test_videos"]]
    rows = read_csv(folder / "1-nn-confusion.csv")
    assert rows[0] == ["true class", *manifest.classes] and [row[0] for row in rows[1:]] == list(manifest.classes)
    counts = np.array([[int(x) for x in row[1:]] for row in rows[1:]])
    assert counts.sum(1).tolist() == np.bincount(labels, minlength=4).tolist()
    assert counts.trace() == values["results"]["1-nn"]["hits"].count("1")
    true, predicted = (np.repeat(axis, counts.ravel()) for axis in np.indices((4, 4)).reshape(2, -1))
    assert np.array_equal(confusion_matrix(true, predicted, labels=range(4)), counts)
    theirs = precision_recall_fscore_support(true, predicted, labels=range(4), zero_division=0)
    table = read_csv(folder / "1-nn-classes.csv")
    assert table[0] == ["class", "num_test", "num_predicted", "num_right", "recall", "precision", "f1"]
    for i, row in enumerate(table[1:]):
        assert [float(x) for x in (row[5], row[4], row[6], row[1])] == pytest.approx([each[i] for each in theirs])


def test_command__csv_of_students_and_splits_are_in_folders(student, small_folder, tmp_path):
    learned_from(tmp_path / "flow", "1", name="flow_tiny3d_8")
    folder, path = tmp_path / "tables", tmp_path / "n.json"
    evaluate(student, tmp_path / "flow", "--data", small_folder, "--split", 1, 2, "--protocols", "missing-modality",
             "--k", 1, "--csv", folder, "--json", path, "--bootstrap", 0)  # fmt: skip
    files = {str(file.relative_to(folder)) for file in folder.rglob("*.csv")}
    assert {"run/split-1/1-nn-confusion.csv", "flow/split-2/linear-classes.csv"} <= files
    assert "split-2/fusion-linear-without-rgb-confusion.csv" in files
    values = numbers(path)
    for split in "12":
        own = values["splits"][split]["results"]["fusion-linear-without-flow"]
        assert own["top1"] == values["students"][str(student)]["splits"][split]["results"]["linear"]["top1"]
    drops = [values["splits"][s]["results"]["fusion-linear-without-rgb"]["details"]["drop_from_fusion"] for s in "12"]
    found = values["results"]["fusion-linear-without-rgb"]["details"]["drop_from_fusion"]
    assert found == pytest.approx(np.mean(drops), abs=1e-15)


def test_command__multi_label_needs_no_classes_of_the_dataset(student, small_folder, tmp_path, capsys):
    manifest, folder = Manifest.load(small_folder), tmp_path / "unlabelled"
    folder.mkdir()
    (folder / "rgb").symlink_to(small_folder / "rgb")
    streams = [replace(v, label=None, streams={"rgb": v.streams["rgb"]}) for v in manifest.videos]
    replace(manifest, root=folder, classes=(), videos=tuple(streams)).save()
    lines = [f"{video.name},{manifest.classes[video.label]}" for video in manifest.videos]
    lines += [f"{video.name},moves" for video in manifest.videos if video.label < 2]
    write_text_atomically(tmp_path / "labels.csv", "\n".join(lines) + "\n")
    path = tmp_path / "numbers.json"
    options = ["--data", folder, "--protocols", "multi-label", "--json", path]
    assert "--protocols multi-label needs the classes of every video: give --label-sets" in error_of(
        capsys, student, *options
    )
    evaluate(student, *options, "--label-sets", tmp_path / "labels.csv")
    details = numbers(path)["results"]["multi-label"]["details"]
    assert set(details["average_precision"]) == {*manifest.classes, "moves"}
    low, high = numbers(path)["results"]["multi-label"]["intervals"]["mean_average_precision"]
    expected = f"mean average precision {100 * details['mean_average_precision']:.1f} %, 95% interval "
    assert f"{expected}{100 * low:.1f}–{100 * high:.1f}" in capsys.readouterr().out
    more = ["--label-sets", tmp_path / "labels.csv", "--protocols", "multi-label", "knn"]
    assert "has no labels" in error_of(capsys, student, *options, *more)


def test_command__refuses_what_cannot_be_in_one_sentence(student, small_folder, tmp_path, capsys):
    flow = learned_from(tmp_path / "flow", "1", name="flow_tiny3d_8")
    data = ["--data", small_folder, "--protocols"]
    for arguments, said in (
        ([flow, *data, "robustness"], "no family of perturbations makes sense for the flow clips of the student"),
        ([flow, *data, "robustness", "--families", "jpeg"], "--families jpeg cannot perturb the clips of the student"),
        ([student, *data, "robustness", "--families", "jpg"], "unknown family of perturbations"),
        ([student, *data, "robustness", "--severities", "6"], "--severities 6: choose from 1 to 5"),
        ([student, *data, "order", "--class-pairs", "SlideLeft:Slide"], "unknown class in --class-pairs"),
        ([student, *data, "missing-modality"], "compares students, and one was given"),
        ([student, *data, "robustness", "--families", "jpeg", "--classifier", "own"], "has no classifier of its own"),
        ([student, *data, "knn", "--csv", student / "student" / "student.json"], "student.json"),
    ):
        assert said in error_of(capsys, *arguments), said
    evaluate(flow, *data, "order", "--bootstrap", 0, "--json", tmp_path / "n.json")
    assert list(numbers(tmp_path / "n.json")["results"]) == ["order-pairs"]
    assert "order leaves out shuffled and reversed clips: frames of flow" in capsys.readouterr().out


def test_families__have_five_strengths_and_one_function():
    for family in FAMILIES.values():
        assert len(family.strengths) == 5 and (family.pictures is None) != (family.time is None)
