"""Turns one source video into the streams of a prepared dataset, in one pass and constant memory.

A stream is made by a track: a callable that is shown every frame once and gives the frames to write,
if any. A further stream that can be computed from colour is one entry in ``TRACKS``.

Shapes: H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np

from crossdistill.data.decode import DECODE_ERRORS, decode_all, index_video
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture, StreamWriter, get_stream_format, quantise_flow
from crossdistill.errors import UnreadableVideoError
from data_prep.flow import MIN_SIDE_PX, dis_flow

# Headers promise a frame or two that a decoder never shows; fewer than this share means a cut file.
WHOLE_FILE_SHARE = 0.95


@dataclass(frozen=True)
class Recipe:
    """How streams are made. The same recipe and source give the same bytes."""

    short_side_px: int = 256
    """Videos that are smaller keep their size: enlarging adds no detail and costs time ever after."""
    flow_preset: str = "fast"
    min_frames: int = 8


@dataclass(frozen=True)
class Outcome:
    """What became of one source video."""

    status: str
    """``ok``, ``repaired`` or ``skipped``, as in ``Video.status``."""
    reason: str = ""
    """Why it is not ``ok``: a category, then perhaps a colon and details."""
    streams: dict[str, Stream] = field(default_factory=dict)


class _Unusable(Exception):
    """The video has too little to offer; the message is the outcome's reason."""


Track = Callable[[Picture, int], tuple[Picture, int] | None]
"""Takes a frame [H, W, 3] and its timestamp; gives a frame to write with its timestamp, or None."""


def _rgb_track(recipe: Recipe) -> Track:
    return lambda frame, pts: (frame, pts)


def _flow_track(recipe: Recipe) -> Track:
    """Flow between neighbours, stamped with the first of the two: N frames give N - 1 flows."""
    estimate = dis_flow(recipe.flow_preset)
    previous: tuple[Picture, int] | None = None

    def track(frame: Picture, pts: int) -> tuple[Picture, int] | None:
        nonlocal previous
        first, previous = previous, (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), pts)
        if first is None:
            return None
        return quantise_flow(estimate(first[0], previous[0])), first[1]

    return track


TRACKS: dict[str, Callable[[Recipe], Track]] = {"rgb": _rgb_track, "flow": _flow_track}


def transcode(source: Path, stream_paths: dict[str, str], *, root: Path, recipe: Recipe) -> Outcome:
    """Write streams of one video; what cannot be read becomes the outcome's status and reason.

    Args:
        source: The video as people have it.
        stream_paths: Stream to its path under ``root``; each is one of ``TRACKS``.
        root: The prepared dataset's folder.
        recipe: How.
    """
    cv2.setNumThreads(1)  # one video is one job: the jobs are the parallelism
    if source.stat().st_size == 0:
        return Outcome("skipped", "empty")
    try:
        num_frames, damage = _write_streams(source, {name: root / p for name, p in stream_paths.items()}, recipe)
    except _Unusable as error:
        return Outcome("skipped", str(error))
    streams = {
        name: index_video(root / path, relative_to=root, stream_format=get_stream_format(name))
        for name, path in stream_paths.items()
    }
    if damage:
        return Outcome("repaired", _describe_damage(source, damage, num_frames), streams)
    return Outcome("ok", "", streams)


def _write_streams(source: Path, targets: dict[str, Path], recipe: Recipe) -> tuple[int, str]:
    """Write all that can be read; give the number of frames read and the damage met, if any."""
    tracks = {name: TRACKS[name](recipe) for name in targets}
    writers: dict[str, StreamWriter] = {}
    num_frames, damage, size, shift = 0, "", (0, 0), 0
    with ExitStack() as stack:
        try:
            for pts, time_base, picture in decode_all(source, num_threads=1):
                if not writers:
                    size = target_size(picture.shape[1], picture.shape[0], recipe.short_side_px)
                    shift = max(0, -pts)  # streams cannot hold negative times: such a video starts at 0
                    for name, path in targets.items():
                        writer = StreamWriter(path, get_stream_format(name), time_base=time_base)
                        writers[name] = stack.enter_context(writer)
                frame = resize(picture, size)
                num_frames += 1
                for name, track in tracks.items():
                    made = track(frame, pts + shift)
                    if made is not None:
                        writers[name].write(*made)
        except UnreadableVideoError as error:
            damage = str(error).removeprefix(f"{source}: ")
        if not damage and num_frames < WHOLE_FILE_SHARE * _declared_frames(source):
            damage = "ends early"
        if num_frames < recipe.min_frames:  # raised inside the block, so that no stream is left behind
            raise _Unusable(_describe_shortage(source, damage, num_frames, recipe.min_frames))
    return num_frames, damage


def target_size(width_px: int, height_px: int, short_side_px: int) -> tuple[int, int]:
    """Width and height after shrinking to a short side: even, as H.264 wants, and never enlarged."""
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise _Unusable(f"too small: {width_px}x{height_px} pixels")
    scale = min(1.0, short_side_px / min(width_px, height_px))
    if scale == 1.0:
        return width_px // 2 * 2, height_px // 2 * 2
    return round(width_px * scale / 2) * 2, round(height_px * scale / 2) * 2


def resize(picture: Picture, size: tuple[int, int]) -> Picture:
    """Resample [H, W, 3] to (width, height) by area; untouched where the size is right already."""
    if (picture.shape[1], picture.shape[0]) == size:
        return np.ascontiguousarray(picture)
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)


def _declared_frames(source: Path) -> int:
    """How many frames the header promises; 0 where it does not say."""
    try:
        with av.open(str(source)) as container:
            video = container.streams.video[0]
            frames = video.frames
            if "mp4" in container.format.name and video.duration and video.average_rate and video.time_base:
                # Frames before the first of an edit list are in the file and not shown.
                frames = min(frames, round(video.duration * video.time_base * video.average_rate))
    except DECODE_ERRORS:
        return 0
    return frames


def _describe_damage(source: Path, damage: str, num_frames: int) -> str:
    declared = _declared_frames(source)
    return f"{damage}: {num_frames} of {declared or 'an unknown number of'} frames"


def _describe_shortage(source: Path, damage: str, num_frames: int, min_frames: int) -> str:
    if not num_frames:
        return f"unreadable: {damage or 'holds no frame'}"
    if damage:
        return f"unreadable: {_describe_damage(source, damage, num_frames)}"
    return f"too short: {num_frames} frames, fewer than {min_frames}"
