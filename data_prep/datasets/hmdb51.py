"""HMDB51: 6,766 clips of 51 actions, from films and the web (Kuehne et al., 2011).

Download two archives from https://serre.lab.brown.edu/hmdb51.html and unpack them:

* hmdb51_org.rar, and the .rar files of the classes in it: the .avi files, in class folders or all in one folder
  (--videos).
* test_train_splits.rar: <class>_test_split1.txt to <class>_test_split3.txt of every class (--annotations). One split
  is enough.

The splits are the official "1", "2" and "3". Each has 70 training clips and 30 test clips of a class (3,570 and 1,530
in all) and does not use the other clips. The class index is the sorted class names. Clips of one film are a group.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, prepare_videos
from data_prep.pipeline.sources import (
    ListedVideo,
    add_file,
    join_files,
    read_lines,
    require_listed,
    walk_files,
    warn_of_group_leakage,
)

LIST_NAME = re.compile(r"(?P<action>.+)_test_split(?P<split>[1-3])\.txt")
VIDEO_LINE = re.compile(r"(?P<name>.+)\.avi\s+(?P<part>[012])", re.IGNORECASE)
PARTS = {"1": "train", "2": "test"}
UNUSED = "0"
PART_OF_FILM = re.compile(r"(?<=.)_+\d{1,2}$")
# After the class: visible body part, camera motion, number of people, viewpoint, quality, number of the clip.
NAME_END = r"_[fulh]_(?:nm|cm)_np\d+_(?:ba|fr|le|ri)_(?:bad|med|goo)_\d+"


@dataclass(frozen=True, kw_only=True)
class Hmdb51Options(PrepareOptions):
    """Options of ``python -m data_prep hmdb51``."""

    videos: Path
    """Folder of the .avi files. Subfolders are searched."""
    annotations: Path
    """Folder of brush_hair_test_split1.txt and so on. Subfolders are searched."""


def prepare(options: Hmdb51Options) -> Manifest:
    """Prepare HMDB51, or the part of it that was downloaded."""
    classes, listed = read_lists(options.annotations)
    sources = join_files(listed, options.videos, suffixes=(".avi",), lists=options.annotations)
    return prepare_videos("hmdb51", sources, classes=classes, options=options)


def read_lists(folder: Path) -> tuple[list[str], list[ListedVideo]]:
    """Read the official lists; return the class names, sorted, and the videos, sorted by class and name.

    Raises:
        UserError: A list is missing or malformed, or contradicts another list.
    """
    lists = _find_lists(folder)
    classes = sorted({action for action, _ in lists})
    videos: dict[str, ListedVideo] = {}
    for (action, split), path in sorted(lists.items()):
        _read_video_list(path, action, classes.index(action), split, videos)
    require_listed(videos, folder)
    warn_of_group_leakage(videos.values())
    # The official splits tell the numbered parts of a film apart. They are alike all the same.
    for video in videos.values():
        video.group = video.group and PART_OF_FILM.sub("", video.group)
    return classes, sorted(videos.values(), key=lambda video: (video.action, video.name))


def _find_lists(folder: Path) -> dict[tuple[str, str], Path]:
    """Return class and split to the path of the list, the same splits for every class."""
    lists: dict[tuple[str, str], Path] = {}
    for path in walk_files(folder):
        match = LIST_NAME.fullmatch(path.name)
        if match is not None:
            add_file(lists, (match["action"], match["split"]), path, what="class and split")
    if not lists:
        raise UserError(
            f"{folder} contains no list of HMDB51: expected for example brush_hair_test_split1.txt "
            "(test_train_splits.rar, unpacked)"
        )
    for split in sorted({split for _, split in lists}):
        for action in sorted({action for action, _ in lists}):
            if (action, split) not in lists:
                raise UserError(
                    f"{folder} contains no {action}_test_split{split}.txt, though other classes have a list of split "
                    f"{split}: unpack the official lists again"
                )
    return lists


def _read_video_list(path: Path, action: str, label: int, split: str, videos: dict[str, ListedVideo]) -> None:
    """Add the videos of one list to ``videos``. For a known video, only add the split."""
    seen: set[str] = set()
    for place, line in read_lines(path):
        match = VIDEO_LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{place} is {line!r}: expected name.avi and 1 (train), 2 (test) or 0 (unused)")
        name = match["name"]
        if name.casefold() in seen:
            raise UserError(f"{place} names {name}.avi, which is also in an earlier line: remove one of the lines")
        seen.add(name.casefold())
        video = videos.setdefault(name.casefold(), ListedVideo(name, action, label, _film(name, action)))
        if video.action != action:
            raise UserError(f"{place} names {name}.avi, which is also in a list of {video.action!r}: unpack again")
        if match["part"] != UNUSED:
            video.splits[split] = PARTS[match["part"]]


def _film(name: str, action: str) -> str | None:
    """Return the film that a clip was cut from, if the file name contains it.

    All clips of a file are in the same part of an official split. A film may be in several files.
    """
    match = re.fullmatch(f"(?P<film>.+)_{re.escape(action)}{NAME_END}", name)
    return match["film"] if match else None
