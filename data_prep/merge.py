"""Joins the parts that runs with ``--shard I/N`` prepared into one dataset.

The parts share the folder and its streams, but each has its own manifest. The joined manifest is the same as that of a
run without --shard. Journals are not changed: the dataset's command, with or without --shard, still finds all finished
work.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from crossdistill.data.manifest import Manifest, Video, require_unique_names
from crossdistill.errors import UserError
from data_prep.pipeline.shards import Shard
from data_prep.pipeline.summary import print_summary

PART_NAME = re.compile(r"manifest\.(\d+)-of-(\d+)\.jsonl")


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options of ``python -m data_prep merge``."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder that the parts were prepared into (their --out)."""


def merge_parts(options: MergeOptions) -> Manifest:
    """Join the parts, write ``manifest.jsonl`` and print the number of files by status.

    Raises:
        UserError: A part is missing, or the parts have different options, lists or N.
    """
    parts = [Manifest.load(options.folder, name) for name in _part_names(options.folder)]
    _check_headers(options.folder, parts)
    merged = dataclasses.replace(parts[0], videos=_interleave(options.folder, parts))
    require_unique_names(merged.videos)
    merged.save()
    print_summary(merged)
    return merged


def _part_names(folder: Path) -> list[str]:
    """Return the names of the parts' manifests, in order."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder that the parts were prepared into")
    matches = [match for path in folder.iterdir() if (match := PART_NAME.fullmatch(path.name))]
    found = {(int(match[1]), int(match[2])) for match in matches}
    divisions = sorted({n for _, n in found})
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
    missing = [f"{i}/{n}" for i in range(1, n + 1) if (i, n) not in found]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {n} parts: run --shard {', '.join(missing)} first")
    return [Shard(i, n).manifest_name for i in range(1, n + 1)]


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


def _interleave(folder: Path, parts: list[Manifest]) -> tuple[Video, ...]:
    """Restore the order of the whole list: part i of n has its videos i - 1, i - 1 + n, i - 1 + 2n, ..."""
    total, n = sum(len(part.videos) for part in parts), len(parts)
    for i, part in enumerate(parts):
        due = len(range(i, total, n))
        if len(part.videos) != due:
            raise UserError(
                f"the parts in {folder} come from different lists: part {i + 1} of {n} has {len(part.videos)} videos, "
                f"but its share of {total} is {due}; prepare all parts from the same lists and videos"
            )
    return tuple(parts[k % n].videos[k // n] for k in range(total))
