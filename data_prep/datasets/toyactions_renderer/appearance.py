"""Appearance of toyactions: silhouettes and textures of bodies, textures of backgrounds. K is a texture's side."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TEXTURE_MARGIN = 1.1
"""Half the side of a body's texture, in radii: keeps the body's edge away from the texture's border."""


def _polygon(num_corners: int) -> Callable[[Floats, np.random.Generator], Floats]:
    def outline(bearing_rad: Floats, rng: np.random.Generator) -> Floats:
        half = math.pi / num_corners
        return (math.cos(half) / np.cos(bearing_rad % (2 * half) - half)).astype(np.float32)

    return outline


def _star(bearing_rad: Floats, rng: np.random.Generator) -> Floats:
    points, dent = rng.integers(4, 7), rng.uniform(0.45, 0.6)
    half = math.pi / points
    # The straight edge from a tip (radius 1, bearing 0) to a dent (radius `dent`, bearing `half`).
    bearing = np.abs((bearing_rad + half) % (2 * half) - half)
    edge = dent * math.sin(half) / (dent * np.sin(half - bearing) + np.sin(bearing))
    return np.asarray(edge, dtype=np.float32)


def _blob(bearing_rad: Floats, rng: np.random.Generator) -> Floats:
    waves = [(n, rng.uniform(0.05, 0.35) / n, rng.uniform(0, 2 * math.pi)) for n in (2, 3, 4, 5)]
    bulge = np.stack([size * np.cos(n * bearing_rad + phase) for n, size, phase in waves]).sum(axis=0)
    outline = 0.75 + 0.75 * bulge
    return (outline / outline.max()).astype(np.float32)


def _disc(bearing_rad: Floats, rng: np.random.Generator) -> Floats:
    return np.ones_like(bearing_rad)


SILHOUETTES: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "disc": _disc,
    "triangle": _polygon(3),
    "square": _polygon(4),
    "pentagon": _polygon(5),
    "star": _star,
    "blob": _blob,
}
"""Name to outline: the radius (at most 1) at each bearing from the body's centre."""


def _noise(rng: np.random.Generator, *, cells: int, channels: int, side_px: int) -> Floats:
    """Return smooth noise [K, K, channels] that varies over a distance of K / cells."""
    coarse = rng.standard_normal((cells, cells, channels)).astype(np.float32)
    fine = cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    return np.asarray(fine, dtype=np.float32).reshape(side_px, side_px, channels)


def paint_texture(
    rng: np.random.Generator, *, side_px: int, cells: int, contrast: float, intensity: tuple[float, float]
) -> Floats:
    """Paint about ``cells`` patches a side, of two colours, with finer noise on top: [K, K, 3].

    The same state of ``rng`` gives the same picture at every resolution. ``contrast`` is 1 for two distant colours,
    ``intensity`` the darkest and the lightest value.
    """
    first = rng.uniform(0, 1, size=3)
    second = (first + 0.5 + rng.uniform(-0.2, 0.2, size=3)) % 1
    middle, apart = (first + second) / 2, (second - first) / 2
    patches = np.tanh(3 * _noise(rng, cells=cells, channels=1, side_px=side_px))
    colours = middle.astype(np.float32) + contrast * apart.astype(np.float32) * patches
    colours += 0.12 * contrast * _noise(rng, cells=2 * cells, channels=3, side_px=side_px)
    colours += 0.06 * contrast * _noise(rng, cells=4 * cells, channels=3, side_px=side_px)
    darkest, lightest = intensity
    return np.asarray(darkest + (lightest - darkest) * np.clip(colours, 0, 1), dtype=np.float32)


def cut_silhouette(texture: Floats, outline: Callable[[Floats], Floats]) -> Floats:
    """Cut a body out of a texture [K, K, 3], which covers ±``TEXTURE_MARGIN`` radii, with a soft edge and a darker rim.

    ``outline`` maps bearings in radians to the radius of the body's edge. The result [K, K, 4] is the colour multiplied
    by the coverage, and the coverage.
    """
    side_px = len(texture)
    axis = ((np.arange(side_px, dtype=np.float32) + 0.5) * 2 / side_px - 1) * TEXTURE_MARGIN
    radius = np.hypot(axis[:, None], axis[None, :])
    inside = outline(np.arctan2(axis[:, None], axis[None, :])) - radius
    coverage = np.clip(inside * side_px / (2 * TEXTURE_MARGIN) + 0.5, 0, 1)
    shade = coverage * np.clip(0.55 + 4 * inside, 0.55, 1)
    return np.dstack([texture * shade[:, :, None], coverage]).astype(np.float32)
