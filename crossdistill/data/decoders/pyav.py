"""Decode clips with PyAV, which reads every stream, by the timestamps and keyframes of the manifest.

Most of the time goes into decoding frames that were not requested but that requested frames refer to. So the reader
seeks to a later keyframe if this saves frames, and skips H.264 frames that no other frame refers to.
"""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np

from crossdistill.data.containers import DECODE_ERRORS, open_video, reason_of
from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Stream
from crossdistill.data.sequential import PacketDecoder, PictureReader, decode_frames
from crossdistill.data.streams import Picture, StreamFormat
from crossdistill.errors import UnreadableVideoError

# A seek costs about as much as decoding one frame of 320x240.
MIN_FRAMES_SAVED_BY_SEEKING = 2
# Codecs in which no other frame refers to a frame marked as "not a reference". (HEVC means: within its temporal layer.)
SKIPPING_CODECS = ("h264",)


def check() -> None:
    """Do nothing: PyAV is a dependency, and its wheel contains FFmpeg."""


def read_pictures(
    source: FileRange, stream: Stream, frames: Sequence[int], stream_format: StreamFormat
) -> list[Picture]:
    """Read T frames [H, W, C] by position in ``stream.pts``, in any order; a position may repeat."""
    clip = _Clip(stream, frames, stream_format)
    try:
        if stream.is_seekable:
            _read_by_seeking(source, stream, clip)
        if clip.missing:
            # The timestamps are out of order, or seeking in this container skips keyframes.
            _read_from_start(source, clip)
    except DECODE_ERRORS as error:
        raise UnreadableVideoError(f"{source}: stops decoding ({reason_of(error)})") from error
    if clip.missing:
        raise UnreadableVideoError(
            f"{source}: {len(clip.missing)} of {len(set(clip.order))} frames that the manifest names are not in the "
            "file"
        )
    return clip.pictures


class _Clip:
    """The requested frames, as far as they are decoded; ``order`` has their timestamps in the requested order."""

    def __init__(self, stream: Stream, frames: Sequence[int], stream_format: StreamFormat) -> None:
        self.order = [int(stream.pts[i]) for i in frames]
        self.missing = set(self.order)
        self._found: dict[int, Picture] = {}
        self._stream_format = stream_format
        # An original whose pictures change their size is read at the size of its first picture.
        size_px = None if stream.is_plain else (stream.width_px, stream.height_px)
        self._reader = PictureReader(stream_format.picture_format, size_px=size_px, may_mirror=not stream.is_plain)

    def offer(self, frame: av.VideoFrame, pts: int | None) -> None:
        """Keep a decoded frame if it was requested."""
        if pts is None or pts not in self.missing:
            return
        picture = self._stream_format.unpack(self._reader.read(frame))
        if self._found and picture.shape != next(iter(self._found.values())).shape:
            raise ValueError("the size of its pictures changes")
        self._found[pts] = picture
        self.missing.discard(pts)

    @property
    def pictures(self) -> list[Picture]:
        """T arrays [H, W, C] in the requested order."""
        return [self._found[pts] for pts in self.order]


def _read_by_seeking(source: FileRange, stream: Stream, clip: _Clip) -> None:
    container, video = open_video(source)
    # One thread, because the DataLoader's workers run in parallel, and frame threads can hang if decoding ends early.
    video.thread_type = "SLICE"
    video.codec_context.thread_count = 1
    with container:
        for start_pts, run in plan_runs(stream, sorted(clip.missing)):
            container.seek(start_pts, stream=video, backward=True)
            unwanted: set[int] = set()
            if video.codec_context.name in SKIPPING_CODECS:
                # Only timestamps of the manifest: the second field of an interlaced frame may have its own.
                first, last = np.searchsorted(stream.pts, [start_pts, run[-1]])
                unwanted = set(stream.pts[first:last].tolist()).difference(run)
            _decode_run(container, video, run, unwanted, clip)


def plan_runs(stream: Stream, wanted: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Group sorted timestamps into runs (timestamp of a keyframe, wanted timestamps) that are decoded forward.

    A new run starts if seeking to the next frame's keyframe saves ``MIN_FRAMES_SAVED_BY_SEEKING`` frames or more.
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
    container: av.container.InputContainer, video: av.VideoStream, run: list[int], unwanted: set[int], clip: _Clip
) -> None:
    """Decode forward from the container's position up to the last frame of the run."""
    codec, packets = video.codec_context, PacketDecoder()
    for packet in container.demux(video):
        if unwanted:
            codec.skip_frame = "NONREF" if packet.pts in unwanted else "DEFAULT"
        for frame in packets.decode(packet):
            clip.offer(frame, frame.pts)
            if run[-1] not in clip.missing and clip.missing.isdisjoint(run):
                return
            # A requested frame was not decoded; the caller then reads the file from its start.
            if frame.pts is not None and frame.pts > run[-1]:
                return


def _read_from_start(source: FileRange, clip: _Clip) -> None:
    for pts, _, frame in decode_frames(source, num_threads=1):
        clip.offer(frame, pts)
        if not clip.missing:
            return
