"""Clips through PyAV: every stream of every file, from the timestamps and keyframes of the manifest.

Most of the time goes into decoding frames that are only needed for those that refer to them. So
decoding stops and seeks on wherever a keyframe saves frames, and frames of H.264 to which no other
refers are not decoded unless they are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from crossdistill.data.decode import DECODE_ERRORS, PictureReader, decode_frames, open_video, reason_of
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture, StreamFormat
from crossdistill.errors import UnreadableVideoError

# A seek costs about as much as decoding one frame of 320x240.
MIN_FRAMES_SAVED_BY_SEEKING = 2
# Codecs in which a frame that is marked as no reference is one. (In HEVC only within its temporal layer.)
SKIPPING_CODECS = ("h264",)


def check() -> None:
    """Nothing to find out: PyAV is a dependency, and its wheel carries FFmpeg."""


def read_pictures(path: Path, stream: Stream, frames: Sequence[int], stream_format: StreamFormat) -> list[Picture]:
    """Frames T times [H, W, C] by position in ``stream.pts``, in any order, repetition allowed.

    Raises:
        UnreadableVideoError: The file is missing, damaged, or lacks a frame that the manifest names.
    """
    clip = _Clip([int(stream.pts[i]) for i in frames], stream_format)
    try:
        if stream.is_seekable:
            _read_by_seeking(path, stream, clip)
        if clip.missing:
            # Timestamps out of order, or a container that seeks past its own keyframes: slow but sure.
            _read_from_start(path, clip)
    except DECODE_ERRORS as error:
        raise UnreadableVideoError(f"{path}: stops decoding ({reason_of(error)})") from error
    if clip.missing:
        raise UnreadableVideoError(
            f"{path}: {len(clip.missing)} of {len(set(clip.order))} frames that the manifest names are not in the file"
        )
    return clip.pictures


class _Clip:
    """The frames found so far, by timestamp."""

    def __init__(self, order: Sequence[int], stream_format: StreamFormat) -> None:
        self.order = order
        self.missing = set(order)
        self._found: dict[int, Picture] = {}
        self._stream_format = stream_format
        self._reader = PictureReader(stream_format.picture_format)

    def offer(self, frame: av.VideoFrame, pts: int | None) -> None:
        """Keep the frame if it is wanted."""
        if pts is None or pts not in self.missing:
            return
        picture = self._stream_format.unpack(self._reader.read(frame))
        if self._found and picture.shape != next(iter(self._found.values())).shape:
            raise ValueError("its pictures change their size")
        self._found[pts] = picture
        self.missing.discard(pts)

    @property
    def pictures(self) -> list[Picture]:
        """T times [H, W, C], in the order asked for."""
        return [self._found[pts] for pts in self.order]


def _read_by_seeking(path: Path, stream: Stream, clip: _Clip) -> None:
    container, video = open_video(path)
    # One thread: the DataLoader's workers are the parallelism, and frame threads have hung on early exits.
    video.thread_type = "SLICE"
    video.codec_context.thread_count = 1
    with container:
        for start_pts, run in plan_runs(stream, sorted(clip.missing)):
            container.seek(start_pts, stream=video, backward=True)
            _decode_run(container, video, stream, start_pts, run, clip)


def plan_runs(stream: Stream, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Group sorted timestamps into runs to be decoded forward, each from the timestamp of a keyframe.

    A new run starts where a keyframe lies between two wanted frames and some others before it.
    """
    positions = np.searchsorted(stream.pts, wanted)
    groups = np.maximum(np.searchsorted(stream.keyframes, positions, side="right") - 1, 0)
    starts = stream.keyframes[groups]
    runs: list[tuple[int, list[int]]] = []
    previous_position, previous_start = -1, -1
    for pts, position, start in zip(wanted, positions.tolist(), starts.tolist(), strict=True):
        num_saved = start - previous_position - 1
        if not runs or (start != previous_start and num_saved >= MIN_FRAMES_SAVED_BY_SEEKING):
            runs.append((int(stream.pts[start]), []))
        runs[-1][1].append(pts)
        previous_position, previous_start = position, start
    return runs


def _decode_run(
    container: av.container.InputContainer,
    video: av.VideoStream,
    stream: Stream,
    start_pts: int,
    run: Sequence[int],
    clip: _Clip,
) -> None:
    """Decode forward from where the container stands, until the run's last frame or past it."""
    codec = video.codec_context
    unwanted: set[int] = set()
    if codec.name in SKIPPING_CODECS:
        # Known times alone: the second field of an interlaced frame may have a packet and a time of its own.
        first, last = np.searchsorted(stream.pts, [start_pts, run[-1]])
        unwanted = set(stream.pts[first:last].tolist()).difference(run)
    for packet in container.demux(video):
        if unwanted:
            codec.skip_frame = "NONREF" if packet.pts in unwanted else "DEFAULT"
        for frame in packet.decode():
            clip.offer(frame, frame.pts)
            if run[-1] not in clip.missing and clip.missing.isdisjoint(run):
                return
            if frame.pts is not None and frame.pts > run[-1]:
                return


def _read_from_start(path: Path, clip: _Clip) -> None:
    for pts, _, frame in decode_frames(path, num_threads=1):
        clip.offer(frame, pts)
        if not clip.missing:
            return
