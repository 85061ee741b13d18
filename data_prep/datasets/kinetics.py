"""Kinetics-400, 600 or 700: ten seconds of a human action from each of up to 650,000 YouTube videos.

Download the trimmed clips and their lists, for example from https://github.com/cvdfoundation/kinetics-dataset:

* The clips, in folders by class (with spaces or underscores), in folders by split, or all in one folder (--videos). A
  file is named <id>_<start>_<end> with six digits each (---QUuC4vJs_000084_000094.mp4), the same without leading zeros
  (---QUuC4vJs_84_94.mp4), or <id> alone (---QUuC4vJs.mp4), where <id> is the YouTube id of 11 characters. The suffix
  may be that of any video.
* The lists (--annotations): train.csv, val.csv (or validate.csv) and test.csv, or some of them, with the columns label,
  youtube_id, time_start, time_end and split. Only the test list may lack the labels.
* Optionally the folder of replacements for damaged clips (--replacement). A replacement is preferred to the clip in
  --videos with the same YouTube id, even if its times differ.

The class index is the sorted labels of all lists, or the order of --classes. Split "1" has the official training clips
as training part and the validation clips as test part. If the official test list has labels, split "test" has the test
clips as test part. Clips without a label are in no split. Prepared alone (--annotations test.csv) they are unlabelled
training data.

Many validation clips of Kinetics-400 are training clips of Kinetics-600 and 700: do not train on one version and
evaluate on another.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import (
    VIDEO_SUFFIXES,
    add_file,
    folder_name,
    print_passed_over,
    read_class_names,
    read_text,
    require_listed,
    require_some_found,
    walk_files,
    warn_of_group_leakage,
)

SUFFIXES = VIDEO_SUFFIXES
CLIP_NAME = re.compile(r"(?P<id>[\w-]{11})(?:_(?P<start>\d+)_(?P<end>\d+))?", re.ASCII)
ID = re.compile(r"[\w-]{11}", re.ASCII)
COLUMNS = ("youtube_id", "time_start", "time_end", "split")
PARTS = {"train": "train", "val": "validation", "validate": "validation", "validation": "validation", "test": "test"}

Clips = dict[str, dict[tuple[int, int] | None, Path]]
"""YouTube id to start and end in seconds (None if the file's name lacks them) to the file."""


@dataclass(frozen=True, kw_only=True)
class KineticsOptions(PrepareOptions):
    """Options of ``python -m data_prep kinetics``."""

    videos: Path
    """Folder of the clips. Subfolders are searched."""
    annotations: tuple[Path, ...]
    """Lists, or folders whose .csv files are lists."""
    replacement: Path | None = None
    """Folder of clips that replace those of --videos with the same YouTube id."""
    classes: Path | None = None
    """File with one class name per line, if the class index is not the sorted labels of the lists."""


@dataclass(frozen=True)
class ListedClip:
    """One line of a list."""

    place: str
    """File and line, for messages."""
    youtube_id: str
    start_seconds: int
    end_seconds: int
    action: str
    """Class name, empty in lists without labels."""
    part: str
    """``train``, ``validation`` or ``test``."""

    @property
    def name(self) -> str:
        """Name of the official file, without suffix."""
        return f"{self.youtube_id}_{self.start_seconds:06d}_{self.end_seconds:06d}"


def prepare(options: KineticsOptions) -> Manifest:
    """Prepare Kinetics, or the part of it that was downloaded."""
    classes, rows = read_lists(options.annotations, classes=options.classes)
    clips = find_clips(options.videos)
    replacements = find_clips(options.replacement) if options.replacement else {}
    sources = join_clips(rows, classes, clips, replacements)
    found, who = [source.inputs for source in sources], f"the lists in {', '.join(map(str, options.annotations))} name"
    require_some_found(found, folder=options.videos, source=who, example=f"{rows[0].name}.mp4")
    warn_of_group_leakage(sources)
    return prepare_videos("kinetics", sources, classes=classes, options=options)


def read_lists(annotations: Sequence[Path], *, classes: Path | None = None) -> tuple[list[str], list[ListedClip]]:
    """Read lists (.csv files, or folders of them) and the names of ``classes``, by default the sorted labels.

    Returns:
        Class names by index, and listed clips sorted by class and name.

    Raises:
        UserError: A list is missing or malformed, names an unknown class, or names a clip twice.
    """
    rows = [row for path in _list_paths(annotations) for row in _read_list(path)]
    require_listed(rows, ", ".join(map(str, annotations)))
    seen: dict[str, ListedClip] = {}
    for row in rows:
        other = seen.setdefault(row.name, row)
        if other is not row:
            raise UserError(f"{row.place} names the clip {row.name}, which is also in {other.place}: remove one")
    names = read_class_names(classes) if classes else sorted({row.action for row in rows if row.action})
    known, trained = set(names), {row.action for row in rows if row.part == "train"}
    for row in rows:
        if row.action and row.action not in known:
            raise UserError(
                f"{row.place} names the class {row.action!r}, which is not in {classes}: add the class there"
            )
        if row.action and trained and row.action not in trained:
            advice = "give lists of the same version of Kinetics"
            raise UserError(f"{row.place} names the class {row.action!r}, which has no training clip: {advice}")
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
            example = f"val.csv with the columns {', '.join(COLUMNS)}"
            raise UserError(f"{given} contains no list of Kinetics: expected for example {example}")
        if len(lists) < len(found):
            others = ", ".join(path.name for path in found if path not in lists)
            console.print(f"{given} also contains {others}, which is not a list of clips", highlight=False)
        paths += lists
    return paths


def _is_list(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return "youtube_id" in file.readline()


def _read_list(path: Path) -> Iterator[ListedClip]:
    text = read_text(path, wanted="a list of Kinetics such as val.csv")
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise UserError(f"{path} has no column {missing[0]}: the first line must name {', '.join(COLUMNS)}")
        reader.fieldnames = columns
        for values in reader:
            yield _read_row(f"{path} line {reader.line_num}", values)
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is not valid CSV ({error}): download it again") from error


def _read_row(place: str, values: Mapping[str | None, str | None]) -> ListedClip:
    youtube_id, start, end, part = ((values.get(name) or "").strip() for name in COLUMNS)
    if not ID.fullmatch(youtube_id):
        raise UserError(f"{place} has the youtube_id {youtube_id!r}: expected 11 letters, digits, - and _")
    if part not in PARTS:
        raise UserError(f"{place} has the split {part!r}: expected one of {', '.join(PARTS)}")
    action = (values.get("label") or "").strip()
    if not action and PARTS[part] != "test":
        raise UserError(f"{place} has no label, but its split is {part!r}: only test clips may lack a label")
    try:
        start_seconds, end_seconds = int(float(start)), int(float(end))
    except (ValueError, OverflowError) as error:
        raise UserError(f"{place} has the times {start!r} and {end!r}: expected seconds") from error
    return ListedClip(place, youtube_id, start_seconds, end_seconds, action, PARTS[part])


def find_clips(folder: Path) -> Clips:
    """Find the clips of a folder and its subfolders; raise a ``UserError`` if two files belong to the same clip."""
    clips: Clips = {}
    others = []
    for path in walk_files(folder):
        match = CLIP_NAME.fullmatch(path.stem)
        if match is None or path.suffix.lower() not in SUFFIXES:
            others.append(path)
            continue
        times = (int(match["start"]), int(match["end"])) if match["start"] else None
        add_file(clips.setdefault(match["id"], {}), times, path, what="clip")
    print_passed_over(others, why="not named like clips of Kinetics")
    return clips


def join_clips(
    rows: Sequence[ListedClip], classes: Sequence[str], clips: Clips, replacements: Clips
) -> list[SourceVideo]:
    """Find the file of each listed clip, among the replacements first. Clips without a file are kept as missing.

    Raises:
        UserError: Two lines have the same file, or a clip has two possible replacements.
    """
    labels = {name: label for label, name in enumerate(classes)}
    has_labelled_test = any(row.part == "test" and row.action for row in rows)
    owners: dict[Path, ListedClip] = {}
    sources = []
    for row in rows:
        path = _replacement_of(row, replacements) or _clip_of(row, clips)
        if path is not None:
            other = owners.setdefault(path, row)
            if other is not row:
                raise UserError(f"{path} is the file of both {other.place} and {row.place}: remove one of the lines")
        inputs, label = {"rgb": path} if path else {}, labels.get(row.action)
        splits = _splits(row, has_labelled_test=has_labelled_test)
        sources.append(SourceVideo(row.name, inputs, folder_name(row.action), label, row.youtube_id, splits))
    num_unused = sum(path not in owners for by_times in clips.values() for path in by_times.values())
    if num_unused:
        console.print(f"{num_unused} clips are in no list, or replaced, and are not prepared")
    return sources


def _clip_of(row: ListedClip, clips: Clips) -> Path | None:
    by_times = clips.get(row.youtube_id, {})
    return by_times.get((row.start_seconds, row.end_seconds)) or by_times.get(None)


def _replacement_of(row: ListedClip, replacements: Clips) -> Path | None:
    """Return the replacement of a clip: the one with the same times, or else the only one of the same video."""
    by_times = replacements.get(row.youtube_id, {})
    exact = _clip_of(row, replacements)
    if exact is None and len(by_times) > 1:
        first, second, *_ = by_times.values()
        raise UserError(f"{first} and {second} could both replace {row.name}: remove one of them")
    return exact or next(iter(by_times.values()), None)


def _splits(row: ListedClip, *, has_labelled_test: bool) -> dict[str, str]:
    if not row.action:
        return {}
    if row.part == "train":
        return {"1": "train", "test": "train"} if has_labelled_test else {"1": "train"}
    return {"1": "test"} if row.part == "validation" else {"test": "test"}
