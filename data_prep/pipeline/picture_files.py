"""Find pictures: files below a folder, and members of tar shards as WebDataset writes them."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.data.pictures import PICTURE_SUFFIXES
from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.class_folders import Labels, draw_tests, number_classes, part_of_word, with_test_part
from data_prep.pipeline.sources import VIDEO_SUFFIXES, require_utf8, walk_files

TAR_SUFFIX = ".tar"
LABEL_SUFFIXES = (".cls", ".json")
# Keys under which the .json files of published shards have the class.
JSON_KEYS = ("label", "cls", "class")


@dataclass(frozen=True, slots=True)
class FoundPicture:
    """One picture, and where it is."""

    name: str
    """POSIX path below the folder. Of a picture in a shard: the shard's path without .tar, then the member's."""
    path: Path
    byte_range: tuple[int, int] | None = None
    """First byte and number of bytes in a tar shard; None for a file of its own."""
    written_class: str | None = None
    """Class as a shard writes it, a number or a name."""
    shard: str = ""
    """POSIX path of its tar shard below the folder; empty for a file of its own."""


def find_pictures(folder: Path, *, out: Path) -> list[FoundPicture]:
    """Find all pictures below a folder, sorted by name.

    Raises:
        UserError: There is none, or there are both tar shards and files of their own.
    """
    files, shards, others = [], [], Counter[str]()
    for path in walk_files(folder):
        suffix = path.suffix.lower()
        if suffix in PICTURE_SUFFIXES:
            files.append(path)
        elif suffix == TAR_SUFFIX:
            shards.append(path)
        else:
            others[suffix] += 1
    if files and shards:
        raise UserError(
            f"{folder} holds {len(files)} pictures, such as {files[0]}, and {len(shards)} tar shards, such as "
            f"{shards[0]}: give a folder of one kind"
        )
    require_utf8([*files, *shards])
    if shards:
        found = [picture for shard in shards for picture in _in_shard(shard, folder, others)]
    else:
        start = len(str(folder / "_")) - 1
        found = [FoundPicture(path.as_posix()[start:], path) for path in files]
    if not found:
        raise _no_picture(folder, out, others)
    if others:
        _print_unused(others, in_shards=bool(shards))
    return sorted(found, key=lambda picture: picture.name)


def _print_unused(others: Counter[str], *, in_shards: bool) -> None:
    """Say how many files are not used, and what looks like a mistake."""
    kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(4))
    console.print(f"{others.total()} files are no pictures and are not used ({kinds})", highlight=False)
    num_dotted = sum(count for suffix, count in others.items() if Path(f"x{suffix}").suffix in PICTURE_SUFFIXES)
    if in_shards and num_dotted:
        console.print(
            f"{num_dotted} of them are pictures with a dot in their name, which WebDataset takes for a part of the "
            "suffix: write the shards again with other names to use them",
            style="yellow",
        )
    num_videos = sum(count for suffix, count in others.items() if suffix in VIDEO_SUFFIXES)
    if num_videos:
        console.print(f"{num_videos} of them are videos: python -m data_prep folder prepares those", style="yellow")


def _no_picture(folder: Path, out: Path, others: Counter[str]) -> UserError:
    num_videos = sum(count for suffix, count in others.items() if suffix in VIDEO_SUFFIXES)
    if num_videos:
        return UserError(
            f"{folder} and its subfolders contain {num_videos} videos and no picture: for videos, type python -m "
            f"data_prep folder --videos {folder} --out {out}, with --unlabelled if subfolders are no classes"
        )
    return UserError(f"{folder} and its subfolders contain no picture: give a folder of pictures or of tar shards")


def _in_shard(shard: Path, folder: Path, others: Counter[str]) -> Iterator[FoundPicture]:
    """Yield the pictures of a shard with their classes, and count other members by suffix.

    Files with the same name up to the first dot are one sample, and the rest is the suffix, as in WebDataset.
    """
    pictures: dict[str, tuple[str, tarfile.TarInfo]] = {}
    classes: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isdir() or member.name.rpartition("/")[2].startswith("."):
                    continue
                start, slash, last = member.name.removeprefix("./").rpartition("/")
                stem, dot, suffix = last.partition(".")
                key, suffix = f"{start}{slash}{stem}", (dot + suffix).lower()
                if not (member.isfile() or member.islnk()):
                    others["symbolic links or devices"] += 1
                elif suffix in PICTURE_SUFFIXES:
                    if key in pictures:
                        raise UserError(f"{shard} holds two pictures of the name {key}: give each its own name")
                    # A hard link has the bytes of another member.
                    content = archive.getmember(member.linkname) if member.islnk() else member
                    pictures[key] = (Path(member.name).suffix, content)
                elif suffix in LABEL_SUFFIXES:
                    label = archive.extractfile(member)
                    written = None if label is None else _written_class(suffix, label.read(), f"{shard}: {last}")
                    if written is not None and (suffix == ".cls" or key not in classes):
                        classes[key] = written
                else:
                    others[suffix] += 1
    except (tarfile.TarError, KeyError, OSError) as error:  # KeyError: a hard link to no member
        raise UserError(
            f"{shard} cannot be read as a tar file ({error}): download it again, or unpack it if it is compressed"
        ) from error
    below = shard.relative_to(folder)
    base = below.with_suffix("").as_posix()
    for key, (suffix, content) in pictures.items():
        place = (content.offset_data, content.size)
        yield FoundPicture(f"{base}/{key}{suffix}", shard, place, classes.get(key), below.as_posix())


def _written_class(suffix: str, content: bytes, place: str) -> str | None:
    """Read the class of a sample from its .cls or .json file; None if the .json file has none."""
    text = content.decode("utf-8", errors="replace").strip()
    if suffix == ".cls":
        return text
    try:
        facts: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not valid JSON ({error.msg}): write the shard again") from error
    found = next((facts[key] for key in JSON_KEYS if key in facts), None) if isinstance(facts, dict) else facts
    return str(found) if isinstance(found, int | str) else None


def labels_of_shards(
    found: Sequence[FoundPicture], names: Sequence[str] | None, *, test_share: float | None, seed: int
) -> Labels:
    """Read labels from the .cls and .json files, and parts from the names of shards and their folders.

    Args:
        found: Pictures of tar shards.
        names: Names of numbered classes; None to name them by their numbers.
        test_share: Share of each class that is drawn for testing, if no name of a shard has a part.
        seed: Seed of that draw.

    Raises:
        UserError: A picture has no class, a class is not among ``names``, or the test part has a class of its own.
    """
    for picture in found:
        if picture.written_class is None:
            raise UserError(
                f"{picture.name} in {picture.path} has no class: add a .cls file of the same name, or type python -m "
                "data_prep images with --unlabelled"
            )
    written = [picture.written_class or "" for picture in found]
    places = {picture.written_class or "": f"{picture.name} in {picture.path}" for picture in reversed(found)}
    classes, label_of = number_classes(places, names, named_by="the list of classes" if names else "the shards")
    parts_by_shard = {shard: _part_of_shard(Path(shard)) for shard in {picture.shard for picture in found}}
    parts: list[str | None] = [parts_by_shard[picture.shard] for picture in found]
    if any(parts):
        if test_share is not None:
            raise UserError(f"{found[0].path} names its split: remove --test-share")
        if not all(parts):
            nameless = found[parts.index(None)].path
            raise UserError(f"{nameless} does not say its split, as other shards do: rename it, for example to train-1")
        parts = with_test_part(parts)
    elif test_share is None:
        parts = ["train"] * len(found)
    else:
        by_class: dict[str, list[str]] = {}
        for picture, name in zip(found, written, strict=True):
            by_class.setdefault(name, []).append(picture.name)
        tests = {name for of_class in by_class.values() for name in draw_tests(of_class, test_share, seed)}
        parts = ["test" if picture.name in tests else "train" for picture in found]
    _require_training(found, written, parts)
    return Labels(classes, [label_of[name] for name in written], parts)


def _require_training(found: Sequence[FoundPicture], written: Sequence[str], parts: Sequence[str | None]) -> None:
    """Raise a ``UserError`` if a class has pictures of other parts alone, unless there is no training shard at all."""
    trained = {name for name, part in zip(written, parts, strict=True) if part == "train"}
    for picture, name in zip(found, written, strict=True):
        if trained and name not in trained:
            raise UserError(
                f"{picture.name} in {picture.path} has the class {name}, which has no training picture: add the "
                "training shards that hold it, or correct its class"
            )


def _part_of_shard(path: Path) -> str | None:
    """Return the part that the name or folder of a shard says, the last word first; of its path below the pictures."""
    words = re.split(r"[^A-Za-z]+", f"{path.parent.name} {path.stem}")
    return next((part for word in reversed(words) if (part := part_of_word(word))), None)
