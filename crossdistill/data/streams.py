"""How each stream of a prepared dataset is stored as a video file, written and packed.

Every stream is one ``.mp4`` per video with exact timestamps (MP4 keeps the source's time base; the
Matroska container would round it to milliseconds):

* ``rgb``: H.264, a keyframe every 16 frames, no B-frames, tuned for fast decoding.
* ``flow``: H.264 of keyframes alone at a fixed fine quantiser, full range, x over y in one gray picture of
  twice the height; N - 1 frames, each with the timestamp of the first frame of its pair.
* ``depth``: lossless 16-bit PNG, millimetres, 0 where nothing was measured.
* ``skeleton``: lossless 16-bit PNG, millimetres from the camera around 32768: a row per joint, one column,
  x over y over z.

How these were chosen among 60 candidates, by error, size and speed of random clips: ``docs/data.md``.

Shapes: H height, W width, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from crossdistill.errors import UserError, unknown_name
from crossdistill.modalities import FLOW_STEP_PX, FLOW_ZERO, JOINT_STEP_METRES, JOINT_ZERO

Picture = NDArray[Any]
"""uint8 or uint16."""


def stack_channels(frame_hwc: Picture) -> Picture:
    """[H, W, C] to [C * H, W]: channels under each other in one gray picture."""
    height, width, channels = frame_hwc.shape
    return np.ascontiguousarray(frame_hwc.transpose(2, 0, 1)).reshape(channels * height, width)


def unstack_channels(picture: Picture, channels: int) -> Picture:
    """The inverse of ``stack_channels``."""
    return picture.reshape(channels, picture.shape[0] // channels, picture.shape[1]).transpose(1, 2, 0)


def quantise_flow(flow_px: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Code flow in pixels per frame as bytes; the inverse is ``Modality.value_scale`` and ``value_offset``.

    Zero is kept exactly; the error of a component is at most 0.079 px within the bound of ±20 px, and larger
    motion is clipped to the bound.
    """
    coded = np.rint(flow_px * (1 / FLOW_STEP_PX)) + FLOW_ZERO
    return np.clip(coded, 1, 255).astype(np.uint8)


def quantise_joints(joints_metres: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Code positions in metres as 16 bits; the inverse is ``Modality.value_scale`` and ``value_offset``.

    Zero is kept exactly; the error is at most half a millimetre within ±32.7 m, and what lies farther is clipped.
    """
    coded = np.rint(joints_metres * (1 / JOINT_STEP_METRES)) + JOINT_ZERO
    return np.clip(coded, 1, 65535).astype(np.uint16)


@dataclass(frozen=True)
class StreamFormat:
    """How frames [H, W, C] of one stream become pictures of a video file, and back."""

    name: str
    codec: str
    pixel_format: str
    """What the encoder is fed with."""
    picture_format: str
    """What PyAV hands out and takes as an array."""
    codec_options: dict[str, str] = field(default_factory=dict)
    is_full_range: bool = False
    """Said in the file, so that readers of gray pictures hand out the very bytes and do not stretch their range."""
    pack: Callable[[Picture], Picture] = lambda frame: frame
    unpack: Callable[[Picture], Picture] = lambda picture: picture


STREAM_FORMATS: dict[str, StreamFormat] = {
    "rgb": StreamFormat(
        name="rgb",
        codec="libx264",
        pixel_format="yuv420p",
        picture_format="rgb24",
        # Without mbtree: in pictures of a few blocks its result varies from run to run, and it saves no space here.
        codec_options={"crf": "23", "g": "16", "bf": "0", "tune": "fastdecode", "mbtree": "0"},
    ),
    "flow": StreamFormat(
        name="flow",
        codec="libx264",
        pixel_format="gray",
        picture_format="gray",
        # A fixed quantiser bounds the error: flat regions of flow are not cheap to the eye, as psy and aq assume.
        codec_options={
            **{"qp": "14", "g": "1", "bf": "0", "tune": "fastdecode", "mbtree": "0"},
            **{"psy": "0", "aq-mode": "0"},
        },
        is_full_range=True,
        pack=stack_channels,
        unpack=lambda picture: unstack_channels(picture, 2),
    ),
    "depth": StreamFormat(
        name="depth",
        codec="png",
        pixel_format="gray16be",
        picture_format="gray16le",
        codec_options={"pred": "up", "compression_level": "6"},
        pack=stack_channels,
        unpack=lambda picture: unstack_channels(picture, 1),
    ),
    "skeleton": StreamFormat(
        name="skeleton",
        codec="png",
        pixel_format="gray16be",
        picture_format="gray16le",
        pack=stack_channels,
        unpack=lambda picture: unstack_channels(picture, 3),
    ),
}


def get_stream_format(name: str) -> StreamFormat:
    """Look up a stream format by name."""
    if name not in STREAM_FORMATS:
        raise unknown_name("stream", name, STREAM_FORMATS)
    return STREAM_FORMATS[name]


class StreamWriter:
    """Writes one stream of one video: a temporary file first, moved into place when it is whole.

    The same frames give the same bytes: one encoder thread, no dates or version strings in the file.
    Use it as a context manager; after an exception inside the block no file is left behind.

    Args:
        path: The ``.mp4`` to write.
        stream_format: One of ``STREAM_FORMATS``.
        time_base: Seconds per unit of the timestamps given to ``write``.
    """

    def __init__(self, path: Path, stream_format: StreamFormat, *, time_base: Fraction) -> None:
        self.path = Path(path)
        self.stream_format = stream_format
        self.time_base = time_base
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> StreamWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # MP4 keeps the first timestamp in units of its own, milliseconds unless told otherwise.
        options = {"fflags": "+bitexact", "movie_timescale": str(self.time_base.denominator)}
        self._container = av.open(str(self._temporary), "w", format="mp4", options=options)
        return self

    def write(self, frame: Picture | av.VideoFrame, pts: int) -> None:
        """Append one frame, shown at ``pts * time_base`` seconds; ``pts`` increases and is not negative.

        Args:
            frame: An array [H, W, C], or a decoder's own frame that the encoder takes as it is (its
                colour matrix and range are kept).
            pts: In units of the time base.
        """
        assert self._container is not None, "write() belongs inside the with block"
        if pts < 0:  # MP4 means "do not show" by it, and readers drop the frame
            raise ValueError(f"the timestamp {pts} is negative: shift all streams of the video so that it starts at 0")
        if not isinstance(frame, av.VideoFrame):
            picture = np.ascontiguousarray(self.stream_format.pack(frame))
            frame = av.VideoFrame.from_ndarray(picture, format=self.stream_format.picture_format)
            if self.stream_format.is_full_range:
                frame.color_range = ColorRange.JPEG
        if self._stream is None:
            self._stream = self._open_stream(frame)
        frame.pts = pts
        frame.time_base = self.time_base
        # Left to the encoder: a source's keyframes would come on top of those every 16 frames.
        frame.pict_type = PictureType.NONE
        self._container.mux(self._stream.encode(frame))

    def _open_stream(self, frame: av.VideoFrame) -> av.VideoStream:
        assert self._container is not None
        width, height = frame.width, frame.height
        if self.stream_format.pixel_format == "yuv420p" and (height % 2 or width % 2):
            raise UserError(f"H.264 needs even sides, not {width}x{height}: choose an even size")
        stream = cast(
            av.VideoStream,
            self._container.add_stream(self.stream_format.codec, options=dict(self.stream_format.codec_options)),
        )
        stream.width, stream.height = width, height
        stream.pix_fmt = self.stream_format.pixel_format
        stream.time_base = self.time_base
        stream.codec_context.time_base = self.time_base
        stream.codec_context.thread_count = 1
        if frame.format.name == self.stream_format.pixel_format:
            stream.codec_context.colorspace = frame.colorspace
            stream.codec_context.color_range = frame.color_range
        return stream

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._container is not None
        try:
            if error is None and self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            if error is None and self._stream is not None:
                with open(self._temporary, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(self._temporary, self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
