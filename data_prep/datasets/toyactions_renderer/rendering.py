"""Rendering of toyactions: RGB, exact flow and exact depth of a scene.

Shapes: T frames, H height, W width; height and width are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.datasets.toyactions_renderer.appearance import TEXTURE_MARGIN, Floats
from data_prep.datasets.toyactions_renderer.scene import SUPERSAMPLING, Body, Scene


@dataclass(frozen=True)
class Clip:
    """Rendered frames of a scene."""

    rgb: Floats
    """[T, H, W, 3], intensity in [0, 1]."""
    flow_px: Floats
    """[T - 1, H, W, 2], motion (x and y) to the next frame of the surface that is visible at each pixel."""
    depth_mm: NDArray[np.uint16]
    """[T, H, W, 1], distance of the surface that is visible at each pixel."""
    surface: NDArray[np.uint8]
    """[T, H, W], the visible surface: 0 background, 1 acting body, 2 and 3 distractors."""


@dataclass(frozen=True)
class _Canvas:
    """One frame in progress. Colour is supersampled, the rest has the frame's resolution."""

    rgb: Floats
    depth_mm: Floats
    flow_px: Floats
    """[2, H, W]."""
    surface: NDArray[np.uint8]


def _warp(texture: Floats, matrix: NDArray[np.float64], extent_px: tuple[int, int]) -> Floats:
    """Resample a texture. ``matrix`` [2, 3] maps a pixel of the result to a place in the texture."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(texture, matrix, extent_px, flags=flags), dtype=np.float32)


def _blank(size_px: int) -> _Canvas:
    side_px = size_px * SUPERSAMPLING
    return _Canvas(
        rgb=np.zeros((side_px, side_px, 3), np.float32),
        depth_mm=np.zeros((size_px, size_px), np.float32),
        flow_px=np.zeros((2, size_px, size_px), np.float32),
        surface=np.zeros((size_px, size_px), np.uint8),
    )


def _warp_body(body: Body, t: int, corner_px: NDArray[np.int64], extent_px: NDArray[np.int64]) -> Floats:
    """Return the body's supersampled colour and coverage in the box of frame t that starts at ``corner_px``."""
    cos, sin = math.cos(body.angle_rad[t]), math.sin(body.angle_rad[t])
    side_px = len(body.texture)
    linear = np.array([[cos, sin], [-sin, cos]]) * side_px / (2 * TEXTURE_MARGIN * body.radius_px[t])
    # Centre of the box's first supersampled pixel, relative to the body's centre.
    start_px = corner_px - 0.5 + 0.5 / SUPERSAMPLING - body.centre_px[t]
    shift = linear @ start_px + side_px / 2 - 0.5
    width, height = (extent_px * SUPERSAMPLING).tolist()
    return _warp(body.texture, np.column_stack([linear / SUPERSAMPLING, shift]), (width, height))


def _paint_body(canvas: _Canvas, body: Body, t: int) -> None:
    reach_px = TEXTURE_MARGIN * body.radius_px[t]
    size_px = len(canvas.surface)
    corner_px = np.floor(body.centre_px[t] - reach_px).astype(np.int64).clip(0, size_px)
    end_px = np.ceil(body.centre_px[t] + reach_px).astype(np.int64).clip(-1, size_px - 1) + 1
    if (end_px <= corner_px).any():
        return
    rgba = _warp_body(body, t, corner_px, end_px - corner_px)
    (x0, y0), (x1, y1) = corner_px.tolist(), end_px.tolist()
    s = SUPERSAMPLING
    seen = canvas.rgb[s * y0 : s * y1, s * x0 : s * x1]
    coverage = cv2.extractChannel(rgba, 3)
    # Whole pictures of three channels, because numpy broadcasts over a last axis of 3 several times more slowly.
    seen *= cv2.cvtColor(1 - coverage, cv2.COLOR_GRAY2RGB)
    seen += cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)

    is_body = cv2.resize(coverage, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA) >= 0.5
    box = (slice(y0, y1), slice(x0, x1))
    dx = np.arange(x0, x1, dtype=np.float32) - np.float32(body.centre_px[t, 0])
    dy = (np.arange(y0, y1, dtype=np.float32) - np.float32(body.centre_px[t, 1]))[:, None]
    (a, b), (c, d), (e, f) = _flow_and_depth_slopes(body, t)
    step = body.centre_px[min(t + 1, len(body.centre_px) - 1)] - body.centre_px[t]
    np.copyto(canvas.flow_px[0][box], a * dx + b * dy + np.float32(step[0]), where=is_body)
    np.copyto(canvas.flow_px[1][box], c * dx + d * dy + np.float32(step[1]), where=is_body)
    np.copyto(canvas.depth_mm[box], e * dx + f * dy + np.float32(body.depth_mm[t]), where=is_body)
    canvas.surface[box][is_body] = body.surface


def _flow_and_depth_slopes(body: Body, t: int) -> NDArray[np.float32]:
    """Return [3, 2]: change of flow x, flow y and depth over one pixel along x and y."""
    following = min(t + 1, len(body.angle_rad) - 1)
    turn, growth = body.angle_rad[following] - body.angle_rad[t], body.radius_px[following] / body.radius_px[t]
    cos, sin = growth * math.cos(turn), growth * math.sin(turn)
    own_cos, own_sin = math.cos(body.angle_rad[t]), math.sin(body.angle_rad[t])
    slant = np.array([[own_cos, -own_sin], [own_sin, own_cos]]) @ body.relief_mm / body.radius_px[t]
    return np.array([[cos - 1, -sin], [sin, cos - 1], slant], dtype=np.float32)


def render_clip(scene: Scene, frames: Sequence[int] | None = None) -> Clip:
    """Render all frames of a scene, or those with these numbers."""
    canvases = [_blank(scene.size_px) for _ in frames or range(scene.num_frames)]
    for t, canvas in zip(frames or range(scene.num_frames), canvases, strict=True):
        for body in scene.bodies:
            _paint_body(canvas, body, t)
    extent_px = (scene.size_px, scene.size_px)
    return Clip(
        rgb=np.stack([cv2.resize(canvas.rgb, extent_px, interpolation=cv2.INTER_AREA) for canvas in canvases]),
        flow_px=np.stack([canvas.flow_px for canvas in canvases]).transpose(0, 2, 3, 1)[:-1],
        depth_mm=np.rint(np.stack([canvas.depth_mm for canvas in canvases])).astype(np.uint16)[..., None],
        surface=np.stack([canvas.surface for canvas in canvases]),
    )
