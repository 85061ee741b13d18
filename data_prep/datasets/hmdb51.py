"""HMDB51: 6,766 clips of 51 actions, from films and the web (Kuehne et al., 2011).

Wants two downloads from the dataset's page,
https://serre.lab.brown.edu/hmdb51.html (HMDB: a large human motion database):

* hmdb51_org.rar, unpacked, and the .rar files of the classes in it unpacked too: the .avi files, in
  folders by class or all in one (--videos).
* test_train_splits.rar, unpacked: <class>_test_split1.txt to <class>_test_split3.txt of every class
  (--annotations). One split is enough.

Each of the three splits trains on 70 and tests on 30 clips of a class (3,570 and 1,530) and leaves the
others out: such a clip has no place in that split. The class index is the sorted class names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, prepare_videos
from data_prep.pipeline.sources import ListedVideo, join_files, read_lines, walk_files, warn_of_parted_groups

LIST_NAME = re.compile(r"(?P<action>.+)_test_split(?P<split>[1-3])\.txt")
VIDEO_LINE = re.compile(r"(?P<name>.+)\.avi\s+(?P<part>[012])", re.IGNORECASE)
PARTS = {"1": "train", "2": "test"}
UNUSED = "0"
# After the class: visible body part, camera motion, number of people, viewpoint, quality, number of the clip.
NAME_END = r"_[fulh]_(?:nm|cm)_np\d+_(?:ba|fr|le|ri)_(?:bad|med|goo)_\d+"


@dataclass(frozen=True, kw_only=True)
class Options(PrepareOptions):
    """The options of ``python -m data_prep hmdb51``."""

    videos: Path
    """Folder of the .avi files; all folders below it are searched."""
    annotations: Path
    """Folder of brush_hair_test_split1.txt and so on; all folders below it are searched."""


def prepare(options: Options) -> Manifest:
    """Prepare HMDB51, or as much of it as is there."""
    classes, listed = read_lists(options.annotations)
    sources = join_files(listed, options.videos, suffixes=(".avi",), lists=options.annotations)
    return prepare_videos("hmdb51", sources, classes=classes, options=options)


def read_lists(folder: Path) -> tuple[list[str], list[ListedVideo]]:
    """Read the official lists.

    Args:
        folder: Holds ``<class>_test_split<N>.txt``, itself or in a folder below it.

    Returns:
        The class names, sorted, and the videos sorted by class and name.

    Raises:
        UserError: A list is absent or malformed, or contradicts another.
    """
    lists = _find_lists(folder)
    classes = sorted({action for action, _ in lists})
    videos: dict[str, ListedVideo] = {}
    for (action, split), path in sorted(lists.items()):
        _read_video_list(path, action, classes.index(action), split, videos)
    if not videos:
        raise UserError(f"the lists in {folder} name no video: the first is {next(iter(lists.values()))}")
    warn_of_parted_groups(videos.values())
    return classes, sorted(videos.values(), key=lambda video: (video.action, video.name))


def _find_lists(folder: Path) -> dict[tuple[str, str], Path]:
    """Class and split to the list's path; every class has the same splits."""
    lists: dict[tuple[str, str], Path] = {}
    for path in walk_files(folder):
        match = LIST_NAME.fullmatch(path.name)
        if match is None:
            continue
        other = lists.setdefault((match["action"], match["split"]), path)
        if other != path:
            raise UserError(f"{other} and {path} are lists of the same class and split: give a folder with one of them")
    if not lists:
        raise UserError(
            f"{folder} holds no list of HMDB51: expected for example brush_hair_test_split1.txt "
            "(test_train_splits.rar, unpacked)"
        )
    for split in sorted({split for _, split in lists}):
        for action in sorted({action for action, _ in lists}):
            if (action, split) not in lists:
                raise UserError(
                    f"{folder} holds no {action}_test_split{split}.txt, though other classes have that split: "
                    "unpack the official lists again"
                )
    return lists


def _read_video_list(path: Path, action: str, label: int, split: str, videos: dict[str, ListedVideo]) -> None:
    """Add the videos of one list, or their place in one more split."""
    seen: set[str] = set()
    for place, line in read_lines(path):
        match = VIDEO_LINE.fullmatch(line)
        if match is None:
            raise UserError(f"{place} is {line!r}: expected name.avi and 1 (train), 2 (test) or 0 (unused)")
        name = match["name"]
        if name.casefold() in seen:
            raise UserError(f"{place} names {name}.avi, which an earlier line of the list does too: remove one of them")
        seen.add(name.casefold())
        video = videos.setdefault(name.casefold(), ListedVideo(name, action, label, _film(name, action)))
        if video.action != action:
            raise UserError(
                f"{place} names {name}.avi, which the lists of {video.action!r} name too: unpack the lists again"
            )
        if match["part"] != UNUSED:
            video.splits[split] = PARTS[match["part"]]


def _film(name: str, action: str) -> str | None:
    """What the clip is cut from, as its name says; no official split parts the clips of a class and a film."""
    match = re.fullmatch(f"(?P<film>.+)_{re.escape(action)}{NAME_END}", name)
    return match["film"] if match else None
