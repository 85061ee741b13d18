"""Shared by the dataset modules: find files, read official lists, and join the two."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo
from data_prep.pipeline.transcode import check_source, source_of

# fmt: off
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".avi", ".divx", ".mkv", ".webm", ".ogv", ".ogm", ".mpg",
    ".mpeg", ".mpe", ".m1v", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".m2t", ".wmv", ".asf", ".flv", ".rm", ".rmvb",
    ".mxf", ".dv", ".gif", ".y4m", ".mjpeg", ".mjpg", ".h264", ".h265", ".hevc",
)
# fmt: on
"""Ends of the names of files that FFmpeg reads as videos, in lower case."""

Key = TypeVar("Key", bound=Hashable)


@dataclass
class ListedVideo:
    """One video of a dataset's lists."""

    name: str
    """Name as the first list spells it. Later lists and the file may differ in case."""
    action: str
    """Class name, empty if unknown."""
    label: int | None
    group: str | None = None
    """What clips have in common that makes them alike: a film, a person. Intervals resample whole groups."""
    splits: dict[str, str] = field(default_factory=dict)
    """Split to the video's part in it, ``train`` or ``test``."""


def walk_files(folder: Path, *, stop_at: re.Pattern[str] | None = None) -> Iterator[Path]:
    """Yield all files of a folder and its subfolders, sorted by folder. Links are followed, hidden files skipped.

    Folders whose whole name matches ``stop_at`` are yielded and not searched.

    Raises:
        UserError: The folder does not exist, or a link leads back to a folder that contains it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder that holds the files")
    yield from _walk(folder, (), stop_at)


def _walk(folder: Path, above: tuple[tuple[int, int], ...], stop_at: re.Pattern[str] | None) -> Iterator[Path]:
    here = (folder.stat().st_dev, folder.stat().st_ino)
    if here in above:
        raise UserError(f"{folder} is a link to a folder that contains it ({folder.resolve()}): remove the link")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:
        raise UserError(f"the folder {folder} cannot be read: change its permissions, or move it away") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry) and not (stop_at and stop_at.fullmatch(entry.name)):
            yield from _walk(Path(entry.path), (*above, here), stop_at)
        else:
            yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: yielded as a file, which then turns out to be missing
        return False


def require_utf8(paths: Iterable[Path]) -> None:
    """Raise a ``UserError`` if a path is not valid UTF-8: a manifest could not store it."""
    for path in paths:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the name {str(path)!a} is not UTF-8: rename the file") from error


def find_files(folder: Path, *, suffixes: Collection[str], prints_others: bool = False) -> dict[str, list[Path]]:
    """Find files by suffix in a folder and its subfolders, as ``walk_files`` does; return lower-case stem to paths.

    With ``prints_others``, the number of files with other suffixes is printed.
    """
    found: dict[str, list[Path]] = {}
    others = []
    for path in walk_files(folder):
        if path.suffix.lower() in suffixes:
            found.setdefault(path.stem.casefold(), []).append(path)
        else:
            others.append(path)
    if prints_others:
        print_passed_over(others, why=f"not {' '.join(suffixes)}" if len(suffixes) == 1 else "not named like videos")
    return {stem: sorted(paths) for stem, paths in sorted(found.items())}


def only_file(name: str, found: Mapping[str, Sequence[Path]]) -> Path | None:
    """Return the file whose stem is ``name`` in any case, or None; raise a ``UserError`` if two files have it."""
    paths = found.get(name.casefold(), [])
    if len(paths) > 1:
        raise UserError(f"{paths[0]} and {paths[1]} have the same name: give a folder that holds only one of them")
    return paths[0] if paths else None


def add_file(found: dict[Key, Path], key: Key, path: Path, *, what: str) -> None:
    """Add a file to ``found``; raise a ``UserError`` if another file has the key. ``what`` names what they share."""
    other = found.setdefault(key, path)
    if other != path:
        raise UserError(f"{other} and {path} belong to the same {what}: give a folder that holds only one of them")


def print_passed_over(paths: Iterable[Path], *, why: str = "not named like videos") -> None:
    """Print how many files are not prepared, by suffix, so that a class cannot vanish without a word."""
    counts = Counter(path.suffix.lower() or "without a suffix" for path in paths)
    if counts:
        suffixes = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        console.print(f"passed over, {why}: {suffixes}", highlight=False, soft_wrap=True)


def group_of(name: str, pattern: str | None) -> str | None:
    r"""Return the group of a video: what --group-pattern finds in its name, in its parentheses if it has some.

    Raises:
        UserError: The pattern is no regular expression, or is not in the name.

    Example:
        >>> group_of("run/S012_run_3.mp4", r"S\d+"), group_of("run/S012_run_3.mp4", r"_(\w+)_")
        ('S012', 'run')
    """
    if pattern is None:
        return None
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise UserError(
            f"--group-pattern {pattern} is no regular expression ({error}): give one such as S\\d+"
        ) from error
    if match is None:
        raise UserError(f"--group-pattern {pattern} is not in the name {name!r}: give a pattern that all names contain")
    return match[1] if match.re.groups else match[0]


def join_files(
    listed: Sequence[ListedVideo],
    folder: Path,
    *,
    suffixes: Collection[str],
    lists: Path,
    stream_folder: Callable[[ListedVideo], str] = lambda video: folder_name(video.action),
) -> list[SourceVideo]:
    """Find the file of each listed video by its name in any case. Videos without a file are kept as missing.

    Args:
        listed: Videos of the lists, at least one.
        folder: Folder to search, with its subfolders, for files with ``suffixes``.
        suffixes: In lower case.
        lists: Folder of the lists, for messages.
        stream_folder: Maps a video to the subfolder of its streams; by default the class.

    Raises:
        UserError: No file is found, or two files have the same name.
    """
    files = find_files(folder, suffixes=suffixes, prints_others=True)
    found = [only_file(video.name, files) for video in listed]
    example = f"{listed[0].action}/{listed[0].name}{next(iter(suffixes))}".removeprefix("/")
    require_some_found(found, folder=folder, source=f"the lists in {lists} name", example=example)
    num_unlisted = len(set(files) - {video.name.casefold() for video in listed})
    if num_unlisted:
        console.print(f"{num_unlisted} videos are in no list and are not prepared")
    return [
        SourceVideo(v.name, {"rgb": path} if path else {}, stream_folder(v), v.label, v.group, v.splits)
        for v, path in zip(listed, found, strict=True)
    ]


def folder_name(action: str) -> str:
    """Turn a class name into the name of one folder."""
    return action.replace("/", "_").lstrip(".")


def require_some_found(
    found: Collection[object], *, folder: Path, source: str, example: str, noun: str = "videos"
) -> None:
    """Raise a ``UserError`` if no file was found.

    Args:
        found: For each video its file, or a false value if it was not found.
        folder: Folder that was searched.
        source: Who expects the videos: subject and verb, for example "the lists in annotations name".
        example: A file that was expected.
        noun: What the files are called.
    """
    if not any(found):
        what = f"none of the {len(found)} {noun} that {source}"
        raise UserError(f"{folder} and its subfolders contain {what}: expected for example {example}")


def select_inputs(
    options: PrepareOptions, found: Mapping[str, Mapping[str, Path]], names: Iterable[str]
) -> dict[str, dict[str, Path]]:
    """Select the files that the streams of each video are made from, for datasets with several sensors.

    Every video must have every stream. A video that lacks one of the files gets no inputs and counts as missing.

    Args:
        options: Options with the streams to make.
        found: Sensor to video name to its file or folder. A ``UserError`` is raised if no sensor provides a stream.
        names: Names of all videos.

    Returns:
        Video name to sensor to the file or folder.
    """
    for stream in options.modalities:
        check_source(stream, found, options.recipe)
    needed = list(dict.fromkeys(source_of(stream, found) for stream in options.modalities))
    inputs = {}
    num_lacking: Counter[str] = Counter()
    for name in names:
        missing = [sensor for sensor in needed if name not in found[sensor]]
        inputs[name] = {} if missing else {sensor: found[sensor][name] for sensor in needed}
        # Videos without any file were not downloaded, so that --modalities is not to blame for them.
        if len(missing) < len(needed):
            num_lacking.update(missing)
    for sensor, count in num_lacking.items():
        console.print(f"{count} videos have no {sensor} and count as missing: to use them, remove it from --modalities")
    return inputs


def require_listed(videos: Collection[object], lists: Path | str) -> None:
    """Raise a ``UserError`` if the lists name no video."""
    if not videos:
        raise UserError(f"the lists in {lists} name no video: download them again")


def warn_of_group_leakage(videos: Iterable[ListedVideo | SourceVideo], *, within_class: bool = True) -> None:
    """Print a warning if a group is in both parts of a split: near-duplicates inflate the results.

    With ``within_class``, only the clips of one class in one group count, such as those of one action in one film.
    """
    parts: dict[tuple[str, int | None, str], set[str]] = {}
    for video in videos:
        if video.group is not None:
            for split, part in video.splits.items():
                parts.setdefault((split, video.label if within_class else None, video.group), set()).add(part)
    for split in sorted({split for split, *_ in parts}):
        num_leaking = sum(len(seen) > 1 for (of_split, *_), seen in parts.items() if of_split == split)
        if num_leaking:
            console.print(f"warning: {num_leaking} groups of near-duplicates are in both parts of split {split}")


def read_text(path: Path, *, wanted: str) -> str:
    """Read a text file, with replacement characters for bytes that are not UTF-8.

    Raise a ``UserError``, in which ``wanted`` says what to give, if the file does not exist or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: give {wanted}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give {wanted}") from error


def read_json(path: Path, *, wanted: str) -> Any:
    """Read a JSON file; raise a ``UserError``, also if it is damaged, as ``read_text`` does."""
    try:
        return json.loads(read_text(path, wanted=wanted))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno} is not valid JSON ({error.msg}): download it again") from error


def read_class_names(path: Path) -> list[str]:
    """Read class names, one per line; raise a ``UserError`` if there is none, or one twice. The first has label 0."""
    names: list[str] = []
    for place, line in read_lines(path):
        if line in names:
            raise UserError(f"{place} names the class {line!r} again: write every class on one line only")
        names.append(line)
    if not names:
        raise UserError(f"{path} names no class: give a file with one class name per line")
    return names


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines that are not blank, each with "file line N" for messages. Line ends and encoding may be any."""
    text = read_text(path, wanted="a text file")
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if line.strip():
            yield f"{path} line {number}", line.strip()
