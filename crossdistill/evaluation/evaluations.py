"""Build ``Evaluation`` objects: results with coverage, views and intervals, of one split or as a mean of splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from crossdistill.data.manifest import Manifest
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.intervals import bootstrap_intervals, describe_bootstrap, units_of
from crossdistill.evaluation.results import TOP1, Evaluation, Outcome, ProtocolResult, Units
from crossdistill.evaluation.settings import ProtocolSettings

AVERAGED_DETAILS = (
    *("recall", "clean_top1", "drop", "drop_from_fusion", "absolute_robustness", "relative_robustness", "families"),
    *("mean_average_precision", "partner_when_reversed", "ece", "ece_scaled", "nll", "nll_scaled"),
)
"""Details, numbers or dictionaries of them, whose mean over splits is kept."""


def evaluation_of_split(
    encoder: str,
    manifest: Manifest,
    split: str,
    embedded: EmbeddedSplit,
    results: Sequence[ProtocolResult],
    settings: ProtocolSettings,
    *,
    num_test_seen: int = 0,
) -> Evaluation:
    """Put coverage, views and confidence intervals beside the results, with outcomes, of one split."""
    train, test = embedded.train, embedded.test
    (units,) = units_of((test.videos, test.groups))
    num_draws, seed = settings.num_bootstrap_draws, settings.seed
    found = {}
    for result in results:
        outcome = result.outcome.with_units(units)
        found[result.protocol] = replace(
            result,
            coverage=test.coverage,
            views=str(test.views),
            intervals=bootstrap_intervals([outcome], num_draws=num_draws, seed=seed),
            hits=_digits(outcome),
            outcome=outcome,
        )
    unreadable = {**train.unreadable, **test.unreadable}
    return Evaluation(
        encoder=encoder,
        dataset=manifest.dataset,
        split=split,
        num_train=train.num_clips,
        num_test=test.num_clips,
        unreadable=unreadable,
        results=found,
        coverage=test.coverage,
        views=str(test.views),
        train_views=str(train.views),
        bootstrap=describe_bootstrap([units], num_draws=num_draws, seed=seed),
        num_unreadable=len(unreadable),
        num_test_seen=num_test_seen,
        test_videos=list(test.videos),
        test_groups=list(test.groups),
    )


def _digits(outcome: Outcome) -> str:
    """Write top-1 of each clip as 0 or 1; empty for a mean over several draws, and for some of the clips."""
    hits = outcome.hits[TOP1].tolist()
    is_plain = set(hits) <= {0.0, 1.0} and outcome.positions_b is None
    return "".join(f"{hit:.0f}" for hit in hits) if is_plain else ""


def mean_of_splits(by_split: dict[str, Evaluation], settings: ProtocolSettings) -> Evaluation:
    """Average the evaluations of several splits of one dataset; a single split is returned unchanged.

    Videos or groups that are in the test sets of several splits are drawn together, so the interval is that of the
    mean, not a mean of intervals. ``by_split`` maps a split to its evaluation, with outcomes.
    """
    evaluations = list(by_split.values())
    first = evaluations[0]
    if len(evaluations) == 1:
        return first
    unreadable = {video: reason for each in evaluations for video, reason in each.unreadable.items()}
    # Several sets of one group each, as when each person is held out in turn, have groups to draw together.
    units = units_of(*((each.test_videos, each.test_groups) for each in evaluations))
    results = {
        name: _mean_result([e.results[name] for e in evaluations], list(by_split), units, settings)
        for name in first.results
    }
    bootstrap = None
    if all(each.results for each in evaluations):
        bootstrap = describe_bootstrap(units, num_draws=settings.num_bootstrap_draws, seed=settings.seed)
    return replace(
        first,
        split=" + ".join(by_split),
        num_train=sum(each.num_train for each in evaluations),
        num_test=sum(each.num_test for each in evaluations),
        num_test_seen=sum(each.num_test_seen for each in evaluations),
        coverage=_coverage(evaluations),
        unreadable=unreadable,
        num_unreadable=len(unreadable),
        bootstrap=bootstrap,
        results=results,
        agreement=[],
        splits=by_split,
        test_videos=[],
        test_groups=[],
    )


def _mean_result(
    results: list[ProtocolResult], splits: list[str], units: list[Units], settings: ProtocolSettings
) -> ProtocolResult:
    num = len(results)
    details: dict[str, Any] = {"mean_of_splits": splits}
    for name in AVERAGED_DETAILS:
        if all(name in result.details for result in results):
            details[name] = _mean_of([result.details[name] for result in results])
    outcomes = [result.outcome.with_units(own) for result, own in zip(results, units, strict=True)]
    return replace(
        results[0],
        top1=sum(result.top1 for result in results) / num,
        top5=sum(result.top5 for result in results) / num,
        mean_class=sum(result.mean_class for result in results) / num,
        num_test=sum(result.num_test for result in results),
        coverage=_coverage(results),
        details=details,
        intervals=bootstrap_intervals(outcomes, num_draws=settings.num_bootstrap_draws, seed=settings.seed),
        hits="",
        outcome=None,
    )


def _mean_of(values: Sequence[Any]) -> Any:
    """Average numbers, or dictionaries of them key by key; None where one of the numbers is unknown."""
    if isinstance(values[0], dict):
        return {key: _mean_of([value[key] for value in values]) for key in values[0]}
    return None if None in values else sum(values) / len(values)


def _coverage(parts: Sequence[Evaluation] | Sequence[ProtocolResult]) -> float:
    """Coverage of several test sets together; each has ``num_test / coverage`` videos."""
    return sum(part.num_test for part in parts) / sum(part.num_test / part.coverage for part in parts)
