"""Decode a video file from its start to its end, and repair its timestamps.

Damage does not end the decoding where FFmpeg can go on: what was passed over is counted and reported after the last
frame.

Shapes: H height, W width, C channels.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.codec.context import Flags2
from av.video.reformatter import Interpolation, VideoReformatter

from crossdistill.data.containers import (
    DECODE_ERRORS,
    NO_SIZE,
    OrientationReader,
    has_picture_size,
    open_video,
    reason_of,
)
from crossdistill.data.file_range import FileRange
from crossdistill.data.streams import Picture
from crossdistill.errors import UnreadableVideoError

# Largest distance between two swapped timestamps. (XviD's packed frames swap neighbours.)
REORDER_WINDOW_FRAMES = 8
# Longest pause in a container whose timestamps may jump, as in FFmpeg's own programs. A longer one is a jump.
LONGEST_PAUSE_SECONDS = 10
TS_DISCONT = 0x0200  # FFmpeg's AVFMT_TS_DISCONT: timestamps may jump
# FFmpeg's writer of MP4 shortens longer steps to 1.
MAX_MP4_STEP = 2**31 - 1
FALLBACK_TIME_BASE = Fraction(1, 1000)


class PictureReader:
    """Converts decoded frames to upright arrays of one pixel format, for example ``rgb24``.

    ``VideoFrame.to_ndarray`` creates a converter with a pool of threads for every frame. That took 0.19 ms for a frame
    of 64x64. One converter with one thread takes 0.006 ms.

    Args:
        picture_format: Pixel format of the arrays.
        size_px: Width and height to which all pictures are resampled; None keeps the size of each.
        may_mirror: False if the file is known not to mirror its pictures.
    """

    def __init__(self, picture_format: str, *, size_px: tuple[int, int] | None = None, may_mirror: bool = True) -> None:
        self.picture_format = picture_format
        self._size_px = size_px
        self._converter = VideoReformatter()
        self._orientations = OrientationReader(may_mirror=may_mirror)

    def read(self, frame: av.VideoFrame) -> Picture:
        """Return [H, W] or [H, W, C], turned and mirrored as the file's display matrix says."""
        orientation = self._orientations.read(frame)
        size = None if self._size_px is None else orientation.size_px(*self._size_px)
        if size is None or size == (frame.width, frame.height):
            converted = self._converter.reformat(frame, format=self.picture_format, threads=1)
        else:
            converted = self._converter.reformat(
                frame, *size, self.picture_format, interpolation=Interpolation.AREA, threads=1
            )
        picture: Picture = converted.to_ndarray()
        return picture if orientation.is_upright else orientation.apply(picture)


class _Clock:
    """Closes the gaps of timestamps that jump: the next frame then follows after the usual step, and so do all others.

    Transport streams that were cut or joined jump by hours, back or forth. A clip across such a gap would be one frame
    that repeats. Other containers may hold long pauses.
    """

    def __init__(self, container: av.container.InputContainer, usual_step: int, time_base: Fraction) -> None:
        self.num_jumps = 0
        self.usual_step = usual_step
        is_discontinuous = container.format.flags & TS_DISCONT
        self._longest = int(LONGEST_PAUSE_SECONDS / time_base) if is_discontinuous else MAX_MP4_STEP
        self._latest: int | None = None
        self._shift = 0

    def read(self, pts: int | None) -> int | None:
        """Return the timestamp of the next frame in display order without the gaps before it; None if it has none."""
        if pts is not None and self._latest is not None:
            step = pts + self._shift - self._latest
            if not -REORDER_WINDOW_FRAMES * self.usual_step <= step <= self._longest:
                self._shift += self.usual_step - step
                self.num_jumps += 1
        if pts is not None:
            self._latest = pts + self._shift
            return self._latest
        self._latest = None if self._latest is None else self._latest + self.usual_step
        return None


class PacketDecoder:
    """Decodes packets. It passes over those that cannot be decoded, as players do, and counts them."""

    def __init__(self) -> None:
        self.num_bad = 0
        self.reason = ""

    def decode(self, packet: av.Packet) -> list[av.VideoFrame]:
        """Return the frames that a packet completes, in display order; raise ``MemoryError`` if memory runs out."""
        try:
            return packet.decode()
        except MemoryError:
            raise
        except DECODE_ERRORS as error:
            self.num_bad += 1
            self.reason = self.reason or reason_of(error)
            return []


def decode_frames(
    path: Path | FileRange, *, num_threads: int = 0, with_motion_vectors: bool = False
) -> Iterator[tuple[int, Fraction, av.VideoFrame]]:
    """Yield (pts, time base, frame) of a whole file in display order, without applying its display matrix.

    A decoder returns frames in display order, but in some files the timestamps of neighbours are swapped. So the n-th
    frame gets the n-th smallest timestamp within a window of a few frames. A missing or repeated timestamp becomes the
    previous one plus the usual distance. Where timestamps jump, the gap is closed. Packets that cannot be decoded are
    passed over. All frames are yielded before an error says what was damaged.

    Args:
        path: A video file, or a range of one.
        num_threads: Threads of the decoder; 0 uses all cores. Use 1 in a worker process, and if the loop may end early.
        with_motion_vectors: Whether the frames carry the codec's motion vectors as side data.

    Raises:
        UnreadableVideoError: The file cannot be opened or is damaged.
    """
    container, video = open_video(path)
    video.thread_type = "AUTO"  # frame threads are fastest, and safe because the file is read to its end
    video.codec_context.thread_count = num_threads
    if with_motion_vectors:
        video.codec_context.flags2 |= Flags2.export_mvs
    with container:
        time_base = video.time_base or FALLBACK_TIME_BASE
        rate = video.average_rate or video.guessed_rate or Fraction(25)
        clock = _Clock(container, max(1, round(1 / (rate * time_base))), time_base)
        packets = PacketDecoder()
        damage = []
        try:
            frames = (frame for packet in container.demux(video) for frame in packets.decode(packet))
            for pts, frame in _in_order(frames, clock):
                yield pts, time_base, frame
        except _Stopped as error:
            damage.append(f"stops decoding ({error})")
        if packets.num_bad:
            reason = packets.reason if has_picture_size(video) else NO_SIZE
            damage.append(f"bad packets ({reason}): {packets.num_bad}")
    if clock.num_jumps:
        damage.append(f"timestamps jump, the gaps are closed: {clock.num_jumps}")
    if damage:
        raise UnreadableVideoError(f"{path}: {'; '.join(damage)}")


class _Stopped(Exception):
    """Decoding cannot go on, for the reason in the message."""


def _in_order(frames: Iterator[av.VideoFrame], clock: _Clock) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield (rising timestamp, frame). If ``frames`` fails, all frames before are yielded before ``_Stopped``."""
    waiting: deque[av.VideoFrame] = deque()
    waiting_pts: list[int] = []
    previous: int | None = None
    stopped: _Stopped | None = None
    is_at_end = False
    while waiting or not is_at_end:
        try:
            frame = next(frames)
            latest = max(waiting_pts, default=-clock.usual_step if previous is None else previous)
            found = clock.read(frame.pts)
            heapq.heappush(waiting_pts, latest + clock.usual_step if found is None else found)
            waiting.append(frame)
        except StopIteration:
            is_at_end = True
        except DECODE_ERRORS as error:
            is_at_end, stopped = True, _Stopped(reason_of(error))
        if waiting and (is_at_end or len(waiting) > REORDER_WINDOW_FRAMES):
            pts = heapq.heappop(waiting_pts)
            previous = pts if previous is None or pts > previous else previous + clock.usual_step
            yield previous, waiting.popleft()
    if stopped is not None:
        raise stopped


def decode_all(
    path: Path, *, picture_format: str = "rgb24", num_threads: int = 0
) -> Iterator[tuple[int, Fraction, Picture]]:
    """Yield (pts, time base, upright picture [H, W] or [H, W, C]) of a whole file; see ``decode_frames``."""
    reader = PictureReader(picture_format)
    for pts, time_base, frame in decode_frames(path, num_threads=num_threads):
        yield pts, time_base, reader.read(frame)
