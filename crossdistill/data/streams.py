"""Storage formats of the streams of a prepared dataset, and the writer of their video files.

Each stream of a video is one ``.mp4`` file. MP4 keeps the source's exact timestamps; Matroska would round them to
milliseconds.

* ``rgb``: H.264, a keyframe every 16 frames, no B-frames, tuned for fast decoding.
* ``flow``: H.264 with keyframes only, a fixed fine quantiser and full range. x and y lie one above the other in a gray
  picture of twice the height. N - 1 frames, each with the timestamp of the first frame of its pair.
* ``depth``: lossless 16-bit PNG, millimetres, 0 for "not measured".
* ``skeleton``: lossless 16-bit PNG, millimetres from the camera, 32768 is 0. One row per joint, one column per body; x,
  y and z lie one above the other.

``docs/explanation/stream_formats.md`` compares 60 candidates by error, size and speed of random clips.

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
from crossdistill.utils.files import temporary_path

Picture = NDArray[Any]
"""Array of uint8 or uint16, [H, W, C] or [H, W]."""


def stack_channels(frame_hwc: Picture) -> Picture:
    """Stack the channels of a frame [H, W, C] to one gray picture [C * H, W]."""
    height, width, channels = frame_hwc.shape
    return np.ascontiguousarray(frame_hwc.transpose(2, 0, 1)).reshape(channels * height, width)


def unstack_channels(picture: Picture, channels: int) -> Picture:
    """Split a gray picture [C * H, W] into a frame [H, W, C], as the inverse of ``stack_channels``."""
    return picture.reshape(channels, picture.shape[0] // channels, picture.shape[1]).transpose(1, 2, 0)


def quantise_flow(flow_px: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantise flow in pixels per frame to bytes. ``Modality.value_scale`` and ``value_offset`` are the inverse.

    Zero stays exact. The error is at most 0.079 px per component within ±20 px; larger motion is clipped.
    """
    coded = np.rint(flow_px * (1 / FLOW_STEP_PX)) + FLOW_ZERO
    return np.clip(coded, 1, 255).astype(np.uint8)


def quantise_joints(joints_metres: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Quantise positions in metres to 16 bits. ``Modality.value_scale`` and ``value_offset`` are the inverse.

    Zero stays exact. The error is at most half a millimetre within ±32.7 m; positions farther away are clipped.
    """
    coded = np.rint(joints_metres * (1 / JOINT_STEP_METRES)) + JOINT_ZERO
    return np.clip(coded, 1, 65535).astype(np.uint16)


@dataclass(frozen=True)
class StreamFormat:
    """How the frames [H, W, C] of a stream are packed into pictures and encoded in a video file."""

    name: str
    codec: str
    """FFmpeg's name of the encoder."""
    pixel_format: str
    """Pixel format that the encoder takes."""
    picture_format: str
    """Pixel format of the pictures as arrays in PyAV."""
    codec_options: dict[str, str] = field(default_factory=dict)
    is_full_range: bool = False
    """Whether the file is marked as full range. Readers of gray pictures then return the stored bytes unscaled."""
    is_any_video: bool = False
    """Whether any video file can serve as the stream as it is, so that an original need not be transcoded."""
    pack: Callable[[Picture], Picture] = lambda frame: frame
    """Function from a frame to a picture; ``unpack`` is its inverse."""
    unpack: Callable[[Picture], Picture] = lambda picture: picture


STREAM_FORMATS: dict[str, StreamFormat] = {
    "rgb": StreamFormat(
        name="rgb",
        codec="libx264",
        pixel_format="yuv420p",
        picture_format="rgb24",
        # mbtree is off: its result varies from run to run for small pictures, and it saves no space here.
        codec_options={"crf": "23", "g": "16", "bf": "0", "tune": "fastdecode", "mbtree": "0"},
        is_any_video=True,
    ),
    "flow": StreamFormat(
        name="flow",
        codec="libx264",
        pixel_format="gray",
        picture_format="gray",
        # A fixed quantiser bounds the error. psy and aq would spend fewer bits on flat regions, which matter in flow.
        codec_options={
            "qp": "14",
            "g": "1",
            "bf": "0",
            "tune": "fastdecode",
            "mbtree": "0",
            "psy": "0",
            "aq-mode": "0",
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
    """Look up a stream format by name; an unknown name is a ``UserError``."""
    if name not in STREAM_FORMATS:
        raise unknown_name("stream", name, STREAM_FORMATS)
    return STREAM_FORMATS[name]


class StreamWriter:
    """Context manager that writes one stream of one video.

    It writes a temporary file and renames it when the file is complete. If the block raises, no file remains. Equal
    frames give equal bytes: the encoder has one thread, and the file has no dates or version strings.

    Args:
        path: The ``.mp4`` file.
        stream_format: One of ``STREAM_FORMATS``.
        time_base: Seconds per unit of the timestamps passed to ``write``.
    """

    def __init__(self, path: Path, stream_format: StreamFormat, *, time_base: Fraction) -> None:
        self.path = Path(path)
        self.stream_format = stream_format
        self.time_base = time_base
        self._temporary = temporary_path(self.path)
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def __enter__(self) -> StreamWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # MP4 stores the first timestamp in a time base of its own, which is milliseconds by default.
        options = {"fflags": "+bitexact", "movie_timescale": str(self.time_base.denominator)}
        self._container = av.open(f"file:{self._temporary.absolute()}", "w", format="mp4", options=options)
        return self

    def write(self, frame: Picture | av.VideoFrame, pts: int) -> None:
        """Append an array [H, W, C], or a decoder's frame, whose colour matrix and range are kept.

        The timestamp is in units of the time base, not negative, and larger than that of the frame before.
        """
        assert self._container is not None, "write() belongs inside the with block"
        if pts < 0:  # in MP4 it means "do not show", and readers skip the frame
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
        # The encoder chooses keyframes; the source's would be added to those every 16 frames.
        frame.pict_type = PictureType.NONE
        self._container.mux(self._stream.encode(frame))

    def _open_stream(self, frame: av.VideoFrame) -> av.VideoStream:
        assert self._container is not None
        width, height = frame.width, frame.height
        if self.stream_format.pixel_format == "yuv420p" and (height % 2 or width % 2):
            raise UserError(f"H.264 needs even sides, not {width}x{height}: choose an even size")
        options = dict(self.stream_format.codec_options)
        stream = cast(av.VideoStream, self._container.add_stream(self.stream_format.codec, options=options))
        stream.width, stream.height = width, height
        stream.pix_fmt = self.stream_format.pixel_format
        stream.time_base = self.time_base
        stream.codec_context.time_base = self.time_base
        # The output of x264 depends on the number of threads, and equal frames must give equal bytes.
        stream.codec_context.thread_count = 1
        if frame.format.name == self.stream_format.pixel_format:
            stream.codec_context.colorspace = frame.colorspace
            stream.codec_context.color_range = frame.color_range
        return stream

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
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
