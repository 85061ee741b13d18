"""Open video files that come from anywhere: which containers are read, which stream, and which way up it is shown.

A video file is untrusted input. FFmpeg would take a path for a URL, follow a list of other files that is named
``.mp4``, and allocate as much memory as a header asks for. ``open_video`` allows none of this.

Shapes: H height, W width, C channels.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import av
from av.sidedata.sidedata import SideData

from crossdistill.data.file_range import FileRange, as_range
from crossdistill.data.streams import Picture
from crossdistill.errors import UnreadableVideoError

# Exceptions that PyAV raises for damaged or missing files.
DECODE_ERRORS = (av.FFmpegError, OSError, ValueError, IndexError)
MAX_PICTURE_PX = 8192 * 8192
"""Most pixels of a picture: those of a 360-degree video in 8K. A decoder may hold 17 such pictures."""
NO_SIZE = f"the size of its pictures is unknown or above {MAX_PICTURE_PX} pixels"
# FFmpeg's names of the containers that hold all their data themselves. Playlists (concat, hls, dash), patterns of file
# names (image2) and descriptions of network streams (sdp) would make FFmpeg open other files.
# fmt: off
CONTAINERS = (
    "mov", "matroska", "avi", "mpegts", "mpegtsraw", "mpeg", "asf", "flv", "live_flv", "ogg", "gif", "apng", "mxf",
    "gxf", "nut", "nuv", "dv", "rm", "wtv", "ty", "pva", "swf", "dhav", "nsv", "kux", "ivf", "av1", "obu",
    "mpegvideo", "m4v", "h261", "h263", "h264", "hevc", "vvc", "evc", "vc1", "vc1test", "dirac", "dnxhd",
    "cavsvideo", "avs2", "avs3", "mjpeg", "mpjpeg", "smjpeg", "mjpeg_2000", "yuv4mpegpipe", "4xm", "bink", "smk",
    "flic", "roq",
)
# fmt: on
_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "max_pixels": str(MAX_PICTURE_PX),
}


def open_video(source: Path | FileRange) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a video, a file or a range of one, and its best video stream, which players show: a cover picture is not.

    Raises:
        UnreadableVideoError: The file cannot be opened, is in none of ``CONTAINERS``, has no video stream, or its codec
            is unknown to FFmpeg.
    """
    file = as_range(source)
    file.require()
    options = _OPTIONS | {"protocol_whitelist": file.protocols}
    try:
        container = av.open(file.url, options=options, metadata_errors="replace")
    except av.ArgumentError as error:  # the answer to a container that is not in the list
        raise UnreadableVideoError(f"{file}: is in no video format that is read here") from error
    except DECODE_ERRORS as error:
        raise UnreadableVideoError(f"{file}: cannot be opened ({reason_of(error)})") from error
    video = container.streams.best("video")
    if not isinstance(video, av.VideoStream):
        fault = "has no video stream"
    elif video.codec_context is None:
        fault = "has a codec that FFmpeg does not know"
    else:
        # The options above hold for reading the header; the decoder has options of its own.
        video.codec_context.options = {"max_pixels": str(MAX_PICTURE_PX)}
        return container, video
    container.close()
    raise UnreadableVideoError(f"{file}: {fault}")


def has_picture_size(video: av.VideoStream) -> bool:
    """Whether FFmpeg accepts the size of the pictures. It takes a size above ``MAX_PICTURE_PX`` for none."""
    return video.codec_context.width > 0


def check_video(source: FileRange) -> None:
    """Raise ``UnreadableVideoError`` as ``open_video`` does; a file is opened once per process while it is unchanged.

    Call it before another library than PyAV opens the file: that library has no list of allowed containers.
    """
    source.require()
    facts = source.path.stat()
    _check_version(source, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=1 << 16)
def _check_version(source: FileRange, num_bytes: int, modified_ns: int) -> None:
    container, video = open_video(source)
    has_size = has_picture_size(video)
    container.close()
    if not has_size:
        raise UnreadableVideoError(f"{source}: {NO_SIZE}")


def reason_of(error: BaseException) -> str:
    """Return the reason that the library gave for an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@dataclass(frozen=True)
class Orientation:
    """How a decoded picture becomes upright: it is transposed, then mirrored. These are all turns and mirrorings."""

    is_transposed: bool = False
    """Whether rows and columns are exchanged."""
    flips_x: bool = False
    """Whether left and right are then exchanged."""
    flips_y: bool = False
    """Whether top and bottom are then exchanged."""

    @property
    def is_upright(self) -> bool:
        """Whether the decoded picture is upright already."""
        return self == UPRIGHT

    @property
    def is_mirrored(self) -> bool:
        """Whether no rotation alone makes the picture upright, because the matrix has a negative determinant."""
        return self.is_transposed ^ self.flips_x ^ self.flips_y

    def apply(self, picture: Picture) -> Picture:
        """Return the upright picture [H, W] or [H, W, C] as a view."""
        if self.is_transposed:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flips_y else 1, :: -1 if self.flips_x else 1]

    def size_px(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Return width and height of the upright picture from those of the decoded one, or the other way round."""
        return (height_px, width_px) if self.is_transposed else (width_px, height_px)


UPRIGHT = Orientation()


class OrientationReader:
    """Tells how the frames of one file become upright, from their display matrices, which phones write.

    Angles are rounded to 90 degrees. After its side data was read, PyAV keeps a frame in memory until Python collects
    garbage. So the matrix is read again only if the rotation changes, and not at all without ``may_mirror``.

    Args:
        may_mirror: False if the file is known not to mirror its pictures.
    """

    def __init__(self, *, may_mirror: bool = True) -> None:
        self._may_mirror = may_mirror
        self._rotation_degrees: int | None = None
        self._orientation = UPRIGHT

    def read(self, frame: av.VideoFrame) -> Orientation:
        """Return the orientation of a frame."""
        if frame.rotation != self._rotation_degrees:
            self._rotation_degrees = frame.rotation
            matrix = frame.side_data.get("DISPLAYMATRIX") if self._may_mirror else None
            if matrix is None:
                self._orientation = QUARTER_TURNS[round(frame.rotation / 90) % 4]
            else:
                self._orientation = _orientation_of(cast(SideData, matrix))
        return self._orientation


# Counter-clockwise.
QUARTER_TURNS = (
    UPRIGHT,
    Orientation(is_transposed=True, flips_y=True),
    Orientation(flips_x=True, flips_y=True),
    Orientation(is_transposed=True, flips_x=True),
)


def _orientation_of(matrix: SideData) -> Orientation:
    # A decoded pixel (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    if abs(a) >= abs(b):
        return Orientation(flips_x=a < 0, flips_y=d < 0)
    return Orientation(is_transposed=True, flips_x=c < 0, flips_y=b < 0)
