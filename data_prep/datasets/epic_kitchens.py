"""EPIC-KITCHENS-100: 76,885 segments of 495 long videos of cooking, seen from the head (Damen et al., 2022).

Download two things:

* The videos, https://epic-kitchens.github.io (download script): P01/videos/P01_01.MP4 and so on (--videos).
* The annotations, https://github.com/epic-kitchens/epic-kitchens-100-annotations (--annotations): EPIC_100_train.csv,
  EPIC_100_validation.csv, EPIC_100_verb_classes.csv and EPIC_100_noun_classes.csv.

A long video is prepared once, and the manifest says which of its frames each segment has: no file is cut. A segment
that begins after its video's end is skipped, and one that ends later keeps the frames that there are; the manifest has
the reason. The class is the verb, the noun or both (--label). Split "1" has the official training segments as training
part and the validation segments as test part. The test segments have no public labels; with
EPIC_100_test_timestamps.csv in the folder they are unlabelled training data, in no split. A group is a participant.
Participants are in both parts, as the paper says.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import (
    VIDEO_SUFFIXES,
    find_files,
    only_file,
    read_text,
    require_listed,
    require_some_found,
)
from data_prep.pipeline.tasks import Segment

PARTS: dict[str, str | None] = {
    "EPIC_100_train.csv": "train",
    "EPIC_100_validation.csv": "test",
    "EPIC_100_test_timestamps.csv": None,
}
"""List to the part of split "1"."""
VERBS, NOUNS = "EPIC_100_verb_classes.csv", "EPIC_100_noun_classes.csv"
Label = Literal["verb", "noun", "action"]


@dataclass(frozen=True, kw_only=True)
class EpicKitchensOptions(PrepareOptions):
    """Options of ``python -m data_prep epic_kitchens``."""

    videos: Path
    """Folder of the videos, P01_01.MP4 and so on. Subfolders are searched."""
    annotations: Path
    """Folder of EPIC_100_train.csv, EPIC_100_validation.csv and the two lists of classes."""
    label: Label = "verb"
    """The class of a segment: its verb, its noun, or both as they occur in the lists (action)."""
    # Overrides the common option: videos last up to an hour and a half.
    time_limit: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 36_000.0
    """Skip a long video that takes longer: decoders can hang on damaged files."""


@dataclass(frozen=True)
class ListedSegment:
    """One row of a list."""

    name: str
    """Its narration_id, for example P01_01_0."""
    participant: str
    segment: Segment
    part: str | None
    classes: tuple[str, str] | None
    """Verb and noun; None without labels."""

    def class_name(self, label: Label) -> str | None:
        """Return the class; None without labels."""
        if self.classes is None:
            return None
        verb, noun = self.classes
        return {"verb": verb, "noun": noun, "action": f"{verb} {noun}"}[label]


def prepare(options: EpicKitchensOptions) -> Manifest:
    """Prepare EPIC-KITCHENS-100, or the part of it that was downloaded."""
    classes, listed = read_lists(options.annotations, label=options.label)
    numbers = {name: number for number, name in enumerate(classes)}
    files = find_files(options.videos, suffixes=VIDEO_SUFFIXES, prints_others=True)
    found = {name: only_file(name, files) for name in dict.fromkeys(row.segment.video for row in listed)}
    lists = f"the lists in {options.annotations} name"
    require_some_found(
        list(found.values()), folder=options.videos, source=lists, example=f"{listed[0].segment.video}.MP4"
    )
    sources = [
        SourceVideo(
            row.name,
            {"rgb": path} if (path := found[row.segment.video]) else {},
            folder=row.participant,
            label=None if (name := row.class_name(options.label)) is None else numbers[name],
            group=row.participant,
            splits={} if row.part is None else {"1": row.part},
            segment=row.segment,
        )
        for row in listed
    ]
    return prepare_videos("epic_kitchens", sources, classes=classes, options=options)


def read_lists(folder: Path, *, label: Label) -> tuple[list[str], list[ListedSegment]]:
    """Read the official lists; return the class names, and the segments in the order of the lists.

    Verbs and nouns have the order of their lists of classes; actions are sorted by verb, then noun.

    Raises:
        UserError: A list is missing or malformed, or has an unknown class, or names a segment twice.
    """
    verbs, nouns = _read_classes(folder / VERBS), _read_classes(folder / NOUNS)
    present = [(folder / name, part) for name, part in PARTS.items() if (folder / name).is_file()]
    if not present:
        raise UserError(f"{folder} contains no list of segments: expected for example {next(iter(PARTS))}")
    listed: dict[str, ListedSegment] = {}
    for path, part in present:
        for place, row in _read_rows(path):
            segment = _read_segment(place, row, part, verbs, nouns)
            if listed.setdefault(segment.name, segment) is not segment:
                raise UserError(f"{place} names the segment {segment.name} again: download the lists again")
    require_listed(listed, folder)
    if label != "action":
        return list({"verb": verbs, "noun": nouns}[label].values()), list(listed.values())
    pairs = {row.classes for row in listed.values() if row.classes is not None}
    order = [{name: number for number, name in enumerate(names.values())} for names in (verbs, nouns)]
    ordered = sorted(pairs, key=lambda pair: (order[0][pair[0]], order[1][pair[1]]))
    return [f"{verb} {noun}" for verb, noun in ordered], list(listed.values())


def _read_rows(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the rows of a CSV file with a header, each with "file line N"."""
    text = read_text(path, wanted="the folder of EPIC-KITCHENS-100's annotations")
    reader = csv.DictReader(text.splitlines())
    return [(f"{path} line {reader.line_num}", row) for row in reader]


def _read_classes(path: Path) -> dict[int, str]:
    """Read a list of classes, ``id,key,...``, which numbers them from 0."""
    names: dict[int, str] = {}
    for place, row in _read_rows(path):
        number, name = _number(place, row, "id"), _text(place, row, "key")
        if number != len(names) or name in names.values():
            raise UserError(f"{place} is class {number}, {name!r}: expected class {len(names)} with a name of its own")
        names[number] = name
    if not names:
        raise UserError(f"{path} names no class: download it again")
    return names


def _read_segment(
    place: str, row: Mapping[str, str], part: str | None, verbs: Mapping[int, str], nouns: Mapping[int, str]
) -> ListedSegment:
    video = _text(place, row, "video_id")
    name = _text(place, row, "narration_id")
    segment = Segment(video, _seconds(place, row, "start_timestamp"), _seconds(place, row, "stop_timestamp"))
    if segment.start_seconds >= segment.stop_seconds:
        raise UserError(
            f"{place} has a segment from {row['start_timestamp']} to {row['stop_timestamp']}, which is not later: "
            "download the list again"
        )
    classes = None
    if part is not None:
        verb, noun = _number(place, row, "verb_class"), _number(place, row, "noun_class")
        for number, known, listing in ((verb, verbs, VERBS), (noun, nouns, NOUNS)):
            if number not in known:
                raise UserError(f"{place} has the class {number}, which is not in {listing}: download the lists again")
        classes = verbs[verb], nouns[noun]
    return ListedSegment(name, _text(place, row, "participant_id"), segment, part, classes)


def _text(place: str, row: Mapping[str, str], column: str) -> str:
    text = (row.get(column) or "").strip()
    if not text:
        raise UserError(f"{place} has {text!r} in the column {column}: download the list again")
    return text


def _number(place: str, row: Mapping[str, str], column: str) -> int:
    text = _text(place, row, column)
    if not text.isdigit():
        raise UserError(f"{place} has {text!r} in the column {column}, where a number belongs: download the list again")
    return int(text)


def _seconds(place: str, row: Mapping[str, str], column: str) -> float:
    """Read a time such as 01:02:03.45."""
    text = _text(place, row, column)
    try:
        hours, minutes, seconds = text.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError as error:
        raise UserError(f"{place} has the time {text!r} in {column}: expected HH:MM:SS.ss") from error
