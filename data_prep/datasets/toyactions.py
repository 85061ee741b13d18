"""Toyactions: rendered clips of moving bodies with exact flow and depth, as video files. It needs no download.

Twelve classes of motion: slides (left, right, up, down), approach and recede, spins and orbits (clockwise and
anticlockwise), bounce and shake. Textures, colours, shapes, sizes, places, a moving background and distracting bodies
are drawn independently of the class, so that a single frame does not tell the class. Backgrounds always move, as if the
camera did, so that the mean motion of a clip says little about it either.

The folder gets rgb/, flow/ and depth/, split lists in the format of UCF101 in lists/, and a manifest. The same options
give the same bytes, with any number of workers. Repeat the command to resume it after an interruption.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from crossdistill.data.decode import index_video
from crossdistill.data.manifest import Manifest, Video, is_prepared
from crossdistill.data.streams import STREAM_FORMATS, Picture, StreamWriter, quantise_flow
from crossdistill.errors import UserError
from crossdistill.utils.console import console
from crossdistill.utils.files import write_text_atomically
from data_prep.datasets.toyactions_renderer import ACTIONS, RENDERER_VERSION, SceneKey, compose_scene, render_clip
from data_prep.pipeline.executor import Engine, run_jobs

DATASET = "toyactions"
STREAMS = ("rgb", "flow", "depth")
# Written before the first clip: records the options of the clips in an unfinished folder.
OPTIONS_NAME = "toyactions.json"

CLIPS_PER_GROUP = 4
MAX_GROUPS = 25
NUM_SPLITS = 3
TEST_SHARE = 0.3

UNITS_PER_FRAME = 800
"""Units of timestamps per frame: the time base is 1 / (fps x 800) seconds."""


@dataclass(frozen=True)
class ToyactionsOptions:
    """Options of ``python -m data_prep toyactions``."""

    out: Path
    """Folder of the dataset."""
    clips_per_class: int = 200
    """Clips of each of the 12 classes, at least 2."""
    size: int = 64
    """Side of the square frames in pixels, an even number from 32 to 256."""
    frames: int = 20
    """Frames per clip, at least 4. Bounce and shake need about 16 to differ from slides."""
    fps: int = 16
    """Frame rate of the files, from 1 to 240."""
    seed: int = 0
    """Seed of the random numbers. Another seed gives another dataset of the same kind."""
    workers: int | None = None
    """Number of clips rendered in parallel. Default: one per core."""


def prepare(options: ToyactionsOptions) -> Manifest:
    """Render the clips that are missing in the folder, and write lists and manifest.

    Raise a ``UserError`` if an option is out of range, or if the folder contains another dataset.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = ToyactionsOptions(out=Path(folder), clips_per_class=2, size=32, frames=4, workers=1)
        ...     manifest = prepare(options)
        toyactions ...
        >>> len(manifest.videos), manifest.streams
        (24, ('depth', 'flow', 'rgb'))
    """
    _check(options)
    _claim_folder(options)
    finished = _finished_manifest(options)
    if finished is not None:
        _print(f"{options.out} is already prepared: {len(finished.videos)} clips")
        return finished
    start_seconds = time.perf_counter()
    for path, text in _list_files(options).items():
        write_text_atomically(path, text)
    _remove_leftovers(options.out)
    render, clips = partial(_make_video, options), clip_ids(options.clips_per_class)
    try:
        videos = run_jobs(render, clips, engine=Engine(workers=options.workers), description=DATASET, unit="clips")
    finally:
        _remove_leftovers(options.out)
    classes, facts = tuple(ACTIONS), _facts(options)
    manifest = Manifest(options.out, DATASET, classes, tuple(videos), flip_keeps_label=False, facts=facts)
    manifest.save()
    manifest = Manifest.load(options.out)
    seconds = time.perf_counter() - start_seconds
    _print(
        f"{options.out}: {len(videos)} clips of {len(ACTIONS)} classes, {options.frames} frames of "
        f"{options.size}x{options.size} at {options.fps} fps, in {seconds:.1f} s ({len(videos) / seconds:.0f} clips/s)"
    )
    return manifest


def _print(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _check(options: ToyactionsOptions) -> None:
    ranges: tuple[tuple[str, int | None, int, int | None], ...] = (
        ("--clips-per-class", options.clips_per_class, 2, None),
        ("--size", options.size, 32, 256),
        ("--frames", options.frames, 4, None),
        ("--fps", options.fps, 1, 240),
        ("--seed", options.seed, 0, None),
        ("--workers", options.workers, 1, None),
    )
    for name, given, lowest, highest in ranges:
        if given is not None and (given < lowest or (highest is not None and given > highest)):
            allowed = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
            raise UserError(f"{name} {given} is out of range: choose a whole number {allowed}")
    if options.size % 2:
        raise UserError(f"--size {options.size} is odd, but H.264 needs even sides: choose {options.size - 1}")
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file: choose the path of a folder")


def _contents(options: ToyactionsOptions) -> dict[str, int]:
    """Return everything that the content of the files depends on."""
    fields = dataclasses.asdict(options)
    return {**{k: v for k, v in fields.items() if k not in ("out", "workers")}, "renderer_version": RENDERER_VERSION}


def _facts(options: ToyactionsOptions) -> dict[str, Any]:
    packages = ("av", "numpy", "opencv-contrib-python-headless")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"command": f"python -m data_prep {DATASET}", "options": _contents(options), "versions": versions}


def _claim_folder(options: ToyactionsOptions) -> None:
    """Write the options into the folder; raise a ``UserError`` if it contains a dataset with other options."""
    wanted = _contents(options)
    held = _held_contents(options.out)
    if held is None:
        write_text_atomically(options.out / OPTIONS_NAME, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        return
    names = sorted(name for name in {*wanted, *held} if held.get(name) != wanted.get(name))
    if names:
        differences = " and ".join(f"{name} {held.get(name)} instead of {wanted.get(name)}" for name in names)
        raise UserError(
            f"{options.out} contains {DATASET} with {differences}: choose another --out, give the same options, or "
            "delete the folder"
        )


def _held_contents(out: Path) -> dict[str, Any] | None:
    """Return the options that the clips in the folder were rendered with; None if there are no clips."""
    if is_prepared(out):
        manifest = Manifest.load(out)
        if manifest.dataset != DATASET:
            raise UserError(f"{out} contains the dataset {manifest.dataset!r}, not {DATASET!r}: choose another --out")
        return dict(manifest.facts["options"])
    path = out / OPTIONS_NAME
    if not path.exists():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete the folder {out} and prepare it again") from error


def _finished_manifest(options: ToyactionsOptions) -> Manifest | None:
    """Return the manifest if all files of the dataset exist."""
    if not is_prepared(options.out):
        return None
    manifest = Manifest.load(options.out)
    paths = [options.out / stream.path for video in manifest.videos for stream in video.streams.values()]
    return manifest if all(path.exists() for path in [*paths, *_list_files(options)]) else None


def _remove_leftovers(out: Path) -> None:
    """Remove the temporary files of a killed run."""
    for stream in STREAMS:
        for path in (out / stream).glob("*/.v_*.mp4.*.tmp"):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class ClipId:
    """Identifies one clip by its class, its group, and its number among the group's clips of the class (from 1)."""

    action: str
    group: int
    clip: int

    @property
    def name(self) -> str:
        """Name in the format of UCF101."""
        return f"v_{self.action}_g{self.group:02d}_c{self.clip:02d}"


def num_groups(clips_per_class: int) -> int:
    """Return the number of groups per class: one per four clips, at least 2, at most 25 as in UCF101.

    All clips of a group are in the same part of a split.
    """
    return min(MAX_GROUPS, max(2, clips_per_class // CLIPS_PER_GROUP))


def clip_ids(clips_per_class: int) -> list[ClipId]:
    """Return all clips, ordered by class, group and number. Every class has the same groups."""
    groups = num_groups(clips_per_class)
    return [
        ClipId(action, group, clip)
        for action in ACTIONS
        for group in range(1, groups + 1)
        for clip in range(1, len(range(group - 1, clips_per_class, groups)) + 1)
    ]


def held_out_groups(groups: int, split: int) -> set[int]:
    """Return the test groups of a split (from 1): consecutive ones, as in UCF101, with the first after the last.

    Example:
        >>> sorted(held_out_groups(10, 1)), sorted(held_out_groups(10, 4))
        ([1, 2, 3], [1, 2, 10])
    """
    count = max(1, round(TEST_SHARE * groups))
    return {(count * (split - 1) + i) % groups + 1 for i in range(count)}


def _parts(clip: ClipId, groups: int) -> dict[str, str]:
    splits = range(1, NUM_SPLITS + 1)
    return {str(split): "test" if clip.group in held_out_groups(groups, split) else "train" for split in splits}


def _list_files(options: ToyactionsOptions) -> dict[Path, str]:
    """Return path to text of the split lists, in the format of UCF101."""
    folder, groups, labels = options.out / "lists", num_groups(options.clips_per_class), list(ACTIONS)
    files = {folder / "classInd.txt": "".join(f"{i} {action}\n" for i, action in enumerate(labels, start=1))}
    for split in range(1, NUM_SPLITS + 1):
        lines: dict[str, list[str]] = {"train": [], "test": []}
        for clip in clip_ids(options.clips_per_class):
            part = _parts(clip, groups)[str(split)]
            label = f" {labels.index(clip.action) + 1}" if part == "train" else ""
            lines[part].append(f"{clip.action}/{clip.name}.mp4{label}\n")
        files |= {folder / f"{part}list{split:02d}.txt": "".join(lines[part]) for part in lines}
    return files


def _make_video(options: ToyactionsOptions, clip: ClipId) -> Video:
    """Render one clip unless its files exist, and return its entry of the manifest."""
    paths = {stream: options.out / stream / clip.action / f"{clip.name}.mp4" for stream in STREAMS}
    if not all(path.exists() for path in paths.values()):
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # the pictures are small, and the clips are rendered in parallel
        try:
            _write_streams(options, clip, paths)
        finally:
            cv2.setNumThreads(threads)
    return Video(
        name=clip.name,
        label=list(ACTIONS).index(clip.action),
        group=f"g{clip.group:02d}",
        splits=_parts(clip, num_groups(options.clips_per_class)),
        streams={
            stream: index_video(path, relative_to=options.out, stream_format=STREAM_FORMATS[stream])
            for stream, path in paths.items()
        },
    )


def _write_streams(options: ToyactionsOptions, clip: ClipId, paths: dict[str, Path]) -> None:
    key = SceneKey(seed=options.seed, group=clip.group, clip=clip.clip)
    rendered = render_clip(compose_scene(clip.action, key, size_px=options.size, num_frames=options.frames))
    frames: dict[str, Picture] = {
        "rgb": np.rint(rendered.rgb * 255).astype(np.uint8),
        "flow": quantise_flow(rendered.flow_px),
        "depth": rendered.depth_mm,
    }
    time_base = Fraction(1, options.fps * UNITS_PER_FRAME)
    for stream, path in paths.items():
        with StreamWriter(path, STREAM_FORMATS[stream], time_base=time_base) as writer:
            for i, frame in enumerate(frames[stream]):
                writer.write(frame, i * UNITS_PER_FRAME)
