"""The linear protocol against torch.optim.SGD, against scikit-learn, and at chance."""

import json

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from crossdistill.errors import UserError
from crossdistill.evaluation import linear_probe
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.linear_probe import batch_size_for, train_linear_probe
from crossdistill.evaluation.protocols import PROTOCOLS, ProtocolSettings


def evaluate_linear(**tensors):
    (result,) = PROTOCOLS["linear"](EmbeddedSplit.from_tensors(**tensors), ProtocolSettings())
    return result


def gaussian_classes(num: int, *, dim: int, num_classes: int, distance: float, seed: int, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1_000)
    centres = distance * torch.randn(num_classes, dim, generator=generator, dtype=dtype)
    generator.manual_seed(seed)
    labels = torch.randint(0, num_classes, (num,), generator=generator)
    return centres[labels] + torch.randn(num, dim, generator=generator, dtype=dtype) + 0.5, labels


@pytest.mark.parametrize(("num", "batch_size"), [(90, 16), (64, 64)])
def test_train_linear_probe__equals_torch_sgd(num, batch_size):
    """Autograd, torch.optim.SGD and MultiStepLR on the same batches, written as the authors' eval_linear.py."""
    features, labels = gaussian_classes(num, dim=11, num_classes=4, distance=0.5, seed=0, dtype=torch.float64)
    probe = train_linear_probe(features_nd=features, labels_n=labels, num_classes=4, seed=3, batch_size=batch_size)

    unit = features / features.norm(2, dim=1, keepdim=True)
    variance, mean = torch.var_mean(unit, dim=0)
    inputs = (unit - mean) * (1.0 / torch.sqrt(variance + 1e-5))
    layer = torch.nn.Linear(11, 4, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[15, 30])
    generator = torch.Generator().manual_seed(3)
    for _ in range(40):
        order = torch.randperm(num, generator=generator)
        for start in range(0, num, batch_size):
            batch = order[start : start + batch_size]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        scheduler.step()

    assert probe.weight_dc.abs().max() > 0.05
    torch.testing.assert_close(probe.weight_dc, layer.weight.detach().T, rtol=0, atol=1e-12)
    torch.testing.assert_close(probe.bias_c, layer.bias.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(probe.scores(features), layer(inputs).detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("num_clips", "expected"), [(1, 8), (256, 8), (400, 12), (8_191, 255), (8_192, 256), (10**6, 256)]
)
def test_batch_size_for__is_the_papers_from_8192_clips(num_clips, expected):
    assert batch_size_for(num_clips) == expected


def separable(num: int, seed: int):
    return gaussian_classes(num, dim=32, num_classes=6, distance=2.0, seed=seed)


def test_evaluate_linear__separable_classes_as_scikit_learn():
    (train, train_labels), (test, test_labels) = separable(400, 1), separable(300, 2)
    result = evaluate_linear(
        train_features=train, train_labels=train_labels, test_features=test, test_labels=test_labels, num_classes=6
    )
    unit, unit_test = (torch.nn.functional.normalize(x, dim=1) for x in (train, test))
    reference = LogisticRegression(C=100, max_iter=1_000).fit(unit, train_labels).score(unit_test, test_labels)
    assert reference > 0.99
    assert result.top1 == pytest.approx(reference, abs=0.01)
    assert result.top5 >= result.top1
    assert result.details["train_top1"] == 1.0
    assert result.details["batch_size"] == 12


def test_evaluate_linear__overlapping_classes_as_scikit_learn():
    kind = {"dim": 32, "num_classes": 6, "distance": 0.3}
    (train, train_labels), (test, test_labels) = (
        gaussian_classes(3_000, seed=1, **kind),
        gaussian_classes(3_000, seed=2, **kind),
    )
    result = evaluate_linear(
        train_features=train, train_labels=train_labels, test_features=test, test_labels=test_labels, num_classes=6
    )
    unit, unit_test = (torch.nn.functional.normalize(x, dim=1) for x in (train, test))
    reference = LogisticRegression(C=100, max_iter=1_000).fit(unit, train_labels).score(unit_test, test_labels)
    assert 0.5 < reference < 0.9
    assert result.top1 == pytest.approx(reference, abs=0.02)


def test_evaluate_linear__random_labels_give_chance():
    generator = torch.Generator().manual_seed(4)
    result = evaluate_linear(
        train_features=torch.randn(2_000, 16, generator=generator),
        train_labels=torch.randint(0, 10, (2_000,), generator=generator),
        test_features=torch.randn(3_000, 16, generator=generator),
        test_labels=torch.randint(0, 10, (3_000,), generator=generator),
        num_classes=10,
    )
    assert result.top1 == pytest.approx(0.1, abs=0.03)
    assert result.top5 == pytest.approx(0.5, abs=0.05)
    assert result.mean_class == pytest.approx(0.1, abs=0.03)


def test_train_linear_probe__is_deterministic_by_seed():
    features, labels = separable(200, 5)
    first, again, other = (
        train_linear_probe(features_nd=features, labels_n=labels, num_classes=6, seed=seed).weight_dc
        for seed in (7, 7, 8)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_train_linear_probe__leaves_its_input_and_the_global_generator_alone():
    features, labels = separable(50, 6)
    before, state = features.clone(), torch.get_rng_state()
    train_linear_probe(features_nd=features, labels_n=labels, num_classes=6)
    assert torch.equal(features, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_train_linear_probe__constant_features_zero_rows_and_one_clip_stay_finite():
    features, labels = separable(40, 7)
    features[:, 3] = 0
    features[5] = 0
    for rows in (slice(None), slice(1)):
        probe = train_linear_probe(features_nd=features[rows], labels_n=labels[rows], num_classes=6)
        assert torch.isfinite(probe.scores(features)[:, labels[rows].unique()]).all()


def test_linear_probe__ignores_the_scale_of_features():
    features, labels = separable(100, 8)
    probe = train_linear_probe(features_nd=features, labels_n=labels, num_classes=6)
    torch.testing.assert_close(probe.scores(8 * features), probe.scores(features), rtol=0, atol=0)


def test_evaluate_linear__half_precision_and_class_without_training_clips():
    train, train_labels = separable(200, 9)
    is_kept = train_labels != 4
    test, test_labels = separable(100, 10)
    result = evaluate_linear(
        train_features=train[is_kept].bfloat16(),
        train_labels=train_labels[is_kept],
        test_features=test.bfloat16(),
        test_labels=test_labels,
        num_classes=6,
    )
    assert result.details["classes_without_training_clips"] == [4]
    assert result.top1 == pytest.approx((test_labels != 4).double().mean().item(), abs=0.03)
    assert result.mean_class == pytest.approx(5 / 6, abs=0.03)
    assert not result.outcome.hits["top5"][test_labels == 4].any()  # five classes are left, and it is none of them
    assert result.top5 == pytest.approx((test_labels != 4).double().mean().item())
    assert json.loads(json.dumps(result.to_json()))["protocol"] == "linear"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": torch.tensor([0, -1])}, "1 of 2 train clips have no label"),
        ({"test_features": torch.ones(2, 3)}, "2 dimensions and test features 3"),
        ({"train_features": torch.tensor([[1.0, torch.inf], [1, 1]])}, "1 of 2 rows of train"),
        ({"test_features": torch.ones(0, 2), "test_labels": torch.ones(0).long()}, "test set is empty"),
        ({"test_labels": torch.tensor([0.0, 1.0])}, "must be 2 integers"),
    ],
)
def test_evaluate_linear__tells_what_is_wrong(change, message):
    split = {
        "train_features": torch.eye(2),
        "train_labels": torch.tensor([0, 1]),
        "test_features": torch.eye(2),
        "test_labels": torch.tensor([0, 1]),
        "num_classes": 2,
    }
    assert evaluate_linear(**split).top1 == 1
    with pytest.raises(UserError, match=message):
        evaluate_linear(**{**split, **change})


def test_train_linear_probe__refuses_an_empty_batch():
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        train_linear_probe(features_nd=torch.eye(2), labels_n=torch.tensor([0, 1]), num_classes=2, batch_size=0)


def test_protocol__is_the_papers():
    published = (
        linear_probe.LEARNING_RATE,
        linear_probe.MOMENTUM,
        linear_probe.WEIGHT_DECAY,
        linear_probe.NUM_EPOCHS,
        linear_probe.MILESTONES,
    )
    assert published == (0.01, 0.9, 1e-4, 40, (15, 30))
