"""Diving48: about 18,000 clips of 48 dives, which differ in motion and not in scene (Li et al., 2018).

Download from http://www.svcl.ucsd.edu/projects/resound/dataset.html and unpack:

* Diving48_rgb.tar.gz: rgb/<vid_name>.mp4 (--videos).
* The lists of version 2, in which wrong labels were corrected (--annotations): Diving48_V2_train.json,
  Diving48_V2_test.json and Diving48_vocab.json.

Split "1" is the official one. Each file is one dive; start_frame and end_frame of the lists are its first and last
frame. The class is the position in the vocabulary, and its name is the four parts of the dive. A group is the video of
a competition, which the name of a clip begins with. Competitions are in both parts, as the authors divided them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, prepare_videos
from data_prep.pipeline.sources import VIDEO_SUFFIXES, ListedVideo, join_files, read_json, require_listed

VOCABULARY = "Diving48_vocab.json"
PARTS = {"Diving48_V2_train.json": "train", "Diving48_V2_test.json": "test"}
WANTED = "the folder of Diving48's lists of version 2"


@dataclass(frozen=True, kw_only=True)
class Diving48Options(PrepareOptions):
    """Options of ``python -m data_prep diving48``."""

    videos: Path
    """Folder of the .mp4 files. Subfolders are searched."""
    annotations: Path
    """Folder of Diving48_V2_train.json, Diving48_V2_test.json and Diving48_vocab.json."""


def prepare(options: Diving48Options) -> Manifest:
    """Prepare Diving48, or the part of it that was downloaded."""
    classes, listed = read_lists(options.annotations)
    # One folder for each competition: the classes have no short names.
    sources = join_files(
        listed,
        options.videos,
        suffixes=VIDEO_SUFFIXES,
        lists=options.annotations,
        stream_folder=lambda video: video.group or "",
    )
    return prepare_videos("diving48", sources, classes=classes, options=options)


def read_lists(folder: Path) -> tuple[list[str], list[ListedVideo]]:
    """Read the official lists; return the class names in the order of the vocabulary, and the videos as listed.

    Raises:
        UserError: A list is missing or malformed, has an unknown class, or names a video twice.
    """
    classes = _read_vocabulary(folder / VOCABULARY)
    present = [(folder / name, part) for name, part in PARTS.items() if (folder / name).is_file()]
    if not present:
        raise UserError(f"{folder} contains no list of videos: expected for example {next(iter(PARTS))}")
    videos: dict[str, ListedVideo] = {}
    for path, part in present:
        entries = read_json(path, wanted=WANTED)
        if not isinstance(entries, list):
            raise UserError(f"{path} is not a list of videos: expected [{{vid_name, label, ...}}, ...]")
        for number, entry in enumerate(entries, start=1):
            video = _read_entry(f"{path} entry {number}", entry, part, classes)
            if videos.setdefault(video.name, video) is not video:
                raise UserError(f"{path} entry {number} names the video {video.name} again: download the lists again")
    require_listed(videos, folder)
    return classes, list(videos.values())


def _read_vocabulary(path: Path) -> list[str]:
    dives = read_json(path, wanted=WANTED)
    is_known = isinstance(dives, list) and all(
        isinstance(dive, list) and dive and all(isinstance(part, str) for part in dive) for dive in dives
    )
    if not is_known or not dives:
        raise UserError(f'{path} is not the vocabulary: expected [["Back", "15som", "05Twis", "FREE"], ...]')
    names = [" ".join(dive) for dive in dives]
    if len(set(names)) < len(names):
        raise UserError(f"{path} names a dive twice: download it again")
    return names


def _read_entry(place: str, entry: Any, part: str, classes: list[str]) -> ListedVideo:
    name = entry.get("vid_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or "/" in name:
        raise UserError(f"{place} has no vid_name: download the lists again")
    label, first, last = (entry.get(key) for key in ("label", "start_frame", "end_frame"))
    if not isinstance(label, int) or not 0 <= label < len(classes):
        raise UserError(
            f"{place} has the class {label!r}, and {VOCABULARY} has {len(classes)} classes from 0: download the lists "
            "again"
        )
    if not (isinstance(first, int) and isinstance(last, int) and 0 <= first < last):
        raise UserError(f"{place} has the frames {first!r} to {last!r}: download the lists again")
    competition, _, dive = name.rpartition("_")
    return ListedVideo(name, classes[label], label, competition or dive, {"1": part})
