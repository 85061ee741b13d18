"""The protocols of ``crossdistill evaluate`` by name, and what they need besides features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from crossdistill.errors import UserError
from crossdistill.evaluation.cluster import evaluate_cluster
from crossdistill.evaluation.held_out import Shots
from crossdistill.evaluation.intervals import NUM_DRAWS, bootstrap_intervals, describe, units_of
from crossdistill.evaluation.knn import evaluate_knn
from crossdistill.evaluation.probes import Sets, linear, linear_sweep, low_shot
from crossdistill.evaluation.results import Bootstrap, Evaluation, Outcome, ProtocolResult, Units
from crossdistill.evaluation.retrieval import evaluate_retrieval

DEFAULT_SHOTS = (Shots(share=0.01), Shots(share=0.1), Shots(number=5))


@dataclass(frozen=True)
class Settings:
    """What protocols need besides features."""

    ks: tuple[int, ...] = (1, 5, 20)
    """Numbers of neighbours for knn."""
    shots: tuple[Shots, ...] = DEFAULT_SHOTS
    """How many clips of a class are labelled, for lowshot."""
    num_low_shot_draws: int = 5
    num_bootstrap_draws: int = NUM_DRAWS
    """Test sets that are drawn for an interval; 0 for no intervals."""
    seed: int = 0
    """Of the order of clips, held-out parts, low-shot draws, first clusters and the bootstrap."""

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"--k is {' '.join(map(str, self.ks)) or 'empty'}: give numbers of neighbours from 1 on")
        if self.num_low_shot_draws < 1:
            raise UserError(f"--draws is {self.num_low_shot_draws}: give 1 or more")
        if self.num_bootstrap_draws < 0:
            raise UserError(f"--bootstrap is {self.num_bootstrap_draws}: give 0 (no intervals) or more")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: give 0 or more")


def _knn(sets: Sets, settings: Settings) -> list[ProtocolResult]:
    results = evaluate_knn(
        train_features=sets.train.features,
        train_labels=sets.train.labels,
        test_features=sets.test.features,
        test_labels=sets.test.labels,
        num_classes=sets.num_classes,
        ks=settings.ks,
    )
    return list(results.values())


def _linear(sets: Sets, settings: Settings) -> list[ProtocolResult]:
    return [linear(sets, seed=settings.seed)]


def _linear_sweep(sets: Sets, settings: Settings) -> list[ProtocolResult]:
    return [linear_sweep(sets, seed=settings.seed)]


def _cluster(sets: Sets, settings: Settings) -> list[ProtocolResult]:
    return [
        evaluate_cluster(
            train_features=sets.train.features,
            train_labels=sets.train.labels,
            test_features=sets.test.features,
            test_labels=sets.test.labels,
            num_classes=sets.num_classes,
            seed=settings.seed,
        )
    ]


def _retrieval(sets: Sets, settings: Settings) -> list[ProtocolResult]:
    return [
        evaluate_retrieval(
            train_features=[sets.train.features],
            train_labels=sets.train.labels,
            test_features=[sets.test.features],
            test_labels=sets.test.labels,
            num_classes=sets.num_classes,
        )
    ]


def _low_shot(sets: Sets, settings: Settings) -> list[ProtocolResult]:
    return [
        low_shot(sets, shots, num_draws=settings.num_low_shot_draws, seed=settings.seed) for shots in settings.shots
    ]


PROTOCOLS: dict[str, Callable[[Sets, Settings], list[ProtocolResult]]] = {
    "knn": _knn,
    "linear": _linear,
    "linear-sweep": _linear_sweep,
    "cluster": _cluster,
    "retrieval": _retrieval,
    "lowshot": _low_shot,
}
"""Of one student's features."""
JOINT_PROTOCOLS = ("fusion", "agreement")
"""Of two or more students."""
FINETUNE = "finetune"
"""Trains the student itself, so it needs more than features."""


def apply_protocols(sets: Sets, protocols: Sequence[str], settings: Settings) -> list[ProtocolResult]:
    """Apply protocols of ``PROTOCOLS``; intervals are not yet added.

    Raises:
        UserError: No clip of one part could be read.
    """
    for part, features in (("train", sets.train), ("test", sets.test)):
        if not features.num_clips and features.unreadable:
            video, reason = next(iter(features.unreadable.items()))
            raise UserError(
                f"none of the {len(features.unreadable)} {part} clips could be read (first: {video}: {reason}): see "
                "python -m data_prep verify"
            )
    return [result for name in protocols for result in PROTOCOLS[name](sets, settings)]


def with_facts(results: Sequence[ProtocolResult], sets: Sets, settings: Settings) -> dict[str, ProtocolResult]:
    """Put coverage, views and confidence intervals beside every number."""
    units = units_of(sets.test.videos, sets.test.groups)
    found = {}
    for result in results:
        outcome = replace(result.outcome, units=units)
        found[result.protocol] = replace(
            result,
            coverage=sets.test.coverage,
            views=str(sets.test.views),
            intervals=_intervals([outcome], settings),
            outcome=outcome,
        )
    return found


def bootstrap_of(units: Sequence[Units], settings: Settings) -> Bootstrap | None:
    """How the intervals are made, for the JSON."""
    if not settings.num_bootstrap_draws:
        return None
    return describe(units, num_draws=settings.num_bootstrap_draws, seed=settings.seed)


def _intervals(outcomes: Sequence[Outcome], settings: Settings) -> dict[str, tuple[float, float]]:
    if not settings.num_bootstrap_draws:
        return {}
    return bootstrap_intervals(outcomes, num_draws=settings.num_bootstrap_draws, seed=settings.seed)


def mean_of_splits(by_split: dict[str, Evaluation], settings: Settings) -> Evaluation:
    """Average the evaluations of several splits of one dataset; that of one split stays what it is.

    Videos or groups that are in the test sets of several splits are drawn together, so the interval is that of the
    mean, not a mean of intervals.

    Args:
        by_split: Split to its evaluation, with outcomes.
        settings: Of the bootstrap.
    """
    evaluations = list(by_split.values())
    first = evaluations[0]
    if len(evaluations) == 1:
        return first
    unreadable = {video: reason for each in evaluations for video, reason in each.unreadable.items()}
    results = {
        name: _mean_result([e.results[name] for e in evaluations], list(by_split), settings) for name in first.results
    }
    return replace(
        first,
        split=" + ".join(by_split),
        num_train=sum(each.num_train for each in evaluations),
        num_test=sum(each.num_test for each in evaluations),
        num_test_seen=sum(each.num_test_seen for each in evaluations),
        coverage=_coverage([(each.num_test, each.coverage) for each in evaluations]),
        unreadable=unreadable,
        num_unreadable=len(unreadable),
        bootstrap=_bootstrap_of_mean(evaluations, settings),
        results=results,
        agreement=[],
        splits=by_split,
    )


def _bootstrap_of_mean(evaluations: Sequence[Evaluation], settings: Settings) -> Bootstrap | None:
    outcomes = [result.outcome for each in evaluations for result in list(each.results.values())[:1]]
    return bootstrap_of([outcome.units for outcome in outcomes], settings) if outcomes else None


def _mean_result(results: list[ProtocolResult], splits: list[str], settings: Settings) -> ProtocolResult:
    num = len(results)
    recalls = [result.details["recall"] for result in results if "recall" in result.details]
    details: dict[str, Any] = {"mean_of_splits": splits}
    if recalls:
        details["recall"] = {k: sum(recall[k] for recall in recalls) / num for k in recalls[0]}
    return replace(
        results[0],
        top1=sum(result.top1 for result in results) / num,
        top5=sum(result.top5 for result in results) / num,
        mean_class=sum(result.mean_class for result in results) / num,
        num_test=sum(result.num_test for result in results),
        coverage=_coverage([(result.num_test, result.coverage) for result in results]),
        details=details,
        intervals=_intervals([result.outcome for result in results], settings),
        outcome=None,
    )


def _coverage(parts: Sequence[tuple[int, float]]) -> float:
    """Of several test sets, from how many clips of each were evaluated and which share of it that is."""
    return sum(num for num, _ in parts) / sum(num / coverage for num, coverage in parts)
