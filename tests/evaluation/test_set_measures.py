"""Intervals of the calibration error and of the mean average precision against plain loops of the bootstrap."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.metrics import average_precision_score

from crossdistill.evaluation import intervals
from crossdistill.evaluation.intervals import basic_interval, bootstrap_intervals
from crossdistill.evaluation.protocols.calibration import CalibrationError
from crossdistill.evaluation.protocols.multi_label import MeanAveragePrecision
from crossdistill.evaluation.results import Outcome, Units

NUM_DRAWS = 60


def clips(num, *, seed, excess=0.0):
    """Confidences between 0.2 and 1, and hits of a classifier whose accuracy is lower by ``excess``."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.2, 1, num)
    return confidence, (generator.random(num) < confidence - excess).astype(float)


def units(num, *, num_groups=None, prefix="v"):
    kind = "video" if num_groups is None else "group"
    return Units(kind, tuple(f"{prefix}{i if num_groups is None else i * i % num_groups}" for i in range(num)))


def outcome(own_units, **measures):
    num = len(own_units.names)
    zeros = torch.zeros(num, dtype=torch.float64)
    return Outcome({"top1": zeros, "top5": zeros}, zeros.long(), units=own_units, set_measures=measures)


def calibration(num, *, seed=0, excess=0.0, **of_units):
    confidence, hits = clips(num, seed=seed, excess=excess)
    # Two classes more share the rest, so that the confidence is the highest probability.
    probabilities = torch.tensor(np.stack([confidence, *[(1 - confidence) / 9] * 9], axis=1))
    labels = torch.tensor(1 - hits).long()
    return outcome(units(num, **of_units), ece=CalibrationError.of(probabilities, labels)), (confidence, hits)


def naive_gaps(confidence, hits):
    """Return for each of 15 bins its share of the clips times its mean confidence minus its accuracy."""
    gaps = []
    for k in range(15):
        own = [i for i in range(len(hits)) if min(int(confidence[i] * 15), 14) == k]
        gaps.append(len(own) / len(hits) * (confidence[own].mean() - hits[own].mean()) if own else 0.0)
    return np.array(gaps)


def draws_of(*sets, seed):
    """Yield the drawn clips of each set, whose units are drawn together."""
    names = sorted({name for own in sets for name in own.units.names})
    generator = np.random.default_rng(seed)
    for _ in range(NUM_DRAWS):
        drawn = [names[i] for i in generator.integers(len(names), size=len(names))]
        yield [[i for unit in drawn for i, name in enumerate(own.units.names) if name == unit] for own in sets]


def naive_basic(drawn, measured):
    return max(0, 2 * measured - np.percentile(drawn, 97.5)), max(0, 2 * measured - np.percentile(drawn, 2.5))


@pytest.mark.parametrize(
    ("drawn", "measured", "ends"), [(0.3, 0.4, (0.5, 0.5)), (0.3, 0.95, (1, 1)), (0.9, 0.4, (0, 0))]
)
def test_basic_interval__is_within_0_and_1(drawn, measured, ends):
    assert basic_interval(np.full(5, drawn), measured, 0.95) == pytest.approx(ends)


@pytest.mark.parametrize("num_groups", [None, 7])
@pytest.mark.parametrize(("excess", "starts_at_zero"), [(0.2, False), (0.0, True)])
def test_calibration_error__interval_equals_a_plain_loop(num_groups, excess, starts_at_zero):
    made, (confidence, hits) = calibration(150, excess=excess, num_groups=num_groups)
    whole = naive_gaps(confidence, hits)
    gaps = [naive_gaps(confidence[own], hits[own]) for (own,) in draws_of(made, seed=3)]
    low, high = naive_basic([abs(each).sum() for each in gaps], abs(whole).sum())
    if abs(whole).sum() <= np.percentile([abs(each - whole).sum() for each in gaps], 97.5):
        low = 0
    found = bootstrap_intervals([made], num_draws=NUM_DRAWS, seed=3)["ece"]
    assert found == pytest.approx((low, high), abs=1e-9)
    assert (low == 0) == starts_at_zero and high > 0


def test_calibration_error__basic_interval_is_that_of_scipy():
    made, (confidence, hits) = calibration(300, excess=0.3)
    found = bootstrap_intervals([made], num_draws=4000)["ece"]
    theirs = bootstrap(
        (np.arange(300),),
        lambda own: abs(naive_gaps(confidence[own], hits[own])).sum(),
        method="basic",
        n_resamples=400,
        vectorized=False,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_calibration_error__of_splits_is_that_of_the_mean():
    """Two splits share units: a draw of both counts each by its share of the drawn clips."""
    first, one = calibration(160, seed=1, excess=0.4, num_groups=31)
    second, two = calibration(220, seed=2, excess=0.3, num_groups=47)
    sets, wholes = [one, two], [naive_gaps(*one), naive_gaps(*two)]
    errors, chances = [], []
    for drawn in draws_of(first, second, seed=0):
        shares = [len(own) / len(hits) for own, (_, hits) in zip(drawn, sets, strict=True)]
        gaps = [naive_gaps(c[own], h[own]) if own else np.zeros(15) for own, (c, h) in zip(drawn, sets, strict=True)]
        errors.append(np.average([abs(each).sum() for each in gaps], weights=shares))
        chances.append(np.average([abs(g - w).sum() for g, w in zip(gaps, wholes, strict=True)], weights=shares))
    measured = np.mean([abs(whole).sum() for whole in wholes])
    low, high = naive_basic(errors, measured)
    assert measured > np.percentile(chances, 97.5)
    assert bootstrap_intervals([first, second], num_draws=NUM_DRAWS)["ece"] == pytest.approx((low, high), abs=1e-9)


def test_calibration_error__of_a_calibrated_classifier_holds_zero_where_percentiles_do_not():
    num_zero, num_percentiles = 0, 0
    for seed in range(40):
        made, _ = calibration(200, seed=seed)
        num_zero += bootstrap_intervals([made], num_draws=200)["ece"][0] == 0
        drawn = made.set_measures["ece"].of_draws(np.random.default_rng(seed).multinomial(200, [1 / 200] * 200, 200))
        num_percentiles += np.percentile(drawn[:, 0], 2.5) < 0.03
    assert num_zero >= 36
    assert num_percentiles <= 1


def scored(num, *, seed=0, num_classes=4, **of_units):
    generator = np.random.default_rng(seed)
    is_own = generator.random((num, num_classes)) < [0.4, 0.2, 0.05, 0][:num_classes]
    scores = np.round(generator.normal(size=is_own.shape) + is_own, 1)  # equal scores
    measure = MeanAveragePrecision(scores, is_own)
    return outcome(units(num, **of_units), mean_average_precision=measure), scores, is_own


def naive_mean(scores, is_own):
    present = [c for c in range(is_own.shape[1]) if is_own[:, c].any()]
    return np.mean([average_precision_score(is_own[:, c], scores[:, c]) for c in present])


@pytest.mark.parametrize("num_groups", [None, 7])
def test_mean_average_precision__interval_equals_a_plain_loop(num_groups):
    made, scores, is_own = scored(80, num_groups=num_groups)
    drawn = [naive_mean(scores[own], is_own[own]) for (own,) in draws_of(made, seed=5)]
    expected = naive_basic(drawn, naive_mean(scores, is_own))
    found = bootstrap_intervals([made], num_draws=NUM_DRAWS, seed=5)["mean_average_precision"]
    assert found == pytest.approx(expected, abs=1e-9)


def test_mean_average_precision__a_draw_without_any_class_does_not_count():
    _, scores, is_own = scored(12, num_classes=3)
    weights = np.ones((3, 12))
    weights[1][is_own.any(1)] = 0
    weights[2] = 0
    found = MeanAveragePrecision(scores, is_own).of_draws(weights)[:, 0]
    assert found[0] == pytest.approx(naive_mean(scores, is_own), abs=1e-12)
    assert np.isnan(found[1:]).all()


def test_set_measures__do_not_depend_on_how_many_draws_are_made_at_once(monkeypatch):
    made, *_ = scored(80)
    both = replace(made, set_measures={**made.set_measures, **calibration(80)[0].set_measures})
    whole = bootstrap_intervals([both], num_draws=97)
    monkeypatch.setattr(intervals, "_NUM_WEIGHTS_AT_ONCE", 80 * 10)
    found = bootstrap_intervals([both], num_draws=97)
    assert list(found) == ["top1", "top5", "mean_class", "mean_average_precision", "ece"]
    for name, ends in whole.items():
        assert found[name] == pytest.approx(ends, abs=1e-9), name  # sums in another order
