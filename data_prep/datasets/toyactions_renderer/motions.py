"""Motions of toyactions: the path of the acting body for each class, and of distractors.

A motion maps instants, in frames from the clip's middle, to a path relative to the pose at the middle. Speeds are per
frame, whatever the clip's length; shape suffix T is the number of frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

REFERENCE_STEPS = 19
"""Steps between frames of a usual clip. Longer clips move more slowly, so that bodies stay in the frame."""
REFERENCE_SIDE_PX = 64
"""Frame side for which speeds in pixels are given."""
MAX_APPROACH_RATIO = 3.0
"""Largest ratio of the distances at both ends of Approach and Recede."""


@dataclass(frozen=True)
class Track:
    """Path of a body relative to its pose at the clip's middle."""

    offset: NDArray[np.float64]
    """[T, 2], x and y in frame sides."""
    angle_rad: NDArray[np.float64]
    """[T], rotation."""
    scale: NDArray[np.float64]
    """[T], size relative to the middle. Distance is proportional to 1 / scale."""


Motion = Callable[[np.random.Generator, NDArray[np.float64]], Track]
Values = NDArray[np.float64] | float
"""[T], or one number for all frames."""


def _track(
    instants: NDArray[np.float64], *, x: Values = 0.0, y: Values = 0.0, angle_rad: Values = 0.0, scale: Values = 1.0
) -> Track:
    full = [np.broadcast_to(np.asarray(v, dtype=np.float64), instants.shape) for v in (x, y, angle_rad, scale)]
    return Track(offset=np.stack(full[:2], axis=1), angle_rad=full[2], scale=full[3])


def slowdown(instants: NDArray[np.float64]) -> float:
    """Return the factor that limits the travel of a long clip to that of the reference length."""
    return min(1.0, REFERENCE_STEPS / (len(instants) - 1))


def _slide(rng: np.random.Generator, instants: NDArray[np.float64], *, heading_rad: float) -> Track:
    speed = rng.uniform(0.8, 2.2) / REFERENCE_SIDE_PX * slowdown(instants)
    heading_rad += rng.uniform(-0.2, 0.2)
    return _track(instants, x=speed * math.cos(heading_rad) * instants, y=speed * math.sin(heading_rad) * instants)


def _loom(rng: np.random.Generator, instants: NDArray[np.float64], *, sign: int) -> Track:
    growth = math.log(rng.uniform(1.8, MAX_APPROACH_RATIO)) / REFERENCE_STEPS * slowdown(instants)
    return _track(instants, scale=np.exp(sign * growth * instants))


def _spin(rng: np.random.Generator, instants: NDArray[np.float64], *, sign: int) -> Track:
    return _track(instants, angle_rad=sign * rng.uniform(0.09, 0.23) * instants)


def _orbit(rng: np.random.Generator, instants: NDArray[np.float64], *, sign: int) -> Track:
    radius, start = rng.uniform(0.09, 0.15), rng.uniform(0, 2 * math.pi)
    phase = start + sign * rng.uniform(0.2, 0.33) * instants
    return _track(instants, x=radius * (np.cos(phase) - math.cos(start)), y=radius * (np.sin(phase) - math.sin(start)))


def _bounce(rng: np.random.Generator, instants: NDArray[np.float64]) -> Track:
    period, height, start = rng.uniform(10, 14), rng.uniform(0.09, 0.17), rng.uniform(0, 1)
    phase = (start + instants / period) % 1
    return _track(instants, y=4 * height * (start * (1 - start) - phase * (1 - phase)))


def _shake(rng: np.random.Generator, instants: NDArray[np.float64]) -> Track:
    period, amplitude = rng.uniform(5, 7), rng.uniform(0.025, 0.045)
    heading, start = rng.uniform(0, 2 * math.pi, size=2)
    swing = amplitude * (np.sin(start + 2 * math.pi * instants / period) - math.sin(start))
    return _track(instants, x=math.cos(heading) * swing, y=math.sin(heading) * swing)


ACTIONS: dict[str, Motion] = {
    "SlideLeft": partial(_slide, heading_rad=math.pi),
    "SlideRight": partial(_slide, heading_rad=0.0),
    "SlideUp": partial(_slide, heading_rad=-math.pi / 2),
    "SlideDown": partial(_slide, heading_rad=math.pi / 2),
    "Approach": partial(_loom, sign=1),
    "Recede": partial(_loom, sign=-1),
    "SpinClockwise": partial(_spin, sign=1),
    "SpinAnticlockwise": partial(_spin, sign=-1),
    "OrbitClockwise": partial(_orbit, sign=1),
    "OrbitAnticlockwise": partial(_orbit, sign=-1),
    "Bounce": _bounce,
    "Shake": _shake,
}
"""Class name to motion, in the order of the labels."""


def drift(rng: np.random.Generator, instants: NDArray[np.float64]) -> Track:
    """Draw the path of a distractor: it stands, drifts slowly or trembles, in a random direction."""
    heading = rng.uniform(0, 2 * math.pi)
    speed = rng.choice([0.0, 1.0]) * rng.uniform(0.1, 0.4) / REFERENCE_SIDE_PX * slowdown(instants)
    tremble = rng.choice([0.0, 1.0]) * rng.normal(0, 0.3 / REFERENCE_SIDE_PX, size=(2, len(instants)))
    return _track(
        instants,
        x=speed * math.cos(heading) * instants + tremble[0],
        y=speed * math.sin(heading) * instants + tremble[1],
    )


def camera(rng: np.random.Generator, instants: NDArray[np.float64]) -> Track:
    """Draw the path of the background, as if the camera moved: it pans about as fast as bodies slide, turns and zooms.

    Most of a clip's pixels are background, so that the mean motion of a clip says little about the class.
    """
    heading, speed = rng.uniform(0, 2 * math.pi), rng.uniform(1.0, 2.4) / REFERENCE_SIDE_PX
    turn_rad, growth = rng.uniform(-0.04, 0.04), rng.uniform(-0.015, 0.015)
    steps = slowdown(instants) * instants
    return _track(
        instants,
        x=speed * math.cos(heading) * steps,
        y=speed * math.sin(heading) * steps,
        angle_rad=turn_rad * steps,
        scale=np.exp(growth * steps),
    )
