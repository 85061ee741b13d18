"""The page of several runs beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from crossdistill.evaluation.results import Evaluation
from crossdistill.report import facts
from crossdistill.report.charts import CostDot, Dot, Series, colour_of, cost_chart, interval_chart, legend, line_chart
from crossdistill.report.class_charts import MAX_BARS
from crossdistill.report.cost import BATCH_SIZE, Cost
from crossdistill.report.findings import class_accuracies, confusion_of
from crossdistill.report.page import Draft, Page, Tile, make_sections, render
from crossdistill.report.record import AbsentError, RunRecord
from crossdistill.report.sections import cost_cells, cost_note, name_of_network, protocol_of
from crossdistill.report.spaces import STUDENT
from crossdistill.report.subject import Subject, Table, main_result, tables_of
from crossdistill.report.svg import element, percent, short_number
from crossdistill.report.tables import figures_of, notes_of, row_names, title_of

SHOWN_ROWS = ("linear", "1-nn", "20-nn", "retrieval, R@5", "cluster")
"""Of the table over runs; the chart has all."""


@dataclass(frozen=True)
class Compared:
    """A run as the comparison shows it."""

    name: str
    colour: str
    subject: Subject
    table: Table | None
    evaluation: Evaluation | None
    """Of its trained student."""

    @property
    def cost(self) -> Cost | None:
        """Of its student."""
        return self.subject.costs[0] if self.subject.costs else None


def comparison_page(subjects: Sequence[Subject]) -> Page:
    """Several runs, in the order in which they were given."""
    names = _names([subject.record for subject in subjects])
    runs = [_compared(subject, names[position], position) for position, subject in enumerate(subjects)]
    datasets = dict.fromkeys(run.table.dataset for run in runs if run.table)
    notes = [f"{run.name}: {note}" for run in runs for note in run.subject.record.notes]
    notes += [f"{run.name}: {reason}" for run in runs for reason in dict.fromkeys(run.subject.reasons.values())]
    on = f" on {', '.join(datasets)}" if datasets else ""
    return Page(
        title=f"{len(runs)} runs compared",
        headline=f"{', '.join(dict.fromkeys(run.subject.record.encoder for run in runs))}{on}.",
        tiles=_tiles(runs),
        sections=make_sections(
            [
                Draft("runs", "Runs", RUNS_LEAD, lambda: _table(runs)),
                Draft("accuracy", "Accuracy with intervals", ACCURACY_LEAD, lambda: _intervals(runs)),
                Draft("cost", "Cost against accuracy", COST_LEAD, lambda: _costs(runs)),
                Draft("curves", "Curves", CURVES_LEAD, lambda: _curves(runs)),
                Draft("classes", "By class", CLASSES_LEAD, lambda: _classes(runs)),
            ]
        ),
        notes=notes,
    )


RUNS_LEAD = "The students of all runs: top-1 on the test part in percent."
ACCURACY_LEAD = "Intervals that overlap much do not prove equality, but they do not show a difference either."
COST_LEAD = (
    "Better is up, cheaper is left, on a logarithmic axis. Runs of equal cost stand beside each other. Times were "
    "measured one after the other: on a busy machine they differ even between equal students."
)
CURVES_LEAD = "Losses of different objectives have different units: compare their shape, not their height."
CLASSES_LEAD = "Accuracy within each class; classes in which the runs differ most come first."


def _names(records: Sequence[RunRecord]) -> list[str]:
    """What tells the runs apart: the names of their folders, or where two have one name, the folders as given."""
    names = [record.name for record in records]
    return [str(record.folder) if names.count(record.name) > 1 else record.name for record in records]


def _compared(subject: Subject, name: str, position: int) -> Compared:
    tables = tables_of(subject)
    table = tables[0] if tables else None
    evaluation = None if table is None else table.by_role.get(subject.record.role)
    return Compared(name, colour_of(position), subject, table, evaluation)


def _tiles(runs: Sequence[Compared]) -> list[Tile]:
    results = [(run, main_result(run.evaluation)) for run in runs if run.evaluation is not None]
    measured = [(run, result) for run, result in results if result is not None]
    tiles = []
    if measured and len({run.table.dataset for run, _ in measured if run.table}) == 1:
        top1, names = _extreme([(run.name, result.top1) for run, result in measured], max)
        tiles.append(Tile(percent(top1), f"best top-1, {measured[0][1].protocol}", names))
    for title, value_of, text_of in COSTS:
        costed = [(run, value_of(run.cost)) for run in runs if run.cost is not None]
        if costed and not (title == TIME and _is_close(sorted(value for _, value in costed))):
            value, names = _extreme([(run.name, value) for run, value in costed], min)
            tiles.append(Tile(text_of(value), f"fewest {title}", names))
    return tiles


def _extreme(values: Sequence[tuple[str, float]], choose: Callable[[Iterable[float]], float]) -> tuple[float, str]:
    """The largest or smallest of several values, and who has it."""
    found = choose(value for _, value in values)
    names = [name for name, value in values if value == found]
    return found, names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _is_close(ascending: Sequence[float]) -> bool:
    """Whether two measured times are too near to each other to call one the lowest."""
    return len(ascending) > 1 and ascending[1] <= (1 + CLOSE_TIMES) * ascending[0]


TIME = "milliseconds for one clip"
CLOSE_TIMES = 0.1
"""Share by which a measured time may differ by itself."""
COSTS: tuple[tuple[str, Callable[[Cost], float], Callable[[float], str]], ...] = (
    ("parameters", lambda cost: float(cost.num_parameters), short_number),
    ("multiply-adds of one clip", lambda cost: cost.gmacs * 1e9, short_number),
    (TIME, lambda cost: 1000 * cost.latency_seconds, lambda value: f"{value:.3g} ms"),
    ("bytes of the weight file", lambda cost: float(cost.num_bytes or 0), lambda value: f"{short_number(value)}B"),
)


def _table(runs: Sequence[Compared]) -> Markup:
    evaluations = [run.evaluation for run in runs if run.evaluation is not None]
    names = [name for name in row_names(evaluations) if name in SHOWN_ROWS]
    rows: list[dict[str, Any]] = []
    for run in runs:
        figures = {} if run.evaluation is None else figures_of(run.evaluation)
        record = run.subject.record
        rows.append(
            {
                "name": run.name,
                "colour": run.colour,
                "student": record.encoder,
                "teacher": "labels" if record.is_supervised else record.teachers or "–",
                "cells": [figures.get(name) for name in names],
                "coverage": min((figures[name].coverage for name in names if name in figures), default=None),
            }
        )
    tables = [run.table for run in runs if run.table is not None]
    notes = list(dict.fromkeys(f"{table.dataset}: {note}" for table in tables for note in notes_of(table)))
    if len({table.dataset for table in tables}) > 1:
        notes.append("The runs were evaluated on different datasets: their accuracies are not of the same test clips.")
    return render("runs.html", protocols=[title_of(name) for name in names], rows=rows, notes=notes)


def _measured(runs: Sequence[Compared]) -> list[tuple[Compared, Evaluation]]:
    found = [(run, run.evaluation) for run in runs if run.evaluation is not None]
    if not found:
        raise AbsentError("none of the runs was evaluated, and none could be now.")
    return found


def _intervals(runs: Sequence[Compared]) -> Markup:
    measured = _measured(runs)
    groups = []
    for name in row_names([evaluation for _, evaluation in measured]):
        if name not in SHOWN_ROWS:
            continue
        figures = [(run, figures_of(evaluation).get(name)) for run, evaluation in measured]
        dots = [Dot(run.name, figure.value, figure.ends, run.colour) for run, figure in figures if figure is not None]
        groups.append((title_of(name), dots))
    return interval_chart(groups, label="accuracies of all runs")


def _costs(runs: Sequence[Compared]) -> Markup:
    costs = [(run, run.cost) for run in runs if run.cost is not None]
    if not costs:
        raise AbsentError("no run has a student that can be loaded.")
    cells = [
        {"role": run.name, "kind": run.colour, "encoder": name_of_network(cost), **cost_cells(cost)}
        for run, cost in costs
    ]
    charts = []
    for title, value_of, _ in COSTS:
        dots = []
        for run in runs:
            result = None if run.evaluation is None else main_result(run.evaluation)
            value = None if run.cost is None else value_of(run.cost)
            if result is not None and value:
                ends = result.intervals.get("top1")
                dots.append(CostDot(run.name, value, result.top1, ends, run.colour))
        if dots:
            charts.append(cost_chart(dots, title=f"Accuracy over {title}", x_label=title))
    table = render("cost.html", costs=cells, batch_size=BATCH_SIZE, note=cost_note([cost for _, cost in costs]))
    names = legend([(run.name, run.colour) for run, _ in costs])
    return names + element("div", *charts, class_="pictures") + table


def _curves(runs: Sequence[Compared]) -> Markup:
    charts = []
    wanted = (("Loss", "loss", short_number), ("1-NN of held-out clips", facts.KNN, lambda share: percent(share, 0)))
    for title, key, y_format in wanted:
        series = [
            Series(run.name, *points, run.colour)
            for run in runs
            if (points := facts.points_of(run.subject.record.metrics, key))[0]
        ]
        if series:
            charts.append((series, title, y_format))
    if not charts:
        raise AbsentError("no run has a metrics.jsonl with a whole line.")
    width_px = 976 if len(charts) == 1 else 460
    drawn = [
        line_chart(series, title=title, x_label="step", y_format=y_format, width_px=width_px, height_px=280)
        for series, title, y_format in charts
    ]
    return element("div", *drawn, class_="pictures")


def _classes(runs: Sequence[Compared]) -> Markup:
    """A table of colours, a row for each class."""
    shown = [(run, run.subject.of_kind(STUDENT)[0]) for run in runs if run.subject.of_kind(STUDENT)]
    sets = {run.subject.manifest.classes for run, _ in shown if run.subject.manifest is not None}
    if len(shown) < 2 or len(sets) != 1:
        raise AbsentError("fewer than two runs could be embedded on datasets of the same classes.")
    protocol = protocol_of(shown[0][1])
    accuracies_rc = np.stack([class_accuracies(confusion_of(space, protocol)) for _, space in shown])
    classes = next(iter(sets))
    seen = [i for i in range(len(classes)) if not np.isnan(accuracies_rc[:, i]).any()]
    order = sorted(seen, key=lambda i: (-float(np.ptp(accuracies_rc[:, i])), i))[:MAX_BARS]
    head = [element("th", "class"), *(element("th", run.name) for run, _ in shown)]
    rows = [
        element("tr", element("th", classes[i]), *(_heat_cell(float(value)) for value in accuracies_rc[:, i]))
        for i in order
    ]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows), class_="heat")
    return element("div", table, class_="scroll") + element(
        "p", f"By the protocol {protocol}, in percent.", class_="note"
    )


def _heat_cell(share: float) -> Markup:
    style = f"background:color-mix(in srgb, var(--student) {round(62 * share)}%, transparent)"
    return element("td", f"{100 * share:.0f}", style=style)
