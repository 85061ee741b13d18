"""Optical flow on the CPU by Dense Inverse Search (Kroeger et al., ECCV 2016), as OpenCV has it.

Shapes: H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import unknown_name
from data_prep.flow.base import FlowFunction, FlowMethod
from data_prep.recipe import Recipe

Estimate = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]]
"""From two gray pictures [H, W], uint8, to flow [H, W, 2]."""

# Milliseconds per pair of 256x456 pictures on one core: 1.2, 2.2 and 11.8.
FLOW_PRESETS: dict[str, int] = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
# The two faster presets stop at a quarter of the resolution. In small pictures that blurs bodies away, and is
# off by 0.19 px where a texture moves by 3 px at 112x150; at half it is off by 0.007 px, for 1.4 ms instead of 0.5.
SMALL_PICTURE_PX = 192
SMALL_PICTURE_FINEST_SCALE = 1


def dis_flow(preset: str = "fast") -> Estimate:
    """Make a function that estimates the motion between two gray pictures.

    The function takes pictures [H, W] and gives [H, W, 2]: what is at (x, y) in the first is at
    (x + flow[y, x, 0], y + flow[y, x, 1]) in the second, in pixels. OpenCV cuts the picture into one
    stripe per thread, so results are the same everywhere only under ``cv2.setNumThreads(1)``.

    Args:
        preset: One of ``FLOW_PRESETS``.
    """
    if preset not in FLOW_PRESETS:
        raise unknown_name("flow preset", preset, FLOW_PRESETS)
    estimator = cv2.DISOpticalFlow.create(FLOW_PRESETS[preset])
    usual_scale = estimator.getFinestScale()

    def estimate(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float32]:
        is_small = min(first.shape) < SMALL_PICTURE_PX
        estimator.setFinestScale(min(usual_scale, SMALL_PICTURE_FINEST_SCALE) if is_small else usual_scale)
        return estimator.calc(first, second, None)  # type: ignore[call-overload]

    return estimate


def _create(recipe: Recipe) -> FlowFunction:
    estimate = dis_flow(recipe.flow_preset)
    return lambda first, second: estimate(first.gray, second.gray)


DIS = FlowMethod(create=_create)
