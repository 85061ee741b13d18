"""Brightness and contrast, the same change for all frames of a clip. The strengths are those of ImageNet-C.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import numpy as np

from crossdistill.evaluation.perturbations.clip import Clip, to_bytes


def brightness(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Raise the largest channel of every pixel by ``strength``, where white is 1; hue and saturation stay.

    It is the value V of the colour model HSV. Values above white are clipped. Black becomes grey.
    """
    value_thw1 = clip_thwc.max(axis=-1, keepdims=True).astype(np.float32)
    raised_thw1 = np.minimum(value_thw1 + 255 * strength, 255)
    scaled = clip_thwc * (raised_thw1 / np.maximum(value_thw1, 1))
    return to_bytes(np.where(value_thw1 == 0, raised_thw1, scaled))


def contrast(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Multiply the difference from the mean colour of the clip by ``strength``, which is below 1."""
    mean = clip_thwc.mean(axis=(0, 1, 2), keepdims=True, dtype=np.float64)
    return to_bytes((clip_thwc - mean) * strength + mean)
