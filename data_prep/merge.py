"""Joins the parts that runs with ``--shard I/N`` prepared into one dataset.

The parts share the folder and its streams, but each has its own manifest. The joined manifest is the same as that of a
run without --shard. Journals are not changed: the dataset's command, with or without --shard, still finds all finished
work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import tyro
from numpy.typing import NDArray

from crossdistill.data.manifest import Manifest, require_unique_names
from crossdistill.data.videos import LazyVideos, Row
from crossdistill.errors import UserError
from data_prep.pipeline.shards import POSITIONS, Shard, find_parts
from data_prep.pipeline.summary import print_summary


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options of ``python -m data_prep merge``."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder that the parts were prepared into (their --out)."""


def merge_parts(options: MergeOptions) -> Manifest:
    """Join the parts, write ``manifest.arrow`` and print the number of files by status.

    Raises:
        UserError: A part is missing, or the parts have different options, lists or N.
    """
    parts = [Manifest.load(options.folder, name) for name in _part_names(options.folder)]
    _check_headers(options.folder, parts)
    positions = _positions(options.folder, parts)
    require_unique_names(pa.chunked_array([names for part in parts for names in part.table.column("name").chunks]))
    facts = {name: fact for name, fact in parts[0].facts.items() if name != POSITIONS}
    videos = _WholeList.of([part.table for part in parts], positions)
    dataclasses.replace(parts[0], videos=videos, facts=facts).save()
    merged = Manifest.load(options.folder)
    print_summary(merged)
    return merged


def _part_names(folder: Path) -> list[str]:
    """Return the names of the parts' manifests, in order."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder that the parts were prepared into")
    found = find_parts(folder)
    divisions = sorted({shard.total for shard in found})
    if not divisions:
        raise UserError(
            f"{folder} contains no manifest such as {Shard(1, 4).manifest_name}: give the --out of runs with --shard"
        )
    if len(divisions) > 1:
        raise UserError(
            f"{folder} contains parts of --shard I/N with different N ({', '.join(map(str, divisions))}): remove the "
            "manifests of all but one N"
        )
    (n,) = divisions
    missing = [f"{i}/{n}" for i in range(1, n + 1) if Shard(i, n) not in found]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {n} parts: run --shard {', '.join(missing)} first")
    return [shard.manifest_name for shard in found]


def _check_headers(folder: Path, parts: list[Manifest]) -> None:
    """Raise a ``UserError`` unless all parts have the same dataset, classes and facts."""
    first = _header(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        for name, value in _header(part).items():
            if value != first.get(name):
                raise UserError(
                    f"the parts in {folder} do not belong together: {name} is {first.get(name)!r} in part 1 and "
                    f"{value!r} in part {i}; prepare all parts with the same options, lists and versions"
                )


def _header(part: Manifest) -> dict[str, Any]:
    """Return all fields that must be equal in all parts, as a flat dict, so that an error can name the difference."""
    header: dict[str, Any] = {"dataset": part.dataset, "flip_keeps_label": part.flip_keeps_label}
    header |= {"number of classes": len(part.classes), "classes": part.classes, "facts": sorted(part.facts)}
    for name, fact in part.facts.items():
        if name == POSITIONS:
            continue
        header[name] = sorted(fact) if isinstance(fact, dict) else fact
        if isinstance(fact, dict):
            header |= {f"{name}.{key}": value for key, value in fact.items()}
    return header


@dataclass(frozen=True)
class _WholeList(LazyVideos):
    """The videos of all parts in the order of the whole list."""

    parts: Sequence[LazyVideos]
    part_of: NDArray[np.int64]
    """Number of the part that has each video of the list."""
    row_of: NDArray[np.int64]
    """Position of each video in its part."""

    @staticmethod
    def of(parts: Sequence[LazyVideos], positions: Sequence[NDArray[np.int64]]) -> _WholeList:
        """Put the videos of each part at their positions, which are those of the whole list together."""
        part_of, row_of = np.empty((2, sum(map(len, positions))), dtype=np.int64)
        for number, places in enumerate(positions):
            part_of[places], row_of[places] = number, np.arange(len(places))
        return _WholeList(parts, part_of, row_of)

    def row(self, position: int) -> Row:
        return self.parts[self.part_of[position]].row(int(self.row_of[position]))

    def __len__(self) -> int:
        return len(self.part_of)


def _positions(folder: Path, parts: Sequence[Manifest]) -> list[NDArray[np.int64]]:
    """Return the position in the whole list of each video of each part; raise a ``UserError`` if some do not fit.

    Without the fact, part i of n has the videos i - 1, i - 1 + n, i - 1 + 2n, ...
    """
    total, n = sum(len(part.videos) for part in parts), len(parts)
    positions = [
        np.asarray(part.facts.get(POSITIONS, range(i, total, n)), dtype=np.int64) for i, part in enumerate(parts)
    ]
    come_from = f"the parts in {folder} come from different lists"
    advice = "prepare all parts from the same lists and videos"
    for i, (part, due) in enumerate(zip(parts, positions, strict=True), start=1):
        if len(part.videos) != len(due):
            raise UserError(
                f"{come_from}: part {i} of {n} has {len(part.videos)} videos, but its share of {total} is {len(due)}; "
                f"{advice}"
            )
    if not np.array_equal(np.sort(np.concatenate(positions)), np.arange(total)):
        raise UserError(f"{come_from}: together they do not have each of {total} segments once; {advice}")
    return positions
