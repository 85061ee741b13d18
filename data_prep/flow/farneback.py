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
PYRAMID_SCALE = 0.5
NUM_LEVELS = 4
WINDOW_PX = 15
NUM_ITERATIONS = 3
NEIGHBOURHOOD_PX = 7
NEIGHBOURHOOD_SIGMA_PX = 1.5


def _create(recipe: Recipe) -> FlowFunction:
    def estimate(first: Frame, second: Frame) -> NDArray[np.float32]:
        empty = np.zeros((*first.gray.shape, 2), dtype=np.float32)
        flow = cv2.calcOpticalFlowFarneback(
            first.gray,
            second.gray,
            empty,
            PYRAMID_SCALE,
            NUM_LEVELS,
            WINDOW_PX,
            NUM_ITERATIONS,
            NEIGHBOURHOOD_PX,
            NEIGHBOURHOOD_SIGMA_PX,
            0,
        )
        return np.asarray(flow, dtype=np.float32)

    return estimate


FARNEBACK = FlowMethod(create=_create)
