"""The libraries that can read clips, by name: one entry of data and one module each, loaded at first use.

A module has two functions. ``check()`` raises if the library is absent or does not work.
``read_pictures(path, stream, frames, stream_format)`` gives T times [H, W, C] or raises ``CannotServeError``
where the library would not give exactly the frames that the manifest names; PyAV then reads the file.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture, StreamFormat
from crossdistill.errors import UserError, unknown_name

DEFAULT_DECODER = "pyav"
# Libraries that index a file themselves may differ from the manifest by this share of a frame's duration.
TIME_TOLERANCE_FRAMES = 0.1

ReadPictures = Callable[[Path, Stream, Sequence[int], StreamFormat], Sequence[Picture]]


class CannotServeError(Exception):
    """A library cannot give exactly the frames asked for; the text is the reason, the same for files of one kind."""


@dataclass(frozen=True)
class Decoder:
    """One library."""

    name: str
    module: str
    """Where its two functions are."""
    install: str
    """What to do where it is absent."""
    picture_formats: frozenset[str] | None = None
    """Of ``StreamFormat.picture_format``: what it hands out without loss; None for all."""
    cannot: Mapping[str, str] = field(default_factory=dict)
    """The other formats of today's streams, with the reason."""

    def require(self, picture_format: str) -> None:
        """Raise ``CannotServeError`` for a picture format that it does not hand out."""
        if self.picture_formats is not None and picture_format not in self.picture_formats:
            raise CannotServeError(self.cannot.get(picture_format, f"it does not hand out {picture_format}"))

    @property
    def read_pictures(self) -> ReadPictures:
        """The function that reads; see the module's text."""
        read: ReadPictures = importlib.import_module(self.module).read_pictures
        return read


# Gray comes as three equal channels, unchanged.
_8_BIT = frozenset({"rgb24", "gray"})
_ONLY_8_BIT = {"gray16le": "it hands out 8 bits a channel, and the stream has 16"}

DECODERS: dict[str, Decoder] = {
    "pyav": Decoder(
        name="pyav",
        module="crossdistill.data.decoders.pyav",
        install="pip install av",
    ),
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


@functools.cache
def get_decoder(name: str) -> Decoder:
    """Look up a decoder and try it once in this process.

    Raises:
        UserError: There is none of this name, or its library is absent or does not work here.
    """
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
    """Raise ``CannotServeError`` unless a library's own index of a file agrees with the manifest.

    Args:
        stream: What the manifest says.
        num_frames: How many frames the library counts.
        frames: Positions that are asked for.
        times_seconds: [len(frames)], when the library shows them, by the manifest's clock.
    """
    if num_frames != stream.num_frames:
        raise CannotServeError("it counts another number of frames than can be decoded")
    ends = stream.times_seconds[[0, -1]]
    tolerance_seconds = TIME_TOLERANCE_FRAMES * float(ends[1] - ends[0]) / max(1, num_frames - 1)
    if not (np.abs(times_seconds - stream.times_seconds[list(frames)]) <= max(tolerance_seconds, 1e-3)).all():
        raise CannotServeError("it shows frames at other times than the file says")


def require_order(stream: Stream) -> None:
    """Raise ``CannotServeError`` for a file whose timestamps are out of order."""
    if not stream.is_seekable:
        raise CannotServeError("the timestamps in the file are out of order")


def arrange(
    pictures: Picture, *, wanted: Sequence[int], frames: Sequence[int], stream: Stream, stream_format: StreamFormat
) -> list[Picture]:
    """RGB pictures of sorted positions to frames T times [H, W, C] of the stream, in the order asked for.

    Args:
        pictures: [len(wanted), H, W, 3], uint8; a gray file has three equal channels.
        wanted: Positions, sorted, each once.
        frames: Positions in the order asked for, repetition allowed.
        stream: What the manifest says.
        stream_format: How the stream's pictures are packed.
    """
    is_colour = stream_format.picture_format == "rgb24"
    unpacked = list(pictures) if is_colour else [stream_format.unpack(gray) for gray in pictures[..., 0]]
    if unpacked[0].shape[:2] != (stream.height_px, stream.width_px):
        raise CannotServeError("it gives pictures of another size")
    by_position = dict(zip(wanted, unpacked, strict=True))
    return [by_position[position] for position in frames]
