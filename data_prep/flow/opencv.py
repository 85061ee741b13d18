"""Two more optical flows of OpenCV's, on the CPU: Farnebäck's and TV-L1.

Slower than DIS, and mostly for comparison with published work: the flow of two-stream networks was
TV-L1 for years. Results are the same everywhere only under ``cv2.setNumThreads(1)``.

Shapes: H height, W width.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import UserError
from data_prep.flow.base import FlowFunction, FlowMethod
from data_prep.frames import Frame
from data_prep.recipe import Recipe

# Of Farnebäck, Two-Frame Motion Estimation Based on Polynomial Expansion (SCIA 2003): polynomials over 7 pixels,
# smoothed with 1.5, are the pair that OpenCV's documentation recommends; the rest are its usual values.
FARNEBACK_PYRAMID_SCALE = 0.5
FARNEBACK_LEVELS = 4
FARNEBACK_WINDOW_PX = 15
FARNEBACK_ITERATIONS = 3
FARNEBACK_POLYNOMIAL_PX = 7
FARNEBACK_POLYNOMIAL_SIGMA_PX = 1.5


def _create_farneback(recipe: Recipe) -> FlowFunction:
    def estimate(first: Frame, second: Frame) -> NDArray[np.float32]:
        empty = np.zeros((*first.gray.shape, 2), dtype=np.float32)
        flow = cv2.calcOpticalFlowFarneback(
            first.gray,
            second.gray,
            empty,
            FARNEBACK_PYRAMID_SCALE,
            FARNEBACK_LEVELS,
            FARNEBACK_WINDOW_PX,
            FARNEBACK_ITERATIONS,
            FARNEBACK_POLYNOMIAL_PX,
            FARNEBACK_POLYNOMIAL_SIGMA_PX,
            0,
        )
        return np.asarray(flow, dtype=np.float32)

    return estimate


FARNEBACK = FlowMethod(create=_create_farneback)


def _check_tvl1(recipe: Recipe) -> None:
    if not hasattr(cv2, "optflow"):
        raise UserError(
            f"--flow tvl1 needs OpenCV's contributed modules, which the installed OpenCV {cv2.__version__} is without: "
            "pip uninstall it, then pip install --force-reinstall opencv-contrib-python-headless"
        )


def _create_tvl1(recipe: Recipe) -> FlowFunction:
    """TV-L1 (Zach et al., DAGM 2007) with OpenCV's parameters: lambda 0.15, tau 0.25, theta 0.3, 5 scales, 5 warps."""
    _check_tvl1(recipe)
    estimator = cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined]

    def estimate(first: Frame, second: Frame) -> NDArray[np.float32]:
        return np.asarray(estimator.calc(first.gray, second.gray, None), dtype=np.float32)

    return estimate


TVL1 = FlowMethod(create=_create_tvl1, check=_check_tvl1)
