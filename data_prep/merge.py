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

import pyarrow as pa
import tyro

from crossdistill.data.manifest import Manifest, require_unique_names
from crossdistill.data.videos import LazyVideos, Row
from crossdistill.errors import UserError
from data_prep.pipeline.shards import Shard, find_parts
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
    _check_sizes(options.folder, parts)
    require_unique_names(pa.chunked_array([names for part in parts for names in part.table.column("name").chunks]))
    dataclasses.replace(parts[0], videos=_Interleaved([part.table for part in parts])).save()
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
        header[name] = sorted(fact) if isinstance(fact, dict) else fact
        if isinstance(fact, dict):
            header |= {f"{name}.{key}": value for key, value in fact.items()}
    return header


@dataclass(frozen=True)
class _Interleaved(LazyVideos):
    """The order of the whole list: part i of n has its videos i - 1, i - 1 + n, i - 1 + 2n, ..."""

    parts: Sequence[LazyVideos]

    def row(self, position: int) -> Row:
        return self.parts[position % len(self.parts)].row(position // len(self.parts))

    def __len__(self) -> int:
        return sum(map(len, self.parts))


def _check_sizes(folder: Path, parts: list[Manifest]) -> None:
    """Raise a ``UserError`` unless each part has its share of the whole list."""
    total, n = sum(len(part.videos) for part in parts), len(parts)
    for i, part in enumerate(parts):
        due = len(range(i, total, n))
        if len(part.videos) != due:
            raise UserError(
                f"the parts in {folder} come from different lists: part {i + 1} of {n} has {len(part.videos)} videos, "
                f"but its share of {total} is {due}; prepare all parts from the same lists and videos"
            )
