"""OpenCV's methods on the CPU: DIS, which is the default, and two for comparison with published work.

* Dense Inverse Search: Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016.
* Farnebäck, Two-Frame Motion Estimation Based on Polynomial Expansion, SCIA 2003: slower than DIS.
* TV-L1: Zach et al., A Duality Based Approach for Realtime TV-L1 Optical Flow, DAGM 2007, with OpenCV's default
  parameters (lambda 0.15, tau 0.25, theta 0.3, 5 scales, 5 warps). Two-stream networks used it; it is much slower.

OpenCV divides the picture into one stripe per thread, so results are reproducible only with ``cv2.setNumThreads(1)``.

Shapes: H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import UserError, unknown_name
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
# The values of OpenCV's documentation, which recommends the pair of neighbourhood (7 px) and its sigma (1.5).
FARNEBACK_OPTIONS = {"pyr_scale": 0.5, "levels": 4, "winsize": 15, "iterations": 3, "poly_n": 7, "poly_sigma": 1.5}


def dis_flow(preset: str = "fast") -> GrayFlowFunction:
    """Create a function that estimates flow by DIS. ``preset`` is one of ``FLOW_PRESETS``."""
    if preset not in FLOW_PRESETS:
        raise unknown_name("flow preset", preset, FLOW_PRESETS)
    estimator = cv2.DISOpticalFlow.create(FLOW_PRESETS[preset])
    usual_scale = estimator.getFinestScale()

    def estimate(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float32]:
        is_small = min(first.shape) < SMALL_PICTURE_PX
        estimator.setFinestScale(min(usual_scale, 1) if is_small else usual_scale)
        return estimator.calc(first, second, None)  # type: ignore[call-overload]

    return estimate


def _farneback_flow(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float32]:
    empty = np.zeros((*first.shape, 2), dtype=np.float32)
    return cv2.calcOpticalFlowFarneback(first, second, empty, **FARNEBACK_OPTIONS, flags=0)  # type: ignore[call-overload]


def _tvl1_flow() -> GrayFlowFunction:
    _check_tvl1()
    estimator = cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined]
    return lambda first, second: estimator.calc(first, second, None)


def _check_tvl1(recipe: Recipe | None = None) -> None:
    # Several OpenCV packages share the folder cv2: the one that was installed last may lack the module.
    if not hasattr(cv2, "optflow"):
        raise UserError(
            f"--flow tvl1 needs the contributed modules of OpenCV, and the installed OpenCV {cv2.__version__} has "
            "none: uninstall it, then run pip install --force-reinstall opencv-contrib-python-headless"
        )


def _of_frames(estimate: GrayFlowFunction) -> FlowFunction:
    return lambda first, second: np.asarray(estimate(first.gray, second.gray), dtype=np.float32)


DIS = FlowMethod(create=lambda recipe: _of_frames(dis_flow(recipe.flow_preset)))
FARNEBACK = FlowMethod(create=lambda recipe: _of_frames(_farneback_flow))
TVL1 = FlowMethod(create=lambda recipe: _of_frames(_tvl1_flow()), check=_check_tvl1)
