"""Perturbations of time: which moments the frames of a clip show, in place of 0, 1, 2, … steps after its start.

A step is the distance of two frames of the clip. A moment between two frames of the video shows the nearest one;
moments beyond its ends show the first or last frame (with ``--short-clips loop`` the video starts again).

Shapes: T frames.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Steps = NDArray[np.float64]


def jitter(num_frames: int, strength: float, generator: np.random.Generator) -> Steps:
    """Move the moment of every frame by up to ``strength`` steps, so that neighbours may change places."""
    moved: Steps = np.arange(num_frames, dtype=np.float64) + generator.uniform(-strength, strength, num_frames)
    return moved


def frame_drop(num_frames: int, strength: float, generator: np.random.Generator) -> Steps:
    """Lose a share ``strength`` of the frames: the clip goes on with later ones, so it covers more time, unevenly."""
    num_sent = math.ceil(num_frames / (1 - strength) - 1e-9)
    kept = np.sort(generator.choice(num_sent, num_frames, replace=False))
    moments: Steps = kept.astype(np.float64) - (num_sent - num_frames) / 2  # around the same moment
    return moments


def freeze(num_frames: int, strength: float, generator: np.random.Generator) -> Steps:
    """Keep a share ``strength`` of the frames, at least one; each is shown until the next kept one."""
    num_kept = max(1, round(strength * num_frames))
    kept = np.sort(generator.choice(num_frames, num_kept, replace=False))
    shown = np.searchsorted(kept, np.arange(num_frames), side="right") - 1
    return kept[shown.clip(0)].astype(np.float64)


def jumble(num_frames: int, strength: float, generator: np.random.Generator) -> Steps:
    """Shuffle the frames within segments, each a share ``strength`` of the clip and at least two frames.

    With ``strength`` 1 all frames are shuffled. A draw that leaves all frames in place is drawn again.
    """
    length = max(2, round(strength * num_frames))
    segments = [np.arange(start, min(start + length, num_frames)) for start in range(0, num_frames, length)]
    order = np.arange(num_frames)
    while num_frames > 1 and (order == np.arange(num_frames)).all():
        order = np.concatenate([generator.permutation(segment) for segment in segments])
    return order.astype(np.float64)


def sampling_rate(num_frames: int, strength: float, generator: np.random.Generator) -> Steps:
    """Take the frames ``strength`` steps apart, around the same moment."""
    middle = (num_frames - 1) / 2
    moments: Steps = (np.arange(num_frames, dtype=np.float64) - middle) * strength + middle
    return moments


def reversal(num_frames: int, strength: float, generator: np.random.Generator) -> Steps:
    """Show the frames from last to first, ``strength`` steps apart."""
    return sampling_rate(num_frames, strength, generator)[::-1].copy()
