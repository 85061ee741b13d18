"""Choose and check the clips of a split on which students are evaluated."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from crossdistill.data.entries import Entries, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError, unknown_name
from crossdistill.types import ViewSpec


def check_names(kind: str, given: Sequence[str], allowed: Collection[str]) -> None:
    """Raise a ``UserError`` if no name was given, or one that is not allowed."""
    if not given:
        raise UserError(f"no {kind} was given: choose from {', '.join(sorted(allowed))}")
    for name in given:
        if name not in allowed:
            raise unknown_name(kind, name, allowed)


def check_dataset(manifest: Manifest, view: ViewSpec, split: str, *, wanted_by: str, needs_labels: bool = True) -> None:
    """Raise a ``UserError`` if the dataset has no labels or not the view's stream, or a part has no usable clips."""
    if needs_labels and not manifest.classes:
        raise UserError(f"the dataset {manifest.root} has no labels: evaluate on a labelled dataset")
    for part in ("train", "test"):
        entries = entries_of_part(manifest, split, part)
        if not entries.is_usable.any():
            raise UserError(
                f"all {len(entries)} {part} clips of split {split!r} of {manifest.root} were skipped in preparation: "
                "see python -m data_prep verify, or choose another --split"
            )
    manifest.require_stream(view.kind.stream, wanted_by=wanted_by)


def entries_of_part(manifest: Manifest, split: str, part: str, max_clips: int | None = None) -> Entries:
    """List the videos of the ``train`` or ``test`` part of a split, or raise a ``UserError`` if there are none.

    ``max_clips`` is the largest number of videos, spread evenly over the part; None for all.
    """
    positions = manifest.positions(split=split, part=part)
    if not len(positions):
        others = [name for name in manifest.splits if len(manifest.positions(split=name, part=part))]
        raise UserError(
            f"split {split!r} of {manifest.root} has no {part} clips: "
            + (f"choose another --split, such as {others[0]}" if others else f"prepare it again {_way_to_get(part)}")
        )
    entries = entries_of(manifest, positions)
    return entries if max_clips is None else entries.spread(max_clips)


def entries_without_labels(manifest: Manifest, split: str, max_clips: int) -> tuple[Entries, bool]:
    """List usable videos, spread evenly, for comparisons of embeddings that need no labels.

    Returns:
        The videos of the split's test part, or of the whole dataset if there is no such part; and whether they are a
        test part.
    """
    usable = np.flatnonzero(manifest.is_usable)
    test = manifest.positions(split=split, part="test") if manifest.has_split(split) else usable[:0]
    usable_test = test[manifest.is_usable[test]]
    is_test = len(usable_test) > 0
    return entries_of(manifest, usable_test if is_test else usable).spread(max_clips), is_test


def _way_to_get(part: str) -> str:
    draws = "data_prep folder draws test videos with --test-share 0.2, and " if part == "test" else ""
    return f"with {part} videos: {draws}data_prep list takes --{part}-list"


def classes_without_training_clips(manifest: Manifest, split: str) -> list[str]:
    """List the names of the test set's classes that have no usable training clip."""
    parts = {part: entries_of_part(manifest, split, part) for part in ("train", "test")}
    shown = {part: entries.labels[entries.is_usable] for part, entries in parts.items()}
    return [manifest.classes[label] for label in np.setdiff1d(shown["test"], shown["train"]) if label >= 0]


def num_seen_in_training(manifest: Manifest, split: str, training: dict[str, Any]) -> int:
    """Count the test clips of a split that the student was trained on, as training clips of another split.

    ``training`` is that of ``student.json``. Clips of initial weights or of the teacher are unknown and not counted.
    """
    learned = training.get("split")
    if manifest.dataset not in training.get("datasets", ()) or learned is None or not manifest.has_split(learned):
        return 0
    seen = np.intersect1d(manifest.positions(split=learned, part="train"), manifest.positions(split=split, part="test"))
    return int(manifest.is_usable[seen].sum())
