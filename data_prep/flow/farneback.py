"""Farnebäck's flow on the CPU: slower than DIS, for comparison with published work.

Farnebäck, Two-Frame Motion Estimation Based on Polynomial Expansion, SCIA 2003; the implementation is OpenCV's.
Results are reproducible only with ``cv2.setNumThreads(1)``.

Shapes: H height, W width.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.flow.base import FlowFunction, FlowMethod
from data_prep.frames import Frame
from data_prep.recipe import Recipe

# The values of OpenCV's documentation, which recommends the pair of neighbourhood (7 px) and its sigma (1.5).
PARAMETERS = {"pyr_scale": 0.5, "levels": 4, "winsize": 15, "iterations": 3, "poly_n": 7, "poly_sigma": 1.5, "flags": 0}


def _create(recipe: Recipe) -> FlowFunction:
    def estimate(first: Frame, second: Frame) -> NDArray[np.float32]:
        empty = np.zeros((*first.gray.shape, 2), dtype=np.float32)
        flow = cv2.calcOpticalFlowFarneback(first.gray, second.gray, empty, **PARAMETERS)  # type: ignore[call-overload]
        return np.asarray(flow, dtype=np.float32)

    return estimate


FARNEBACK = FlowMethod(create=_create)
