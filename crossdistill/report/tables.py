"""Rows and cells of the result tables, and dots of the accuracy chart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from crossdistill.evaluation.results import TOP1, TOP5, Evaluation, ProtocolResult
from crossdistill.evaluation.roles import NumberedRole, Role
from crossdistill.evaluation.tables import FEW_UNITS
from crossdistill.report.charts import Dot
from crossdistill.report.networks import BASELINE_ROLE, kind_of
from crossdistill.report.record import short_name
from crossdistill.report.results import ResultTable

FIRST_PROTOCOLS = ("linear", "linear-sweep", "attentive", "1-nn", "5-nn", "20-nn")  # in the first rows
ROLE_ORDER = (Role.TEACHER, Role.PROXY, BASELINE_ROLE, Role.SUPERVISED, Role.DISTILLED, Role.RANDOM)


@dataclass(frozen=True)
class Accuracy:
    """One measured accuracy."""

    value: float
    interval: tuple[float, float] | None
    note: str = ""
    """Text below the number: its interval, and the standard deviation over draws."""
    coverage: float = 1.0
    """Readable share of the test clips."""


def accuracy_of(result: ProtocolResult, measure: str = TOP1, value: float | None = None) -> Accuracy:
    """Return a measure of a result with its interval."""
    interval = result.intervals.get(measure)
    note = "" if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"
    if measure == TOP1 and len(result.details.get("draws", ())) > 1:
        note += f"{'; ' if note else ''}draws ± {100 * result.details['sd']:.1f}"
    return Accuracy(result.top1 if value is None else value, interval, note, result.coverage)


def accuracies_of(evaluation: Evaluation) -> dict[str, Accuracy]:
    """Return the top-1 accuracy of every protocol, and all recalls of retrieval, by row name."""
    found: dict[str, Accuracy] = {}
    for name, result in evaluation.results.items():
        recalls = result.details.get("recall")
        if not isinstance(recalls, dict):
            found[name] = accuracy_of(result)
            continue
        measures = {"1": TOP1, "5": TOP5}
        for k, value in recalls.items():
            found[f"{name}, R@{k}"] = accuracy_of(result, measures.get(k, f"recall_at_{k}"), value)
    return found


def row_names(evaluations: Iterable[Evaluation]) -> list[str]:
    """Return the row names of all evaluations, the common ones first."""
    names = list(dict.fromkeys(name for evaluation in evaluations for name in accuracies_of(evaluation)))
    return [name for name in FIRST_PROTOCOLS if name in names] + [name for name in names if name not in FIRST_PROTOCOLS]


def title_of(name: str) -> str:
    """Return the display name of a row."""
    return name.replace("-nn", "-NN").replace("lowshot-", "low-shot ").replace("finetune", "fine-tuned")


def ordered_roles(table: ResultTable) -> list[str]:
    """Sort roles: teachers first, the random student last, unknown roles after it."""

    def rank(text: str) -> tuple[int, str]:
        parsed = NumberedRole.parse(text)
        role = text if parsed is None else parsed.role
        return (ROLE_ORDER.index(role) if role in ROLE_ORDER else len(ROLE_ORDER), text)

    return sorted(table.by_role, key=rank)


def table_values(table: ResultTable) -> dict[str, Any]:
    """Return the values of the template ``results.html`` for one table, without its chart."""
    roles = ordered_roles(table)
    accuracies = {role: accuracies_of(table.by_role[role]) for role in roles}
    rows = []
    for name in row_names(table.by_role.values()):
        cells = [accuracies[role].get(name) for role in roles]
        coverage = min(cell.coverage for cell in cells if cell is not None)
        rows.append({"name": title_of(name), "cells": cells, "coverage": coverage})
    details = [
        {"role": role, "name": title_of(name), "result": result}
        for role in roles
        for name, result in table.by_role[role].results.items()
    ]
    encoders = {role: short_name(table.by_role[role].encoder) for role in roles}
    heads = [{"name": role, "kind": str(kind_of(role)), "encoder": encoder} for role, encoder in encoders.items()]
    title = f"{table.dataset}, split {table.split}: top-1 accuracy in %"
    return {"title": title, "roles": heads, "rows": rows, "details": details, "notes": notes_of(table)}


def notes_of(table: ResultTable) -> list[str]:
    """Return sentences on the number of clips, the intervals, and what was computed for the page."""
    evaluations = list(table.by_role.values())
    first = max(evaluations, key=lambda evaluation: evaluation.num_test)
    worst = max(evaluations, key=lambda evaluation: len(evaluation.unreadable))
    notes = [
        f"{first.num_test} test clips, {first.num_train} training clips; {len(worst.unreadable)} clips were unreadable."
    ]
    bootstrap = next((evaluation.bootstrap for evaluation in evaluations if evaluation.bootstrap), None)
    if bootstrap is not None:
        rough = (
            ", which is too few: such intervals are rough, and rather too narrow"
            if bootstrap.num_units < FEW_UNITS
            else ""
        )
        notes.append(
            f"The numbers in small print are {bootstrap.level:.0%} intervals by a bootstrap of {bootstrap.num_draws} "
            f"draws over {bootstrap.num_units} {bootstrap.unit}s{rough}."
        )
    if table.computed:
        names = ", ".join(title_of(name) for name in table.computed)
        notes.append(f"Computed for this page because results.json lacks them, their interval or their hits: {names}.")
    return [" ".join(notes)]


def chart_groups(table: ResultTable) -> list[tuple[str, list[Dot]]]:
    """Return the dots of all networks by protocol, for the interval chart."""
    names = row_names(table.by_role.values())
    shown = [name for name in names if not name.startswith("retrieval") or name.endswith(("R@1", "R@5"))]
    return dot_groups(shown, [(role, str(kind_of(role)), table.by_role[role]) for role in ordered_roles(table)])


def dot_groups(names: Iterable[str], evaluations: Iterable[tuple[str, str, Evaluation]]) -> list[tuple[str, list[Dot]]]:
    """Return the dots of named and styled evaluations for each of the rows ``names``."""
    measured = [(name, style, accuracies_of(evaluation)) for name, style, evaluation in evaluations]
    return [
        (
            title_of(row),
            [Dot(name, of[row].value, of[row].interval, style) for name, style, of in measured if row in of],
        )
        for row in names
    ]
