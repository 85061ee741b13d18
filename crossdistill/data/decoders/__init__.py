"""Libraries that decode clips. Each is one entry of ``DECODERS`` and one module, which is imported at first use.

The module has two functions. ``check()`` raises if the library is not installed or does not work.
``read_pictures(source, stream, frames, stream_format)`` returns T arrays [H, W, C]. It raises ``CannotServeError`` if
the library would not return exactly the frames that the manifest names; PyAV then reads the file.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture, StreamFormat
from crossdistill.errors import UserError, unknown_name

DEFAULT_DECODER = "pyav"
# Largest difference between a library's timestamps and those of the manifest, as a share of a frame's duration.
TIME_TOLERANCE_FRAMES = 0.1

ReadPictures = Callable[[FileRange, Stream, Sequence[int], StreamFormat], Sequence[Picture]]


class CannotServeError(Exception):
    """A library cannot return exactly the requested frames. The message is the same for all files of one kind."""


@dataclass(frozen=True)
class Decoder:
    """A library that decodes clips."""

    name: str
    module: str
    """Module with ``check`` and ``read_pictures``."""
    install: str
    """How to install the library, for the error."""
    picture_formats: frozenset[str] | None = None
    """Values of ``StreamFormat.picture_format`` that it returns without loss; None for all."""
    cannot: Mapping[str, str] = field(default_factory=dict)
    """Reason for each other value of ``StreamFormat.picture_format``."""
    uses_gpu: bool = False
    """Whether it decodes on a GPU: then loader workers cannot be forked from a process that uses it."""

    def require(self, picture_format: str) -> None:
        """Raise ``CannotServeError`` for a picture format that the library does not return."""
        if self.picture_formats is not None and picture_format not in self.picture_formats:
            raise CannotServeError(self.cannot.get(picture_format, f"it does not return {picture_format}"))

    @property
    def read_pictures(self) -> ReadPictures:
        """Function ``read_pictures`` of the decoder's module."""
        return importlib.import_module(self.module).read_pictures


# Gray files are returned as RGB with three equal channels, without loss.
_8_BIT = frozenset({"rgb24", "gray"})
_ONLY_8_BIT = {"gray16le": "it returns 8 bits a channel, and the stream has 16"}

DECODERS: dict[str, Decoder] = {
    "pyav": Decoder(name="pyav", module="crossdistill.data.decoders.pyav", install="pip install av"),
    "decord": Decoder(
        name="decord",
        module="crossdistill.data.decoders.decord",
        install="pip install decord (wheels exist for x86-64 alone)",
        picture_formats=_8_BIT,
        cannot=_ONLY_8_BIT,
    ),
    "torchcodec": Decoder(
        name="torchcodec",
        module="crossdistill.data.decoders.torchcodec",
        install="pip install 'crossdistill[torchcodec]' and FFmpeg's shared libraries (apt-get install ffmpeg)",
        picture_formats=_8_BIT,
        cannot=_ONLY_8_BIT,
    ),
}
DECODERS["torchcodec-cuda"] = replace(
    DECODERS["torchcodec"],
    name="torchcodec-cuda",
    module="crossdistill.data.decoders.torchcodec_cuda",
    install="it needs an NVIDIA GPU, a torchcodec that was built for CUDA, and FFmpeg's shared libraries",
    uses_gpu=True,
)


@functools.cache
def get_decoder(name: str) -> Decoder:
    """Look up a decoder, and check once per process that its library works; if not, raise a ``UserError``."""
    if name not in DECODERS:
        raise unknown_name("decoder", name, DECODERS)
    decoder = DECODERS[name]
    try:
        importlib.import_module(decoder.module).check()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"the decoder {name} does not work here ({reason.rstrip('.:')}): {decoder.install}, "
            f"or choose --decoder {DEFAULT_DECODER}"
        ) from error
    return decoder


def require_exact(
    stream: Stream, *, num_frames: int, frames: Sequence[int], times_seconds: NDArray[np.float64]
) -> None:
    """Raise ``CannotServeError`` unless a library's number of frames and its times of ``frames`` are the manifest's."""
    if num_frames != stream.num_frames:
        raise CannotServeError("its number of frames is not the number that can be decoded")
    ends = stream.times_seconds[[0, -1]]
    tolerance_seconds = TIME_TOLERANCE_FRAMES * float(ends[1] - ends[0]) / max(1, num_frames - 1)
    # At least 1 ms, because some containers round timestamps to milliseconds.
    if not (np.abs(times_seconds - stream.times_seconds[list(frames)]) <= max(tolerance_seconds, 1e-3)).all():
        raise CannotServeError("its timestamps are not those of the file")


def require_plain(stream: Stream) -> None:
    """Raise ``CannotServeError`` for timestamps out of order, mirrored or changing pictures, and segments of a file."""
    if stream.is_segment:
        raise CannotServeError("the video is a segment of a longer file")
    if not stream.is_seekable:
        raise CannotServeError("the timestamps in the file are out of order")
    if not stream.is_plain:
        raise CannotServeError("its pictures are mirrored or change their size")


def arrange(
    pictures: Picture, *, wanted: Sequence[int], frames: Sequence[int], stream: Stream, stream_format: StreamFormat
) -> list[Picture]:
    """Unpack RGB pictures of sorted positions into the requested frames.

    Args:
        pictures: [len(wanted), H, W, 3], uint8; a gray file has three equal channels.
        wanted: Sorted positions without repetition.
        frames: T positions in the requested order; a position may repeat.
        stream: Entry of the stream in the manifest.
        stream_format: How the frames of the stream are packed into pictures.
    """
    is_colour = stream_format.picture_format == "rgb24"
    unpacked = list(pictures) if is_colour else [stream_format.unpack(gray) for gray in pictures[..., 0]]
    if unpacked[0].shape[:2] != (stream.height_px, stream.width_px):
        raise CannotServeError("its pictures have another size")
    by_position = dict(zip(wanted, unpacked, strict=True))
    return [by_position[position] for position in frames]
