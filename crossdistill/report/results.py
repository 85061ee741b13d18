"""Results of a run, one table per dataset: stored ones, those of a baseline, and those computed for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from crossdistill.evaluation.results import Evaluation, ProtocolResult
from crossdistill.evaluation.roles import Role
from crossdistill.report.networks import BASELINE_ROLE
from crossdistill.report.run_data import RunData

MAIN_PROTOCOLS = ("linear", "1-nn")  # of a run's main result; the first that exists is used


@dataclass(frozen=True)
class ResultTable:
    """Evaluations on one dataset by role, and protocols that were computed for the page."""

    dataset: str
    split: str
    by_role: dict[str, Evaluation]
    computed: tuple[str, ...] = ()


def result_tables(run: RunData) -> list[ResultTable]:
    """Return one table for each dataset that the run was evaluated on or that the page embedded."""
    record = run.record
    tables = []
    for by_role in record.results.values():
        if not any(evaluation.results for evaluation in by_role.values()):
            continue  # of a run without labels
        first = next(iter(by_role.values()))
        tables.append(_add_baseline(ResultTable(first.dataset, first.split, dict(by_role)), run))
    for evaluation in record.more_results:
        tables = _add_evaluation(tables, evaluation, record.role)
    complete = [
        (embedding.role, embedding.evaluation)
        for embedding in run.embeddings
        if embedding.is_complete and run.has_labels
    ]
    if not complete or run.manifest is None:
        return tables
    name = run.manifest.dataset
    if all(table.dataset != name for table in tables):
        tables.append(ResultTable(name, complete[0][1].split, {}))
    return [_add_computed(table, complete) if table.dataset == name else table for table in tables]


def _add_baseline(table: ResultTable, run: RunData) -> ResultTable:
    for by_role in () if run.baseline is None else run.baseline.results.values():
        own = by_role.get(str(Role.SUPERVISED))
        if own is not None and (own.dataset, own.split) == (table.dataset, table.split):
            return replace(table, by_role={**table.by_role, BASELINE_ROLE: own})
    return table


def _add_evaluation(tables: list[ResultTable], evaluation: Evaluation, role: str) -> list[ResultTable]:
    """Add the results of ``crossdistill evaluate --json`` to the table of their dataset."""
    if all(table.dataset != evaluation.dataset for table in tables):
        tables = [*tables, ResultTable(evaluation.dataset, evaluation.split, {})]
    place = next(i for i, table in enumerate(tables) if table.dataset == evaluation.dataset)
    table = tables[place]
    own = table.by_role.get(role, replace(evaluation, results={}, split=table.split))
    added = evaluation.results if own.test_videos == evaluation.test_videos else _without_hits(evaluation.results)
    named = {_row_name(name, result, evaluation.split, table.split): result for name, result in added.items()}
    merged = replace(own, results={**own.results, **named}, bootstrap=own.bootstrap or evaluation.bootstrap)
    return [*tables[:place], replace(table, by_role={**table.by_role, role: merged}), *tables[place + 1 :]]


def _without_hits(results: dict[str, ProtocolResult]) -> dict[str, ProtocolResult]:
    """Forget the hits of results that stand beside those of other test clips."""
    return {name: replace(result, hits="") for name, result in results.items()}


def _row_name(name: str, result: ProtocolResult, split: str, table_split: str) -> str:
    """Name of a protocol, with its views and split if they are not those of the table."""
    views = "" if result.views == "1x1" else f", {result.views} views"
    return f"{name}{views}" if split == table_split else f"{name}{views}, split {split}"


def _add_computed(table: ResultTable, evaluations: Sequence[tuple[str, Evaluation]]) -> ResultTable:
    """Add computed results if the stored ones lack a protocol, its interval or its hits, or used other test clips."""
    by_role, added = dict(table.by_role), dict.fromkeys(table.computed)
    for role, computed in evaluations:
        if computed.split != table.split:
            continue
        own = by_role.get(role, replace(computed, results={}))
        is_same_set = own.num_test == computed.num_test
        complete = {name: result for name, result in own.results.items() if result.intervals and result.hits}
        kept = complete if is_same_set else {}
        results = {**_without_hits(own.results), **computed.results, **kept}
        added |= dict.fromkeys(name for name in computed.results if name not in kept)
        base = own if is_same_set else computed
        by_role[role] = replace(
            base,
            results=results,
            bootstrap=base.bootstrap or computed.bootstrap,
            test_videos=computed.test_videos,
            test_groups=computed.test_groups,
        )
    return replace(table, by_role=by_role, computed=tuple(added))


def main_result(evaluation: Evaluation) -> ProtocolResult | None:
    """Return the main result of an evaluation; None without results."""
    names = [*(name for name in MAIN_PROTOCOLS if name in evaluation.results), *evaluation.results]
    return evaluation.results[names[0]] if names else None
