"""Decode exact frames of video files, which are identified by their timestamps.

``index_video`` finds the timestamps and keyframes of a file once, and the manifest stores them. ``read_clip`` reads the
same moments of all streams of a video. Timestamps are exact for a variable frame rate too, where "position divided by
average rate" is wrong. The libraries that decode clips are in ``crossdistill.data.decoders``.

Shapes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags2
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from crossdistill.data.decoders import DEFAULT_DECODER, CannotServeError, get_decoder
from crossdistill.data.manifest import Stream
from crossdistill.data.pictures import read_picture
from crossdistill.data.streams import Picture, StreamFormat, get_stream_format
from crossdistill.errors import UnreadableVideoError
from crossdistill.utils.files import sha256_of

# Exceptions that PyAV raises for damaged or missing files.
DECODE_ERRORS = (av.FFmpegError, OSError, ValueError, IndexError)
# Largest distance between two swapped timestamps. (XviD's packed frames swap neighbours.)
REORDER_WINDOW_FRAMES = 8
FALLBACK_TIME_BASE = Fraction(1, 1000)

_log = logging.getLogger(__name__)


def open_video(path: Path) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a file and its first video stream.

    Raises:
        UnreadableVideoError: The file cannot be opened, has no video stream, or its codec is unknown to FFmpeg.
    """
    try:
        container = av.open(str(path))
    except DECODE_ERRORS as error:
        raise UnreadableVideoError(f"{path}: cannot be opened ({reason_of(error)})") from error
    # FFmpeg opens any text file as a video of its letters, in the format "tty".
    if not container.streams.video or container.format.name == "tty":
        container.close()
        raise UnreadableVideoError(f"{path}: has no video stream")
    video = container.streams.video[0]
    if video.codec_context is None:
        container.close()
        raise UnreadableVideoError(f"{path}: has a codec that FFmpeg does not know")
    return container, video


def reason_of(error: BaseException) -> str:
    """Return the reason that the library gave for an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class PictureReader:
    """Converts decoded frames to upright arrays of one pixel format, for example ``rgb24``.

    ``VideoFrame.to_ndarray`` creates a converter with a pool of threads for every frame. That took 0.19 ms for a frame
    of 64x64. One converter with one thread takes 0.006 ms.
    """

    def __init__(self, picture_format: str) -> None:
        self.picture_format = picture_format
        self._converter = VideoReformatter()

    def read(self, frame: av.VideoFrame) -> Picture:
        """Return [H, W] or [H, W, C], rotated by the file's rotation metadata, which phones write."""
        picture: Picture = self._converter.reformat(frame, format=self.picture_format, threads=1).to_ndarray()
        return np.rot90(picture, k=round(frame.rotation / 90) % 4) if frame.rotation else picture


def _decode(
    path: Path, num_threads: int = 0, *, with_motion_vectors: bool = False
) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
    """Yield (frame, time base, usual distance between frames in units of the time base) in display order."""
    container, video = open_video(path)
    video.thread_type = "AUTO"  # frame threads are fastest, and safe because the file is read to its end
    video.codec_context.thread_count = num_threads
    if with_motion_vectors:
        video.codec_context.flags2 |= Flags2.export_mvs
    with container:
        time_base = video.time_base or FALLBACK_TIME_BASE
        rate = video.average_rate or video.guessed_rate or Fraction(25)
        try:
            for frame in container.decode(video):
                yield frame, time_base, 1 / (rate * time_base)
        except DECODE_ERRORS as error:
            raise UnreadableVideoError(f"{path}: stops decoding ({reason_of(error)})") from error


def decode_frames(
    path: Path, *, num_threads: int = 0, with_motion_vectors: bool = False
) -> Iterator[tuple[int, Fraction, av.VideoFrame]]:
    """Yield (pts, time base, frame) of a whole file in display order, without applying rotation.

    A decoder returns frames in display order, but in some files the timestamps of neighbours are swapped. So the n-th
    frame gets the n-th smallest timestamp within a window of a few frames. A missing or repeated timestamp becomes the
    previous one plus the usual distance. The frames before a damage are yielded before the error is raised.

    Args:
        path: A video file.
        num_threads: Threads of the decoder; 0 uses all cores. Use 1 in a worker process, and if the loop may end early.
        with_motion_vectors: Whether the frames carry the codec's motion vectors as side data.
    """
    waiting: deque[av.VideoFrame] = deque()
    waiting_pts: list[int] = []
    previous: int | None = None
    time_base, usual_step = FALLBACK_TIME_BASE, 1
    damage: UnreadableVideoError | None = None
    frames = _decode(path, num_threads, with_motion_vectors=with_motion_vectors)
    is_at_end = False
    while waiting or not is_at_end:
        try:
            frame, time_base, step = next(frames)
            usual_step = max(1, round(step))
            latest = max(waiting_pts, default=-usual_step if previous is None else previous)
            heapq.heappush(waiting_pts, latest + usual_step if frame.pts is None else frame.pts)
            waiting.append(frame)
        except StopIteration:
            is_at_end = True
        except UnreadableVideoError as error:
            is_at_end, damage = True, error
        if waiting and (is_at_end or len(waiting) > REORDER_WINDOW_FRAMES):
            pts = heapq.heappop(waiting_pts)
            previous = pts if previous is None or pts > previous else previous + usual_step
            yield previous, time_base, waiting.popleft()
    if damage is not None:
        raise damage


def decode_all(
    path: Path, *, picture_format: str = "rgb24", num_threads: int = 0
) -> Iterator[tuple[int, Fraction, Picture]]:
    """Yield (pts, time base, upright picture [H, W] or [H, W, C]) of a whole file; see ``decode_frames``."""
    reader = PictureReader(picture_format)
    for pts, time_base, frame in decode_frames(path, num_threads=num_threads):
        yield pts, time_base, reader.read(frame)


def index_video(path: Path, *, relative_to: Path | None = None, stream_format: StreamFormat | None = None) -> Stream:
    """Find the size, timestamps and keyframes of a file.

    A file that ``StreamWriter`` wrote is indexed from its packets, without decoding. The packets of other files are not
    reliable (dropped frames, swapped or repeated timestamps), so these files are decoded once.

    Args:
        path: A video file.
        relative_to: Folder to which ``Stream.path`` is relative; the file's own folder if None.
        stream_format: Format with which ``StreamWriter`` wrote the file; None for any other file.

    Raises:
        UnreadableVideoError: The file cannot be opened, has no frame, or decoding stops with an error.
    """
    (height_px, width_px), time_base, pts, keyframes, is_seekable = (
        _index_by_decoding(path) if stream_format is None else _index_packets(path, stream_format)
    )
    if not pts:
        raise UnreadableVideoError(f"{path}: has no frame")
    return Stream(
        path=path.relative_to(relative_to or path.parent).as_posix(),
        width_px=width_px,
        height_px=height_px,
        time_base=time_base,
        pts=np.asarray(pts, dtype=np.int64),
        # Decoding can always start at the first frame, even if the file does not mark it as a keyframe.
        keyframes=np.asarray(sorted({0, *keyframes}), dtype=np.int64),
        is_seekable=is_seekable,
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


Index = tuple[tuple[int, int], Fraction, list[int], list[int], bool]


def _index_packets(path: Path, stream_format: StreamFormat) -> Index:
    container, video = open_video(path)
    with container:
        try:
            packets = sorted((p.pts, p.is_keyframe) for p in container.demux(video) if p.size and p.pts is not None)
        except DECODE_ERRORS as error:
            raise UnreadableVideoError(f"{path}: stops demuxing ({reason_of(error)})") from error
        # Unpacking an empty picture of the file's size gives the frame's size without decoding.
        height_px, width_px, *_ = stream_format.unpack(np.empty((video.height, video.width), dtype=np.uint8)).shape
        time_base = video.time_base or FALLBACK_TIME_BASE
    # Packets are stored in decoding order; sorted by time they have the positions of the frames.
    keyframes = [i for i, (_, is_key) in enumerate(packets) if is_key]
    return (height_px, width_px), time_base, [pts for pts, _ in packets], keyframes, True


def _index_by_decoding(path: Path) -> Index:
    raw_pts: list[int | None] = []
    keyframes: list[int] = []
    size, time_base = (0, 0), FALLBACK_TIME_BASE
    for frame, frame_time_base, _ in _decode(path):
        if not raw_pts:
            time_base = frame_time_base
            is_turned = round(frame.rotation / 90) % 2 == 1
            size = (frame.width, frame.height) if is_turned else (frame.height, frame.width)
        if frame.key_frame:
            keyframes.append(len(raw_pts))
        raw_pts.append(frame.pts)
    known_pts = [pts for pts in raw_pts if pts is not None]
    if len(known_pts) == len(raw_pts) and all(a < b for a, b in itertools.pairwise(known_pts)):
        return size, time_base, known_pts, keyframes, True
    # The timestamps are out of order, so seeking by them would find other frames: there are no usable keyframes.
    repaired_pts = [pts for pts, _, _ in decode_all(path, picture_format="gray")]
    return size, time_base, repaired_pts, [], False


def read_frames(
    root: Path, stream: Stream, frames: Sequence[int], *, stream_name: str = "rgb", decoder: str = DEFAULT_DECODER
) -> Picture:
    """Read frames of one stream by position as one array [T, H, W, C]; see ``read_pictures``."""
    return np.stack(read_pictures(root, stream, frames, stream_name=stream_name, decoder=decoder))


def read_pictures(
    root: Path,
    stream: Stream,
    frames: Sequence[int],
    *,
    stream_name: str = "rgb",
    decoder: str = DEFAULT_DECODER,
    shrink: int = 1,
) -> Sequence[Picture]:
    """Read frames of one stream by position.

    Every decoder returns the same frames. PyAV reads what the chosen library cannot read exactly (16-bit streams, files
    with timestamps out of order, files on which it fails), and the log says so once.

    Args:
        root: Folder of the dataset.
        stream: Entry of the stream in the manifest.
        frames: T positions in ``stream.pts``, in any order; a position may repeat.
        stream_name: Name of the stream's format, a key of ``STREAM_FORMATS``.
        decoder: One of ``DECODERS``. Their colours may differ by a few levels.
        shrink: How many times smaller a still picture may be returned, as in ``read_picture``. Videos keep their size.

    Returns:
        T arrays [H, W, C], uint8 or uint16. A repeated frame may be the same array.

    Raises:
        UnreadableVideoError: The file is missing or damaged, or lacks a frame that the manifest names.
        UserError: The decoder is unknown or does not work on this machine.
    """
    path = root / stream.path
    if not stream.is_video:
        return [read_picture(path, stream, shrink=shrink)] * len(frames)
    stream_format = get_stream_format(stream_name)
    chosen = get_decoder(decoder)
    try:
        chosen.require(stream_format.picture_format)
        return chosen.read_pictures(path, stream, frames, stream_format)
    except CannotServeError as error:
        _log_once(decoder, str(error), path.suffix)
    return get_decoder(DEFAULT_DECODER).read_pictures(path, stream, frames, stream_format)


@functools.cache
def _log_once(decoder: str, reason: str, suffix: str) -> None:
    _log.warning("PyAV reads some %s files in place of %s: %s", suffix, decoder, reason)


def read_clip(
    root: Path,
    streams: Mapping[str, Stream],
    times_seconds: Sequence[float] | NDArray[np.float64],
    *,
    decoder: str = DEFAULT_DECODER,
) -> dict[str, Picture]:
    """Read the same moments of several streams of one video.

    Streams are paired by time: each returns the frames nearest to the times, see ``nearest_frames``.

    Args:
        root: Folder of the dataset.
        streams: Stream name to the entry in the manifest, for example ``video.streams``.
        times_seconds: [T], in any order; a time may repeat.
        decoder: One of ``DECODERS``; see ``read_pictures``.

    Returns:
        Stream name to the stored integers [T, H, W, C]: rgb uint8 with C = 3, flow uint8 with C = 2, depth uint16 with
        C = 1.

    Example:
        >>> import tempfile
        >>> from crossdistill.data.streams import STREAM_FORMATS, StreamWriter
        >>> root = Path(tempfile.mkdtemp())
        >>> with StreamWriter(root / "a.mp4", STREAM_FORMATS["rgb"], time_base=Fraction(1, 10)) as writer:
        ...     for pts in range(10):
        ...         writer.write(np.zeros((48, 64, 3), dtype=np.uint8), pts)
        >>> rgb = index_video(root / "a.mp4", stream_format=STREAM_FORMATS["rgb"])
        >>> read_clip(root, {"rgb": rgb}, [0.0, 0.52])["rgb"].shape
        (2, 48, 64, 3)
    """
    times = np.asarray(times_seconds, dtype=np.float64)
    return {
        name: read_frames(root, stream, nearest_frames(stream, times).tolist(), stream_name=name, decoder=decoder)
        for name, stream in streams.items()
    }


def nearest_frames(stream: Stream, times_seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the positions of the frames nearest to some times; times outside the video give its first or last frame.

    Streams of one video are paired by time and not by position, because flow has one frame fewer than RGB, and a depth
    camera may have another frame rate. Of two frames that are equally near, the earlier one is taken.
    """
    times = stream.times_seconds
    right = np.searchsorted(times, times_seconds).clip(0, len(times) - 1)
    left = (right - 1).clip(0)
    is_left_nearer = times_seconds - times[left] <= times[right] - times_seconds
    return np.where(is_left_nearer, left, right)
