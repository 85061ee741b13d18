"""UCF101: 13,320 clips of 101 actions (Soomro et al., 2012).

Download two archives from https://www.crcv.ucf.edu/data/UCF101.php and unpack them:

* UCF101.rar: the .avi files, in class folders or all in one folder (--videos).
* UCF101TrainTestSplits-RecognitionTask.zip: classInd.txt, trainlist01.txt to trainlist03.txt and testlist01.txt to
  testlist03.txt (--annotations). The two lists of one split are enough.

The splits are the official "1", "2" and "3". The class index is that of classInd.txt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, prepare_videos
from data_prep.pipeline.sources import ListedVideo, join_files, read_lines, require_listed, warn_of_group_leakage

CLASS_LIST = "classInd.txt"
OFFICIAL_FOLDER = "ucfTrainTestlist"
UNPACK_AGAIN = "unpack the official lists again"
SPLITS = ("1", "2", "3")
PARTS = ("train", "test")
VIDEO_LINE = re.compile(r"(?P<folder>[^/]+)/(?P<name>v_(?P<action>.+)_(?P<group>g\d+)_c\d+)\.avi(?:\s+(?P<label>\d+))?")


@dataclass(frozen=True, kw_only=True)
class Ucf101Options(PrepareOptions):
    """Options of ``python -m data_prep ucf101``."""

    videos: Path
    """Folder of the .avi files. Subfolders are searched."""
    annotations: Path
    """Folder of classInd.txt, trainlist01.txt, testlist01.txt and so on."""


def prepare(options: Ucf101Options) -> Manifest:
    """Prepare UCF101, or the part of it that was downloaded."""
    classes, listed = read_lists(options.annotations)
    sources = join_files(listed, options.videos, suffixes=(".avi",), lists=options.annotations)
    return prepare_videos("ucf101", sources, classes=classes, options=options)


def read_lists(folder: Path) -> tuple[list[str], list[ListedVideo]]:
    """Read the official lists; return the class names in official order, and the videos sorted by class and name.

    Args:
        folder: Folder of ``classInd.txt`` and some of ``trainlist0N.txt`` and ``testlist0N.txt``, or its parent
            (the official archive unpacks to the folder ``ucfTrainTestlist``).

    Raises:
        UserError: A list is missing or malformed, names an unknown class, or contradicts another list.
    """
    if not (folder / CLASS_LIST).is_file() and (folder / OFFICIAL_FOLDER / CLASS_LIST).is_file():
        folder = folder / OFFICIAL_FOLDER
    classes = _read_classes(folder / CLASS_LIST)
    lists = [(split, part, folder / f"{part}list0{split}.txt") for split in SPLITS for part in PARTS]
    present = [(split, part, path) for split, part, path in lists if path.is_file()]
    if not present:
        raise UserError(f"{folder} contains no list of videos: expected for example {lists[0][2].name}")
    videos: dict[str, ListedVideo] = {}
    for split, part, path in present:
        _read_video_list(path, split, part, classes, videos)
    require_listed(videos, folder)
    warn_of_group_leakage(videos.values())
    return classes, sorted(videos.values(), key=lambda video: (video.label, video.name))


def _read_classes(path: Path) -> list[str]:
    if not path.is_file():
        what = "the folder of UCF101's official lists (UCF101TrainTestSplits-RecognitionTask.zip, unpacked)"
        raise UserError(f"there is no file {path}: give {what}")
    classes: list[str] = []
    for place, line in read_lines(path):
        number, _, name = line.partition(" ")
        if number != str(len(classes) + 1) or not name.strip():
            raise UserError(f"{place} is {line!r}: expected the number {len(classes) + 1}, a space and a class name")
        classes.append(name.strip())
    if not classes:
        raise UserError(f"{path} names no class: {UNPACK_AGAIN}")
    return classes


def _read_video_list(path: Path, split: str, part: str, classes: Sequence[str], videos: dict[str, ListedVideo]) -> None:
    """Add the videos of one list to ``videos``. For a known video, only add the split."""
    # Case is ignored, because lists and files disagree: "HandstandPushups" and "HandStandPushups".
    labels = {name.casefold(): label for label, name in enumerate(classes)}
    for place, line in read_lines(path):
        match = VIDEO_LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{place} is {line!r}: expected Class/v_Class_g01_c01.avi, then a label in training lists")
        name, label = match["name"], labels.get(match["folder"].casefold())
        if label is None:
            raise UserError(
                f"{place} names the class {match['folder']!r}, which is not in {CLASS_LIST}: {UNPACK_AGAIN}"
            )
        if match["action"].casefold() != match["folder"].casefold():
            raise UserError(
                f"{place} puts a file of {match['action']!r} into the class {match['folder']!r}: {UNPACK_AGAIN}"
            )
        if match["label"] is not None and int(match["label"]) != label + 1:
            raise UserError(
                f"{place} gives the label {match['label']}, but {CLASS_LIST} gives {label + 1}: {UNPACK_AGAIN}"
            )
        new = ListedVideo(name, classes[label], label, f"{classes[label]}_{match['group']}")
        video = videos.setdefault(name.casefold(), new)
        if split in video.splits:
            where = f"the {video.splits[split]} part of split {split}"
            raise UserError(f"{place} names {name}, which is already in {where}: remove one of the lines")
        video.splits[split] = part
