"""Convert frames of any stream to RGB images, and clips to one image with frames side by side.

Shapes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from crossdistill.data.dataset import Entry
from crossdistill.data.decode import read_pictures
from crossdistill.data.sampling import centre_range_seconds, clip_frames
from crossdistill.data.streams import Picture
from crossdistill.errors import UnreadableVideoError
from crossdistill.modalities import FLOW_ZERO, JOINT_STEP_METRES, JOINT_ZERO
from crossdistill.types import ViewSpec

Rgb = NDArray[np.uint8]  # [H, W, 3]
NUM_FRAMES = 8  # of a strip
SIDE_PX = 112
WEBP_QUALITY = 72
MAX_FLOW_LEVELS = 40.0  # flow, in stored levels, that gets full saturation
# Pairs of the 20 joints of a Kinect, in the order of its datasets.
KINECT_BONES = (
    *((0, 1), (1, 2), (2, 3)),  # head, neck, spine, hips
    *((1, 4), (4, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11)),  # arms
    *((3, 12), (12, 13), (13, 14), (14, 15), (3, 16), (16, 17), (17, 18), (18, 19)),  # legs
)
NUM_KINECT_JOINTS = 20
BACKGROUND, BONE, LEFT_BONE, JOINT = (22, 26, 34), (126, 166, 255), (255, 178, 102), (240, 243, 250)


def rgb_to_rgb(frames: Sequence[Picture]) -> list[Rgb]:
    """Return the frames unchanged."""
    return [np.ascontiguousarray(frame, dtype=np.uint8) for frame in frames]


def flow_to_rgb(frames: Sequence[Picture]) -> list[Rgb]:
    """Convert T flow fields [H, W, 2] to images: direction is the hue, speed the saturation, and zero flow is white."""
    images = []
    for frame in frames:
        x, y = (frame[..., axis].astype(np.float32) - FLOW_ZERO for axis in (0, 1))
        hue = np.degrees(np.arctan2(y, x)) % 360
        strength = np.clip(np.hypot(x, y) / MAX_FLOW_LEVELS, 0, 1)
        hsv = np.stack([hue, strength, np.ones_like(hue)], axis=-1).astype(np.float32)
        images.append((cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255).astype(np.uint8))
    return images


def depth_to_rgb(frames: Sequence[Picture]) -> list[Rgb]:
    """Convert T depth maps [H, W, 1] to images: near is bright, far is dark, pixels without a measurement are black.

    All frames share one scale.
    """
    clip = np.stack(frames)[..., 0].astype(np.float32)
    measured = clip[clip > 0]
    near, far = np.percentile(measured, (1, 99)) if measured.size else (0.0, 1.0)
    shade = np.clip((far - clip) / max(1.0, far - near), 0, 1) * 205 + 40
    grey = np.where(clip > 0, shade, 0).astype(np.uint8)
    return [np.repeat(frame[..., None], 3, axis=-1) for frame in grey]


def skeleton_to_rgb(frames: Sequence[Picture]) -> list[Rgb]:
    """Draw T frames [J, M, 3] of M skeletons from the front, with bones if there are 20 joints (Kinect).

    All frames share one scale.
    """
    metres = (np.stack(frames).astype(np.float32) - JOINT_ZERO) * JOINT_STEP_METRES
    flat = metres[..., :2].reshape(-1, 2)
    low, high = flat.min(0), flat.max(0)
    scale = 0.84 * SIDE_PX / max(0.2, float((high - low).max()))
    centre = (low + high) / 2
    pictures = []
    for bodies in (metres[..., :2] - centre) * scale:
        picture: Rgb = np.full((SIDE_PX, SIDE_PX, 3), BACKGROUND, dtype=np.uint8)
        for body in bodies.swapaxes(0, 1):
            _draw_joints(picture, body)
        pictures.append(picture)
    return pictures


def _draw_joints(picture: Rgb, places: NDArray[np.float32]) -> None:
    """Draw joints [J, 2], given in px from the centre with y up, into a picture."""
    points = [(round(SIDE_PX / 2 + float(x)), round(SIDE_PX / 2 - float(y))) for x, y in places]
    if len(points) == NUM_KINECT_JOINTS:
        for start, end in KINECT_BONES:
            is_left = end in (*range(4, 8), *range(12, 16))
            cv2.line(picture, points[start], points[end], LEFT_BONE if is_left else BONE, 2, cv2.LINE_AA)
    for point in points:
        cv2.circle(picture, point, 2, JOINT, -1, cv2.LINE_AA)


TO_RGB: dict[str, Callable[[Sequence[Picture]], list[Rgb]]] = {
    "rgb": rgb_to_rgb,
    "flow": flow_to_rgb,
    "depth": depth_to_rgb,
    "skeleton": skeleton_to_rgb,
}
"""Functions by stream; ``first_channel_to_rgb`` handles all others."""


def first_channel_to_rgb(frames: Sequence[Picture]) -> list[Rgb]:
    """Show the first channel in grey, from the smallest to the largest value of the clip."""
    clip = np.stack(frames)[..., 0].astype(np.float32)
    low, high = float(clip.min()), float(clip.max())
    grey = ((clip - low) / max(1e-6, high - low) * 255).astype(np.uint8)
    return [np.repeat(frame[..., None], 3, axis=-1) for frame in grey]


def clip_strip(entry: Entry, view: ViewSpec) -> str:
    """Draw the centre clip that an encoder's view takes from a video, frames side by side, as a data URI.

    Raise an ``UnreadableVideoError`` if the video cannot be read or lacks the stream.
    """
    name = view.kind.stream
    stream = entry.video.streams.get(name)
    if stream is None:
        raise UnreadableVideoError(f"{entry.video.name} has no stream {name}")
    earliest, latest = centre_range_seconds([stream], [view])
    clip = clip_frames(stream, view, (earliest + latest) / 2).tolist()
    chosen = [clip[i * (len(clip) - 1) // (NUM_FRAMES - 1)] for i in range(NUM_FRAMES)]
    frames = read_pictures(entry.root, stream, chosen, stream_name=name)
    squares = [_square(frame) for frame in TO_RGB.get(name, first_channel_to_rgb)(frames)]
    strip = cv2.cvtColor(np.hstack(squares), cv2.COLOR_RGB2BGR)
    is_written, content = cv2.imencode(".webp", strip, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])
    assert is_written
    return "data:image/webp;base64," + base64.b64encode(content.tobytes()).decode()


def _square(frame: Rgb) -> Rgb:
    """Crop the centred square and resize it; very narrow frames (joints) are stretched instead."""
    height, width, _ = frame.shape
    side = min(height, width)
    if 4 * side > max(height, width):
        top, left = (height - side) // 2, (width - side) // 2
        frame = frame[top : top + side, left : left + side]
    method = cv2.INTER_AREA if side > SIDE_PX else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(frame, (SIDE_PX, SIDE_PX), interpolation=method), dtype=np.uint8)
