"""NTU RGB+D: 56,880 recordings of 60 actions by 40 people, from three Kinects (Shahroudy et al., 2016).

Request access at https://rose1.ntu.edu.sg/dataset/actionRecognition, and download one or more of these parts:

* RGB videos: S001C001P001R001A001_rgb.avi and so on (--videos).
* Masked depth maps, or the full ones: a folder S001C001P001R001A001 of 16-bit PNG files per recording (--depth).
* 3D skeletons: S001C001P001R001A001.skeleton and so on (--skeleton, for --modalities with skeleton).

With one part alone, choose --modalities accordingly: rgb flow for videos, depth flow for depth maps, skeleton for
skeletons. Every recording must have every stream, so a recording that lacks a needed part counts as missing.

A skeleton is one or two bodies beside each other, with the 20 joints that a Kinect 1 has too. Encoders of UTD-MHAD's
skeletons, which have one body, take it: they see the first body in the left half of their input and the second in the
right half, or one body in both. Bodies in 11 frames or fewer, and bodies that are wider than 0.8 of their height in
most frames, are left out if others are left, as in the code of CTR-GCN. The body that moves most is first. A file
without a body is skipped; --missing leaves out all that the authors list.

The files S018 to S032 of NTU RGB+D 120 (Liu et al., 2019) may be in the same folders. The dataset then has the 120
classes.

Splits: "xsub" trains on 20 people and tests on the other 20. "xview" trains on cameras 2 and 3 and tests on camera 1.
Both use S001 to S017 only. With the files of NTU RGB+D 120 there are also "xsub120" (53 of 106 people train) and "xset"
(setups with even numbers train). Train with --split xsub. Depth has 30 frames per second.

The recordings of one person are a group. "xview" and "xset" have every person in both parts, as their papers say; the
held-out part of linear-sweep and the confidence intervals keep a person, and so all views of a performance, together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crossdistill.data.manifest import Manifest
from crossdistill.errors import UserError
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos
from data_prep.pipeline.sources import VIDEO_SUFFIXES, add_file, read_lines, select_inputs, walk_files

NAME = re.compile(
    r"S(?P<setup>\d{3})C(?P<camera>\d{3})P(?P<person>\d{3})R(?P<repetition>\d{3})A(?P<action>\d{3})", re.IGNORECASE
)
FRAMES_PER_SECOND = 30.0
NUM_CLASSES_60 = 60
LAST_SETUP_60 = 17
TRAIN_PEOPLE = frozenset({1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38})
TRAIN_PEOPLE_120 = TRAIN_PEOPLE | {
    *(45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89),
    *(91, 92, 93, 94, 95, 97, 98, 100, 103),
}
TRAIN_CAMERAS = frozenset({2, 3})
# fmt: off
CLASSES = (
    "drink water", "eat meal", "brush teeth", "brush hair", "drop", "pick up", "throw", "sit down", "stand up",
    "clapping", "reading", "writing", "tear up paper", "put on jacket", "take off jacket", "put on a shoe",
    "take off a shoe", "put on glasses", "take off glasses", "put on a hat or cap", "take off a hat or cap", "cheer up",
    "hand waving", "kicking something", "reach into pocket", "hopping", "jump up", "phone call",
    "play with phone or tablet", "type on a keyboard", "point to something", "taking a selfie",
    "check time (from watch)", "rub two hands", "nod head or bow", "shake head", "wipe face", "salute",
    "put palms together", "cross hands in front", "sneeze or cough", "staggering", "falling down", "headache",
    "chest pain", "back pain", "neck pain", "nausea or vomiting", "fan self", "punch or slap", "kicking", "pushing",
    "pat on back", "point finger", "hugging", "giving object", "touch pocket", "shaking hands", "walking towards",
    "walking apart", "put on headphone", "take off headphone", "shoot at basket", "bounce ball", "tennis bat swing",
    "juggle table tennis ball", "hush", "flick hair", "thumb up", "thumb down", "make OK sign", "make victory sign",
    "staple book", "counting money", "cutting nails", "cutting paper", "snap fingers", "open bottle", "sniff or smell",
    "squat down", "toss a coin", "fold paper", "ball up paper", "play magic cube", "apply cream on face",
    "apply cream on hand", "put on bag", "take off bag", "put object into bag", "take object out of bag", "open a box",
    "move heavy objects", "shake fist", "throw up cap or hat", "capitulate", "cross arms", "arm circles", "arm swings",
    "run on the spot", "butt kicks", "cross toe touch", "side kick", "yawn", "stretch oneself", "blow nose",
    "hit with object", "wield knife", "knock over", "grab stuff", "shoot with gun", "step on foot", "high-five",
    "cheers and drink", "carry object", "take a photo", "follow", "whisper", "exchange things", "support somebody",
    "rock-paper-scissors",
)
# fmt: on


@dataclass(frozen=True, kw_only=True)
class NtuOptions(PrepareOptions):
    """Options of ``python -m data_prep ntu``."""

    videos: Path | None = None
    """Folder of the ..._rgb.avi files. Subfolders are searched."""
    depth: Path | None = None
    """Folder of the recordings' depth folders. Subfolders are searched."""
    skeleton: Path | None = None
    """Folder of the .skeleton files, for --modalities with skeleton. Subfolders are searched."""
    missing: Path | None = None
    """The authors' list of recordings with missing or incomplete skeletons, which then count as missing."""
    # Overrides the common option: not every dataset has skeletons.
    modalities: tuple[Literal["rgb", "flow", "depth", "skeleton"], ...] = (  # type: ignore[assignment]
        "rgb",
        "flow",
        "depth",
    )
    """Streams to make. Streams that an earlier run made with the same options are kept."""


@dataclass(frozen=True)
class Recording:
    """Name of a recording, parsed. All numbers start at 1."""

    name: str
    setup: int
    camera: int
    person: int
    action: int

    @staticmethod
    def parse(name: str) -> Recording | None:
        """Parse ``SsssCcccPpppRrrrAaaa``; return None for any other name."""
        match = NAME.fullmatch(name)
        if match is None:
            return None
        return Recording(name.upper(), *(int(match[part]) for part in ("setup", "camera", "person", "action")))

    def splits(self, *, has_120: bool) -> dict[str, str]:
        """Return the recording's part in each official split."""
        is_train = {}
        if self.setup <= LAST_SETUP_60:
            is_train = {"xsub": self.person in TRAIN_PEOPLE, "xview": self.camera in TRAIN_CAMERAS}
        if has_120:
            is_train |= {"xsub120": self.person in TRAIN_PEOPLE_120, "xset": self.setup % 2 == 0}
        return {split: "train" if trains else "test" for split, trains in is_train.items()}


def prepare(options: NtuOptions) -> Manifest:
    """Prepare NTU RGB+D, or the part of it that was downloaded."""
    sources, classes = read_recordings(options)
    return prepare_videos("ntu", sources, classes=classes, options=options)


def read_recordings(options: NtuOptions) -> tuple[list[SourceVideo], tuple[str, ...]]:
    """Find the recordings, sorted by name, and the files of their streams; return them and the 60 or 120 classes.

    Raises:
        UserError: There is nothing to prepare, or a stream cannot be made from the given sensors.
    """
    found: dict[str, dict[str, Path]] = {}
    if options.videos is not None:
        found["rgb"] = _find(
            (path for path in walk_files(options.videos) if path.suffix.lower() in VIDEO_SUFFIXES), "_rgb"
        )
    if options.depth is not None:
        # The depth folders are not searched, because they contain millions of files.
        found["depth"] = _find((path for path in walk_files(options.depth, stop_at=NAME) if path.is_dir()), "")
    if options.skeleton is not None:
        paths = (path for path in walk_files(options.skeleton) if path.suffix.lower() == ".skeleton")
        found["skeleton"] = _find(paths, "")
    _check_skeleton_options(options)
    if not found:
        raise UserError("there is nothing to prepare: give --videos, --depth, --skeleton or several of them")
    if options.missing is not None:
        absent = _read_missing(options.missing)
        found["skeleton"] = {name: path for name, path in found["skeleton"].items() if name not in absent}
    names = sorted({name for by_name in found.values() for name in by_name})
    recordings = [recording for name in names if (recording := Recording.parse(name)) is not None]
    has_120 = any(recording.setup > LAST_SETUP_60 for recording in recordings)
    classes = CLASSES if has_120 else CLASSES[:NUM_CLASSES_60]
    for recording in recordings:
        if not 1 <= recording.action <= len(classes):
            only = f"the dataset has {len(classes)} classes"
            raise UserError(f"{recording.name} has the class {recording.action}, but {only}: remove the file")
    inputs = select_inputs(options, found, names)
    if not any(inputs.values()):
        raise UserError(
            f"no recording has all files that --modalities {' '.join(options.modalities)} needs: found "
            f"{len(found.get('rgb', ()))} videos, {len(found.get('depth', ()))} depth folders and "
            f"{len(found.get('skeleton', ()))} skeletons with names like S001C001P001R001A001"
        )
    sources = [
        SourceVideo(
            name=recording.name,
            inputs=inputs[recording.name],
            folder=f"S{recording.setup:03d}",
            label=recording.action - 1,
            group=f"P{recording.person:03d}",
            splits=recording.splits(has_120=has_120),
            frames_per_second=FRAMES_PER_SECOND,
        )
        for recording in recordings
    ]
    return sources, classes


def _check_skeleton_options(options: NtuOptions) -> None:
    """Raise a ``UserError`` if an option of skeletons has no effect."""
    if options.skeleton is not None and "skeleton" not in options.modalities:
        effect = "has no effect without skeleton in --modalities"
        raise UserError(f"--skeleton {options.skeleton} {effect}: add skeleton there, or remove --skeleton")
    if options.missing is not None and options.skeleton is None:
        raise UserError(f"--missing {options.missing} has no effect without --skeleton: add it, or remove --missing")


def _read_missing(path: Path) -> set[str]:
    """Read the authors' list: a name in each line, after a few lines of text."""
    names = {recording.name for _, line in read_lines(path) if (recording := Recording.parse(line)) is not None}
    if not names:
        raise UserError(f"{path} names no recording: expected lines such as S001C002P005R002A008")
    return names


def _find(paths: Iterable[Path], ending: str) -> dict[str, Path]:
    """Find the recordings whose paths, without suffix, are their names with this ending."""
    found: dict[str, Path] = {}
    for path in paths:
        stem = path.stem.lower()
        recording = Recording.parse(stem.removesuffix(ending)) if stem.endswith(ending) else None
        if recording is not None:
            add_file(found, recording.name, path, what="recording")
    return found
