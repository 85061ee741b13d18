"""Kinetics-400, 600 or 700: ten seconds of a human action from each of up to 650,000 YouTube videos.

Wants the clips, already cut, and their lists; https://github.com/cvdfoundation/kinetics-dataset has both:

* The clips, in folders by class (with blanks or underscores), by split, or all in one (--videos). A file
  is named <id>_<start>_<end> with six digits each (---QUuC4vJs_000084_000094.mp4), the same without
  leading zeros (---QUuC4vJs_84_94.mp4), or <id> alone (---QUuC4vJs.mp4), where id is the 11 characters
  of YouTube; .mp4, .webm, .mkv or .avi.
* The lists: train.csv, val.csv (or validate.csv) and test.csv, as many as there are (--annotations), with
  the columns label, youtube_id, time_start, time_end and split. A list without labels is unlabelled data.
* If you have it, the folder of replacements for damaged clips (--replacement); a clip that is there is
  taken from there, whatever its times.

The class index is the sorted labels of all lists, or --classes. Split "1" is train against validation,
which is what results are reported on. Where the official test list has labels, split "test" is train
against that. Videos without a label have no place in a split: prepared by themselves (--annotations
test.csv) they are unlabelled training data.

Many validation clips of Kinetics-400 are training clips of Kinetics-600 and 700: do not train on one and
evaluate on the other.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import (
    ListedVideo,
    read_class_names,
    read_text,
    require_some_found,
    to_source,
    walk_files,
)

SUFFIXES = (".mp4", ".webm", ".mkv", ".avi")
CLIP_NAME = re.compile(r"(?P<id>[\w-]{11})(?:_(?P<start>\d+)_(?P<end>\d+))?", re.ASCII)
ID = re.compile(r"[\w-]{11}", re.ASCII)
COLUMNS = ("youtube_id", "time_start", "time_end", "split")
PARTS = {"train": "train", "val": "validation", "validate": "validation", "validation": "validation", "test": "test"}

Clips = dict[str, dict[tuple[int, int] | None, Path]]
"""YouTube id to start and end in seconds, or None where the name does not say, to the file."""


@dataclass(frozen=True, kw_only=True)
class Options(PrepareOptions):
    """The options of ``python -m data_prep kinetics``."""

    videos: Path
    """Folder of the clips; all folders below it are searched."""
    annotations: tuple[Path, ...]
    """The lists, or folders whose .csv files are lists."""
    replacement: Path | None = None
    """Folder of clips that replace those of --videos with the same YouTube id."""
    classes: Path | None = None
    """File with one class name per line, in the order of the class index, if it is not that of the lists."""


@dataclass(frozen=True)
class Row:
    """One line of a list."""

    place: str
    """File and line, for messages."""
    youtube_id: str
    start_seconds: int
    end_seconds: int
    action: str
    """Empty where the list has no labels."""
    part: str
    """``train``, ``validation`` or ``test``."""

    @property
    def name(self) -> str:
        """As the official files are named."""
        return f"{self.youtube_id}_{self.start_seconds:06d}_{self.end_seconds:06d}"


def prepare(options: Options) -> Manifest:
    """Prepare Kinetics, or as much of it as is there."""
    classes, rows = read_lists(options.annotations, classes=options.classes)
    clips = find_clips(options.videos)
    replacements = find_clips(options.replacement) if options.replacement else {}
    sources = join_clips(rows, classes, clips, replacements)
    lists = ", ".join(str(path) for path in options.annotations)
    require_some_found(sources, folder=options.videos, lists=lists, example=f"{rows[0].name}.mp4")
    return prepare_videos("kinetics", sources, classes=classes, options=options)


def read_lists(annotations: Sequence[Path], *, classes: Path | None = None) -> tuple[list[str], list[Row]]:
    """Read lists.

    Args:
        annotations: .csv files, or folders of them.
        classes: A file that gives the class index.

    Returns:
        The class names by index, and the rows sorted by class and name.

    Raises:
        UserError: A list is absent or malformed, names an unknown class, or a clip twice.
    """
    rows = [row for path in _list_paths(annotations) for row in _read_list(path)]
    if not rows:
        raise UserError(f"the lists {', '.join(map(str, annotations))} name no video: download them again")
    seen: dict[str, Row] = {}
    for row in rows:
        other = seen.setdefault(row.name, row)
        if other is not row:
            raise UserError(f"{row.place} names the clip {row.name}, which {other.place} does too: remove one of them")
    names = read_class_names(classes) if classes else sorted({row.action for row in rows if row.action})
    known, trained = set(names), {row.action for row in rows if row.part == "train"}
    for row in rows:
        if row.action and row.action not in known:
            raise UserError(f"{row.place} names the class {row.action!r}, which {classes} does not")
        if row.action and trained and row.action not in trained:
            raise UserError(
                f"{row.place} names the class {row.action!r}, of which there is no training clip: give lists of one "
                "version of Kinetics"
            )
    return names, sorted(rows, key=lambda row: (row.action, row.name))


def _list_paths(annotations: Sequence[Path]) -> list[Path]:
    if not annotations:
        raise UserError("--annotations is empty: give train.csv, val.csv and test.csv, or the folder that holds them")
    paths: list[Path] = []
    for given in annotations:
        if not given.is_dir():
            paths.append(given)
            continue
        found = sorted(path for path in given.iterdir() if path.suffix.lower() == ".csv" and path.name[0] != ".")
        lists = [path for path in found if _is_list(path)]
        if not lists:
            raise UserError(
                f"{given} holds no list of Kinetics: expected for example val.csv with {', '.join(COLUMNS)}"
            )
        if len(lists) < len(found):
            others = ", ".join(path.name for path in found if path not in lists)
            console.print(f"{given} also holds {others}, which is no list of clips", highlight=False)
        paths += lists
    return paths


def _is_list(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return "youtube_id" in file.readline()


def _read_list(path: Path) -> Iterator[Row]:
    text = read_text(path, wanted="a list of Kinetics such as val.csv")
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise UserError(f"{path} has no column {missing[0]}: its first line must name {', '.join(COLUMNS)}")
        reader.fieldnames = columns
        for values in reader:
            yield _read_row(f"{path} line {reader.line_num}", values)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is no CSV ({error}): download it again") from error


def _read_row(place: str, values: Mapping[str | None, str | None]) -> Row:
    youtube_id, start, end, part = ((values.get(name) or "").strip() for name in COLUMNS)
    if not ID.fullmatch(youtube_id):
        raise UserError(f"{place} has the youtube_id {youtube_id!r}: expected 11 letters, digits, - and _")
    if part not in PARTS:
        raise UserError(f"{place} has the split {part!r}: expected one of {', '.join(PARTS)}")
    action = (values.get("label") or "").strip()
    if not action and PARTS[part] != "test":
        raise UserError(f"{place} has no label, though its split is {part!r}: only the test list may lack labels")
    try:
        start_seconds, end_seconds = int(float(start)), int(float(end))
    except (ValueError, OverflowError) as error:
        raise UserError(f"{place} has the times {start!r} and {end!r}: expected seconds") from error
    return Row(place, youtube_id, start_seconds, end_seconds, action, PARTS[part])


def find_clips(folder: Path) -> Clips:
    """The clips of a folder and all below it, by YouTube id and times; other files are passed over.

    Raises:
        UserError: There is no such folder, or two files are of the same clip.
    """
    clips: Clips = {}
    for path in walk_files(folder):
        match = CLIP_NAME.fullmatch(path.stem)
        if match is None or path.suffix.lower() not in SUFFIXES:
            continue
        times = (int(match["start"]), int(match["end"])) if match["start"] else None
        other = clips.setdefault(match["id"], {}).setdefault(times, path)
        if other != path:
            raise UserError(f"{other} and {path} are of the same clip: give a folder that holds one of them")
    return clips


def join_clips(rows: Sequence[Row], classes: Sequence[str], clips: Clips, replacements: Clips) -> list[SourceVideo]:
    """Give each row its file, from the replacements if one is there; those without a file are kept as missing.

    Raises:
        UserError: Two rows are of one file, or two files could replace one.
    """
    labels = {name: label for label, name in enumerate(classes)}
    has_labelled_test = any(row.part == "test" and row.action for row in rows)
    owners: dict[Path, Row] = {}
    sources = []
    for row in rows:
        path = _replacement_of(row, replacements) or _clip_of(row, clips)
        if path is not None:
            other = owners.setdefault(path, row)
            if other is not row:
                raise UserError(f"{path} is the file of both {other.place} and {row.place}: remove one of these lines")
        splits = _splits(row, has_labelled_test=has_labelled_test)
        listed = ListedVideo(row.name, row.action, labels.get(row.action), row.youtube_id, splits)
        sources.append(to_source(listed, path))
    _say_what_is_unlisted(clips, owners)
    return sources


def _clip_of(row: Row, clips: Clips) -> Path | None:
    by_times = clips.get(row.youtube_id, {})
    return by_times.get((row.start_seconds, row.end_seconds)) or by_times.get(None)


def _replacement_of(row: Row, replacements: Clips) -> Path | None:
    """Replacements are of the same video; their times may be others."""
    by_times = replacements.get(row.youtube_id, {})
    exact = _clip_of(row, replacements)
    if exact is None and len(by_times) > 1:
        first, second, *_ = by_times.values()
        raise UserError(f"{first} and {second} could both replace {row.name}: keep one of them")
    return exact or next(iter(by_times.values()), None)


def _splits(row: Row, *, has_labelled_test: bool) -> dict[str, str]:
    if not row.action:
        return {}
    if row.part == "train":
        return {"1": "train", "test": "train"} if has_labelled_test else {"1": "train"}
    return {"1": "test"} if row.part == "validation" else {"test": "test"}


def _say_what_is_unlisted(clips: Clips, owners: Collection[Path]) -> None:
    num_unlisted = sum(path not in owners for by_times in clips.values() for path in by_times.values())
    if num_unlisted:
        console.print(f"{num_unlisted} clips are in no list, or replaced, and are not prepared")
