"""UCF101: 13,320 clips of 101 actions (Soomro et al., 2012).

Wants two downloads from the dataset's page, https://www.crcv.ucf.edu/data/UCF101.php:

* UCF101.rar, unpacked: the .avi files, in folders by class or all in one (--videos).
* UCF101TrainTestSplits-RecognitionTask.zip, unpacked: classInd.txt, trainlist01.txt to trainlist03.txt
  and testlist01.txt to testlist03.txt (--annotations). One pair of lists is enough.

Videos are re-encoded so that they decode fast, with their exact timestamps. A run that was stopped
goes on where it was when the same command is given again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, prepare_videos
from data_prep.pipeline.sources import ListedVideo, join_files, read_lines, warn_of_parted_groups

CLASS_LIST = "classInd.txt"
OFFICIAL_FOLDER = "ucfTrainTestlist"
SPLITS = ("1", "2", "3")
PARTS = ("train", "test")
VIDEO_LINE = re.compile(r"(?P<folder>[^/]+)/(?P<name>v_(?P<action>.+)_(?P<group>g\d+)_c\d+)\.avi(?:\s+(?P<label>\d+))?")


@dataclass(frozen=True, kw_only=True)
class Options(PrepareOptions):
    """The options of ``python -m data_prep ucf101``."""

    videos: Path
    """Folder of the .avi files; all folders below it are searched."""
    annotations: Path
    """Folder of classInd.txt, trainlist01.txt, testlist01.txt and so on."""


def prepare(options: Options) -> Manifest:
    """Prepare UCF101, or as much of it as is there."""
    classes, listed = read_lists(options.annotations)
    sources = join_files(listed, options.videos, suffixes=(".avi",), lists=options.annotations)
    return prepare_videos("ucf101", sources, classes=classes, options=options)


def read_lists(folder: Path) -> tuple[list[str], list[ListedVideo]]:
    """Read the official lists.

    Args:
        folder: Holds ``classInd.txt`` and some of ``trainlist0N.txt`` and ``testlist0N.txt``, itself or
            in the folder ``ucfTrainTestlist`` that the official archive unpacks to.

    Returns:
        The classes in official order, and the videos sorted by class and name.

    Raises:
        UserError: A list is absent or malformed, names an unknown class, or contradicts another.
    """
    if not (folder / CLASS_LIST).is_file() and (folder / OFFICIAL_FOLDER / CLASS_LIST).is_file():
        folder = folder / OFFICIAL_FOLDER
    classes = _read_classes(folder / CLASS_LIST)
    lists = [(split, part, folder / f"{part}list0{split}.txt") for split in SPLITS for part in PARTS]
    present = [(split, part, path) for split, part, path in lists if path.is_file()]
    if not present:
        raise UserError(f"{folder} holds no list of videos: expected for example {lists[0][2].name}")
    videos: dict[str, ListedVideo] = {}
    for split, part, path in present:
        _read_video_list(path, split, part, classes, videos)
    if not videos:
        raise UserError(f"the lists in {folder} name no video: the first is {present[0][2]}")
    warn_of_parted_groups(videos.values())
    return classes, sorted(videos.values(), key=lambda video: (video.label, video.name))


def _read_classes(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(
            f"there is no {path}: give the folder of UCF101's official lists "
            "(UCF101TrainTestSplits-RecognitionTask.zip, unpacked)"
        )
    classes: list[str] = []
    for place, line in read_lines(path):
        number, _, name = line.partition(" ")
        if number != str(len(classes) + 1) or not name.strip():
            raise UserError(f"{place} is {line!r}: expected the number {len(classes) + 1}, a blank and a class name")
        classes.append(name.strip())
    if not classes:
        raise UserError(f"{path} names no class: unpack the official lists again")
    return classes


def _read_video_list(path: Path, split: str, part: str, classes: Sequence[str], videos: dict[str, ListedVideo]) -> None:
    """Add the videos of one list, or their place in one more split."""
    labels = {name.casefold(): label for label, name in enumerate(classes)}
    seen: set[str] = set()
    for place, line in read_lines(path):
        match = VIDEO_LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{place} is {line!r}: expected Class/v_Class_g01_c01.avi, in training lists with a label")
        label = labels.get(match["folder"].casefold())
        if label is None:
            raise UserError(f"{place} names the class {match['folder']!r}, which {CLASS_LIST} does not")
        if match["action"].casefold() != match["folder"].casefold():
            raise UserError(f"{place} puts a file of {match['action']!r} into the class {match['folder']!r}")
        if match["label"] is not None and int(match["label"]) != label + 1:
            raise UserError(f"{place} gives the label {match['label']}, but {CLASS_LIST} gives {label + 1}")
        if match["name"].casefold() in seen:
            raise UserError(f"{place} names {match['name']}, which an earlier line does too: remove one of them")
        seen.add(match["name"].casefold())
        new = ListedVideo(match["name"], classes[label], label, f"{classes[label]}_{match['group']}")
        video = videos.setdefault(match["name"].casefold(), new)
        if video.splits.setdefault(split, part) != part:
            raise UserError(f"{place} names {match['name']}, which is in split {split}'s other list too")
