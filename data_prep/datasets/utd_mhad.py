"""UTD-MHAD: 861 recordings of 27 actions by 8 people, from a Kinect and a body sensor (Chen et al., 2015).

Download the archives from https://personal.utdallas.edu/~kehtar/UTD-MHAD.html and unpack them:

* Depth.zip: a1_s1_t1_depth.mat and so on (--depth).
* Skeleton.zip, for --modalities with skeleton: a1_s1_t1_skeleton.mat and so on (--skeleton).

Optical flow is estimated on the depth. A skeleton has 20 joints in every frame of depth. Split "1" is the official
cross-subject split: people 1, 3, 5 and 7 train, people 2, 4, 6 and 8 test. Split "2" swaps the two parts, which gives a
cross-validation over all eight people; it is not an official split. Mirroring does not keep the label, because classes
tell left from right. Timestamps are those of 30 frames per second, the rate that the dataset's page gives.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import find_files, only_file, require_some_found, select_inputs

# fmt: off
CLASSES = (
    "right arm swipe to the left", "right arm swipe to the right", "right hand wave", "two hand front clap",
    "right arm throw", "cross arms in the chest", "basketball shoot", "right hand draw x",
    "right hand draw circle (clockwise)", "right hand draw circle (counter clockwise)", "draw triangle",
    "bowling (right hand)", "front boxing", "baseball swing from right", "tennis right hand forehand swing",
    "arm curl (two arms)", "tennis serve", "two hand push", "right hand knock on door", "right hand catch an object",
    "right hand pick up and throw", "jogging in place", "walking in place", "sit to stand", "stand to sit",
    "forward lunge (left foot forward)", "squat (two arms stretch out)",
)
# fmt: on
NUM_PEOPLE = 8
NUM_TRIALS = 4
# Recordings that failed and were never published.
NOT_PUBLISHED = frozenset({"a8_s1_t4", "a23_s6_t4", "a27_s8_t4"})
TRAIN_PEOPLE = frozenset({1, 3, 5, 7})
SWAPPED = {"train": "test", "test": "train"}
NAME = re.compile(r"a(?P<action>\d+)_s(?P<person>\d+)_t\d+")
ENDINGS = {"depth": "_depth", "skeleton": "_skeleton"}
"""Sensor to the end of its files' stems."""
FRAMES_PER_SECOND = 30.0


@dataclass(frozen=True, kw_only=True)
class UtdMhadOptions(PrepareOptions):
    """Options of ``python -m data_prep utd_mhad``."""

    depth: Path
    """Folder of the ..._depth.mat files. Subfolders are searched."""
    skeleton: Path | None = None
    """Folder of the ..._skeleton.mat files, for --modalities with skeleton. Subfolders are searched."""
    # Overrides the common option: not every dataset has skeletons.
    modalities: tuple[Literal["rgb", "flow", "depth", "skeleton"], ...] = ("depth", "flow")  # type: ignore[assignment]
    """Streams to make: depth, flow, skeleton. Streams that an earlier run made with the same options are kept."""


def prepare(options: UtdMhadOptions) -> Manifest:
    """Prepare UTD-MHAD, or the part of it that was downloaded."""
    return prepare_videos(
        "utd_mhad", read_recordings(options), classes=CLASSES, options=options, flip_keeps_label=False
    )


def recording_names() -> list[str]:
    """Return the names of all published recordings, ordered by action, person and trial."""
    numbers = itertools.product(*(range(1, n + 1) for n in (len(CLASSES), NUM_PEOPLE, NUM_TRIALS)))
    return [name for a, s, t in numbers if (name := f"a{a}_s{s}_t{t}") not in NOT_PUBLISHED]


def read_recordings(options: UtdMhadOptions) -> list[SourceVideo]:
    """Find the files of all published recordings. Recordings without a file are kept as missing.

    Raises:
        UserError: A folder contains none of the files, or a stream cannot be made from the given sensors.
    """
    if options.skeleton is not None and "skeleton" not in options.modalities:
        effect = "has no effect without skeleton in --modalities"
        raise UserError(f"--skeleton {options.skeleton} {effect}: add skeleton there, or remove --skeleton")
    names = recording_names()
    folders = {"depth": options.depth, **({"skeleton": options.skeleton} if options.skeleton else {})}
    found = {sensor: _recordings(folder, sensor, names) for sensor, folder in folders.items()}
    inputs = select_inputs(options, found, names)
    for sensor, folder in folders.items():
        example = f"{names[0]}{ENDINGS[sensor]}.mat"
        files = [found[sensor].get(name) for name in names]
        require_some_found(files, folder=folder, source="the dataset has", example=example)
    return [_source(name, inputs[name]) for name in names]


def _recordings(folder: Path, sensor: str, names: list[str]) -> dict[str, Path]:
    """Return recording name to the sensor's file, for the files that exist."""
    files = find_files(folder, suffixes=(".mat",))
    found = {name: only_file(name + ENDINGS[sensor], files) for name in names}
    return {name: path for name, path in found.items() if path is not None}


def _source(name: str, inputs: dict[str, Path]) -> SourceVideo:
    match = NAME.fullmatch(name)
    assert match is not None
    action, person = int(match["action"]), int(match["person"])
    official = "train" if person in TRAIN_PEOPLE else "test"
    splits = {"1": official, "2": SWAPPED[official]}
    return SourceVideo(name, inputs, f"a{action}", action - 1, f"s{person}", splits, FRAMES_PER_SECOND)
