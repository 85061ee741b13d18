"""Test clips beside their nearest training clips, as pictures.

Shapes: B queries, K neighbours.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

from crossdistill.data.dataset import Entry, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import class_name
from crossdistill.errors import UnreadableVideoError
from crossdistill.evaluation.neighbours import nearest_neighbours
from crossdistill.report.frames import clip_strip
from crossdistill.report.record import AbsentError
from crossdistill.report.spaces import Space
from crossdistill.types import ViewSpec

NUM_NEIGHBOURS = 5
SEED = 0
RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True)
class Shown:
    """One clip on the page."""

    video: str
    class_name: str
    strip: str
    """Data URI; empty if it cannot be read."""
    mark: str = ""
    """``right`` or ``wrong`` beside a query with a class."""
    similarity: float | None = None
    teacher_strip: str = ""
    """Of a query, as the teacher's stream shows it, where that is another one."""


@dataclass(frozen=True)
class Row:
    """A query and its neighbours, nearest first."""

    query: Shown
    neighbours: tuple[Shown, ...]


def draw_queries(labels: list[int], num: int) -> list[int]:
    """Positions of queries drawn by a fixed seed, from as many classes as possible: nobody chose them.

    Args:
        labels: Class of each test clip.
        num: How many; fewer if there are fewer clips.
    """
    generator = random.Random(SEED)
    by_class = defaultdict(list)
    for position, label in enumerate(labels):
        by_class[label].append(position)
    for positions in by_class.values():
        generator.shuffle(positions)
    drawn: list[int] = []
    while len(drawn) < min(num, len(labels)):
        order = [label for label in sorted(by_class) if by_class[label]]
        generator.shuffle(order)
        drawn += [by_class[label].pop() for label in order][: num - len(drawn)]
    return sorted(drawn, key=lambda position: labels[position])


def build_gallery(space: Space, manifest: Manifest, *, num_queries: int, teacher_view: ViewSpec | None) -> list[Row]:
    """Queries of the test part with their nearest training clips by cosine similarity, as in k-NN evaluation.

    Args:
        space: Of the student.
        manifest: The dataset.
        num_queries: How many queries.
        teacher_view: Of the teacher, if its stream is to be shown as well.

    Raises:
        AbsentError: No query was asked for, or no clip can be read any more.
    """
    if num_queries < 1:
        raise AbsentError("it was left out (--gallery 0).")
    test, train = space.sets.test, space.sets.train
    positions = draw_queries(test.labels.tolist(), num_queries)
    found = nearest_neighbours(
        queries_bd=test.features[positions], gallery_nd=train.features, k=min(NUM_NEIGHBOURS, train.num_clips)
    )
    painter = _Painter(manifest, space.network.encoder.view, teacher_view)
    rows = []
    for row, position in enumerate(positions):
        label = int(test.labels[position])
        query = painter.show(test.videos[position], label, with_teacher=True)
        neighbours = tuple(
            painter.show(
                train.videos[i], int(train.labels[i]), mark=_mark(label, int(train.labels[i])), similarity=similarity
            )
            for i, similarity in zip(found.indices_bk[row].tolist(), found.similarities_bk[row].tolist(), strict=True)
        )
        rows.append(Row(query, neighbours))
    if not any(shown.strip for row in rows for shown in (row.query, *row.neighbours)):
        raise AbsentError(f"no clip of {manifest.root} can be read any more.")
    return rows


def _mark(query: int, neighbour: int) -> str:
    if query < 0 or neighbour < 0:
        return ""
    return RIGHT if query == neighbour else WRONG


class _Painter:
    """Clips of a dataset as they are shown; each is read once."""

    def __init__(self, manifest: Manifest, view: ViewSpec, teacher_view: ViewSpec | None) -> None:
        entries = entries_of(manifest, range(len(manifest.videos)))
        self._entries = {entry.video.name: entry for entry in entries}
        self._classes = manifest.classes
        self._view = view
        self._other = None if teacher_view is None or teacher_view.kind.stream == view.kind.stream else teacher_view
        self._strips: dict[tuple[str, str], str] = {}

    def show(
        self, video: str, label: int, *, mark: str = "", similarity: float | None = None, with_teacher: bool = False
    ) -> Shown:
        entry = self._entries[video]
        other = self._strip(entry, self._other) if with_teacher and self._other is not None else ""
        shown_class = class_name(label, self._classes) if label >= 0 else ""
        return Shown(video, shown_class, self._strip(entry, self._view), mark, similarity, other)

    def _strip(self, entry: Entry, view: ViewSpec) -> str:
        key = (entry.video.name, view.kind.stream)
        if key not in self._strips:
            try:
                self._strips[key] = clip_strip(entry, view)
            except UnreadableVideoError:
                self._strips[key] = ""  # the page says so in its place
        return self._strips[key]
