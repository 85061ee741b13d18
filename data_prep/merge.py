"""Joins the parts that ``--shard I/N`` runs left in a folder into one prepared dataset.

The parts share the folder and its streams; each has a manifest of its own. The joined manifest is the
one that a run without --shard would have written. Journals stay as they are: giving a dataset's
command again, with or without --shard, still finds all finished work.
"""

from __future__ import annotations

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
class Options:
    """The options of ``python -m data_prep merge``."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """The folder that the parts were prepared into (their --out)."""


def run(options: Options) -> Manifest:
    """Join the parts, write ``manifest.jsonl`` and print what became of the files.

    Raises:
        UserError: A part is missing, the parts were made with different options or from different
            lists, or the folder holds parts of several divisions.
    """
    parts = [Manifest.load(options.folder, name) for name in _part_names(options.folder)]
    _check_headers(options.folder, parts)
    merged = Manifest(
        root=options.folder,
        dataset=parts[0].dataset,
        classes=parts[0].classes,
        videos=_interleave(options.folder, parts),
        flip_keeps_label=parts[0].flip_keeps_label,
        facts=parts[0].facts,
    )
    require_unique_names(merged.videos)
    merged.save()
    print_summary(merged)
    return merged


def _part_names(folder: Path) -> list[str]:
    """The manifests of all parts, in order."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the one that the parts were prepared into")
    matches = [match for path in folder.iterdir() if (match := PART_NAME.fullmatch(path.name))]
    found = {(int(match[1]), int(match[2])) for match in matches}
    divisions = sorted({n for _, n in found})
    if not divisions:
        raise UserError(
            f"{folder} holds no manifest such as {Shard(1, 4).manifest_name}: give the folder that runs with "
            "--shard I/N prepared into, after they ended"
        )
    if len(divisions) > 1:
        raise UserError(
            f"{folder} holds parts of several divisions (--shard I/N with N = {', '.join(map(str, divisions))}): "
            "remove the manifests of all but one"
        )
    (n,) = divisions
    missing = [f"{i}/{n}" for i in range(1, n + 1) if (i, n) not in found]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {n} parts: run --shard {', '.join(missing)} first; what is finished "
            "is kept"
        )
    return [Shard(i, n).manifest_name for i in range(1, n + 1)]


def _check_headers(folder: Path, parts: list[Manifest]) -> None:
    """All parts must be of one dataset, made in one way."""
    first = _header(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        for name, value in _header(part).items():
            if value != first.get(name):
                raise UserError(
                    f"the parts in {folder} do not belong together: {name} is {first.get(name)!r} in part 1 and "
                    f"{value!r} in part {i}; prepare all parts with the same options, lists and versions"
                )


def _header(part: Manifest) -> dict[str, Any]:
    """What must agree, the facts one level deep, so that a message can name what differs."""
    header: dict[str, Any] = {
        "dataset": part.dataset,
        "flip_keeps_label": part.flip_keeps_label,
        "number of classes": len(part.classes),
        "classes": part.classes,
        "facts": sorted(part.facts),
    }
    for name, fact in part.facts.items():
        if isinstance(fact, dict):
            header[name] = sorted(fact)
            header |= {f"{name}.{key}": value for key, value in fact.items()}
        else:
            header[name] = fact
    return header


def _interleave(folder: Path, parts: list[Manifest]) -> tuple[Video, ...]:
    """Part i of n holds the videos i - 1, i - 1 + n, i - 1 + 2n, ... of the whole list."""
    total, n = sum(len(part.videos) for part in parts), len(parts)
    for i, part in enumerate(parts):
        due = len(range(i, total, n))
        if len(part.videos) != due:
            raise UserError(
                f"the parts in {folder} are of different lists: part {i + 1} of {n} lists {len(part.videos)} videos, "
                f"and {due} of {total} would be its share; prepare all parts from the same lists and videos"
            )
    return tuple(parts[k % n].videos[k // n] for k in range(total))
