"""Bootstrap confidence intervals: percentiles of a measure over test sets that are drawn with replacement.

Videos are drawn, or whole groups where the set has groups: clips of one performer or one source film are alike, and an
interval that treats them as independent is too narrow. The percentile method is that of Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13.

Shapes: B test clips, U units, C classes, R draws at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdistill.evaluation.results import MEAN_CLASS, TOP1, Bootstrap, Outcome, Units

LEVEL = 0.95
# Draws x units that are held at once: bounds the memory.
_NUM_WEIGHTS_AT_ONCE = 2**22

Floats = NDArray[np.float64]


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
    measures = list(outcomes[0].hits)
    sums = [
        _Sums.of(outcome, np.array([position[name] for name in part.names]), len(position), measures)
        for outcome, part in zip(outcomes, units, strict=True)
    ]
    drawn: dict[str, list[Floats]] = {name: [] for name in (*measures, MEAN_CLASS)}
    for weights_ru in _draws(len(position), num_draws, seed):
        by_set = [part.measure(weights_ru) for part in sums]
        # A set without clips in a draw has a share of 0 (and NaN for measures).
        shares_sr = np.stack([(weights_ru @ part.clips_u) / part.clips_u.sum() for part in sums])
        for name in drawn:
            values_sr = np.stack([values[name] for values in by_set])
            drawn[name].append(_ratio((shares_sr * np.nan_to_num(values_sr)).sum(0), shares_sr.sum(0)))
    percentiles = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
    intervals = {}
    for name, values in drawn.items():
        low, high = np.nanpercentile(np.concatenate(values), percentiles)
        intervals[name] = (round(float(low), 10), round(float(high), 10))
    return intervals


def _mean(values: Floats, axis: int) -> Floats:
    """Average along an axis without the NaN; NaN where all are."""
    is_there = ~np.isnan(values)
    return _ratio(np.where(is_there, values, 0).sum(axis), is_there.sum(axis))


def _draws(num_units: int, num_draws: int, seed: int) -> Iterator[Floats]:
    """Yield [R, U] how often each unit was drawn; the numbers do not depend on R."""
    generator = np.random.default_rng(seed)
    at_once = max(1, _NUM_WEIGHTS_AT_ONCE // num_units)
    for start in range(0, num_draws, at_once):
        rows = min(at_once, num_draws - start)
        drawn = generator.integers(num_units, size=(rows, num_units))
        drawn += num_units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * num_units).reshape(rows, num_units).astype(np.float64)


@dataclass(frozen=True)
class _Sums:
    """Sums over the clips of each unit: the measures of a draw are ratios of weighted sums of them."""

    clips_u: Floats
    hits_u: dict[str, Floats]
    clips_uc: Floats
    """[U, C] over the classes that the test set holds."""
    hits_uc: Floats

    @staticmethod
    def of(outcome: Outcome, unit_b: NDArray[np.int64], num_units: int, measures: Sequence[str]) -> _Sums:
        """Sum over the clips of each unit."""
        classes, class_b = np.unique(outcome.labels_b.numpy(), return_inverse=True)
        clips_uc, hits_uc = (np.zeros((num_units, len(classes))) for _ in range(2))
        np.add.at(clips_uc, (unit_b, class_b), 1)
        np.add.at(hits_uc, (unit_b, class_b), outcome.hits[TOP1].numpy())
        clips_u = np.bincount(unit_b, minlength=num_units).astype(np.float64)
        hits = {name: outcome.hits[name].numpy() for name in measures}
        hits_u = {name: np.bincount(unit_b, hit_b, num_units).astype(np.float64) for name, hit_b in hits.items()}
        return _Sums(clips_u, hits_u, clips_uc, hits_uc)

    def measure(self, weights_ru: Floats) -> dict[str, Floats]:
        """Compute [R] for every measure: NaN for a draw without clips; a class without clips does not count."""
        num_r = weights_ru @ self.clips_u
        values = {name: _ratio(weights_ru @ hits_u, num_r) for name, hits_u in self.hits_u.items()}
        values[MEAN_CLASS] = _mean(_ratio(weights_ru @ self.hits_uc, weights_ru @ self.clips_uc), axis=1)
        return values


def _ratio(above: Floats, below: NDArray[np.generic]) -> Floats:
    """Divide, with NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=np.asarray(below) > 0)
