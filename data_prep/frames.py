"""One frame of a source at the size at which it is stored, whatever it was read from.

Every kind of source gives frames with the same three faces: ``stored`` is what a stream's writer
takes, ``gray`` and ``rgb`` are what flow and depth are estimated from. So an estimator never asks
whether it looks at a video or at a depth camera.

Shapes: H height, W width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from crossdistill.data.streams import Picture
from crossdistill.errors import UnreadableVideoError

Gray = NDArray[np.uint8]
"""[H, W]."""

# What depth cameras measure (Kinect 1 up to 4 m, Kinect 2 up to 4.5 m) spans the shades of gray.
DEPTH_SHOWN_MM = 4500


# Frames that wait for the next reference picture; H.264 allows no more between two.
MAX_WAITING_FRAMES = 16

_VECTOR_FIELDS = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
NO_VECTORS = np.zeros(0, dtype=[(name, np.int32) for name in _VECTOR_FIELDS])
"""Of a frame that the codec stored as a whole."""


@dataclass(frozen=True, eq=False)
class Motion:
    """The codec's motion vectors of one frame, as FFmpeg gives them, and the picture they refer to."""

    vectors: NDArray[Any]
    """Structured array: source, w, h, src_x, src_y, dst_x, dst_y, motion_x, motion_y, motion_scale."""
    width_px: int
    height_px: int
    rotation_degrees: int
    """How the stored frame was turned, counter-clockwise, multiples of 90."""
    is_bidirectional: bool = False
    """Whether it is a B picture, which others are seldom predicted from."""
    frames_back: int = 1
    """Distance to the previous picture that is not a B picture, in frames as they are shown."""


class ColourFrame:
    """A frame of a video, in the colour format that the encoder takes.

    Args:
        pts: When it is shown, in units of ``time_base``.
        time_base: Seconds per unit.
        picture: yuv420p, upright, at the stored size.
        motion: The codec's motion vectors, where they were asked for.
    """

    motion_ahead: Motion | None = None
    """Of a B picture: the vectors of the next picture that is none, which span this frame too."""

    def __init__(self, pts: int, time_base: Fraction, picture: av.VideoFrame, motion: Motion | None = None) -> None:
        self.pts, self.time_base, self.stored, self.motion = pts, time_base, picture, motion

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.stored.width, self.stored.height

    @cached_property
    def gray(self) -> Gray:
        """[H, W], the luma as it is stored: no conversion."""
        plane = self.stored.planes[0]
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
        return np.ascontiguousarray(rows[: self.stored.height, : self.stored.width])

    @cached_property
    def rgb(self) -> Picture:
        """[H, W, 3], uint8."""
        picture: Picture = _converter.reformat(self.stored, format="rgb24", threads=1).to_ndarray()
        return picture


class DepthFrame:
    """A frame of a depth camera.

    Args:
        pts: When it is shown, in units of ``time_base``.
        time_base: Seconds per unit.
        depth_mm: [H, W], uint16, 0 where nothing was measured, at the stored size.
    """

    motion: Motion | None = None
    motion_ahead: Motion | None = None

    def __init__(self, pts: int, time_base: Fraction, depth_mm: NDArray[np.uint16]) -> None:
        self.pts, self.time_base = pts, time_base
        self.stored: Picture = depth_mm[:, :, None]

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.stored.shape[1], self.stored.shape[0]

    @cached_property
    def gray(self) -> Gray:
        """[H, W]: nearer is brighter, nothing measured is black. The same scale in every frame, so that
        flow is not disturbed by flicker.
        """
        depth_mm = self.stored[:, :, 0].astype(np.float32)
        shade = 255 * (1 - depth_mm / DEPTH_SHOWN_MM)
        return np.where(depth_mm > 0, np.clip(shade, 1, 255), 0).astype(np.uint8)

    @property
    def rgb(self) -> Picture:
        """[H, W, 3]: the shades of gray thrice."""
        picture: Picture = cv2.cvtColor(self.gray, cv2.COLOR_GRAY2RGB)
        return picture


Frame = ColourFrame | DepthFrame


def look_ahead(frames: Iterable[ColourFrame]) -> Iterator[ColourFrame]:
    """Hold B pictures back until the picture that follows them is there, and tell all how motion spans them.

    Args:
        frames: In display order, with ``motion``.

    Yields:
        The same frames, ``motion.frames_back`` and ``motion_ahead`` set; before an error, all that came before it.
    """
    waiting: list[ColourFrame] = []
    frames_back = 0
    try:
        for frame in frames:
            assert frame.motion is not None, "ask the reader for motion vectors"
            frames_back += 1
            frame.motion = dataclasses.replace(frame.motion, frames_back=frames_back)
            if not frame.motion.is_bidirectional:
                frames_back = 0
                for held in waiting:
                    held.motion_ahead = frame.motion
            waiting.append(frame)
            if not frame.motion.is_bidirectional or len(waiting) >= MAX_WAITING_FRAMES:
                yield from waiting
                waiting = []
    except UnreadableVideoError:
        yield from waiting
        raise
    yield from waiting


_converter = VideoReformatter()
