"""Something-Something v2: 220,847 clips of 174 actions of hands with objects (Goyal et al., 2017).

Download two sets of archives from https://www.qualcomm.com/developer/software/something-something-v-2-dataset
(registration is free for research), join the parts and unpack them:

* The videos: <id>.webm, all in one folder (--videos).
* The labels (--annotations): labels.json, train.json, validation.json and, optionally, test.json. The names of the
  earlier release, which begin with something-something-v2-, are accepted too.

Split "1" has the official training videos as training part and the validation videos as test part. The official test
videos have no labels and are in no split: they are unlabelled training data. The lists do not say who recorded a video,
so there are no groups. Mirroring does not keep the label, because
classes tell left from right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, prepare_videos
from data_prep.pipeline.sources import VIDEO_SUFFIXES, ListedVideo, join_files, read_json, require_listed

PREFIX = "something-something-v2-"
LABELS = "labels.json"
PARTS: dict[str, str | None] = {"train.json": "train", "validation.json": "test", "test.json": None}


@dataclass(frozen=True, kw_only=True)
class Ssv2Options(PrepareOptions):
    """Options of ``python -m data_prep ssv2``."""

    videos: Path
    """Folder of the .webm files (or other videos). Subfolders are searched."""
    annotations: Path
    """Folder of labels.json, train.json, validation.json and test.json."""


def prepare(options: Ssv2Options) -> Manifest:
    """Prepare Something-Something v2, or the part of it that was downloaded."""
    classes, listed = read_lists(options.annotations)
    sources = join_files(
        listed,
        options.videos,
        suffixes=VIDEO_SUFFIXES,
        lists=options.annotations,
        # A folder for each pair of last digits: file systems are slow with 220,847 files in one folder.
        stream_folder=lambda video: video.name[-2:].zfill(2),
    )
    return prepare_videos("ssv2", sources, classes=classes, options=options, flip_keeps_label=False)


def read_lists(folder: Path) -> tuple[list[str], list[ListedVideo]]:
    """Read the official lists; return the class names in the order of ``labels.json``, and the videos sorted by id.

    Raises:
        UserError: A list is missing or malformed, names an unknown class, or names a video twice.
    """
    classes = _read_classes(_path_of(folder, LABELS))
    labels = {name: label for label, name in enumerate(classes)}
    present = [(path, part) for name, part in PARTS.items() if (path := _path_of(folder, name)).is_file()]
    if not present:
        raise UserError(f"{folder} contains no list of videos: expected for example {next(iter(PARTS))}")
    videos: dict[str, ListedVideo] = {}
    for path, part in present:
        entries = read_json(path, wanted="the labels archive, unpacked")
        if not isinstance(entries, list):
            raise UserError(f"{path} is not a list of videos: expected [{{id, template}}, ...]")
        for number, entry in enumerate(entries, start=1):
            video = _read_entry(f"{path} entry {number}", entry, part, labels)
            if videos.setdefault(video.name, video) is not video:
                raise UserError(f"{path} entry {number} names the video {video.name} again: unpack the lists again")
    require_listed(videos, folder)
    return classes, sorted(videos.values(), key=lambda video: (len(video.name), video.name))


def _path_of(folder: Path, name: str) -> Path:
    """Return the path of a list, with the earlier release's name if only that file exists."""
    old = folder / f"{PREFIX}{name}"
    return old if old.is_file() and not (folder / name).is_file() else folder / name


def _read_classes(path: Path) -> list[str]:
    given = read_json(path, wanted="the folder of Something-Something's labels archive, unpacked")
    try:
        by_index = {int(index): str(name) for name, index in given.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a list of classes: expected {{class: index, ...}}") from error
    if sorted(by_index) != list(range(len(given))) or not given:
        raise UserError(f"{path} does not number its {len(given)} classes from 0 without gaps: unpack it again")
    return [by_index[index] for index in range(len(by_index))]


def _read_entry(place: str, entry: Any, part: str | None, labels: Mapping[str, int]) -> ListedVideo:
    name = str(entry.get("id", "")) if isinstance(entry, dict) else ""
    if not name.isdigit():
        raise UserError(f"{place} has no numeric id: unpack the lists again")
    if part is None:
        return ListedVideo(name, "", None)
    # Templates mark objects, "Pushing [something]"; labels.json does not.
    action = str(entry.get("template", "")).replace("[", "").replace("]", "")
    if action not in labels:
        raise UserError(f"{place} names the class {action!r}, which is not in {LABELS}: unpack the lists again")
    return ListedVideo(name, action, labels[action], splits={"1": part})
