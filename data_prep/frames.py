"""Frames of a source at the stored size.

All kinds of frames have ``stored``, which the writer of their own stream takes, and ``gray`` and ``rgb``, from which
flow and depth are estimated. So an estimator works on a video and on the recording of a depth camera alike.

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

from crossdistill.data.containers import UPRIGHT, Orientation
from crossdistill.data.streams import Picture
from crossdistill.errors import UnreadableVideoError

Gray = NDArray[np.uint8]
"""[H, W]."""

# Distance that is shown black. Kinect 1 measures up to 4 m, Kinect 2 up to 4.5 m.
DEPTH_SHOWN_MM = 4500
# Most frames that wait for the next reference picture. H.264 allows no more B pictures in a row.
MAX_WAITING_FRAMES = 16

_VECTOR_FIELDS = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
NO_VECTORS = np.zeros(0, dtype=[(name, np.int32) for name in _VECTOR_FIELDS])
"""Motion vectors of a frame for which the codec stored none."""

# Shared, because making a converter takes 30 times as long as converting a small frame.
_converter = VideoReformatter()


@dataclass(frozen=True, eq=False)
class Motion:
    """The codec's motion vectors of one frame, as FFmpeg returns them, and the decoded picture that they refer to."""

    vectors: NDArray[Any]
    """Structured array: source, w, h, src_x, src_y, dst_x, dst_y, motion_x, motion_y, motion_scale."""
    width_px: int
    height_px: int
    orientation: Orientation = UPRIGHT
    """From the decoded to the stored picture."""
    is_bidirectional: bool = False
    """Whether it is a B picture. Other pictures are seldom predicted from B pictures."""
    frames_back: int = 1
    """Distance to the previous picture that is no B picture, in frames in display order."""


class ColourFrame:
    """A frame of a video, in the colour format of the encoder.

    Args:
        pts: Timestamp in units of ``time_base`` seconds.
        time_base: Seconds per unit.
        picture: Picture in the format yuv420p, upright, at the stored size.
        motion: Motion vectors of the codec, if they were requested.
    """

    motion_ahead: Motion | None = None
    """For a B picture: the motion of the next picture that is no B picture. Its vectors span this frame too."""

    def __init__(self, pts: int, time_base: Fraction, picture: av.VideoFrame, motion: Motion | None = None) -> None:
        self.pts, self.time_base, self.stored, self.motion = pts, time_base, picture, motion

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.stored.width, self.stored.height

    @cached_property
    def gray(self) -> Gray:
        """[H, W]: the luma plane without conversion."""
        plane = self.stored.planes[0]
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
        return np.ascontiguousarray(rows[: self.stored.height, : self.stored.width])

    @cached_property
    def rgb(self) -> Picture:
        """[H, W, 3], uint8."""
        picture: Picture = _converter.reformat(self.stored, format="rgb24", threads=1).to_ndarray()
        return picture


class DepthFrame:
    """A frame of a depth camera: ``depth_mm`` [H, W], uint16, at the stored size. 0 means "not measured"."""

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
        """[H, W]: near is bright, "not measured" is black.

        The scale is the same for all frames, because flicker would disturb optical flow.
        """
        depth_mm = self.stored[:, :, 0].astype(np.float32)
        shade = 255 * (1 - depth_mm / DEPTH_SHOWN_MM)
        return np.where(depth_mm > 0, np.clip(shade, 1, 255), 0).astype(np.uint8)

    @property
    def rgb(self) -> Picture:
        """[H, W, 3]: three times ``gray``."""
        picture: Picture = cv2.cvtColor(self.gray, cv2.COLOR_GRAY2RGB)
        return picture


class JointsFrame(DepthFrame):
    """The joints of a body in one frame: ``joints_hwc`` [joints, 1, 3], uint16, as ``quantise_joints`` returns them."""

    def __init__(self, pts: int, time_base: Fraction, joints_hwc: NDArray[np.uint16]) -> None:
        self.pts, self.time_base, self.stored = pts, time_base, joints_hwc


Frame = ColourFrame | DepthFrame


def look_ahead(frames: Iterable[ColourFrame]) -> Iterator[ColourFrame]:
    """Set ``motion.frames_back`` of all frames (in display order, with ``motion``), and ``motion_ahead`` of B pictures.

    For that, B pictures wait until the next picture that is no B picture has arrived. If ``frames`` raises an
    ``UnreadableVideoError``, the waiting frames are yielded before it.
    """
    waiting: list[ColourFrame] = []
    frames_back = 0
    try:
        for frame in frames:
            assert frame.motion is not None, "the reader must be asked for motion vectors"
            frames_back += 1
            frame.motion = dataclasses.replace(frame.motion, frames_back=frames_back)
            if not frame.motion.is_bidirectional:
                frames_back = 0
                for b_picture in waiting:
                    b_picture.motion_ahead = frame.motion
            waiting.append(frame)
            if not frame.motion.is_bidirectional or len(waiting) >= MAX_WAITING_FRAMES:
                yield from waiting
                waiting = []
    except UnreadableVideoError:
        yield from waiting
        raise
    yield from waiting
