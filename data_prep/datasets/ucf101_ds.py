"""UCF101-DS: clips of UCF101's actions under natural shifts, such as fog or another style (Schiappa et al., 2023).

It needs the clips under shifts in the folders <shift>/<class>/<clip> (--shifts), and UCF101 itself as for
``python -m data_prep ucf101`` (--videos and --annotations). Own copies of UCF101 that were perturbed can be prepared in
the same way. The classes are those of UCF101, in any case.

The splits: "1" is UCF101's first one. Each shift is a split of its name, with the same training part, and the clips
under that shift as test part. "shifted" tests on the clips of all shifts. So crossdistill evaluate --split 1 fog night
trains the probes on UCF101 and tests them on it and under shifts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.datasets import ucf101
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import VIDEO_SUFFIXES, join_files, print_passed_over, require_utf8, walk_files

CLEAN, ALL_SHIFTS = "1", "shifted"
RESERVED = ("1", "2", "3", ALL_SHIFTS)


@dataclass(frozen=True, kw_only=True)
class Ucf101DsOptions(PrepareOptions):
    """Options of ``python -m data_prep ucf101_ds``."""

    shifts: Path
    """Folder with one folder for each shift, which has one folder for each class."""
    videos: Path
    """Folder of UCF101's .avi files. Subfolders are searched."""
    annotations: Path
    """Folder of UCF101's official lists."""


def prepare(options: Ucf101DsOptions) -> Manifest:
    """Prepare UCF101's first split together with the clips under shifts."""
    classes, listed = ucf101.read_lists(options.annotations)
    clean = join_files(listed, options.videos, suffixes=(".avi",), lists=options.annotations)
    shifted = find_shifted(options.shifts, classes)
    shifts = list(dict.fromkeys(split for video in shifted for split in video.splits))
    sources = [
        dataclasses.replace(video, splits=_splits_of_clean(part, shifts))
        for video in clean
        if (part := video.splits.get(CLEAN)) is not None
    ]
    return prepare_videos("ucf101_ds", [*sources, *shifted], classes=classes, options=options)


def _splits_of_clean(part: str, shifts: Sequence[str]) -> dict[str, str]:
    """Return the splits of a video of UCF101: its training videos are those of every shift too."""
    return {CLEAN: part, **(dict.fromkeys(shifts, "train") if part == "train" else {})}


def find_shifted(folder: Path, classes: Sequence[str]) -> list[SourceVideo]:
    """Find the clips <shift>/<class>/<clip>, sorted.

    Raises:
        UserError: There is none, a file is elsewhere, or a folder has the name of no class.
    """
    labels = {name.casefold(): label for label, name in enumerate(classes)}
    found, others = [], []
    for path in walk_files(folder):
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            others.append(path)
            continue
        parts = path.relative_to(folder).parts
        if len(parts) != 3:
            raise UserError(f"{path} is not in a folder {folder}/<shift>/<class>: move it there, or move it away")
        shift, action, _ = parts
        label = labels.get(action.casefold())
        if label is None:
            raise UserError(f"the folder {path.parent} has the name of no class of UCF101: rename it, or move it away")
        if shift in RESERVED:
            raise UserError(f"the shift {folder / shift} has the name of another split: rename the folder")
        name = f"{shift}/{classes[label]}/{path.stem}"
        found.append(SourceVideo(name, {"rgb": path}, "", label, name, {shift: "test", ALL_SHIFTS: "test"}))
    print_passed_over(others)
    if not found:
        raise UserError(f"{folder} holds no video: expected for example {folder}/fog/{classes[0]}/clip.mp4")
    require_utf8([path for video in found for path in video.inputs.values()])
    return found
