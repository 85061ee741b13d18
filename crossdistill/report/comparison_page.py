"""The page that compares several runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from crossdistill.evaluation.gains import paired_gains
from crossdistill.evaluation.results import Evaluation, ProtocolResult
from crossdistill.evaluation.tables import FEW_UNITS, gain_text
from crossdistill.report.analysis import class_accuracies, confusion_of
from crossdistill.report.charts import Dot, Series, interval_chart, legend, line_chart, style_of
from crossdistill.report.class_charts import MAX_BARS
from crossdistill.report.cost import BATCH_SIZE, Cost, fastest, with_common_times
from crossdistill.report.curves import KNN, points_of
from crossdistill.report.facts import headline
from crossdistill.report.frontier import COSTS, cost_charts
from crossdistill.report.networks import Kind
from crossdistill.report.page import Page, Tile, make_sections, render
from crossdistill.report.record import RunRecord, UnavailableError
from crossdistill.report.results import ResultTable, main_result, result_tables
from crossdistill.report.run_data import RunData
from crossdistill.report.run_page import cost_note, cost_row, shown_protocol
from crossdistill.report.svg import element, percent, short_number, whole_percent
from crossdistill.report.sweep import differing_options, numbers_as_csv
from crossdistill.report.tables import accuracies_of, dot_groups, notes_of, row_names, title_of
from crossdistill.report.unlabelled import COMPARED_TITLES, compared_texts, stored_figures

SHOWN_ROWS = ("linear", "1-nn", "20-nn", "retrieval, R@5", "cluster")
"""Rows of results that the comparison shows."""


@dataclass(frozen=True)
class ComparedRun:
    """A run with its name, its style (CSS classes of colour and shape), and the results and cost of its student."""

    name: str
    style: str
    data: RunData
    table: ResultTable | None
    evaluation: Evaluation | None
    cost: Cost | None
    unlabelled: Evaluation | None = None

    @property
    def result(self) -> ProtocolResult | None:
        """The main result of the evaluation."""
        return None if self.evaluation is None else main_result(self.evaluation)


LEADS = {
    "runs": "The options that differ between the runs, and top-1 accuracy of their students on the test part, in %. A "
    "run without labels has no accuracy: its numbers compare the student with its teacher.",
    "accuracy": "Overlapping intervals do not prove that two students are equal, but they show no difference either.",
    "gains": "Points of top-1 over the first run, on the test clips of both. The interval is that of a paired "
    "bootstrap: both students are measured on the same drawn clips. An interval that holds 0 shows no difference. It "
    "says what other test clips or people would change, not what other training seeds would.",
    "cost": "Better is up, cheaper is left, on a logarithmic axis. Runs of the same network are one point: the mean of "
    "their accuracies, with a line from the lowest to the highest. The line of a single run is its interval. Times "
    "were measured one after the other, so on a busy machine small differences mean nothing.",
    "curves": "Losses of different objectives have different units: compare their shape, not their height.",
    "classes": "Accuracy within each class; the classes in which the runs differ most come first.",
}


def comparison_page(runs: Sequence[RunData]) -> Page:
    """Make the page that compares several runs, in the given order."""
    names = _names([run.record for run in runs])
    compared = _with_common_costs(
        [_compared(run, name, style_of(position)) for position, (run, name) in enumerate(zip(runs, names, strict=True))]
    )
    datasets = dict.fromkeys(run.table.dataset for run in compared if run.table)
    notes = [f"{run.name}: {note}" for run in compared for note in run.data.record.notes]
    for run in compared:
        reasons = dict.fromkeys([run.data.no_dataset, *run.data.reasons.values()])
        notes += [f"{run.name}: {reason}" for reason in reasons if reason]
    on = f" on {', '.join(datasets)}" if datasets else ""
    sentences = {headline(run.record) for run in runs}
    encoders = ", ".join(dict.fromkeys(run.record.encoder for run in runs))
    sections = (
        ("runs", "Runs", lambda: _table(compared)),
        ("accuracy", "Accuracy with intervals", lambda: _intervals(compared)),
        ("gains", f"Gains over {names[0]}", lambda: _gains(compared)),
        ("cost", "Accuracy over cost", lambda: _costs(compared)),
        ("curves", "Training curves", lambda: _curves(compared)),
        ("classes", "Accuracy by class", lambda: _classes(compared)),
    )
    return Page(
        title=f"Comparison of {len(compared)} runs",
        headline=sentences.pop() if len(sentences) == 1 else f"{encoders}{on}.",
        tiles=_tiles(compared),
        sections=make_sections(sections, LEADS),
        notes=notes,
    )


def _names(records: Sequence[RunRecord]) -> list[str]:
    """Return the folder names of the runs; the folders as given for runs of the same name."""
    names = [record.name for record in records]
    return [str(record.folder) if names.count(record.name) > 1 else record.name for record in records]


def _compared(run: RunData, name: str, style: str) -> ComparedRun:
    table = next(iter(result_tables(run)), None)
    evaluation = None if table is None else table.by_role.get(run.record.role)
    cost = next(iter(run.costs), None)
    return ComparedRun(name, style, run, table, evaluation, cost, stored_figures(run.record))


def _networks(runs: Sequence[ComparedRun]) -> list[tuple[Cost, list[ComparedRun]]]:
    """Group runs whose students are the same network, whatever its weights; runs without a cost are left out."""
    groups: dict[tuple[object, ...], list[tuple[Cost, ComparedRun]]] = {}
    for run in runs:
        if run.cost is not None:
            groups.setdefault(run.cost.network, []).append((run.cost, run))
    return [(fastest([cost for cost, _ in group]), [run for _, run in group]) for group in groups.values()]


def _with_common_costs(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Give runs of the same network one cost: its timings differ only by what else the machine did."""
    costs = iter(with_common_times([run.cost for run in runs if run.cost is not None]))
    return [run if run.cost is None else replace(run, cost=next(costs)) for run in runs]


def _tiles(runs: Sequence[ComparedRun]) -> list[Tile]:
    measured = [(run, run.result) for run in runs if run.result is not None]
    tiles = []
    if measured and len({run.table.dataset for run, _ in measured if run.table}) == 1:
        top1, names = _extreme([(run.name, result.top1) for run, result in measured], max)
        tiles.append(Tile(percent(top1), f"best top-1, {measured[0][1].protocol}", names))
    for measure in COSTS:
        measured_costs = [(run.name, measure.value_of(run.cost)) for run in runs if run.cost is not None]
        costs = [(name, value) for name, value in measured_costs if value]  # 0 where it was not measured
        if costs and not (measure.is_time and _is_close(sorted({value for _, value in costs}))):
            value, names = _extreme(costs, min)
            tiles.append(Tile(measure.text_of(value), measure.lowest, names))
    return tiles


def _extreme(values: Sequence[tuple[str, float]], choose: Callable[[Iterable[float]], float]) -> tuple[float, str]:
    """Return the largest or smallest of several values, and the names of the runs that have it."""
    found = choose(value for _, value in values)
    names = [name for name, value in values if value == found]
    return found, _shortened(names)


def _shortened(names: Sequence[str]) -> str:
    """Name several runs in a few words; no two groups of different runs get the same words."""
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} and {len(names) - 1} more"


def _is_close(ascending: Sequence[float]) -> bool:
    """Return whether the two smallest times are too similar (by less than 10 %) to call one the lowest."""
    return len(ascending) > 1 and ascending[1] <= 1.1 * ascending[0]


def _table(runs: Sequence[ComparedRun]) -> Markup:
    evaluations = [run.evaluation for run in runs]
    protocols = [name for name in row_names(filter(None, evaluations)) if name in SHOWN_ROWS]
    options = differing_options([run.data.record.config for run in runs])
    without_labels = any(run.unlabelled is not None for run in runs)
    rows: list[dict[str, Any]] = []
    for position, run in enumerate(runs):
        accuracies = {} if run.evaluation is None else accuracies_of(run.evaluation)
        cells = [accuracies.get(name) for name in protocols]
        coverage = min((cell.coverage for cell in cells if cell is not None), default=None)
        own = [values[position] for values in options.values()]
        facts = {"name": run.name, "style": run.style, "options": own, "cells": cells, "coverage": coverage}
        rows.append({**facts, "texts": compared_texts(run.unlabelled) if without_labels else []})
    tables = [run.table for run in runs if run.table is not None]
    notes = list(dict.fromkeys(f"{table.dataset}: {note}" for table in tables for note in notes_of(table)))
    if len({table.dataset for table in tables}) > 1:
        notes.append("The runs were evaluated on different datasets, so their accuracies are not comparable.")
    if not options:
        notes.append("No option differs between the runs.")
    figures = [run.evaluation or run.unlabelled for run in runs]
    csv = numbers_as_csv([run.name for run in runs], options, figures, [run.cost for run in runs])
    return render(
        "runs.html",
        options=[name.replace("_", "-") for name in options],
        protocols=[title_of(name) for name in protocols],
        without_labels=COMPARED_TITLES if without_labels else (),
        rows=rows,
        notes=notes,
        csv_url=f"data:text/csv;charset=utf-8,{quote(csv)}",
    )


def _intervals(runs: Sequence[ComparedRun]) -> Markup:
    measured = [(run.name, run.style, run.evaluation) for run in runs if run.evaluation is not None]
    if not measured:
        raise UnavailableError("no run was evaluated, and none can be evaluated now.")
    names = [name for name in row_names(evaluation for *_, evaluation in measured) if name in SHOWN_ROWS]
    return interval_chart(dot_groups(names, measured), label="accuracies of all runs")


def _gains(runs: Sequence[ComparedRun]) -> Markup:
    """Make a table with the gain of every run over the first, for each protocol that is shown."""
    first, *others = runs
    if first.evaluation is None or first.table is None:
        raise UnavailableError(f"{first.name} was not evaluated, and cannot be evaluated now.")
    rows = []
    tested = (first.evaluation.dataset, first.evaluation.split)
    for run in others:
        if run.evaluation is not None and (run.evaluation.dataset, run.evaluation.split) == tested:
            gains = paired_gains(run.evaluation, first.evaluation)
            named = [
                (name, gains[name]) for name in row_names([run.evaluation]) if name in gains and name in SHOWN_ROWS
            ]
            rows += [(run, name, gain) for name, gain in named]
    if not rows:
        raise UnavailableError(f"no other run was evaluated on split {tested[1]} of {tested[0]}, as {first.name} was.")
    values = [
        {"name": run.name, "style": run.style, "protocol": title_of(name), "cells": gain_text(gain), "gain": gain}
        for run, name, gain in rows
    ]
    bootstrap = next((gain.bootstrap for _, _, gain in rows if gain.bootstrap), None)
    is_rough = bootstrap is not None and bootstrap.num_units < FEW_UNITS
    return render("gains.html", rows=values, bootstrap=bootstrap, is_rough=is_rough)


def _costs(runs: Sequence[ComparedRun]) -> Markup:
    networks = _networks(runs)
    if not networks:
        raise UnavailableError("the student of no run can be loaded.")
    named = [(_shortened([run.name for run in group]), cost, group) for cost, group in networks]
    charts = cost_charts([(cost, dot) for name, cost, group in named if (dot := _dot(name, group)) is not None])
    rows = [cost_row(cost, name=name, style=group[0].style) for name, cost, group in named]
    table = render("cost.html", costs=rows, batch_size=BATCH_SIZE, note=cost_note([cost for cost, _ in networks]))
    names = legend([(name, group[0].style) for name, _, group in named])
    return names + element("div", *charts, class_="pictures") + table


def _dot(name: str, group: Sequence[ComparedRun]) -> Dot | None:
    """Return the point of a network: its run with its interval, or the mean and the range of several runs."""
    results = [run.result for run in group if run.result is not None]
    top1 = [result.top1 for result in results]
    if not top1:
        return None
    interval = results[0].intervals.get("top1") if len(results) == 1 else (min(top1), max(top1))
    return Dot(name, sum(top1) / len(top1), interval, group[0].style)


def _curves(runs: Sequence[ComparedRun]) -> Markup:
    charts = []
    for title, key, y_format in (("Loss", "loss", short_number), ("1-NN of held-out clips", KNN, whole_percent)):
        points = [(run, points_of(run.data.record.metrics, key)) for run in runs]
        series = [Series(run.name, steps, values, run.style) for run, (steps, values) in points if steps]
        if series:
            charts.append((series, title, y_format))
    if not charts:
        raise UnavailableError("no run has a metrics.jsonl with a complete line.")
    width_px = 976 if len(charts) == 1 else 460
    drawn = [
        line_chart(series, title=title, x_label="step", y_format=y_format, width_px=width_px, height_px=280)
        for series, title, y_format in charts
    ]
    return element("div", *drawn, class_="pictures")


def _classes(runs: Sequence[ComparedRun]) -> Markup:
    """Make a heat map with a row per class and a column per run."""
    shown = [(run, run.data.of_kind(Kind.STUDENT)[0]) for run in runs if run.data.of_kind(Kind.STUDENT)]
    class_lists = {run.data.manifest.classes for run, _ in shown if run.data.manifest is not None}
    if len(shown) < 2 or len(class_lists) != 1:
        raise UnavailableError("fewer than two students could be embedded on datasets with the same classes.")
    protocol = shown_protocol(shown[0][1])
    accuracies_rc = np.stack([class_accuracies(confusion_of(student, protocol)) for _, student in shown])
    classes = next(iter(class_lists))
    seen = [i for i in range(len(classes)) if not np.isnan(accuracies_rc[:, i]).any()]
    order = sorted(seen, key=lambda i: (-float(np.ptp(accuracies_rc[:, i])), i))[:MAX_BARS]
    head = [element("th", "class"), *(element("th", run.name) for run, _ in shown)]
    rows = [element("tr", element("th", classes[i]), *map(_heat_cell, accuracies_rc[:, i].tolist())) for i in order]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *rows), class_="heat")
    return element("div", table, class_="scroll") + element("p", f"Protocol {protocol}, in %.", class_="note")


def _heat_cell(share: float) -> Markup:
    style = f"background:color-mix(in srgb, var(--student) {round(62 * share)}%, transparent)"
    return element("td", f"{100 * share:.0f}", style=style)
