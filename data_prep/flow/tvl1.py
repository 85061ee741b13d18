"""TV-L1 flow on the CPU: much slower than DIS, for comparison with published two-stream networks, which used it.

Zach et al., A Duality Based Approach for Realtime TV-L1 Optical Flow, DAGM 2007; the implementation is OpenCV's, with
its default parameters: lambda 0.15, tau 0.25, theta 0.3, 5 scales, 5 warps. Results are reproducible only with
``cv2.setNumThreads(1)``.

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


def _create(recipe: Recipe) -> FlowFunction:
    _check(recipe)
    estimator = cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined]

    def estimate(first: Frame, second: Frame) -> NDArray[np.float32]:
        return np.asarray(estimator.calc(first.gray, second.gray, None), dtype=np.float32)

    return estimate


def _check(recipe: Recipe) -> None:
    # Several OpenCV packages share the folder cv2: the one that was installed last may lack the module.
    if not hasattr(cv2, "optflow"):
        raise UserError(
            f"--flow tvl1 needs the contributed modules of OpenCV, and the installed OpenCV {cv2.__version__} has "
            "none: uninstall it, then run pip install --force-reinstall opencv-contrib-python-headless"
        )


TVL1 = FlowMethod(create=_create, check=_check)
