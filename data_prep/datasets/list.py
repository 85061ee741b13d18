"""Your own videos in text lists: one "path label" per line, the format of other video libraries.

* --train-list and --test-list: the path of a video, then a space, comma, semicolon or tab, then its class as a number
  or as a name. Paths and names may contain spaces and may be in double quotes. If the path does not end like a video's
  (.mp4, .avi and so on), the class is the second column, or the text after the last space.
* A CSV list whose first line names its columns: path and label, and optionally split and group. --train-list takes the
  training rows of a column of splits and --test-list the test rows, so one file may be given as both. Other columns
  are not used.
* --unlabelled-list: the path alone; a label after it is ignored. These videos are in no split. They are training data
  for distillation, alone or in addition to a --train-list.

Frame counts and second labels after a path are refused, because they could be classes. Blank lines and lines that
start with # are skipped.

Paths are absolute or below --videos. Class numbers are lines of --classes, which has one name per line; without it the
classes are called 0, 1 and so on. Numbers may start at 1 in all lists. If the lists give class names and there is no
--classes, the class index is the sorted names. A video's name is its path below --videos. A file that does not exist is
kept in the manifest as missing. The split is "1".

Clips of one person or one film are alike. A column of groups, or --group-pattern, says which clips belong together;
confidence intervals and the held-out part of linear-sweep then keep them together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.datasets.list_file import ListRow, read_list_file
from data_prep.pipeline.class_folders import number_classes, with_test_part
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import (
    group_of,
    read_class_names,
    require_some_found,
    warn_of_group_leakage,
)

SPLIT = "1"


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
    group_pattern: Annotated[str | None, tyro.conf.arg(metavar="REGEX")] = None
    """Regular expression that finds in a video's name who or what its clips have in common, for example S\\d+ for a
    person. If it has parentheses, the text in the first ones counts."""


@dataclass(frozen=True)
class ListedFile:
    """One video of the lists."""

    row: ListRow
    path: Path
    """Absolute path of the video."""
    name: str
    part: str | None
    """``train``, ``val``, ``test``, or None in lists without labels."""


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
    files: dict[str, ListedFile] = {}
    passed_over: dict[str, Path] = {}
    for path, part in given:
        for file in _read_list(path, part, options.videos):
            if part is not None and file.part is None:
                passed_over[file.name] = path
                continue
            other = files.setdefault(file.name, file)
            if other is not file:
                raise UserError(
                    f"{file.row.place} names {file.path}, which is also in {other.row.place}: remove one line"
                )
    if not files:
        raise UserError(f"{given[0][0]} names no video: write one path and label per line")
    _print_passed_over({name: path for name, path in passed_over.items() if name not in files})
    rows = [file.row for file in reversed(files.values())]
    places = {row.action: row.place for row in rows if row.action is not None}
    names = None if options.classes is None else read_class_names(options.classes)
    classes, labels = number_classes(places, names, named_by=str(options.classes or "the lists"))
    sources = []
    for name, file in sorted(files.items()):
        inputs = {"rgb": file.path} if _is_file(file.path) else {}
        label = None if file.row.action is None else labels[file.row.action]
        group = file.row.group or group_of(name, options.group_pattern)
        splits = {SPLIT: file.part} if file.part else {}
        sources.append(SourceVideo(name=name, inputs=inputs, label=label, group=group, splits=splits))
    found, who = [source.inputs for source in sources], f"{', '.join(str(path) for path, _ in given)} name"
    require_some_found(found, folder=options.videos, source=who, example=str(next(iter(files.values())).path))
    warn_of_group_leakage(sources, within_class=False)
    return classes, sources


def _read_list(path: Path, part: str | None, root: Path) -> list[ListedFile]:
    """Read a list that was given for a part. The rows of its other parts have the part None."""
    # Not resolve(), because a link keeps its own name, wherever it leads.
    base = Path(os.path.normpath(Path.cwd() / root))
    rows = read_list_file(path, has_labels=part is not None, exists=lambda text: _is_file(base / text))
    files = []
    for row, row_part in zip(rows, with_test_part([row.part for row in rows]), strict=True):
        full = Path(os.path.normpath(base / row.path))
        inside = full.is_relative_to(base)
        name = (full.relative_to(base) if inside else full.relative_to(full.anchor)).as_posix()
        own = row_part or part
        is_wanted = part == ("test" if own == "val" else own)
        files.append(ListedFile(row, full, name, own if is_wanted else None))
    return files


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # for example a name that is too long
        return False


def _print_passed_over(passed_over: dict[str, Path]) -> None:
    if passed_over:
        path = next(iter(passed_over.values()))
        console.print(
            f"{len(passed_over)} rows of {path} belong to a split that it was not given for, and are not prepared: "
            "give it as --train-list and as --test-list to use them",
            highlight=False,
            soft_wrap=True,
        )
