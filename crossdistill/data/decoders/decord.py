"""Clips through decord 0.6.

A reader is opened for every clip and closed after it: one that is kept grows with every seek. decord
also counts a file's packets as frames and looks for frames that never come, which can last for ever;
so nothing is decoded before its count is found to be the manifest's. After a seek it counts frames
instead of reading their timestamps, which is wrong where a keyframe is followed by frames that are
shown before it; such files are found by their packets, once in each process.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdistill.data.decode import DECODE_ERRORS, open_video
from crossdistill.data.decoders import CannotServeError, arrange, require_exact, require_order
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture, StreamFormat


def check() -> None:
    """Raise ImportError or OSError where decord is absent or broken."""
    import decord  # noqa: F401


def read_pictures(path: Path, stream: Stream, frames: Sequence[int], stream_format: StreamFormat) -> list[Picture]:
    """Frames T times [H, W, C] by position in ``stream.pts``; rotation is applied by decord itself."""
    import decord
    from decord._ffi.base import DECORDLimitReachedError

    require_order(stream)
    if _has_leading_frames(path):
        raise CannotServeError("some of its keyframes are followed by frames that are shown before them")
    wanted = sorted(set(frames))
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        # decord numbers frames by their timestamps and lets the first stand at 0.
        first_and_wanted = reader.get_frame_timestamp([0, *wanted])[:, 0].astype(np.float64)
        times_seconds = first_and_wanted[1:] - first_and_wanted[0] + stream.times_seconds[0]
        require_exact(stream, num_frames=len(reader), frames=wanted, times_seconds=times_seconds)
        pictures = reader.get_batch(wanted).asnumpy()
    except (decord.DECORDError, DECORDLimitReachedError, RuntimeError, IndexError, ValueError) as error:
        raise CannotServeError("it fails on the file") from error
    return arrange(pictures, wanted=wanted, frames=frames, stream=stream, stream_format=stream_format)


@functools.lru_cache(maxsize=4096)
def _has_leading_frames(path: Path) -> bool:
    container, video = open_video(path)
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
