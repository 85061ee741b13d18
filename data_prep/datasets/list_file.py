"""Reads one text list of videos: a CSV whose first line names its columns, or lines of a path and a class.

A line that cannot be read in one way only is refused: an extra number may be a frame count or a second label.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.class_folders import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES, part_of_word
from data_prep.pipeline.sources import VIDEO_SUFFIXES, read_lines

SEPARATORS = ("\t", ",", ";", " ")
COLUMNS = {
    "path": {"path", "video", "video_path", "video_name", "file", "filename", "file_name", "filepath", "file_path"},
    "label": {"label", "label_id", "label_name", "class", "class_id", "class_name", "category", "action", "target"},
    "split": {"split", "part", "subset", "set", "partition"},
    "group": {"group", "group_id", "person", "person_id", "subject", "subject_id", "performer", "film"},
}
"""What a column holds, to the names that it may have in the first line."""

SPLITS = TRAIN_NAMES + TEST_NAMES + VALIDATION_NAMES
NUMBER = re.compile(r"-?\d+(\.\d+)?")
QUOTED_PATH = re.compile(r'"(?P<path>(?:[^"]|"")+)"(?:\s*(?P<separator>[\t,; ])\s*(?P<rest>.*))?')
# The path ends at the last suffix of a video that a separator and more text follow.
PLAIN_PATH = re.compile(
    rf"(?P<path>.+(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))(?:\s*(?P<separator>[\t,; ])\s*(?P<rest>.+))", re.I
)


@dataclass(frozen=True)
class ListRow:
    """One line of a list."""

    place: str
    """File and line, for messages."""
    path: str
    """As the list writes it."""
    action: str | None = None
    """Class as the list writes it, a number or a name; None in lists without labels."""
    part: str | None = None
    """``train``, ``val`` or ``test`` from a column of splits; None without one."""
    group: str | None = None
    """From a column of groups."""


def read_list_file(path: Path, *, has_labels: bool, exists: Callable[[str], bool]) -> list[ListRow]:
    """Read a list.

    Args:
        path: The list.
        has_labels: Whether every line has a class. Otherwise what follows a path is ignored.
        exists: Whether a path, as the list writes it, is a file.

    Raises:
        UserError: A line is malformed, or may be read in several ways.
    """
    # A line that starts with # is a comment, unless it is the path of a file.
    lines = [
        (place, line) for place, line in read_lines(path) if not line.startswith("#") or exists(_split_path(line)[0])
    ]
    try:
        return _read_lines(lines, has_labels=has_labels, exists=exists)
    except csv.Error as error:
        raise UserError(
            f"{path} cannot be read as text ({error}): give a list of one path and label per line"
        ) from error


def _read_lines(lines: Sequence[tuple[str, str]], *, has_labels: bool, exists: Callable[[str], bool]) -> list[ListRow]:
    if lines and (columns := _read_header(lines[0][1], exists)) is not None:
        return _read_table(lines, columns, has_labels=has_labels)
    if lines and _is_unknown_header(lines, exists):
        place, line = lines[0]
        raise UserError(
            f"{place} is {line!r}, which names no video: name the columns path, label, split and group, or remove the "
            "line"
        )
    return [_read_line(place, line, has_labels=has_labels) for place, line in lines]


# Lists without a header.


def _read_line(place: str, line: str, *, has_labels: bool) -> ListRow:
    path, separator, rest = _split_path(line)
    if not has_labels:
        return ListRow(place, path)
    if not separator:  # no suffix of a video shows where the path ends
        path, separator, rest = _split_at_separator(place, line)
    if not path or not rest or is_video(rest):
        raise UserError(f"{place} is {line!r}: expected a path, then a space, comma or tab, then a class")
    return ListRow(place, path, _read_class(place, separator, rest))


def _split_path(line: str) -> tuple[str, str, str]:
    """Split a line into the path, the separator and the rest, which are empty if the path's end is unknown."""
    match = QUOTED_PATH.fullmatch(line)
    if match is not None:
        return match["path"].replace('""', '"'), match["separator"] or "", match["rest"] or ""
    match = None if is_video(line) else PLAIN_PATH.fullmatch(line)
    return (match["path"], match["separator"], match["rest"]) if match is not None else (line, "", "")


def _split_at_separator(place: str, line: str) -> tuple[str, str, str]:
    separator = next((s for s in SEPARATORS if s in line), "")
    if separator in ("", " "):
        path, _, rest = line.rpartition(" ")
        if NUMBER.fullmatch(path.rpartition(" ")[2]) and path.count(" "):
            raise _too_much(place, line.split(" ", 1)[1])
        return path, separator, rest
    path, *others = _cells(line, separator)
    if len(others) > 1:
        raise _too_much(place, separator.join(others))
    return path, separator, "".join(others)


def _read_class(place: str, separator: str, rest: str) -> str:
    """Return the class in the text after a path; refuse further columns."""
    cells = _cells(rest, separator) if separator != " " or rest.startswith('"') else [rest]
    while len(cells) > 1 and not cells[-1]:
        cells.pop()
    words = re.split(r"[\s,;]+", cells[0]) if '"' not in rest else cells
    has_other_words = len(words) > 1 and (
        NUMBER.fullmatch(words[0]) or NUMBER.fullmatch(words[-1]) or part_of_word(words[-1])
    )
    if len(cells) > 1 or has_other_words:
        raise _too_much(place, rest)
    return cells[0]


def _too_much(place: str, rest: str) -> UserError:
    return UserError(
        f"{place} has {rest!r} after the path, but frame counts, second labels and splits are not read there: leave "
        "one class, or name the columns in a first line such as path,label,split; a class of several words may be in "
        "double quotes"
    )


def _cells(text: str, separator: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([text], delimiter=separator, skipinitialspace=True))]


def is_video(text: str) -> bool:
    """Whether a text ends like the name of a video."""
    return text.strip('"').lower().endswith(VIDEO_SUFFIXES)


# Lists with a header.


@dataclass(frozen=True)
class _Columns:
    separator: str
    names: tuple[str, ...]
    """As the first line writes them."""

    def position(self, kind: str) -> int | None:
        """Return which column holds a kind of ``COLUMNS``; refuse two of them."""
        found = [i for i, name in enumerate(self.names) if _normal(name) in COLUMNS[kind]]
        if len(found) > 1:
            first, second, *_ = (self.names[i] for i in found)
            raise UserError(f"the columns {first} and {second} may both be the {kind}: rename or remove one of them")
        return found[0] if found else None


def _normal(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _read_header(line: str, exists: Callable[[str], bool]) -> _Columns | None:
    """Return the columns that a first line names; None if it is a video."""
    separator = next((s for s in SEPARATORS if s in line), ",")
    names = tuple(_cells(line, separator))
    known = {name for of_kind in COLUMNS.values() for name in of_kind}
    if any(map(is_video, names)) or is_video(line) or exists(names[0]) or not known & set(map(_normal, names)):
        return None
    return _Columns(separator, names)


def _is_unknown_header(lines: Sequence[tuple[str, str]], exists: Callable[[str], bool]) -> bool:
    def names_video(line: str) -> bool:
        return is_video(_split_path(line)[0])

    first = lines[0][1]
    is_path = names_video(first) or any(exists(first.rsplit(s, 1)[0].strip('" ')) for s in SEPARATORS) or exists(first)
    return not is_path and any(names_video(line) for _, line in lines[1:])


def _read_table(lines: Sequence[tuple[str, str]], columns: _Columns, *, has_labels: bool) -> list[ListRow]:
    first_place = lines[0][0]
    try:
        positions = {kind: columns.position(kind) for kind in COLUMNS}
    except UserError as error:
        raise UserError(f"{first_place}: {error}") from error
    for kind in ("path", "label") if has_labels else ("path",):
        if positions[kind] is None:
            raise UserError(
                f"{first_place} names the columns {', '.join(columns.names)}, but none is called {kind}: rename one"
            )
    unused = [name for i, name in enumerate(columns.names) if i not in positions.values()]
    if unused:
        console.print(f"{first_place}: not used: {', '.join(unused)}", highlight=False, soft_wrap=True)
    rows = []
    for place, line in lines[1:]:
        cells = _cells(line, columns.separator)
        if len(cells) > len(columns.names) and any(cells[len(columns.names) :]):
            raise UserError(
                f"{place} has {len(cells)} columns, but the first line names {len(columns.names)}: put a text that "
                f"holds {columns.separator!r} in double quotes"
            )
        values = {kind: cells[i] if i is not None and i < len(cells) else "" for kind, i in positions.items()}
        if not values["path"] or (has_labels and not values["label"]):
            raise UserError(f"{place} is {line!r}: expected a path and a class")
        part = part_of_word(values["split"]) if positions["split"] is not None and has_labels else None
        if positions["split"] is not None and has_labels and part is None:
            raise UserError(f"{place} has the split {values['split']!r}: expected one of {', '.join(SPLITS)}")
        action = values["label"] if has_labels else None
        rows.append(ListRow(place, values["path"], action, part, values["group"] or None))
    return rows
