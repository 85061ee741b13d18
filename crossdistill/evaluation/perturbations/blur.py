"""Blur of a lens, a moving camera and a zoom. The same blur for all frames of a clip.

Lengths are in pixels of a picture with a shorter side of 224, and grow with the picture.

Shapes: T frames, H height, W width, K kernel.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from crossdistill.evaluation.perturbations.clip import Clip, scaled_px, to_bytes

NUM_ZOOMS = 11
MAX_ANGLE_DEGREES = 45.0
# Of the Gaussian along the path of a moving camera, in standard deviations.
PATH_LENGTH = 2.0


def defocus_blur(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Average over a disk; ``strength`` is its radius in px."""
    return _filtered(clip_thwc, disk(scaled_px(strength, clip_thwc)))


def motion_blur(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Average along a line from each pixel; ``strength`` is the standard deviation of its Gaussian weights in px.

    The direction is drawn once for the clip, up to 45 degrees from the horizontal.
    """
    angle = math.radians(generator.uniform(-MAX_ANGLE_DEGREES, MAX_ANGLE_DEGREES))
    return _filtered(clip_thwc, path(scaled_px(strength, clip_thwc), angle))


def zoom_blur(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Average a frame and its magnifications, evenly from 1 to ``strength``."""
    _, height, width, _ = clip_thwc.shape
    centre = ((width - 1) / 2, (height - 1) / 2)
    matrices = [cv2.getRotationMatrix2D(centre, 0, zoom) for zoom in np.linspace(1, strength, NUM_ZOOMS)]
    blurred = []
    for frame in clip_thwc.astype(np.float32):
        zooms = [cv2.warpAffine(frame, matrix, (width, height), borderMode=cv2.BORDER_REFLECT) for matrix in matrices]
        blurred.append(np.mean(zooms, axis=0))
    return to_bytes(np.stack(blurred))


def disk(radius_px: float) -> NDArray[np.float32]:
    """Return the weights [K, K] of a disk, whose edge is soft over one pixel; they add up to 1."""
    reach = math.ceil(radius_px)
    offsets = np.arange(-reach, reach + 1)
    distance = np.hypot(offsets[:, None], offsets[None, :])
    weights = (radius_px + 0.5 - distance).clip(0, 1)
    return (weights / weights.sum()).astype(np.float32)


def path(sigma_px: float, angle: float) -> NDArray[np.float32]:
    """Return the weights [K, K] of a line from the middle, in the direction ``angle`` in radians; they add up to 1."""
    reach = math.ceil(PATH_LENGTH * sigma_px)
    weights = np.zeros((2 * reach + 3, 2 * reach + 3))
    for step in range(reach + 1):
        x, y = reach + 1 + step * math.cos(angle), reach + 1 + step * math.sin(angle)
        left, top = math.floor(x), math.floor(y)
        for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
            share = (1 - abs(x - column)) * (1 - abs(y - row))
            weights[row, column] += share * math.exp(-0.5 * (step / sigma_px) ** 2)
    return (weights / weights.sum()).astype(np.float32)


def _filtered(clip_thwc: Clip, kernel_kk: NDArray[np.float32]) -> Clip:
    frames = [cv2.filter2D(frame, cv2.CV_32F, kernel_kk, borderType=cv2.BORDER_REFLECT) for frame in clip_thwc]
    return to_bytes(np.stack(frames))
