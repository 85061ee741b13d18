"""The page of one run."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from crossdistill.report import facts
from crossdistill.report.charts import Series, interval_chart, line_chart
from crossdistill.report.class_charts import (
    Bar,
    bar_chart,
    change_chart,
    class_legend,
    confusion_chart,
    confusion_scale,
    map_chart,
)
from crossdistill.report.cost import BATCH_SIZE, Cost
from crossdistill.report.findings import (
    Agreement,
    agreement_with,
    class_accuracies,
    confusion_of,
    map_of,
    worst_confusions,
)
from crossdistill.report.gallery import build_gallery
from crossdistill.report.page import Draft, Page, Tile, make_sections, render
from crossdistill.report.record import AbsentError, short_name
from crossdistill.report.spaces import RANDOM, STUDENT, TEACHER, TWIN, Space, kind_of
from crossdistill.report.subject import MAIN_PROTOCOLS, Subject, main_result, tables_of
from crossdistill.report.svg import element, join, percent, short_number
from crossdistill.report.tables import chart_groups, figure_of, table_values

# Differences of accuracies below this are not called one.
LEAST_CHANGE = 0.0005


def run_page(subject: Subject, *, num_queries: int) -> Page:
    """Everything about one run."""
    record = subject.record
    notes = [*record.notes, *(f"Of the twin: {note}" for note in (subject.twin.notes if subject.twin else ()))]
    if not all(space.is_whole for space in subject.spaces):
        notes.append("Pictures of the embedding are of a part of the clips: more with --clips.")
    return Page(
        title=record.name,
        headline=facts.headline(record),
        tiles=_tiles(subject),
        sections=make_sections(
            [
                Draft("accuracy", "Accuracy", ACCURACY_LEAD, lambda: _accuracy(subject)),
                Draft("run", "What was run", RUN_LEAD, lambda: facts.what_was_run(record)),
                Draft("curves", "Curves", CURVES_LEAD, lambda: facts.curves(record)),
                Draft("confusion", "Confusion", CONFUSION_LEAD, lambda: _confusion(subject)),
                Draft("change", "Against the twin, by class", CHANGE_LEAD, lambda: _change(subject)),
                Draft("map", "Map of the embedding", MAP_LEAD, lambda: _maps(subject)),
                Draft("gallery", "Nearest neighbours", GALLERY_LEAD, lambda: _gallery(subject, num_queries)),
                Draft("agreement", "Agreement with the teacher", AGREEMENT_LEAD, lambda: _agreement(subject)),
                Draft("cost", "Cost", COST_LEAD, lambda: _cost(subject)),
            ]
        ),
        notes=notes,
    )


ACCURACY_LEAD = (
    "What is right on the test part, by every protocol that the run was evaluated with. Lines are intervals."
)
RUN_LEAD = "As it was started, and on what."
CURVES_LEAD = "As metrics.jsonl has them; of long runs means over neighbouring lines."
CONFUSION_LEAD = "Rows are the true classes, columns what the student takes them for. Point at a cell for its numbers."
CHANGE_LEAD = "Points of accuracy that the student gains or loses within each class against its supervised twin."
MAP_LEAD = (
    "t-SNE of the test clips: near is alike, distances between far groups mean nothing. Point at a class to single it "
    "out, at a clip for its name."
)
GALLERY_LEAD = (
    "Test clips, drawn by a fixed seed, and the training clips that the student finds nearest. Point at a row to play."
)
AGREEMENT_LEAD = (
    "Which share of a test clip's nearest neighbours in the teacher's space are neighbours in the other's too."
)
COST_LEAD = "Measured when this page was made, with decoding left out."


def _tiles(subject: Subject) -> list[Tile]:
    tables = tables_of(subject)
    by_role = tables[0].by_role if tables else {}
    own = main_result(by_role[subject.record.role]) if subject.record.role in by_role else None
    tiles = []
    if own is not None:
        note = figure_of(own).note
        tiles.append(Tile(percent(own.top1), f"top-1, {own.protocol}", f"interval {note}" if note else ""))
        others = {kind_of(role): e.results.get(own.protocol) for role, e in by_role.items() if kind_of(role) != STUDENT}
        twin, teacher, random = (others.get(kind) for kind in (TWIN, TEACHER, RANDOM))
        if twin is not None:
            tiles.append(
                Tile(_points(own.top1 - twin.top1), "against its supervised twin", f"which has {percent(twin.top1)}")
            )
        if teacher is not None:
            tiles.append(
                Tile(_points(own.top1 - teacher.top1), "against its teacher", f"which has {percent(teacher.top1)}")
            )
        if random is not None and twin is None:
            tiles.append(
                Tile(_points(own.top1 - random.top1), "against random weights", f"with {percent(random.top1)}")
            )
    return tiles + _cost_tiles(subject.costs)


def _points(difference: float) -> str:
    """A difference of accuracies in points."""
    if abs(difference) < LEAST_CHANGE:
        return "±0"
    return f"{100 * difference:+.1f}".replace("-", "−")


def _cost_tiles(costs: list[Cost]) -> list[Tile]:
    own = next((cost for cost in costs if kind_of(cost.role) == STUDENT), None)
    if own is None:
        return []
    teacher = next((cost for cost in costs if kind_of(cost.role) == TEACHER), None)
    ratio = "" if teacher is None else f"teacher: {short_number(teacher.num_parameters)}"
    speed = "" if teacher is None else f"teacher: {_milliseconds(teacher.latency_seconds)}"
    return [
        Tile(short_number(own.num_parameters), "parameters", ratio),
        Tile(_milliseconds(own.latency_seconds), f"for one clip, {own.device}", speed),
    ]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _accuracy(subject: Subject) -> Markup:
    tables = [table for table in tables_of(subject) if any(e.results for e in table.by_role.values())]
    if not tables:
        reason = subject.reasons.get(STUDENT) or subject.reasons.get("dataset") or ""
        raise AbsentError(f"the run was not evaluated{f', and {reason}' if reason else '.'}")
    values = []
    for table in tables:
        chart = interval_chart(chart_groups(table), label=f"accuracies on {table.dataset}")
        values.append({**table_values(table), "chart": chart})
    return render("results.html", tables=values)


def protocol_of(space: Space) -> str:
    """The protocol whose predictions are shown."""
    found = {} if space.evaluation is None else space.evaluation.results
    return next((name for name in MAIN_PROTOCOLS if name in found), MAIN_PROTOCOLS[0])


def _confusion(subject: Subject) -> Markup:
    space = subject.require(STUDENT)
    protocol, classes = protocol_of(space), _classes(subject)
    counts = confusion_of(space, protocol)
    pairs = [
        f"{classes[pair.true]} → {classes[pair.taken_for]} ({pair.count} of {pair.total})"
        for pair in worst_confusions(counts)
    ]
    said = f"By the protocol {protocol}: {int(counts.trace())} of {int(counts.sum())} test clips are right. "
    worst = "Most often confused: " + "; ".join(pairs) + "." if pairs else "No clip is confused."
    note = element("p", said + worst, class_="note")
    return confusion_scale() + element("div", confusion_chart(counts, classes), class_="scroll") + note


def _classes(subject: Subject) -> tuple[str, ...]:
    assert subject.manifest is not None
    return subject.manifest.classes


def _change(subject: Subject) -> Markup:
    own, twin = subject.require(STUDENT), subject.require(TWIN)
    protocol = protocol_of(own)
    counts = [confusion_of(space, protocol) for space in (own, twin)]
    before, after = class_accuracies(counts[1]), class_accuracies(counts[0])
    bars = [
        Bar(name, float(new - old), said=f"{name}: {percent(old)} → {percent(new)}")
        for name, old, new in zip(_classes(subject), before, after, strict=True)
        if new == new and old == old  # NaN: a class without test clips
    ]
    num_better = sum(bar.value > LEAST_CHANGE for bar in bars)
    num_worse = sum(bar.value < -LEAST_CHANGE for bar in bars)
    num_clips = min((int(number) for number in counts[0].sum(1) if number), default=0)
    note = (
        f"By the protocol {protocol}: better in {num_better} classes, worse in {num_worse}, equal in "
        f"{len(bars) - num_better - num_worse}. The smallest class has {num_clips} test clips, so one clip of it is "
        f"{100 / max(1, num_clips):.1f} points."
    )
    chart = change_chart(bars, label="change of accuracy within each class")
    return element("figure", chart) + element("p", note, class_="note")


def _maps(subject: Subject) -> Markup:
    spaces = [subject.require(STUDENT), *subject.of_kind(TEACHER)[:1], *subject.of_kind(RANDOM)]
    if len(spaces) == 1:
        spaces += subject.of_kind(TWIN)
    classes = _classes(subject)
    drawn = []
    for space in spaces:
        found = map_of(space)
        names = [
            f"{classes[label] if label >= 0 else ''} – {video}"
            for label, video in zip(found.labels, found.videos, strict=True)
        ]
        note = f"{short_name(space.network.encoder.name)}, {len(names)} clips"
        drawn.append(map_chart(found.points_n2, found.labels, names, title=space.role, note=note))
    return element("div", element("div", *drawn, class_="pictures thirds"), class_legend(classes), class_="maps")


def _gallery(subject: Subject, num_queries: int) -> Markup:
    space = subject.require(STUDENT)
    assert subject.manifest is not None
    teachers = subject.of_kind(TEACHER)
    teacher_view = teachers[0].network.encoder.view if teachers else None
    rows = build_gallery(space, subject.manifest, num_queries=num_queries, teacher_view=teacher_view)
    marks = [shown.mark for row in rows for shown in row.neighbours if shown.mark]
    note = f"{len(rows)} queries; numbers are cosine similarities."
    if marks:
        note += f" {marks.count('right')} of these {len(marks)} neighbours show the query's class."
    if any(row.query.teacher_strip for row in rows):
        note += " Left of each query: the same moment as the teacher sees it."
    return render("gallery.html", rows=rows, note=note)


def _agreement(subject: Subject) -> Markup:
    own = subject.require(STUDENT)
    subject.require(TEACHER)
    others = [own, *subject.of_kind(TWIN), *subject.of_kind(RANDOM)]
    return join([_one_agreement(agreement_with(teacher, others), subject) for teacher in subject.of_kind(TEACHER)])


def _one_agreement(found: Agreement, subject: Subject) -> Markup:
    series = [
        Series(overlap.role, list(overlap.by_count), list(overlap.by_count.values()), overlap.kind)
        for overlap in found.overlaps
    ]
    series.append(Series("chance", list(found.chance), list(found.chance.values()), "chance"))
    chart = line_chart(
        series,
        title=f"Common neighbours with the {found.teacher}",
        x_label="number of neighbours",
        y_format=lambda share: percent(share, 0),
        is_log_x=True,
        width_px=560,
        height_px=300,
    )
    alignment = ", ".join(f"{overlap.role} {overlap.cka:.2f}" for overlap in found.overlaps)
    note = f"{found.num_clips} test clips. Linear CKA with the {found.teacher} (1: equal, 0: unrelated): {alignment}."
    own, others = found.overlaps[0], found.overlaps[1:]
    classes = _classes(subject)
    beside = others[0].by_class if others else {}
    bars = [
        Bar(
            classes[label],
            value,
            tick=beside.get(label),
            said=f"{classes[label]}: {percent(value)}"
            + (f", {others[0].role} {percent(beside[label])}" if label in beside else ""),
        )
        for label, value in own.by_class.items()
    ]
    parts = [chart, element("p", note, class_="note")]
    if bars:
        ticks = f"; the tick is the {others[0].role}" if others else ""
        title = element("h3", f"By class, {found.class_k} neighbours ", element("small", f"{own.role}{ticks}"))
        parts += [title, bar_chart(bars, label="common neighbours by class", colour=own.kind)]
    return join(parts)


def cost_cells(cost: Cost) -> dict[str, str]:
    """A network's cost in words."""
    return {
        "parameters": short_number(cost.num_parameters),
        "macs": short_number(cost.gmacs * 1e9),
        "latency": _milliseconds(cost.latency_seconds),
        "rate": short_number(cost.clips_per_second),
        "size": "–" if cost.num_bytes is None else f"{short_number(cost.num_bytes)}B",
    }


def name_of_network(cost: Cost) -> str:
    """A network's name as people write it, with its bits."""
    return short_name(cost.encoder) + (f" {cost.bits}" if cost.bits else "")


def cost_note(costs: Sequence[Cost]) -> str:
    """How the figures of a table of costs were measured."""
    note = (
        f"On {costs[0].device}: the fastest of several passes, from stored frames to the embedding; multiply-adds are "
        "of convolutions and matrix products of one clip."
    )
    if any(cost.bits for cost in costs):
        note += (
            " Networks of few bits are timed in PyTorch, which keeps their integers in floating point, as does the "
            "weight file; with int8 arithmetic they run as crossdistill export --to onnx writes them."
        )
    return note


def _cost(subject: Subject) -> Markup:
    if not subject.costs:
        raise AbsentError(subject.reasons.get(STUDENT, "no network could be loaded."))
    costs = [
        {"role": cost.role, "kind": kind_of(cost.role), "encoder": name_of_network(cost), **cost_cells(cost)}
        for cost in subject.costs
        if kind_of(cost.role) not in (RANDOM, TWIN) or (kind_of(cost.role) == TWIN and _differs(cost, subject.costs[0]))
    ]
    missing = [subject.reasons[TEACHER]] if TEACHER in subject.reasons and not subject.record.is_supervised else []
    note = cost_note(subject.costs)
    note += f" The teacher is not here: {missing[0]}" if missing else ""
    return render("cost.html", costs=costs, batch_size=BATCH_SIZE, note=note)


def _differs(cost: Cost, own: Cost) -> bool:
    return (cost.encoder, cost.gmacs) != (own.encoder, own.gmacs)
