"""Test clips with their nearest training clips, as images.

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
from crossdistill.report.embeddings import Embedding
from crossdistill.report.frames import clip_strip
from crossdistill.report.record import UnavailableError
from crossdistill.types import ViewSpec

NUM_NEIGHBOURS = 5
SEED = 0
RIGHT, WRONG = "right", "wrong"


@dataclass(frozen=True)
class GalleryClip:
    """One clip of the gallery."""

    video: str
    class_name: str
    strip: str
    """Image as a data URI; empty if the clip cannot be read."""
    mark: str = ""
    """``right`` or ``wrong`` for a neighbour of a query with a label; empty otherwise."""
    similarity: float | None = None
    """Cosine similarity to the query; None for a query."""
    teacher_strip: str = ""
    """Image of a query in the teacher's stream, if the teacher sees another stream than the student."""


@dataclass(frozen=True)
class GalleryRow:
    """A query and its neighbours."""

    query: GalleryClip
    neighbours: tuple[GalleryClip, ...]
    """The nearest first."""


def draw_queries(labels: list[int], num: int) -> list[int]:
    """Draw positions of queries with a fixed seed, from as many classes as possible.

    Args:
        labels: Class of each test clip.
        num: Number of queries; all clips if there are fewer.
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


def build_gallery(
    embedding: Embedding, manifest: Manifest, *, num_queries: int, teacher_view: ViewSpec | None
) -> list[GalleryRow]:
    """Find the nearest training clips of some test clips by cosine similarity, as in k-NN evaluation.

    Args:
        embedding: Embedding of the student.
        manifest: Dataset.
        num_queries: Number of queries.
        teacher_view: View of a teacher whose stream is shown too; None for no teacher.

    Raises:
        UnavailableError: The number of queries is 0, or no clip can be read any more.
    """
    if num_queries < 1:
        raise UnavailableError("the gallery was disabled by --gallery 0.")
    test, train = embedding.split.test, embedding.split.train
    positions = draw_queries(test.labels.tolist(), num_queries)
    found = nearest_neighbours(
        queries_bd=test.features[positions], gallery_nd=train.features, k=min(NUM_NEIGHBOURS, train.num_clips)
    )
    images = _ClipImages(manifest, embedding.network.encoder.view, teacher_view)
    rows = []
    for row, position in enumerate(positions):
        label = int(test.labels[position])
        query = images.clip(test.videos[position], label, with_teacher=True)
        neighbours = tuple(
            images.clip(
                train.videos[i], int(train.labels[i]), mark=_mark(label, int(train.labels[i])), similarity=similarity
            )
            for i, similarity in zip(found.indices_bk[row].tolist(), found.similarities_bk[row].tolist(), strict=True)
        )
        rows.append(GalleryRow(query, neighbours))
    if not any(shown.strip for row in rows for shown in (row.query, *row.neighbours)):
        raise UnavailableError(f"no clip of {manifest.root} can be read any more.")
    return rows


def _mark(query: int, neighbour: int) -> str:
    if query < 0 or neighbour < 0:
        return ""
    return RIGHT if query == neighbour else WRONG


class _ClipImages:
    """Images of the clips of a dataset; each clip is read once."""

    def __init__(self, manifest: Manifest, view: ViewSpec, teacher_view: ViewSpec | None) -> None:
        entries = entries_of(manifest, range(len(manifest.videos)))
        self._entries = {entry.video.name: entry for entry in entries}
        self._classes = manifest.classes
        self._view = view
        self._teacher_view = (
            None if teacher_view is None or teacher_view.kind.stream == view.kind.stream else teacher_view
        )
        self._strips: dict[tuple[str, str], str] = {}

    def clip(
        self, video: str, label: int, *, mark: str = "", similarity: float | None = None, with_teacher: bool = False
    ) -> GalleryClip:
        entry = self._entries[video]
        teacher_strip = (
            self._strip(entry, self._teacher_view) if with_teacher and self._teacher_view is not None else ""
        )
        shown_class = class_name(label, self._classes) if label >= 0 else ""
        return GalleryClip(video, shown_class, self._strip(entry, self._view), mark, similarity, teacher_strip)

    def _strip(self, entry: Entry, view: ViewSpec) -> str:
        key = (entry.video.name, view.kind.stream)
        if key not in self._strips:
            try:
                self._strips[key] = clip_strip(entry, view)
            except UnreadableVideoError:
                self._strips[key] = ""  # the page shows "unreadable"
        return self._strips[key]
