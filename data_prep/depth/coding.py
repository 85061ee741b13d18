"""Stored values of estimated depth: uint16, 0 where the network returned no number.

Training turns each clip of stored depth into disparity: the nearest distance in the clip divided by the distance
(``crossdistill.modalities``). Both kinds of networks are stored so that this comes out right:

* Metric networks return metres. They are stored as millimetres, from 1 mm to 65.5 m.
* Relative networks (Depth Anything, MiDaS) return inverse depth of unknown scale. ``K / inverse depth`` is stored. So
  the disparity of a clip is the network's inverse depth divided by its maximum in the clip, whatever ``K`` is.

``K`` is set by the first frame, such that its nearest hundredth begins at 1000, and kept for the whole video. A clip
needs one scale, and the video is read only once. Rounding to integers costs 0.05 % at this distance and 0.5 % ten
times nearer. Everything 65 times farther is stored as 65535. The values of relative networks are no millimetres, and
must not be compared between videos.

Shapes: H height, W width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EstimatedDepth = NDArray[np.float32]
"""[H, W], metres or inverse depth."""

FARTHEST = 65535
NEAR_PERCENTILE = 99.0
NEAR_VALUE = 1000.0


def code_metres(depth_metres: EstimatedDepth) -> NDArray[np.uint16]:
    """Convert metres [H, W] to stored millimetres [H, W], 0 where the network returned no distance.

    Example:
        >>> code_metres(np.array([[1.2344, 100.0, np.nan, -1.0]], dtype=np.float32)).tolist()
        [[1234, 65535, 0, 0]]
    """
    is_distance = np.isfinite(depth_metres) & (depth_metres > 0)
    depth_mm = np.clip(np.rint(np.where(is_distance, depth_metres, 0.0) * 1000), 1, FARTHEST)
    return np.where(is_distance, depth_mm, 0).astype(np.uint16)


class InverseDepthCoder:
    """Converts the inverse depth of the frames of one video, in order. The first frame sets the scale.

    Example:
        >>> coder = InverseDepthCoder()
        >>> coder(np.full((1, 3), 2.0, dtype=np.float32)).tolist()
        [[1000, 1000, 1000]]
        >>> coder(np.array([[4.0, 1.0, 0.0]], dtype=np.float32)).tolist()
        [[500, 2000, 65535]]
    """

    def __init__(self) -> None:
        self.numerator: float | None = None
        """K of ``K / inverse depth``. None until a frame has set it."""

    def __call__(self, inverse_depth: EstimatedDepth) -> NDArray[np.uint16]:
        """Convert [H, W] to stored values: 1 is nearest, 65535 is farthest, 0 is no number."""
        is_number = np.isfinite(inverse_depth)
        inverse = np.where(is_number, inverse_depth, 0.0).astype(np.float64)
        if self.numerator is None:
            near = float(np.percentile(inverse, NEAR_PERCENTILE))
            if near > 0:
                self.numerator = NEAR_VALUE * near
        if self.numerator is None:  # everything is at infinity (a black frame, say): the next frame may set the scale
            return np.where(is_number, FARTHEST, 0).astype(np.uint16)
        stored = np.rint(self.numerator / np.maximum(inverse, self.numerator / FARTHEST))
        return np.where(is_number, np.maximum(stored, 1), 0).astype(np.uint16)
