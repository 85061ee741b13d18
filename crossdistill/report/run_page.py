"""The page of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from markupsafe import Markup

from crossdistill.evaluation.gains import paired_gains
from crossdistill.evaluation.results import MEAN_AVERAGE_PRECISION
from crossdistill.evaluation.tables import gain_text
from crossdistill.report.analysis import (
    TeacherAgreement,
    agreement_with,
    class_accuracies,
    confusion_of,
    near_videos,
    tsne_of,
    worst_confusions,
)
from crossdistill.report.charts import Dot, Series, interval_chart, legend, line_chart
from crossdistill.report.class_charts import (
    Bar,
    bar_chart,
    change_chart,
    class_legend,
    confusion_chart,
    confusion_scale,
    point_chart,
)
from crossdistill.report.cost import BATCH_SIZE, Cost
from crossdistill.report.curves import training_curves
from crossdistill.report.embeddings import Embedding
from crossdistill.report.facts import headline, run_facts
from crossdistill.report.frontier import cost_charts
from crossdistill.report.gallery import build_gallery
from crossdistill.report.networks import Kind, kind_of
from crossdistill.report.page import Page, Tile, make_sections, render
from crossdistill.report.record import UnavailableError, short_name
from crossdistill.report.reliability import LEADS as PROTOCOL_LEADS
from crossdistill.report.reliability import (
    calibration_section,
    multi_label_section,
    order_section,
    results_with,
    robustness_section,
)
from crossdistill.report.results import MAIN_PROTOCOLS, ResultTable, main_result, result_tables
from crossdistill.report.run_data import RunData
from crossdistill.report.svg import element, join, percent, short_number, whole_percent
from crossdistill.report.tables import accuracy_of, chart_groups, table_values
from crossdistill.report.unlabelled import (
    NEEDS_LABELS,
    SHARED_NEIGHBOURS,
    UNLABELLED_LEADS,
    clip_groups,
    spread_table,
    unlabelled_tiles,
)

MIN_CHANGE = 0.0005  # smaller differences of accuracies are shown as zero

LEADS = {
    "accuracy": "Accuracy on the test part by protocol. Lines are confidence intervals.",
    "run": "Configuration, student and machine.",
    "curves": "Values of metrics.jsonl over training steps. Neighbouring points of long runs are averaged.",
    "confusion": "Rows are true classes, columns are predicted classes. Hover over a cell for its numbers.",
    "change": "Accuracy within each class, student minus supervised baseline, in percentage points.",
    "tsne": "t-SNE of the test clips: nearby clips have similar embeddings, distances between distant groups have no "
    "meaning. Hover over a class to highlight it, over a point for the clip's name.",
    "gallery": "Test clips, drawn with a fixed seed, and their nearest training clips in the student's embedding.",
    "agreement": "Share of a test clip's nearest neighbours in the teacher's embedding that are also its neighbours in "
    "the embedding of another network.",
    "spread": "How an embedding spreads the clips. The effective rank is the number of dimensions in which they differ "
    "(Roy and Vetterli 2007, of centred unit embeddings); uniformity is 0 if all clips have one embedding, and lower "
    "the more evenly they cover the sphere (Wang and Isola 2020). A student with a rank near 1 or a uniformity near 0 "
    "has collapsed.",
    "cost": "Measured when this page was written, without decoding.",
    **PROTOCOL_LEADS,
}


def run_page(run: RunData, *, num_queries: int) -> Page:
    """Make the page of one run, with ``num_queries`` test clips in the gallery."""
    record = run.record
    notes = [*record.notes, *(f"Supervised baseline: {note}" for note in (run.baseline.notes if run.baseline else ()))]
    if not all(embedding.is_complete for embedding in run.embeddings):
        notes.append("Charts of the embedding show only a part of the clips: raise --clips to show more.")
    sections: list[tuple[str, str, Callable[[], Markup]]] = [
        ("accuracy", "Accuracy", lambda: _accuracy(run)),
        ("run", "Run", lambda: run_facts(record)),
        ("curves", "Training curves", lambda: training_curves(record.metrics)),
        ("confusion", "Confusion matrix", lambda: _confusion(run)),
        ("change", "Change by class against the supervised baseline", lambda: _change(run)),
        ("tsne", "t-SNE of the embedding", lambda: _projections(run)),
        ("gallery", "Nearest neighbours", lambda: _gallery(run, num_queries)),
        ("agreement", "Agreement with the teacher", lambda: _agreement(run)),
        ("spread", "Feature spread", lambda: spread_table(run)),
        ("cost", "Cost", lambda: _cost(run)),
    ]
    tables = result_tables(run)
    measured: list[tuple[str, str, str, Callable[[Sequence[ResultTable]], Markup]]] = [
        ("robustness", "Robustness", "families", robustness_section),
        ("order", "Order of frames", "drop", order_section),
        ("order", "Order of frames", "pairs", order_section),
        ("calibration", "Calibration", "ece", calibration_section),
        ("multi-label", "Mean average precision", MEAN_AVERAGE_PRECISION, multi_label_section),
    ]
    # Sections of protocols that few runs have; they stand after the accuracy.
    found = {name: (title, draw) for name, title, detail, draw in measured if any(results_with(tables, detail))}
    sections[1:1] = [(name, title, partial(draw, tables)) for name, (title, draw) in found.items()]
    leads, tiles = LEADS, _accuracy_tiles(run)
    if not run.has_labels:
        leads, tiles = {**LEADS, **UNLABELLED_LEADS}, [*tiles, *unlabelled_tiles(run)]
        has_results = bool(result_tables(run))  # of another dataset, by crossdistill evaluate --json
        sections = [one for one in sections if one[0] not in NEEDS_LABELS or (has_results and one[0] == "accuracy")]
    return Page(
        title=record.name,
        headline=headline(record),
        tiles=[*tiles, *_cost_tiles(run.costs)],
        sections=make_sections(sections, leads),
        notes=notes,
    )


def _accuracy_tiles(run: RunData) -> list[Tile]:
    by_role = next((table.by_role for table in result_tables(run)), {})
    trained = by_role.get(run.record.role)
    own = None if trained is None else main_result(trained)
    if trained is None or own is None:
        return []
    note = accuracy_of(own).note
    tiles = [Tile(percent(own.top1), f"top-1, {own.protocol}", f"interval {note}" if note else "")]
    others = {kind_of(role): evaluation for role, evaluation in by_role.items() if own.protocol in evaluation.results}
    names = {Kind.BASELINE: "supervised baseline", Kind.TEACHER: "teacher", Kind.RANDOM: "random weights"}
    for kind, name in names.items():
        other = others.get(kind)
        if other is not None and not (kind is Kind.RANDOM and others.get(Kind.BASELINE) is not None):
            _, interval = gain_text(paired_gains(trained, other)[own.protocol])
            top1 = other.results[own.protocol].top1
            tiles.append(Tile(_points(own.top1 - top1), f"points vs. {name}", f"{interval}; {name}: {percent(top1)}"))
    return tiles


def _points(difference: float) -> str:
    """Format a difference of accuracies in percentage points."""
    return "±0" if abs(difference) < MIN_CHANGE else f"{100 * difference:+.1f}".replace("-", "−")


def _cost_tiles(costs: Sequence[Cost]) -> list[Tile]:
    by_kind = {kind_of(cost.role): cost for cost in reversed(costs)}  # the first of each kind
    own, teacher = by_kind.get(Kind.STUDENT), by_kind.get(Kind.TEACHER)
    if own is None:
        return []
    size = "" if teacher is None else f"teacher: {short_number(teacher.num_parameters)}"
    speed = "" if teacher is None else f"teacher: {_milliseconds(teacher.latency_seconds)}"
    return [
        Tile(short_number(own.num_parameters), "parameters", size),
        Tile(_milliseconds(own.latency_seconds), f"per clip, {own.device}", speed),
    ]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _accuracy(run: RunData) -> Markup:
    tables = [table for table in result_tables(run) if any(e.results for e in table.by_role.values())]
    if not tables:
        reason = run.reasons.get(Kind.STUDENT) or run.no_dataset
        raise UnavailableError(f"the run was not evaluated{f', and {reason}' if reason else '.'}")
    charts = [interval_chart(chart_groups(table), label=f"accuracies on {table.dataset}") for table in tables]
    values = [{**table_values(table), "chart": chart} for table, chart in zip(tables, charts, strict=True)]
    return render("results.html", tables=values)


def shown_protocol(embedding: Embedding) -> str:
    """Return the protocol whose predictions are shown."""
    return next((name for name in MAIN_PROTOCOLS if name in embedding.evaluation.results), MAIN_PROTOCOLS[0])


def _classes(run: RunData) -> tuple[str, ...]:
    assert run.manifest is not None
    return run.manifest.classes


def _confusion(run: RunData) -> Markup:
    student = run.require(Kind.STUDENT)
    protocol, classes = shown_protocol(student), _classes(run)
    counts = confusion_of(student, protocol)
    found = worst_confusions(counts)
    pairs = [f"{classes[one.true]} → {classes[one.predicted]} ({one.count} of {one.total})" for one in found]
    correct = f"Protocol {protocol}: {int(counts.trace())} of {int(counts.sum())} test clips are correct. "
    worst = "Most frequent confusions: " + "; ".join(pairs) + "." if pairs else "No test clip is confused."
    note = element("p", correct + worst, class_="note")
    return confusion_scale() + element("div", confusion_chart(counts, classes), class_="scroll") + note


def _change(run: RunData) -> Markup:
    student, baseline = run.require(Kind.STUDENT), run.require(Kind.BASELINE)
    protocol = shown_protocol(student)
    counts, baseline_counts = (confusion_of(embedding, protocol) for embedding in (student, baseline))
    accuracies = zip(_classes(run), class_accuracies(baseline_counts), class_accuracies(counts), strict=True)
    bars = [
        Bar(name, float(new - old), tooltip=f"{name}: {percent(old)} → {percent(new)}")
        for name, old, new in accuracies
        if new == new and old == old  # NaN: a class without test clips
    ]
    num_better, num_worse = (sum(sign * bar.value > MIN_CHANGE for bar in bars) for sign in (1, -1))
    num_clips = min((int(number) for number in counts.sum(1) if number), default=0)
    note = (
        f"Protocol {protocol}: better in {num_better} classes, worse in {num_worse}, equal in "
        f"{len(bars) - num_better - num_worse}. The smallest class has {num_clips} test clips, so one of its clips "
        f"changes the accuracy by {100 / max(1, num_clips):.1f} points."
    )
    chart = change_chart(bars, label="change of the accuracy within each class")
    return element("figure", chart) + element("p", note, class_="note")


def _projections(run: RunData) -> Markup:
    embeddings = [run.require(Kind.STUDENT), *run.of_kind(Kind.TEACHER)[:1], *run.of_kind(Kind.RANDOM)]
    if len(embeddings) == 1:
        embeddings += run.of_kind(Kind.BASELINE)
    groups = clip_groups(run)
    classes = _classes(run) if groups is None else [f"group {i + 1}" for i in sorted(set(groups.values()))]
    charts = []
    for embedding in embeddings:
        found = tsne_of(embedding)
        labels = found.labels if groups is None else [groups.get(video, -1) for video in found.videos]
        clips = zip(labels, found.videos, strict=True)
        names = [f"{classes[label]} – {video}" if label >= 0 else video for label, video in clips]
        note = f"{short_name(embedding.network.encoder.name)}, {len(names)} clips"
        charts.append(point_chart(found.points_n2, labels, names, title=embedding.role, note=note))
    pictures = element("div", *charts, class_="pictures thirds")
    return element("div", pictures, class_legend(classes), class_="projections")


def _gallery(run: RunData, num_queries: int) -> Markup:
    student = run.require(Kind.STUDENT)
    assert run.manifest is not None
    teacher = next(iter(run.of_kind(Kind.TEACHER)), None)
    groups = clip_groups(run)
    near_teacher = near_videos(teacher, SHARED_NEIGHBOURS) if groups is not None and teacher is not None else None
    rows = build_gallery(
        student,
        run.manifest,
        num_queries=num_queries,
        teacher_view=None if teacher is None else teacher.network.encoder.view,
        groups=groups,
        near_teacher=near_teacher,
    )
    marks = [clip.mark for row in rows for clip in row.neighbours if clip.mark]
    note = f"{len(rows)} queries; the numbers are cosine similarities."
    if near_teacher is not None:
        note += (
            f" {len(marks)} of these {sum(len(row.neighbours) for row in rows)} neighbours are among the teacher's "
            f"{SHARED_NEIGHBOURS} nearest."
        )
    elif marks:
        note += f" {marks.count('right')} of these {len(marks)} neighbours belong to the query's class."
    if any(row.query.other_strip for row in rows):
        note += " The upper image of a pair is the same moment in the teacher's modality, or else in RGB."
    if student.network.encoder.view.num_frames > 1:
        note += " Hover over a row to play it."
    return render("gallery.html", rows=rows, note=note)


def _agreement(run: RunData) -> Markup:
    student = run.require(Kind.STUDENT)
    stored = [pair for by_role in run.record.results.values() for one in by_role.values() for pair in one.agreement]
    if stored and not run.of_kind(Kind.TEACHER):
        return render("agreement.html", pairs=stored, note=run.reasons.get(Kind.TEACHER, ""))
    run.require(Kind.TEACHER)
    others = [student, *run.of_kind(Kind.BASELINE), *run.of_kind(Kind.RANDOM)]
    found = [agreement_with(teacher, others) for teacher in run.of_kind(Kind.TEACHER)]
    return join([_agreement_charts(agreement, _classes(run)) for agreement in found])


def _agreement_charts(agreement: TeacherAgreement, classes: Sequence[str]) -> Markup:
    series = [
        Series(overlap.role, list(overlap.by_count), list(overlap.by_count.values()), str(overlap.kind))
        for overlap in agreement.overlaps
    ]
    series.append(Series("chance", list(agreement.chance), list(agreement.chance.values()), "chance"))
    chart = line_chart(
        series,
        title=f"Neighbours in common with the {agreement.teacher}",
        x_label="number of neighbours",
        y_format=whole_percent,
        is_log_x=True,
        width_px=560,
        height_px=300,
    )
    cka = ", ".join(f"{overlap.role} {overlap.cka:.2f}" for overlap in agreement.overlaps)
    note = f"{agreement.num_clips} clips. Linear CKA with the {agreement.teacher} (1: equal, 0: unrelated): {cka}."
    own, others = agreement.overlaps[0], agreement.overlaps[1:]
    beside = others[0].by_class if others else {}
    bars = []
    for label, share in own.by_class.items():
        more = f", {others[0].role} {percent(beside[label])}" if label in beside else ""
        bars.append(Bar(classes[label], share, beside.get(label), f"{classes[label]}: {percent(share)}{more}"))
    parts = [chart, element("p", note, class_="note")]
    if bars:
        ticks = f"; tick: {others[0].role}" if others else ""
        title = element("h3", f"By class, {agreement.class_k} neighbours ", element("small", f"{own.role}{ticks}"))
        parts += [title, bar_chart(bars, label="common neighbours by class", style=str(own.kind))]
    return join(parts)


def _cost(run: RunData) -> Markup:
    if not run.costs:
        raise UnavailableError(run.reasons.get(Kind.STUDENT, "no network could be loaded."))
    shown = [cost for cost in run.costs if not _costs_as_much_as(run.costs[0], cost)]
    by_role = next((table.by_role for table in result_tables(run)), {})
    measured = [(cost, by_role[cost.role]) for cost in run.costs if cost.role in by_role]
    dots = [
        (cost, Dot(cost.role, result.top1, result.intervals.get("top1"), str(kind_of(cost.role))))
        for cost, evaluation in measured
        if (result := main_result(evaluation)) is not None
    ]
    note = cost_note(run.costs)
    if Kind.TEACHER in run.reasons and not run.record.is_supervised:
        note += f" The teacher is not available: {run.reasons[Kind.TEACHER]}"
    rows = [cost_row(cost, name=cost.role, style=str(kind_of(cost.role))) for cost in shown]
    table = render("cost.html", costs=rows, batch_size=BATCH_SIZE, note=note)
    names = legend([(dot.name, dot.style) for _, dot in dots])
    return names + element("div", *cost_charts(dots), class_="pictures") + table if dots else table


def _costs_as_much_as(student: Cost, other: Cost) -> bool:
    """Whether a network needs no row of its own: a random student, or a baseline with the student's view."""
    kind = kind_of(other.role)
    is_equal = (other.encoder, other.gmacs) == (student.encoder, student.gmacs)
    return kind is Kind.RANDOM or (kind is Kind.BASELINE and is_equal)


def cost_row(cost: Cost, *, name: str, style: str) -> dict[str, str]:
    """Return the values of one row of the template ``cost.html``."""
    return {
        "name": name,
        "style": style,
        "encoder": short_name(cost.encoder) + (f" {cost.bits}" if cost.bits else ""),
        "parameters": short_number(cost.num_parameters),
        "macs": short_number(cost.gmacs * 1e9),
        "latency": _milliseconds(cost.latency_seconds),
        "exported": "–" if cost.exported_seconds is None else _milliseconds(cost.exported_seconds),
        "runtime": cost.runtime if cost.exported_seconds is not None else "",
        "rate": short_number(cost.clips_per_second),
        "size": "–" if cost.num_bytes is None else f"{short_number(cost.num_bytes)}B",
    }


def cost_note(costs: Sequence[Cost]) -> str:
    """Describe how the costs of a table were measured."""
    note = (
        f"On {costs[0].device}: the fastest of several passes, from stored frames to the embedding. Multiply-adds are "
        "those of convolutions and matrix products for one clip."
    )
    failed = dict.fromkeys(cost.runtime for cost in costs if cost.runtime and cost.exported_seconds is None)
    note += "".join(f" Not exported: {reason}." for reason in failed)
    if any(cost.bits for cost in costs):
        note += (
            " Quantised networks are timed in PyTorch, which simulates integers in floating point; the weight file "
            "stores floating point too. crossdistill export --to onnx or openvino writes a network that runs in int8."
        )
    return note
