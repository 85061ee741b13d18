"""Bootstrap confidence intervals: percentiles of a measure over test sets that are drawn with replacement.

Videos are drawn, or whole groups where the set has groups: clips of one performer or one source film are alike, and an
interval that treats them as independent is too narrow. The percentile method is that of Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13. A ``SetMeasure``, which is no mean over clips, makes its interval from
the same draws in its own way.

Shapes: B test clips, U units, C classes, R draws at once, J figures of a measure, S test sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdistill.evaluation.results import MEAN_CLASS, TOP1, Bootstrap, Floats, Outcome, SetMeasure, Units

LEVEL = 0.95
# Draws x clips that are held at once: bounds the memory.
_NUM_WEIGHTS_AT_ONCE = 2**22


def units_of(*sets: tuple[Sequence[str], Sequence[str | None]]) -> list[Units]:
    """Choose what a bootstrap draws from test sets, each given as its videos and their groups.

    It draws groups if there are at least two in all sets together, else videos. A video without a group among others
    with one is a group of its own.
    """
    if len({group for _, groups in sets for group in groups} - {None}) > 1:
        names = [[group or f"video {name}" for name, group in zip(*each, strict=True)] for each in sets]
        return [Units("group", tuple(of_set)) for of_set in names]
    return [Units("video", tuple(videos)) for videos, _ in sets]


def describe_bootstrap(units: Sequence[Units], *, num_draws: int, seed: int) -> Bootstrap | None:
    """Describe how the intervals of test sets with these units are made; None without draws."""
    if not num_draws:
        return None
    kinds = {part.kind for part in units}
    num_units = len({name for part in units for name in part.names})
    return Bootstrap(" and ".join(sorted(kinds)), num_units, num_draws, LEVEL, seed)


def bootstrap_intervals(
    outcomes: Sequence[Outcome], *, num_draws: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Compute the intervals, rounded to 1e-10, of an outcome's measures and mean-class accuracy; none without draws.

    The same seed and units give the same draws for every protocol, so that differences come from the protocols. The
    measures of several test sets (splits) are averaged. In a draw each counts by the share of its clips that were
    drawn: a person who is alone in a set and was drawn twice counts twice. Outcomes need their units.
    """
    if not num_draws:
        return {}
    units = [outcome.units for outcome in outcomes if outcome.units is not None]
    assert len(units) == len(outcomes)
    position = {name: i for i, name in enumerate(sorted({name for part in units for name in part.names}))}
    sets = [
        _TestSet.of(outcome, np.array([position[name] for name in part.names]), len(position), list(outcomes[0].hits))
        for outcome, part in zip(outcomes, units, strict=True)
    ]
    num_at_once = max(1, _NUM_WEIGHTS_AT_ONCE // max(len(position), *(len(part.unit_b) for part in sets)))
    draws = _draws(len(position), num_draws, seed, num_at_once)
    by_draws = [_averaged(sets, weights_ru) for weights_ru in draws]
    drawn = {name: np.concatenate([each[name] for each in by_draws]) for name in by_draws[0]}
    whole = _averaged(sets, np.ones((1, len(position))))
    intervals = {}
    for name, drawn_rj in drawn.items():
        if name in outcomes[0].set_measures:
            low, high = outcomes[0].set_measures[name].interval(drawn_rj, whole[name][0], LEVEL)
        else:
            low, high = percentile_interval(drawn_rj[:, 0], LEVEL)
        intervals[name] = (round(low, 10), round(high, 10))
    return intervals


def percentile_interval(drawn_r: Floats, level: float) -> tuple[float, float]:
    """Return the ends between which the middle ``level`` of the draws lies; NaN are left out."""
    low, high = np.nanpercentile(drawn_r, (50 * (1 - level), 50 * (1 + level)))
    return float(low), float(high)


def basic_interval(drawn_r: Floats, measured: float, level: float) -> tuple[float, float]:
    """Return the basic (pivotal) interval of a measure in [0, 1]: ``2 * measured - percentile``.

    It is for measures that are too large on few clips. A drawn set exceeds the measured value by about as much as that
    exceeds the value of many clips. Percentiles would have this error twice; here it is subtracted. The interval is
    about the value of many clips, so the measured value can be outside. Davison and Hinkley, "Bootstrap Methods and
    their Application", 1997, section 2.4.

    Example:
        >>> basic_interval(np.linspace(0.3, 0.5, 101), 0.35, 0.9)
        (0.20999999999999996, 0.38999999999999996)
    """
    low, high = percentile_interval(drawn_r, level)
    return min(1.0, max(0.0, 2 * measured - high)), min(1.0, max(0.0, 2 * measured - low))


def _averaged(sets: Sequence[_TestSet], weights_ru: Floats) -> dict[str, Floats]:
    """Average the figures [R, J] of every measure over test sets, by the share of their clips that were drawn."""
    by_set = [part.measure(weights_ru) for part in sets]
    shares_sr1 = np.stack([(weights_ru @ part.clips_u) / part.clips_u.sum() for part in sets])[..., None]
    found = {}
    for name in by_set[0]:
        values_srj = np.stack([values[name] for values in by_set])
        # A set without a value in a draw, such as one without clips, does not count.
        share_srj = np.where(np.isnan(values_srj), 0, shares_sr1)
        found[name] = ratio((share_srj * np.nan_to_num(values_srj)).sum(0), share_srj.sum(0))
    return found


def mean_of_known(values: Floats, axis: int) -> Floats:
    """Average along an axis without the NaN; NaN where all are."""
    is_there = ~np.isnan(values)
    return ratio(np.where(is_there, values, 0).sum(axis), is_there.sum(axis))


def _draws(num_units: int, num_draws: int, seed: int, num_at_once: int) -> Iterator[Floats]:
    """Yield [R, U] how often each unit was drawn; the numbers do not depend on R."""
    generator = np.random.default_rng(seed)
    for start in range(0, num_draws, num_at_once):
        rows = min(num_at_once, num_draws - start)
        drawn = generator.integers(num_units, size=(rows, num_units))
        drawn += num_units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_units).reshape(rows, num_units).astype(np.float64)


@dataclass(frozen=True)
class _TestSet:
    """Sums over the clips of each unit: the accuracies of a draw are ratios of weighted sums of them."""

    unit_b: NDArray[np.int64]
    clips_u: Floats
    hits_u: dict[str, Floats]
    clips_uc: Floats
    """[U, C] over the classes that the test set holds."""
    hits_uc: Floats
    set_measures: Mapping[str, SetMeasure]

    @staticmethod
    def of(outcome: Outcome, unit_b: NDArray[np.int64], num_units: int, measures: Sequence[str]) -> _TestSet:
        """Sum over the clips of each unit."""
        classes, class_b = np.unique(outcome.labels_b.numpy(), return_inverse=True)
        clips_uc, hits_uc = (np.zeros((num_units, len(classes))) for _ in range(2))
        np.add.at(clips_uc, (unit_b, class_b), 1)
        np.add.at(hits_uc, (unit_b, class_b), outcome.hits[TOP1].numpy())
        clips_u = np.bincount(unit_b, minlength=num_units).astype(np.float64)
        hits = {name: outcome.hits[name].numpy() for name in measures}
        hits_u = {name: np.bincount(unit_b, hit_b, num_units).astype(np.float64) for name, hit_b in hits.items()}
        return _TestSet(unit_b, clips_u, hits_u, clips_uc, hits_uc, outcome.set_measures)

    def measure(self, weights_ru: Floats) -> dict[str, Floats]:
        """Compute [R, J] for every measure: NaN for a draw without clips; a class without clips does not count."""
        num_r = weights_ru @ self.clips_u
        values = {name: ratio(weights_ru @ hits_u, num_r) for name, hits_u in self.hits_u.items()}
        values[MEAN_CLASS] = mean_of_known(ratio(weights_ru @ self.hits_uc, weights_ru @ self.clips_uc), axis=1)
        figures = {name: values_r[:, None] for name, values_r in values.items()}
        if self.set_measures:
            weights_rb = weights_ru[:, self.unit_b]
            figures |= {name: measure.of_draws(weights_rb) for name, measure in self.set_measures.items()}
        return figures


def ratio(above: Floats, below: NDArray[np.generic]) -> Floats:
    """Divide, with NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=np.asarray(below) > 0)
