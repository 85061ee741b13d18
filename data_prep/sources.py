"""What dataset modules share when they read lists and look for files."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from crossdistill.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp")


def walk_files(folder: Path) -> Iterator[Path]:
    """All files of a folder and of those below it, links followed, hidden ones left out, sorted by folder.

    Raises:
        UserError: There is no such folder, or a link leads back to a folder that holds it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder that holds the files")
    yield from _walk(folder, ())


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    facts = folder.stat()
    here = (facts.st_dev, facts.st_ino)
    if here in above:
        raise UserError(f"{folder} is a link to a folder that holds it ({folder.resolve()}): remove the link")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise UserError(f"the folder {folder} cannot be read: change its permissions, or move it away") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), (*above, here))
        else:
            yield Path(entry.path)


def find_files(folder: Path, *, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """Find files by suffix in a folder and all below it, as stem in lower case to sorted paths.

    Raises:
        UserError: There is no such folder, or a link leads round in a circle.
    """
    found: dict[str, list[Path]] = {}
    for path in walk_files(folder):
        if path.suffix.lower() in suffixes:
            found.setdefault(path.stem.casefold(), []).append(path)
    return {stem: sorted(paths) for stem, paths in sorted(found.items())}


def only_file(name: str, found: Mapping[str, Sequence[Path]]) -> Path | None:
    """The one file of a stem, whatever its case; None if there is none.

    Raises:
        UserError: Two files have the name.
    """
    paths = found.get(name.casefold(), [])
    if len(paths) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} have the same name: give a folder that holds one of them")
    return paths[0] if paths else None


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, each with "file line N" for messages; any line ends, any encoding."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{path} line {number}", line.strip()
