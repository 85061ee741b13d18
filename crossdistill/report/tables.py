"""Evaluations as rows and cells of the page, and as dots of its charts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from crossdistill.evaluation.results import TOP1, TOP5, Evaluation, ProtocolResult
from crossdistill.evaluation.tables import FEW_UNITS
from crossdistill.report.charts import Dot
from crossdistill.report.record import short_name
from crossdistill.report.spaces import kind_of
from crossdistill.report.subject import Table

FIRST = ("linear", "linear-sweep", "1-nn", "5-nn", "20-nn")
"""Protocols that come first, in this order."""
RETRIEVAL = "retrieval"
ROLE_ORDER = ("teacher", "supervised twin", "student, supervised", "student, distilled", "student, random")


@dataclass(frozen=True)
class Figure:
    """One measured share."""

    value: float
    ends: tuple[float, float] | None
    note: str = ""
    """What stands below the number: its interval, and the spread over draws."""
    coverage: float = 1.0
    """Share of the test clips that could be read."""


def figure_of(result: ProtocolResult, measure: str = TOP1, value: float | None = None) -> Figure:
    """A measure of a result with its interval."""
    ends = result.intervals.get(measure)
    note = "" if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"
    if measure == TOP1 and len(result.details.get("draws", ())) > 1:
        note += f"{'; ' if note else ''}draws ± {100 * result.details['sd']:.1f}"
    return Figure(result.top1 if value is None else value, ends, note, result.coverage)


def figures_of(evaluation: Evaluation) -> dict[str, Figure]:
    """Name of a row to its number: top-1 of every protocol, and all recalls of retrieval."""
    found: dict[str, Figure] = {}
    for name, result in evaluation.results.items():
        recalls = result.details.get("recall")
        if not isinstance(recalls, dict):
            found[name] = figure_of(result)
            continue
        measures = {"1": TOP1, "5": TOP5}
        for k, value in recalls.items():
            found[f"{name}, R@{k}"] = figure_of(result, measures.get(k, f"recall_at_{k}"), value)
    return found


def row_names(evaluations: Iterable[Evaluation]) -> list[str]:
    """Rows that any evaluation has, the usual ones first."""
    names = list(dict.fromkeys(name for evaluation in evaluations for name in figures_of(evaluation)))
    return [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)]


def title_of(name: str) -> str:
    """A protocol's name as people write it."""
    return name.replace("-nn", "-NN").replace("lowshot-", "low-shot ").replace("finetune", "fine-tuned")


def ordered_roles(table: Table) -> list[str]:
    """Teachers first, the random student last."""

    def rank(role: str) -> tuple[int, str]:
        starts = [i for i, start in enumerate(ROLE_ORDER) if role.startswith(start)]
        return (starts[0] if starts else len(ROLE_ORDER), role)

    return sorted(table.by_role, key=rank)


def table_values(table: Table) -> dict[str, Any]:
    """What the template ``results.html`` wants to know of a table, without its chart."""
    roles = ordered_roles(table)
    figures = {role: figures_of(table.by_role[role]) for role in roles}
    rows = []
    for name in row_names(table.by_role.values()):
        cells = [figures[role].get(name) for role in roles]
        coverage = min(figure.coverage for figure in cells if figure is not None)
        rows.append({"name": title_of(name), "cells": cells, "coverage": coverage})
    details = [
        {
            "role": role,
            "name": title_of(name),
            "top1": result.top1,
            "top5": result.top5,
            "mean_class": result.mean_class,
            "num_test": result.num_test,
            "views": result.views,
        }
        for role in roles
        for name, result in table.by_role[role].results.items()
    ]
    heads = [
        {"name": role, "kind": kind_of(role), "encoder": short_name(table.by_role[role].encoder)} for role in roles
    ]
    return {
        "title": f"{table.dataset}, split {table.split}, top-1 in percent",
        "roles": heads,
        "rows": rows,
        "details": details,
        "notes": notes_of(table),
    }


def notes_of(table: Table) -> list[str]:
    """How many clips the numbers are of, how intervals were made, what was computed here."""
    evaluations = list(table.by_role.values())
    first = max(evaluations, key=lambda evaluation: evaluation.num_test)
    worst = max(evaluations, key=lambda evaluation: len(evaluation.unreadable))
    notes = [
        f"{first.num_test} test clips against {first.num_train} training clips; "
        f"{len(worst.unreadable)} could not be read."
    ]
    made = next((evaluation.bootstrap for evaluation in evaluations if evaluation.bootstrap), None)
    if made is not None:
        rough = ", so few that the intervals are themselves rough" if made.num_units < FEW_UNITS else ""
        notes.append(
            f"Below each number its {made.level:.0%} interval: {made.num_draws} test sets drawn from {made.num_units} "
            f"{made.unit}s{rough}."
        )
    if table.computed:
        notes.append(
            "Computed for this page from the networks' features, because results.json lacks them or their interval: "
            f"{', '.join(title_of(name) for name in table.computed)}."
        )
    return [" ".join(notes)]


def chart_groups(table: Table) -> list[tuple[str, list[Dot]]]:
    """Protocols with the dots of all networks, for the interval chart."""
    roles = ordered_roles(table)
    figures = {role: figures_of(table.by_role[role]) for role in roles}
    groups = []
    for name in row_names(table.by_role.values()):
        if name.startswith(RETRIEVAL) and not name.endswith(("R@1", "R@5")):
            continue
        dots = [
            Dot(role, figures[role][name].value, figures[role][name].ends, kind_of(role))
            for role in roles
            if name in figures[role]
        ]
        groups.append((title_of(name), dots))
    return groups
