"""Scenes of toyactions: bodies and a background, composed at random. T is the number of frames, K a texture's side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.datasets.toyactions_renderer.appearance import (
    SILHOUETTES,
    TEXTURE_MARGIN,
    Floats,
    cut_silhouette,
    paint_texture,
)
from data_prep.datasets.toyactions_renderer.motions import ACTIONS, Track, camera, drift

SUPERSAMPLING = 2
"""Colour is painted at this multiple of the frame's resolution."""

TEXTURES_PER_GROUP = {"body": 24, "background": 12}
# Bodies are light and backgrounds dark, so that an RGB network learns in minutes. Flow and depth do not show it.
BODY_INTENSITY = (0.4, 1.0)
BACKGROUND_INTENSITY = (0.0, 0.4)
BACKGROUND_CONTRAST = 0.12
BACKGROUND_RADIUS = 1.2
"""Radius of the background in frame sides: it covers the frame however the camera moves."""

# Distances are multiples of the acting body's distance at the clip's middle. The acting body itself covers at most
# 0.49 to 1.82, so that no distractor can cross it.
RELIEF = 0.08
DISTRACTOR_RELIEF = 0.02
FRONT_DISTANCES = (0.36, 0.43)
BEHIND_DISTANCES = (1.90, 2.04)
DISTANCE_JITTER = 0.015
BACKGROUND_DISTANCE_MM = (8500, 11000)
BACKGROUND_RELIEF = 0.2


@dataclass(frozen=True)
class Body:
    """One body: its texture, and its pose in every frame."""

    texture: Floats
    """[K, K, 4], colour multiplied by coverage, and coverage."""
    centre_px: NDArray[np.float64]
    """[T, 2], x and y of the centre."""
    angle_rad: NDArray[np.float64]
    """[T], rotation."""
    radius_px: NDArray[np.float64]
    """[T], radius of the circle around the silhouette."""
    depth_mm: NDArray[np.float64]
    """[T], distance of the body's centre."""
    relief_mm: NDArray[np.float64]
    """[2], difference of depth between the centre and one radius along the body's own x and y axes."""
    surface: int
    """Number of the body in ``Clip.surface``; 0 for the background."""


@dataclass(frozen=True)
class Scene:
    """Everything that ``render_clip`` needs."""

    size_px: int
    num_frames: int
    bodies: tuple[Body, ...]
    """The background, which covers the frame, and the other bodies, from far to near."""


@dataclass(frozen=True)
class SceneKey:
    """Seed of a scene's random numbers, together with the class."""

    seed: int
    group: int
    """Group of clips. Clips of a group share a pool of textures across classes."""
    clip: int


def _pooled_rng(key: SceneKey, kind: str, rng: np.random.Generator) -> np.random.Generator:
    """Choose a texture of the group's pool with the clip's generator, and return the texture's own generator."""
    index = int(rng.integers(TEXTURES_PER_GROUP[kind]))
    kind_index = list(TEXTURES_PER_GROUP).index(kind)
    return np.random.default_rng(np.random.SeedSequence([key.seed, 1, key.group, kind_index, index]))


def _compose_body(
    rng: np.random.Generator,
    key: SceneKey,
    track: Track,
    *,
    size_px: int,
    place: NDArray[np.float64],
    radius: float,
    depth_mm: float,
    relief: float,
    surface: int,
) -> Body:
    """Give a body a random appearance and a track; ``place`` and ``radius`` are in frame sides at the clip's middle."""
    outline = list(SILHOUETTES.values())[rng.integers(len(SILHOUETTES))]
    side_px = math.ceil(2 * TEXTURE_MARGIN * radius * size_px * SUPERSAMPLING)
    texture = paint_texture(
        _pooled_rng(key, "body", rng), side_px=side_px, cells=3, contrast=1.0, intensity=BODY_INTENSITY
    )
    slant_rad = rng.uniform(0, 2 * math.pi)
    start_angle_rad = rng.uniform(0, 2 * math.pi)
    return Body(
        texture=cut_silhouette(texture, lambda bearing_rad: outline(bearing_rad, rng)),
        centre_px=(place + track.offset) * size_px - 0.5,
        angle_rad=start_angle_rad + track.angle_rad,
        radius_px=radius * size_px * track.scale,
        depth_mm=depth_mm / track.scale,
        relief_mm=relief * depth_mm * np.array([math.cos(slant_rad), math.sin(slant_rad)]),
        surface=surface,
    )


def _compose_distractors(
    rng: np.random.Generator, key: SceneKey, instants: NDArray[np.float64], *, size_px: int, depth_mm: float
) -> list[Body]:
    """Compose up to two smaller bodies, each in front of the acting body or behind it."""
    bodies = []
    for i in range(rng.integers(3)):
        distances = FRONT_DISTANCES if rng.random() < 0.5 else BEHIND_DISTANCES
        body = _compose_body(
            rng,
            key,
            drift(rng, instants),
            size_px=size_px,
            place=rng.uniform(0.05, 0.95, size=2),
            radius=rng.uniform(0.06, 0.10),
            depth_mm=depth_mm * (distances[i] + rng.uniform(-DISTANCE_JITTER, DISTANCE_JITTER)),
            relief=DISTRACTOR_RELIEF,
            surface=2 + i,
        )
        bodies.append(body)
    return bodies


def _compose_background(
    rng: np.random.Generator, key: SceneKey, instants: NDArray[np.float64], *, size_px: int
) -> Body:
    """Compose a slanted plane behind everything, which moves as if the camera did."""
    radius, depth_mm, slant_rad = BACKGROUND_RADIUS, rng.uniform(*BACKGROUND_DISTANCE_MM), rng.uniform(0, 2 * math.pi)
    side_px = math.ceil(2 * TEXTURE_MARGIN * radius * size_px)
    texture = paint_texture(
        _pooled_rng(key, "background", rng),
        side_px=side_px,
        cells=8,
        contrast=BACKGROUND_CONTRAST,
        intensity=BACKGROUND_INTENSITY,
    )
    track = camera(rng, instants)
    return Body(
        texture=np.dstack([texture, np.ones((side_px, side_px), np.float32)]),
        centre_px=(0.5 + track.offset) * size_px - 0.5,
        angle_rad=track.angle_rad,
        radius_px=radius * size_px * track.scale,
        depth_mm=depth_mm / track.scale,
        relief_mm=BACKGROUND_RELIEF * rng.uniform() * depth_mm * np.array([math.cos(slant_rad), math.sin(slant_rad)]),
        surface=0,
    )


def compose_scene(action: str, key: SceneKey, *, size_px: int, num_frames: int) -> Scene:
    """Compose a scene of a class at random. ``size_px`` is the even side of the frame. The same key gives the same."""
    ids = [key.seed, 0, list(ACTIONS).index(action), key.group, key.clip]
    rng = np.random.default_rng(np.random.SeedSequence(ids))
    instants: NDArray[np.float64] = np.arange(num_frames, dtype=np.float64) - (num_frames - 1) / 2
    depth_mm = rng.uniform(1500, 2500)
    acting = _compose_body(
        rng,
        key,
        ACTIONS[action](rng, instants),
        size_px=size_px,
        place=rng.uniform(0.36, 0.64, size=2),
        radius=rng.uniform(0.17, 0.25),
        depth_mm=depth_mm,
        relief=RELIEF,
        surface=1,
    )
    distractors = _compose_distractors(rng, key, instants, size_px=size_px, depth_mm=depth_mm)
    background = _compose_background(rng, key, instants, size_px=size_px)
    near = sorted([acting, *distractors], key=lambda body: -float(body.depth_mm.mean()))
    return Scene(size_px=size_px, num_frames=num_frames, bodies=(background, *near))
