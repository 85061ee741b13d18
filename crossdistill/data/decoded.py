"""Decoded videos in the memory of a process, for training sets that fit: each is decoded once, whole.

A small student learns from a clip in less time than its decoding takes. Runs of a hundred epochs then decode the same
frames a hundred times.

Shapes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdistill.data.decode import read_pictures
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture
from crossdistill.errors import UnreadableVideoError

_Key = tuple[Path, str, int, int, int]


def _key_of(root: Path, stream: Stream) -> _Key:
    # Segments of a file differ in their first frame or in their number of frames.
    return root, stream.path, stream.offset, int(stream.pts[0]), stream.num_frames


class DecodedVideos:
    """Keeps the frames of videos up to a size; what does not fit is decoded each time.

    No video makes room for another one: all are asked for equally often, so that would only add decoding.

    Args:
        max_bytes: Largest size of all frames that are kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        """Size of the frames that are kept."""
        self._frames: dict[_Key, Picture | None] = {}  # None: does not fit, or cannot be decoded whole

    def share_among(self, num_processes: int) -> None:
        """Keep no more than the share of one of so many processes, of which each keeps its own."""
        self.max_bytes //= max(1, num_processes)

    def read_pictures(
        self,
        root: Path,
        stream: Stream,
        frames: Sequence[int],
        *,
        stream_name: str = "rgb",
        decoder: str = DEFAULT_DECODER,
        shrink: int = 1,
    ) -> Sequence[Picture]:
        """Return the same arrays as the function ``read_pictures``, with its errors; those that are kept are read-only.

        Still pictures are not kept: they are decoded at the size that a crop needs.
        """
        if stream.is_video:
            key = _key_of(root, stream)
            if key not in self._frames:
                self._frames[key] = self._decode(root, stream, stream_name, decoder)
            if (kept := self._frames[key]) is not None:
                return [kept[frame] for frame in frames]
        return read_pictures(root, stream, frames, stream_name=stream_name, decoder=decoder, shrink=shrink)

    def keeps(self, root: Path, stream: Stream) -> bool:
        """Whether the frames of a stream are kept, so that its file is not needed."""
        return stream.is_video and self._frames.get(_key_of(root, stream)) is not None

    def _decode(self, root: Path, stream: Stream, stream_name: str, decoder: str) -> Picture | None:
        """Decode a video whole; None if it does not fit or is damaged somewhere."""
        try:
            # One frame says what the others take, so that no video of hours is decoded in vain.
            (first,) = read_pictures(root, stream, [0], stream_name=stream_name, decoder=decoder)
            num_bytes = first.nbytes * stream.num_frames
            if self.num_bytes + num_bytes > self.max_bytes:
                return None
            every = range(stream.num_frames)
            frames_thwc = np.stack(read_pictures(root, stream, every, stream_name=stream_name, decoder=decoder))
        except UnreadableVideoError:
            return None  # the frames of a clip may still be readable
        frames_thwc.flags.writeable = False
        self.num_bytes += num_bytes
        return frames_thwc
