"""Your own videos in text lists: one "path label" per line, the format of other video libraries.

* --train-list and --test-list: the path of a video, then a space, comma or tab, then its class as a number from 0 or as
  a name. Paths and names may contain spaces, and a path may be in double quotes. If the path does not end like a
  video's (.mp4, .avi and so on), the class is the text after the last tab, else after the last comma, else after the
  last space.
* --unlabelled-list: the path alone; a label after it is ignored. These videos are in no split. They are training data
  for distillation, alone or in addition to a --train-list.

Paths are absolute or below --videos. Class numbers are lines of --classes, which has one name per line; without it the
classes are called 0, 1 and so on. If the lists give class names and there is no --classes, the class index is the
sorted names. A video's name is its path below --videos. A file that does not exist is kept in the manifest as missing.
The split is "1".
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import VIDEO_SUFFIXES, read_class_names, read_lines, require_some_found

SEPARATORS = ("\t", ",", " ")
# The path ends at the last suffix of a video that a separator and more text follow.
LABELLED_LINE = re.compile(
    rf'(?P<path>.+(?:{"|".join(map(re.escape, VIDEO_SUFFIXES))})"?)[\t ,]\s*(?P<action>.+)', re.I
)
SPLIT = "1"
# A larger number is more likely a frame count or an id than a class.
MAX_UNNAMED_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class ListOptions(PrepareOptions):
    """Options of ``python -m data_prep list``."""

    videos: Path = Path()
    """Folder that relative paths in the lists start from."""
    train_list: tuple[Path, ...] = ()
    """Lists of training videos."""
    test_list: tuple[Path, ...] = ()
    """Lists of test videos."""
    unlabelled_list: tuple[Path, ...] = ()
    """Lists of videos without labels."""
    classes: Path | None = None
    """File with one class name per line. The first has the number 0."""


@dataclass(frozen=True)
class ListLine:
    """One line of a list."""

    place: str
    """File and line, for messages."""
    path: Path
    """Absolute path of the video."""
    name: str
    action: str | None
    """Class as the list writes it, a number or a name; None in lists without labels."""
    part: str | None
    """``train``, ``test``, or None in lists without labels."""


def prepare(options: ListOptions) -> Manifest:
    """Prepare the videos of the lists."""
    classes, sources = read_lists(options)
    return prepare_videos("list", sources, classes=classes, options=options)


def read_lists(options: ListOptions) -> tuple[list[str], list[SourceVideo]]:
    """Read the lists and find the files; return the class names by label, and the videos sorted by name.

    Raises:
        UserError: A list is missing, malformed or contradicts another list, or no file exists.
    """
    lists = [(path, "train") for path in options.train_list] + [(path, "test") for path in options.test_list]
    given: list[tuple[Path, str | None]] = [*lists, *((path, None) for path in options.unlabelled_list)]
    if not given:
        raise UserError("no list was given: give --train-list, --test-list or --unlabelled-list")
    rows: dict[str, ListLine] = {}
    for path, part in given:
        for place, line in read_lines(path):
            row = _read_row(place, line, part, options.videos)
            other = rows.setdefault(row.name, row)
            if other is not row:
                raise UserError(f"{row.place} names {row.path}, which is also in {other.place}: remove one line")
    if not rows:
        raise UserError(f"{given[0][0]} names no video: write one path and label per line")
    classes, labels = _index_classes(list(rows.values()), options.classes)
    sources = []
    for _, row in sorted(rows.items()):
        inputs = {"rgb": row.path} if row.path.is_file() else {}
        label, splits = None if row.action is None else labels[row.action], {SPLIT: row.part} if row.part else {}
        sources.append(SourceVideo(name=row.name, inputs=inputs, label=label, splits=splits))
    found, who = [source.inputs for source in sources], f"{', '.join(str(path) for path, _ in given)} name"
    require_some_found(found, folder=options.videos, source=who, example=str(next(iter(rows.values())).path))
    return classes, sources


def _read_row(place: str, line: str, part: str | None, root: Path) -> ListLine:
    path, action = (_without_label(line), None) if part is None else _split_line(place, line)
    # Not resolve(), because a link keeps its own name, wherever it leads.
    base = Path(os.path.normpath(Path.cwd() / root))
    full = Path(os.path.normpath(base / path.strip('"')))
    inside = full.is_relative_to(base)
    name = (full.relative_to(base) if inside else full.relative_to(full.anchor)).as_posix()
    return ListLine(place, full, name, action, part)


def _split_line(place: str, line: str) -> tuple[str, str]:
    """Split a line into path and class."""
    match = LABELLED_LINE.fullmatch(line)
    separator = next((s for s in SEPARATORS if s in line), None)
    path, action = match.group("path", "action") if match is not None else ("", "")
    if match is None and separator is not None:
        path, action = (part.strip() for part in line.rsplit(separator, 1))
    if not path or not action or _is_video(action):
        raise UserError(f"{place} is {line!r}: expected a path, then a space, comma or tab, then a class")
    return path, action


def _without_label(line: str) -> str:
    """Return the path of a line that may have a label after it."""
    match = LABELLED_LINE.fullmatch(line)
    return line if match is None or _is_video(line) else match["path"]


def _is_video(text: str) -> bool:
    return text.strip('"').lower().endswith(VIDEO_SUFFIXES)


def _index_classes(rows: Sequence[ListLine], path: Path | None) -> tuple[list[str], dict[str, int]]:
    """Return the class names, and the label of each class as the lists write it."""
    written = [(row.action, row.place) for row in rows if row.action is not None]
    # A class may be called "007": classes are numbers only if all of them are.
    are_numbers = all(action.removeprefix("-").isdecimal() for action, _ in written)
    if path is not None:
        names = read_class_names(path)
    elif are_numbers:
        names = _unnamed_classes([(int(action), place) for action, place in written])
    else:
        names = sorted({action for action, _ in written})
    by_name = {name: label for label, name in enumerate(names)}
    labels = {}
    for action, place in written:
        label = int(action) if are_numbers else by_name.get(action)
        if label is None or not 0 <= label < len(names):
            raise UserError(
                f"{place} gives the class {action}, but {path or 'the lists'} has the {len(names)} classes "
                f"{names[0]} (0) to {names[-1]} ({len(names) - 1}): fix the line, or give another --classes"
            )
        labels[action] = label
    return names, labels


def _unnamed_classes(written: Sequence[tuple[int, str]]) -> list[str]:
    """Name the classes by their numbers, which are given with their places."""
    for number, place in (min(written), max(written)) if written else ():
        if not 0 <= number < MAX_UNNAMED_CLASSES:
            allowed = f"numbers from 0 to {MAX_UNNAMED_CLASSES - 1}, or class names"
            raise UserError(f"{place} gives the class {number}: give {allowed}")
    return [str(label) for label in range(max(written)[0] + 1)] if written else []
