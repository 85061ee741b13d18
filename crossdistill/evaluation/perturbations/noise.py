"""Noise of a sensor, drawn for each pixel, channel and frame. The strengths are those of UCF101-P.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crossdistill.evaluation.perturbations.clip import Clip, to_bytes


def gaussian_noise(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Add normal noise; ``strength`` is its standard deviation, where white is 1."""
    return to_bytes(clip_thwc + 255 * strength * _normal(clip_thwc, generator))


def speckle_noise(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Add normal noise whose standard deviation is ``strength`` times the value of the pixel."""
    return to_bytes(clip_thwc + clip_thwc * (strength * _normal(clip_thwc, generator)))


def shot_noise(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Draw the photons of each pixel from a Poisson distribution; ``strength`` is their expected number for white."""
    return to_bytes(generator.poisson(clip_thwc * (strength / 255)) * (255 / strength))


def impulse_noise(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Set a share ``strength`` of all values to black or white, with equal probability."""
    draw = generator.random(clip_thwc.shape, dtype=np.float32)
    noisy = np.where(draw < strength / 2, np.uint8(0), clip_thwc)
    return np.where(draw >= 1 - strength / 2, np.uint8(255), noisy)


def _normal(clip_thwc: Clip, generator: np.random.Generator) -> NDArray[np.float32]:
    return generator.standard_normal(clip_thwc.shape, dtype=np.float32)
