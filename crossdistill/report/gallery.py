"""Test clips with their nearest training clips, as images.

Shapes: B queries, K neighbours.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from crossdistill.data.entries import Entry, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import class_name
from crossdistill.encoders.architecture import make_view
from crossdistill.errors import UnreadableVideoError
from crossdistill.evaluation.neighbours import nearest_neighbours
from crossdistill.report.embeddings import Embedding
from crossdistill.report.frames import clip_strip
from crossdistill.report.record import UnavailableError
from crossdistill.types import ViewSpec

NUM_NEIGHBOURS = 5


@dataclass(frozen=True)
class GalleryClip:
    """One clip of the gallery. Its image is a data URI, empty if the clip cannot be read."""

    video: str
    class_name: str
    strip: str
    mark: str = ""
    """``right`` or ``wrong`` for a neighbour of a query with a label; without labels ``right`` for a neighbour that is
    also the teacher's. Empty otherwise."""
    similarity: float | None = None
    """Cosine similarity to the query; None for a query."""
    other_strip: str = ""
    """Image in another stream: the teacher's, or else RGB. Empty if that is the student's stream, or not there."""


@dataclass(frozen=True)
class GalleryRow:
    """A query and its neighbours, the nearest first."""

    query: GalleryClip
    neighbours: tuple[GalleryClip, ...]


def draw_queries(labels: list[int], num: int) -> list[int]:
    """Draw positions of ``num`` test clips with a fixed seed, from as many classes as possible."""
    generator = random.Random(0)
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
    embedding: Embedding,
    manifest: Manifest,
    *,
    num_queries: int,
    teacher_view: ViewSpec | None,
    groups: Mapping[str, int] | None = None,
    near_teacher: Mapping[str, Collection[str]] | None = None,
) -> list[GalleryRow]:
    """Find the nearest training clips of some test clips by the student's cosine similarity, as in k-NN evaluation.

    Without labels both are the same clips, and a clip is no neighbour of its own. ``groups`` then maps a video to a
    number: queries are drawn from all of them; and ``near_teacher`` maps a video to its nearest videos in the teacher's
    embedding, which are marked as right.

    Each clip is shown in the stream of ``teacher_view`` too, or in RGB if that is the student's stream.

    Raises:
        UnavailableError: ``num_queries`` is 0, or no clip can be read any more.
    """
    if num_queries < 1:
        raise UnavailableError("the gallery was disabled by --gallery 0.")
    test, train = embedding.split.test, embedding.split.train
    strata = test.labels.tolist() if groups is None else [groups.get(video, -1) for video in test.videos]
    positions = draw_queries(strata, num_queries)
    k = min(NUM_NEIGHBOURS + 1, train.num_clips)
    found = nearest_neighbours(queries_bd=test.features[positions], gallery_nd=train.features, k=k)
    images = _ClipImages(manifest, embedding.network.encoder.view, teacher_view)
    rows, labels = [], train.labels.tolist()
    for position, near, cosines in zip(
        positions, found.indices_bk.tolist(), found.similarities_bk.tolist(), strict=True
    ):
        label, query = int(test.labels[position]), test.videos[position]
        agreed = None if near_teacher is None else near_teacher.get(query, ())
        neighbours = tuple(
            images.clip(
                train.videos[i], labels[i], mark=_mark(label, labels[i], train.videos[i], agreed), similarity=cosine
            )
            for i, cosine in zip(near, cosines, strict=True)
            if train.videos[i] != query
        )
        rows.append(GalleryRow(images.clip(query, label), neighbours[:NUM_NEIGHBOURS]))
    if not any(shown.strip for row in rows for shown in (row.query, *row.neighbours)):
        raise UnavailableError(f"no clip of {manifest.root} can be read any more.")
    return rows


def _mark(query: int, neighbour: int, video: str, agreed: Collection[str] | None) -> str:
    if agreed is not None:
        return "right" if video in agreed else ""
    return "" if query < 0 or neighbour < 0 else "right" if query == neighbour else "wrong"


class _ClipImages:
    """Images of the clips of a dataset; each clip is read once."""

    def __init__(self, manifest: Manifest, view: ViewSpec, teacher_view: ViewSpec | None) -> None:
        self._manifest = manifest
        self._view = view
        others = (teacher_view, make_view("rgb", view.num_frames, view.stride, view.size_px))
        self._other_view = next((other for other in others if other and other.kind.stream != view.kind.stream), None)
        self._strips: dict[tuple[str, str], str] = {}

    def clip(self, video: str, label: int, *, mark: str = "", similarity: float | None = None) -> GalleryClip:
        entry = entries_of(self._manifest, [self._manifest.find(video)])[0]
        other_strip = "" if self._other_view is None else self._strip(entry, self._other_view)
        shown_class = class_name(label, self._manifest.classes) if label >= 0 else ""
        return GalleryClip(video, shown_class, self._strip(entry, self._view), mark, similarity, other_strip)

    def _strip(self, entry: Entry, view: ViewSpec) -> str:
        key = (entry.video.name, view.kind.stream)
        if key not in self._strips:
            try:
                self._strips[key] = clip_strip(entry, view)
            except UnreadableVideoError:
                self._strips[key] = ""  # the page shows "unreadable"
        return self._strips[key]
