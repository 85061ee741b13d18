"""The clip that perturbations of pictures change. Shapes: T frames, H height, W width."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Clip = NDArray[np.uint8]
"""[T, H, W, 3] decoded RGB frames."""
REFERENCE_SIDE_PX = 224
"""Shorter side of a picture for which lengths in pixels are given; they grow with the picture."""


def to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Round to integers in [0, 255]."""
    return np.rint(values).clip(0, 255).astype(np.uint8)


def scaled_px(length_px: float, clip_thwc: Clip) -> float:
    """Scale a length that is given for a picture of ``REFERENCE_SIDE_PX``."""
    return length_px * min(clip_thwc.shape[1:3]) / REFERENCE_SIDE_PX
