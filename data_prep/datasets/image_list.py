"""Your own pictures, from a table of paths, labels and splits.

--list is a CSV file or a text file with one picture per line: path, then label, then split. Columns are separated by
tabs, commas, semicolons or spaces, whichever of them comes first in this order in the first line. If the first line has
the word path, filename or image, it names the columns (path, label, split, or words for the same such as class and set;
others are ignored), in any order. Label and split may be absent or empty:

* without a label, the picture is training data for distillation;
* without a split, a picture with a label is a training picture. Splits are train (or training), test (or testing) and
  val (or valid, validation). If there are both test and val, results are measured on test.

Classes are the labels that the lists give: numbers from 0, or names, in sorted order. --classes FILE gives the names of
numbered classes. A picture's name is its path below --pictures. A file that does not exist is kept in the manifest as
missing. The split is "1".
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.data.pictures import PICTURE_SUFFIXES
from crossdistill.errors import UserError
from data_prep.datasets.list_file import COLUMNS as COLUMNS_OF_VIDEOS
from data_prep.datasets.list_file import SEPARATORS
from data_prep.pipeline.class_folders import PARTS, number_classes, part_of_word, with_test_part
from data_prep.pipeline.prepare import PictureOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import VIDEO_SUFFIXES, read_class_names, read_text, require_some_found

COLUMNS = {
    "path": COLUMNS_OF_VIDEOS["path"] | {"image", "image_path", "image_name", "picture", "picture_path"},
    "label": COLUMNS_OF_VIDEOS["label"],
    "split": COLUMNS_OF_VIDEOS["split"],
}
"""What a column holds, in the order of tables that do not say it, to the names that it may have in the first line."""


@dataclass(frozen=True, kw_only=True)
class ImageListOptions(PictureOptions):
    """Options of ``python -m data_prep image_list``."""

    list: tuple[Path, ...]
    """Tables of pictures."""
    pictures: Path = Path()
    """Folder that relative paths in the tables start from."""
    classes: Path | None = None
    """File with one class name per line. The first has the number 0."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    place: str
    """File and line, for messages."""
    path: str
    label: str
    """Class as it is written, a number or a name; empty without a label."""
    split: str
    """Split as it is written; empty without one."""


def prepare(options: ImageListOptions) -> Manifest:
    """Prepare the pictures of the tables."""
    classes, sources = read_lists(options)
    return prepare_videos("image_list", sources, classes=classes, options=options)


def read_lists(options: ImageListOptions) -> tuple[list[str], list[SourceVideo]]:
    """Read the tables and find the files; return the class names by label, and the pictures sorted by name.

    Raises:
        UserError: A table is missing or malformed, a picture is in it twice, or no file exists.
    """
    base = os.path.normpath(Path.cwd() / options.pictures)
    rows: dict[str, Row] = {}
    for path in options.list:
        for row in read_rows(path):
            full = os.path.normpath(os.path.join(base, row.path))  # noqa: PTH118 (a table may have a million lines)
            other = rows.setdefault(full, row)
            if other is not row:
                raise UserError(f"{row.place} names {row.path}, which is also in {other.place}: remove one line")
    if not rows:
        raise UserError(f"{options.list[0]} names no picture: write one path, label and split per line")
    _require_pictures(rows.values())
    written = {row.label: row.place for row in reversed(rows.values()) if row.label}
    names = None if options.classes is None else read_class_names(options.classes)
    classes, labels = number_classes(written, names, named_by=str(options.classes or "the table"))
    parts = {row.split: _part(row) for row in rows.values()}
    parts = dict(zip(parts, with_test_part(parts.values()), strict=True))
    sources = []
    for full, row in rows.items():
        name = full.removeprefix(base + os.sep) if full.startswith(base + os.sep) else full.lstrip(os.sep)
        part = parts[row.split] or ("train" if row.label else None)
        inputs = {"rgb": Path(full)} if os.path.isfile(full) else {}  # noqa: PTH113
        label = labels[row.label] if row.label else None
        sources.append(SourceVideo(name.replace(os.sep, "/"), inputs, label=label, splits=PARTS[part]))
    sources.sort(key=lambda source: source.name)
    found, who = [source.inputs for source in sources], f"{', '.join(str(path) for path in options.list)} name"
    require_some_found(found, folder=options.pictures, source=who, example=next(iter(rows)), noun="pictures")
    _require_training(sources, classes)
    return classes, sources


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the lines of a table; raise a ``UserError`` if it is missing or a line is malformed."""
    text = read_text(path, wanted="a table of paths, labels and splits")
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((mark for mark in SEPARATORS if mark in first), ",")
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    columns: Sequence[str] | None = None
    try:
        for values in reader:
            cells = [value.strip() for value in values]
            if not any(cells):
                continue
            if columns is None:
                columns = _read_header(cells, f"{path} line {reader.line_num}")
                if columns is not None:
                    continue
                columns = tuple(COLUMNS)
            place = f"{path} line {reader.line_num}"
            if len(cells) > len(columns):
                raise UserError(f"{place} has {len(cells)} columns instead of {', '.join(columns)}: quote the path")
            row = dict(zip(columns, cells, strict=False))
            if not row["path"]:
                raise UserError(f"{place} has no path: expected {', '.join(columns)}")
            yield Row(place, row["path"], row.get("label", ""), row.get("split", ""))
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num} is no line of a table ({error}): correct it") from error


def _read_header(cells: Sequence[str], place: str) -> Sequence[str] | None:
    """Return what each column holds if the first line names the columns; None if it is a picture."""
    words = [cell.lower().replace(" ", "_") for cell in cells]
    if not COLUMNS["path"].intersection(words):
        return None
    for kind, known in COLUMNS.items():
        named = [word for word in words if word in known]
        if kind in named:
            continue
        if len(named) > 1:
            raise UserError(
                f"{place}: the columns {named[0]} and {named[1]} may both be the {kind}: call one of them {kind}"
            )
        words = [kind if word in named else word for word in words]
    return words


def _part(row: Row) -> str | None:
    part = part_of_word(row.split)
    if row.split and part is None:
        raise UserError(f"{row.place} has the split {row.split!r}: write train, test or val")
    if part is not None and not row.label:
        raise UserError(f"{row.place} has a split and no label: add a label, or remove the split {row.split}")
    return part


def _require_pictures(rows: Iterable[Row]) -> None:
    """Raise a ``UserError`` for a path that is not a picture's, which a column in another place would give."""
    for row in rows:
        suffix = os.path.splitext(row.path)[1].lower()  # noqa: PTH122
        if suffix in VIDEO_SUFFIXES and suffix not in PICTURE_SUFFIXES:
            raise UserError(f"{row.place} names the video {row.path}: for videos, type python -m data_prep list")
        if suffix not in PICTURE_SUFFIXES:
            raise UserError(
                f"{row.place} names {row.path!r}, which is no picture: write a path such as dog/1.jpg first"
            )


def _require_training(sources: Sequence[SourceVideo], classes: Sequence[str]) -> None:
    trained = {source.label for source in sources if "train" in source.splits.values()}
    tested = {source.label for source in sources if source.splits} - trained
    if tested:
        name = classes[min(label for label in tested if label is not None)]
        raise UserError(f"the class {name!r} has test pictures and no training picture: correct the table's splits")
