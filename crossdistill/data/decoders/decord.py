"""Decode clips with decord 0.6.

decord has three faults that this module works around:

* The memory of a reader grows with every seek, so each clip gets a new one.
* It counts packets as frames and may search endlessly for a frame that does not exist, so nothing is decoded before its
  number of frames is found equal to the manifest's.
* After a seek it counts frames and ignores their timestamps. This is wrong if frames that follow a keyframe in the file
  are shown before it. The packets show which files have such frames; they are scanned once per process.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from crossdistill.data.containers import DECODE_ERRORS, open_video
from crossdistill.data.decoders import CannotServeError, arrange, require_exact, require_plain
from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture, StreamFormat


def check() -> None:
    """Raise ImportError or OSError if decord is not installed or does not load."""
    import decord  # noqa: F401


def read_pictures(
    source: FileRange, stream: Stream, frames: Sequence[int], stream_format: StreamFormat
) -> list[Picture]:
    """Read T frames [H, W, C] by position in ``stream.pts``; decord applies the rotation."""
    import decord
    from decord._ffi.base import DECORDLimitReachedError

    require_plain(stream)
    if _has_leading_frames(source):
        raise CannotServeError("some of its keyframes are followed by frames that are shown before them")
    wanted = sorted(set(frames))
    try:
        reader = decord.VideoReader(source.url, ctx=decord.cpu(0), num_threads=1)
        # decord shifts the timestamps so that the first is 0.
        first_and_wanted = reader.get_frame_timestamp([0, *wanted])[:, 0].astype(np.float64)
        times_seconds = first_and_wanted[1:] - first_and_wanted[0] + stream.times_seconds[0]
        require_exact(stream, num_frames=len(reader), frames=wanted, times_seconds=times_seconds)
        pictures = reader.get_batch(wanted).asnumpy()
    except (decord.DECORDError, DECORDLimitReachedError, RuntimeError, IndexError, ValueError) as error:
        raise CannotServeError("it fails on the file") from error
    return arrange(pictures, wanted=wanted, frames=frames, stream=stream, stream_format=stream_format)


@functools.lru_cache(maxsize=4096)
def _has_leading_frames(source: FileRange) -> bool:
    container, video = open_video(source)
    with container:
        key_pts = None
        try:
            for packet in container.demux(video):
                if packet.is_keyframe:
                    key_pts = packet.pts
                elif packet.pts is not None and key_pts is not None and packet.pts < key_pts:
                    return True
        except DECODE_ERRORS as error:
            raise CannotServeError("it fails on the file") from error
    return False
