"""Decode exact frames of video files, which are identified by their timestamps.

``index_video`` finds the timestamps and keyframes of a file once, and the manifest stores them. ``read_clip`` reads the
same moments of all streams of a video. Timestamps are exact for a variable frame rate too, where "position divided by
average rate" is wrong. The libraries that decode clips are in ``crossdistill.data.decoders``.

Shapes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.containers import DECODE_ERRORS, OrientationReader, check_video, open_video, reason_of
from crossdistill.data.decoders import DEFAULT_DECODER, CannotServeError, get_decoder
from crossdistill.data.manifest import Stream
from crossdistill.data.pictures import read_picture
from crossdistill.data.sequential import FALLBACK_TIME_BASE, decode_frames
from crossdistill.data.stores import locate
from crossdistill.data.streams import Picture, StreamFormat, get_stream_format
from crossdistill.errors import UnreadableVideoError
from crossdistill.utils.files import sha256_of

_log = logging.getLogger(__name__)


def index_video(path: Path, *, relative_to: Path | None = None, stream_format: StreamFormat | None = None) -> Stream:
    """Find the size, timestamps and keyframes of a file.

    A file that ``StreamWriter`` wrote is indexed from its packets, without decoding. The packets of other files are not
    reliable (dropped frames, swapped or repeated timestamps), so these files are decoded once.

    Args:
        path: A video file.
        relative_to: Folder to which ``Stream.path`` is relative; the file's own folder if None.
        stream_format: Format with which ``StreamWriter`` wrote the file; None for any other file.

    Raises:
        UnreadableVideoError: The file cannot be opened, has no frame, or is damaged.
    """
    if stream_format is None:
        stream, damage = index_any_video(path, relative_to=relative_to)
        if damage:
            raise UnreadableVideoError(f"{path}: {damage}")
        return stream
    return _make_stream(path, relative_to, _index_packets(path, stream_format))


def index_any_video(path: Path, *, relative_to: Path | None = None) -> tuple[Stream, str]:
    """Index a file by decoding it, as ``index_video`` does; return also its damage, which is empty if it is intact.

    The stream has all frames that can be decoded. Raise ``UnreadableVideoError`` if there is none.
    """
    index, damage = _index_by_decoding(path)
    if damage and not index.pts:
        raise UnreadableVideoError(f"{path}: {damage}")
    return _make_stream(path, relative_to, index), damage


@dataclass
class _Index:
    size_px: tuple[int, int] = (0, 0)
    """Width and height."""
    time_base: Fraction = FALLBACK_TIME_BASE
    pts: list[int] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    is_seekable: bool = True
    is_plain: bool = True


def _make_stream(path: Path, relative_to: Path | None, index: _Index) -> Stream:
    if not index.pts:
        raise UnreadableVideoError(f"{path}: has no frame")
    return Stream(
        path=path.relative_to(relative_to or path.parent).as_posix(),
        width_px=index.size_px[0],
        height_px=index.size_px[1],
        time_base=index.time_base,
        pts=np.asarray(index.pts, dtype=np.int64),
        # Decoding can always start at the first frame, even if the file does not mark it as a keyframe.
        keyframes=np.asarray(sorted({0, *index.keyframes}), dtype=np.int64),
        is_seekable=index.is_seekable,
        is_plain=index.is_plain,
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def _index_packets(path: Path, stream_format: StreamFormat) -> _Index:
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
    return _Index((width_px, height_px), time_base, [pts for pts, _ in packets], keyframes)


def _index_by_decoding(path: Path) -> tuple[_Index, str]:
    index, damage, orientations = _Index(), "", OrientationReader()
    try:
        # With one thread, because FFmpeg's frame threads lose frames near damage.
        for pts, time_base, frame in decode_frames(path, num_threads=1):
            orientation = orientations.read(frame)
            size_px = orientation.size_px(frame.width, frame.height)
            if not index.pts:
                index.size_px, index.time_base = size_px, time_base
            index.is_plain = index.is_plain and size_px == index.size_px and not orientation.is_mirrored
            # Seeking by repaired timestamps would find other frames.
            index.is_seekable = index.is_seekable and frame.pts == pts
            if frame.key_frame:
                index.keyframes.append(len(index.pts))
            index.pts.append(pts)
    except UnreadableVideoError as error:
        damage = str(error).removeprefix(f"{path}: ")
    if not index.is_seekable:
        index.keyframes = []
    return index, damage


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
    source = locate(root, stream)
    if not stream.is_video:
        return [read_picture(source, stream, shrink=shrink)] * len(frames)
    stream_format = get_stream_format(stream_name)
    chosen = get_decoder(decoder)
    try:
        chosen.require(stream_format.picture_format)
        if decoder != DEFAULT_DECODER:
            check_video(source)
        return chosen.read_pictures(source, stream, frames, stream_format)
    except CannotServeError as error:
        _log_once(decoder, str(error), source.path.suffix)
    return get_decoder(DEFAULT_DECODER).read_pictures(source, stream, frames, stream_format)


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
    right = np.minimum(np.searchsorted(times, times_seconds), len(times) - 1)
    left = np.maximum(right - 1, 0)
    is_left_nearer = times_seconds - times[left] <= times[right] - times_seconds
    return np.where(is_left_nearer, left, right)
