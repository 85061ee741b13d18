"""What dataset modules share when they read lists and look for files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo
from data_prep.pipeline.transcode import check_source, source_of

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp")


@dataclass
class ListedVideo:
    """One video as a dataset's lists name it."""

    name: str
    """As the first list spells it; later lists and the file may differ in case."""
    action: str
    """The class, as the list of classes spells it; empty if it is not known."""
    label: int | None
    """From 0."""
    group: str | None = None
    """Clips of one group are cut from one film: the unit of bootstrap intervals, whatever the classes."""
    splits: dict[str, str] = field(default_factory=dict)


def walk_files(folder: Path, *, whole: re.Pattern[str] | None = None) -> Iterator[Path]:
    """All files of a folder and of those below it, links followed, hidden ones left out, sorted by folder.

    Args:
        folder: Where to begin.
        whole: Folders whose whole name matches are given themselves, in place of their files.

    Raises:
        UserError: There is no such folder, or a link leads back to a folder that holds it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder that holds the files")
    yield from _walk(folder, (), whole)


def _walk(folder: Path, above: tuple[tuple[int, int], ...], whole: re.Pattern[str] | None) -> Iterator[Path]:
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
        if _is_folder(entry) and not (whole and whole.fullmatch(entry.name)):
            yield from _walk(Path(entry.path), (*above, here), whole)
        else:
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: handed out as a file, which then turns out to be none
        return False


def require_utf8(path: Path) -> None:
    """Raise a ``UserError`` if a file's name is no text: a manifest could not hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the name {str(path)!a} is not UTF-8: rename the file") from error


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


def join_files(
    listed: Sequence[ListedVideo],
    folder: Path,
    *,
    suffixes: Collection[str],
    lists: Path,
    stream_folder: Callable[[ListedVideo], str] = lambda video: folder_name(video.action),
) -> list[SourceVideo]:
    """Give each listed video the file of its name, whatever its case; those without one are kept as missing.

    Args:
        listed: At least one video.
        folder: Searched with all folders below it.
        suffixes: Of the files to look at.
        lists: Where the lists come from, for messages.
        stream_folder: Where the streams of a video go; the folder of its class if not given.

    Raises:
        UserError: None of the files is there, or two have the same name.
    """
    found = find_files(folder, suffixes=suffixes)
    sources = [to_source(v, only_file(v.name, found), folder=stream_folder(v)) for v in listed]
    example = f"{listed[0].action}/{listed[0].name}{next(iter(suffixes))}".removeprefix("/")
    require_some_found(sources, folder=folder, lists=lists, example=example)
    num_unlisted = len(set(found) - {video.name.casefold() for video in listed})
    if num_unlisted:
        console.print(f"{num_unlisted} {' '.join(suffixes)} files are in no list and are not prepared")
    return sources


def to_source(video: ListedVideo, path: Path | None, *, folder: str | None = None) -> SourceVideo:
    """A listed video with its file, if it has one; ``folder`` is where its streams go, the class if not given."""
    return SourceVideo(
        name=video.name,
        inputs={"rgb": path} if path else {},
        folder=folder_name(video.action) if folder is None else folder,
        label=video.label,
        group=video.group,
        splits=video.splits,
    )


def folder_name(action: str) -> str:
    """A class as a folder of streams: one folder, whatever is in the name."""
    return action.replace("/", "_").lstrip(".")


def require_some_found(sources: Iterable[SourceVideo], *, folder: Path, lists: Path | str, example: str) -> None:
    """Raise a ``UserError`` if none of the listed videos has a file."""
    sources = list(sources)
    if not any(source.inputs for source in sources):
        raise UserError(
            f"{folder} and the folders below it hold none of the {len(sources)} videos that the lists in {lists} name: "
            f"expected for example {example}"
        )


def inputs_of(
    options: PrepareOptions, found: Mapping[str, Mapping[str, Path]], names: Iterable[str]
) -> dict[str, dict[str, Path]]:
    """Of a dataset with several sensors, the inputs of each name that the streams need.

    A video that lacks one of them has no inputs, because every stream must be there for every video.

    Args:
        options: Name the streams to make.
        found: Sensor to name to its file or folder.
        names: Of all videos.

    Raises:
        UserError: A stream cannot be made from these sensors.
    """
    for stream in options.modalities:
        check_source(stream, found, options.recipe)
    needed = list(dict.fromkeys(source_of(stream, found) for stream in options.modalities))
    inputs = {}
    lacking: dict[str, int] = {}
    for name in names:
        missing = [sensor for sensor in needed if name not in found[sensor]]
        inputs[name] = {} if missing else {sensor: found[sensor][name] for sensor in needed}
        if missing and len(missing) < len(needed):
            for sensor in missing:
                lacking[sensor] = lacking.get(sensor, 0) + 1
    for sensor, count in lacking.items():
        console.print(
            f"{count} videos have no {sensor} and count as missing: choose --modalities without it to use them"
        )
    return inputs


def warn_of_parted_groups(videos: Iterable[ListedVideo]) -> None:
    """Clips of one group are near-duplicates: a group in both parts of a split makes results look good."""
    parts: dict[tuple[str, str, str], set[str]] = {}
    for video in videos:
        if video.group is not None:
            for split, part in video.splits.items():
                parts.setdefault((split, video.action, video.group), set()).add(part)
    for split in sorted({split for split, *_ in parts}):
        num_parted = sum(len(seen) > 1 for (of_split, *_), seen in parts.items() if of_split == split)
        if num_parted:
            console.print(f"warning: {num_parted} groups of near-duplicates are in both parts of split {split}")


def read_text(path: Path, *, wanted: str) -> str:
    """A text file of any encoding; bytes that are not UTF-8 become marks.

    Raises:
        UserError: There is no such file, or it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}: give {wanted}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give {wanted}") from error


def read_json(path: Path, *, wanted: str) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: There is no such file, or it is damaged.
    """
    try:
        return json.loads(read_text(path, wanted=wanted))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno} is no JSON ({error.msg}): download it again") from error


def read_class_names(path: Path) -> list[str]:
    """Class names, one per line; the first has the label 0.

    Raises:
        UserError: There is no such file, it is empty, or it names a class twice.
    """
    names: list[str] = []
    for place, line in read_lines(path):
        if line in names:
            raise UserError(f"{place} names the class {line!r} again: every class stands on one line")
        names.append(line)
    if not names:
        raise UserError(f"{path} names no class: give a file with one class name per line")
    return names


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, each with "file line N" for messages; any line ends, any encoding.

    Raises:
        UserError: There is no such file, or it cannot be read.
    """
    text = read_text(path, wanted="a text file")
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            yield f"{path} line {number}", line.strip()
