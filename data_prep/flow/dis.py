"""Dense Inverse Search on the CPU: the default flow method.

Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016; the implementation is OpenCV's.

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

GrayFlowFunction = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float32]]
"""Takes two gray pictures [H, W], uint8. Returns [H, W, 2] in pixels: what is at (x, y) in the first picture is at
(x + flow[y, x, 0], y + flow[y, x, 1]) in the second."""

# Milliseconds per pair of 256x456 pictures on one core: 1.2, 2.2 and 11.8.
FLOW_PRESETS: dict[str, int] = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
# The two faster presets stop at a quarter of the resolution, where bodies in small pictures are lost. With a texture
# that moves by 3 px at 112x150, the error is 0.19 px at a quarter (0.5 ms) and 0.007 px at half (1.4 ms).
SMALL_PICTURE_PX = 192


def dis_flow(preset: str = "fast") -> GrayFlowFunction:
    """Create a function that estimates the flow between two gray pictures. ``preset`` is one of ``FLOW_PRESETS``.

    OpenCV divides the picture into one stripe per thread, so results are reproducible only with
    ``cv2.setNumThreads(1)``.
    """
    if preset not in FLOW_PRESETS:
        raise unknown_name("flow preset", preset, FLOW_PRESETS)
    estimator = cv2.DISOpticalFlow.create(FLOW_PRESETS[preset])
    usual_scale = estimator.getFinestScale()

    def estimate(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float32]:
        is_small = min(first.shape) < SMALL_PICTURE_PX
        estimator.setFinestScale(min(usual_scale, 1) if is_small else usual_scale)
        return estimator.calc(first, second, None)  # type: ignore[call-overload]

    return estimate


def _create(recipe: Recipe) -> FlowFunction:
    estimate = dis_flow(recipe.flow_preset)
    return lambda first, second: estimate(first.gray, second.gray)


DIS = FlowMethod(create=_create)
