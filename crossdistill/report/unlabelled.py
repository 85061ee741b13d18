"""What the page of a run shows in place of accuracies if the data has no labels."""

from __future__ import annotations

import contextlib

from markupsafe import Markup

from crossdistill.evaluation.results import Evaluation
from crossdistill.evaluation.spread import FeatureSpread, feature_spread, spread_texts
from crossdistill.evaluation.unlabelled import MAX_COMPARED_CLIPS
from crossdistill.report.analysis import agreement_with, groups_of, subset
from crossdistill.report.embeddings import Embedding
from crossdistill.report.networks import Kind
from crossdistill.report.page import Tile, render
from crossdistill.report.record import RunRecord, UnavailableError, short_name
from crossdistill.report.run_data import RunData
from crossdistill.report.svg import percent

COMPARED_TITLES = ("neighbours shared with the teacher", "effective rank")
"""Columns of a comparison of runs without labels."""
SHARED_NEIGHBOURS = 10  # of the teacher, with which a page without labels compares
NEEDS_LABELS = ("accuracy", "confusion", "change")  # sections
UNLABELLED_LEADS = {
    "tsne": "t-SNE of the clips: nearby clips have similar embeddings, distances between distant groups have no "
    "meaning. Without labels, colours are groups of the teacher's embedding by k-means (without a teacher, of the "
    "student's): a student that learned its teacher's neighbourhoods keeps the colours together. Hover over a point "
    "for the clip's name.",
    "gallery": "Clips, drawn from all groups with a fixed seed, and their nearest other clips in the student's "
    "embedding. ✓: also among the 10 nearest of the teacher.",
    "agreement": "Share of a clip's nearest neighbours in the teacher's embedding that are also its neighbours in the "
    "embedding of another network.",
}


def unlabelled_tiles(run: RunData) -> list[Tile]:
    """Show how many of the teacher's neighbours the student shares, and in how many dimensions its clips differ."""
    student, teacher = (next(iter(run.of_kind(kind)), None) for kind in (Kind.STUDENT, Kind.TEACHER))
    if student is None:
        return []
    tiles = []
    if teacher is not None:
        with contextlib.suppress(UnavailableError):  # the section of the agreement gives the reason
            found = agreement_with(teacher, [student, *run.of_kind(Kind.RANDOM)], class_k=SHARED_NEIGHBOURS)
            own, *others = (percent(overlap.by_count[found.class_k]) for overlap in found.overlaps)
            note = "".join(f"random weights: {other}; " for other in others)
            note += f"chance: {percent(found.chance[found.class_k])}"
            tiles.append(Tile(own, f"of {found.class_k} neighbours shared with the teacher", note))
    own_spread, taught = _spread(student), None if teacher is None else _spread(teacher)
    if own_spread is not None:
        note = "" if taught is None else f"teacher: {taught.effective_rank:.1f} of {taught.highest_rank}"
        title = f"effective rank, of {own_spread.highest_rank}"
        tiles.append(Tile(f"{own_spread.effective_rank:.1f}", title, note))
    return tiles


def stored_figures(record: RunRecord) -> Evaluation | None:
    """Return what the end of training found out about the trained student without labels."""
    found = (by_role.get(record.role) for by_role in record.results.values())
    return next((evaluation for evaluation in found if evaluation is not None and not evaluation.results), None)


def compared_texts(evaluation: Evaluation | None) -> list[tuple[str, str]]:
    """Return a number and the small print below it for each of ``COMPARED_TITLES``; empty where it is not known."""
    pair = evaluation.agreement[0] if evaluation is not None and evaluation.agreement else None
    spread = None if evaluation is None else evaluation.spread
    rank, _, highest = spread_texts(spread)[0].partition(" of ") if spread is not None else ("", "", "")
    ends = (
        ""
        if pair is None or pair.overlap_interval is None
        else "–".join(f"{100 * end:.1f}" for end in pair.overlap_interval)
    )
    return [("" if pair is None else percent(pair.overlap), ends), (rank, f"of {highest}" if rank else "")]


def clip_groups(run: RunData) -> dict[str, int] | None:
    """Group clips without labels by the teacher's embedding, or by the student's; None if clips have labels."""
    student = run.require(Kind.STUDENT)
    if run.has_labels or bool((student.split.test.labels >= 0).any()):
        return None
    return groups_of(next(iter(run.of_kind(Kind.TEACHER)), student))


def spread_table(run: RunData) -> Markup:
    """Make the table of the spread of every network's features; of one clip it is an ``UnavailableError``."""
    student = run.require(Kind.STUDENT)
    others = [*run.of_kind(Kind.TEACHER), *run.of_kind(Kind.BASELINE), *run.of_kind(Kind.RANDOM)]
    rows = []
    for embedding in (student, *others):
        spread, num_clips = _spread(embedding), min(embedding.split.test.num_clips, MAX_COMPARED_CLIPS)
        if spread is not None:
            name, style = short_name(embedding.network.encoder.name), str(embedding.network.kind)
            facts = {"role": embedding.role, "style": style, "encoder": name, "num_clips": num_clips}
            rows.append({**facts, "texts": spread_texts(spread)})
    if not rows:
        raise UnavailableError("one clip has no spread.")
    return render("spread.html", rows=rows)


def _spread(embedding: Embedding) -> FeatureSpread | None:
    test = subset(embedding.split.test, MAX_COMPARED_CLIPS)
    return feature_spread(test.features) if test.num_clips > 1 else None
