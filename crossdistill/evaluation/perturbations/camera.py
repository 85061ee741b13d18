"""Rotation and translation of the camera, and an occluder in front of it. Shapes: T frames, H height, W width."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from crossdistill.evaluation.perturbations.clip import Clip

GREY = 127


def rotation(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Rotate every frame by an angle of its own, uniform from ``-strength`` to ``strength`` degrees; corners are black.

    The draws are independent, as if the camera shook.
    """
    return _rotated(clip_thwc, generator.uniform(-strength, strength, len(clip_thwc)))


def static_rotation(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Rotate all frames by ``strength`` degrees, counterclockwise; corners are black."""
    return _rotated(clip_thwc, np.full(len(clip_thwc), strength))


def translation(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Shift every frame by whole pixels of its own, along both axes up to ``strength`` times the side of the picture.

    What comes in at the edges is the mirrored picture.
    """
    _, height, width, _ = clip_thwc.shape
    shifts_t2 = np.rint(generator.uniform(-strength, strength, (len(clip_thwc), 2)) * (width, height))
    return np.stack([_shifted(frame, round(x), round(y)) for frame, (x, y) in zip(clip_thwc, shifts_t2, strict=True)])


def occlusion(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Cover a share ``strength`` of the picture by a grey box in the same place of all frames."""
    _, height, width, _ = clip_thwc.shape
    box_height, box_width = (max(1, round(side * math.sqrt(strength))) for side in (height, width))
    top, left = generator.integers(height - box_height + 1), generator.integers(width - box_width + 1)
    covered = clip_thwc.copy()
    covered[:, top : top + box_height, left : left + box_width] = GREY
    return covered


def _rotated(clip_thwc: Clip, degrees_t: NDArray[np.float64]) -> Clip:
    _, height, width, _ = clip_thwc.shape
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrices = [cv2.getRotationMatrix2D(centre, float(degrees), 1) for degrees in degrees_t]
    turned = [cv2.warpAffine(frame, matrix, (width, height)) for frame, matrix in zip(clip_thwc, matrices, strict=True)]
    return np.stack(turned)


def _shifted(frame_hwc: Clip, x_px: int, y_px: int) -> Clip:
    """Move the content to the right and down."""
    height, width, _ = frame_hwc.shape
    padded = np.pad(frame_hwc, ((abs(y_px), abs(y_px)), (abs(x_px), abs(x_px)), (0, 0)), mode="symmetric")
    top, left = abs(y_px) - y_px, abs(x_px) - x_px
    return np.ascontiguousarray(padded[top : top + height, left : left + width])
