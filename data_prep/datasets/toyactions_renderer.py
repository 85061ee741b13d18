"""Rendered clips of textured bodies in which only the motion tells the class, with exact flow and depth.

A scene is composed from random numbers (``compose_scene``) and painted frame by frame (``render_clip``):
a textured background, one acting body whose motion is the class, and up to two smaller bodies that
move on their own. Everything but the acting body's motion is drawn independently of the class.

At the clip's middle instant the acting body's place, size, angle and distance have the same
distribution for every class, and motions run symmetrically through that instant. So a clip of a class,
played backwards, is a clip of its twin (left and right, approach and recede, ...) with the same
probability, and no single frame, taken at a uniformly random time, says which of the two it is from.

Geometry: a pinhole camera whose focal length is the frame's side. A body approaches and recedes along
its line of sight, so that its radius goes as 1 / distance; within a body the projection is
orthographic, and its relief (a slanted plane) turns with it. Bodies keep to separate ranges of
distance, so painting from far to near is an exact z-buffer.

Coordinates: x to the right, y down, pixel centres at whole numbers; places and lengths before
rendering are in frame sides. Positive angles turn clockwise on the screen.

Shapes: T frames, H height, W width, K side of a texture; height and width are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RENDERER_VERSION = 2
"""Raised whenever the same options give other pictures."""
SUPERSAMPLING = 2

# Motions are the same per frame at any length, except that a travel longer than this many steps is slowed down.
REFERENCE_STEPS = 19
REFERENCE_SIDE_PX = 64

TEXTURES_PER_GROUP = {"body": 24, "background": 12}
TEXTURE_MARGIN = 1.1
"""Half the side of a body's texture, in radii: the rim stays clear of the texture's border."""
BACKGROUND_SIDE = 1.25
"""Side of the background's texture in frame sides: it reaches past the frame by the longest pan."""

# Distances as multiples of the acting body's at the middle. The acting body spans at most 0.49 to 1.82.
MAX_APPROACH_RATIO = 3.0
RELIEF = 0.08
DISTRACTOR_RELIEF = 0.02
FRONT_DISTANCES = (0.36, 0.43)
BEHIND_DISTANCES = (1.90, 2.04)
DISTANCE_JITTER = 0.015


# Motions: instants in frames from the clip's middle to a path relative to the pose at the middle.


@dataclass(frozen=True)
class Track:
    """How a body moves, relative to its pose at the clip's middle."""

    offset: NDArray[np.float64]
    """[T, 2], x and y in frame sides."""
    angle_rad: NDArray[np.float64]
    """[T]."""
    scale: NDArray[np.float64]
    """[T], size relative to the middle's; distance goes as its inverse."""


Motion = Callable[[np.random.Generator, NDArray[np.float64]], Track]


def _track(
    instants: NDArray[np.float64],
    *,
    x: NDArray[np.float64] | float = 0.0,
    y: NDArray[np.float64] | float = 0.0,
    angle_rad: NDArray[np.float64] | float = 0.0,
    scale: NDArray[np.float64] | float = 1.0,
) -> Track:
    x, y, angle_rad, scale = (
        np.broadcast_to(np.asarray(v, dtype=np.float64), instants.shape) for v in (x, y, angle_rad, scale)
    )
    return Track(offset=np.stack([x, y], axis=1), angle_rad=angle_rad, scale=scale)


def _slowdown(instants: NDArray[np.float64]) -> float:
    """Factor that keeps a long clip's travel within that of the reference length."""
    return min(1.0, REFERENCE_STEPS / (len(instants) - 1))


def _slide(rng: np.random.Generator, instants: NDArray[np.float64], *, heading_rad: float) -> Track:
    speed = rng.uniform(0.8, 2.2) / REFERENCE_SIDE_PX * _slowdown(instants)
    heading_rad += rng.uniform(-0.2, 0.2)
    return _track(instants, x=speed * math.cos(heading_rad) * instants, y=speed * math.sin(heading_rad) * instants)


def _loom(rng: np.random.Generator, instants: NDArray[np.float64], *, sign: int) -> Track:
    growth = math.log(rng.uniform(1.8, MAX_APPROACH_RATIO)) / REFERENCE_STEPS * _slowdown(instants)
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
"""Class to motion, in the order of the labels."""


def _drift(rng: np.random.Generator, instants: NDArray[np.float64]) -> Track:
    """What a distractor does: stand, drift slowly, or tremble, in a random direction."""
    heading = rng.uniform(0, 2 * math.pi)
    speed = rng.choice([0.0, 1.0]) * rng.uniform(0.1, 0.4) / REFERENCE_SIDE_PX * _slowdown(instants)
    tremble = rng.choice([0.0, 1.0]) * rng.normal(0, 0.3 / REFERENCE_SIDE_PX, size=(2, len(instants)))
    return _track(
        instants,
        x=speed * math.cos(heading) * instants + tremble[0],
        y=speed * math.sin(heading) * instants + tremble[1],
    )


# Looks: silhouettes and textures.


def _polygon(corners: int) -> Callable[[Floats, np.random.Generator], Floats]:
    def outline(bearing_rad: Floats, rng: np.random.Generator) -> Floats:
        half = math.pi / corners
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
"""Outline as the radius (at most 1) at each bearing from the body's centre."""


def _noise(rng: np.random.Generator, *, cells: int, channels: int, side_px: int) -> Floats:
    """Smooth noise [K, K, channels] that changes over a distance of K / cells."""
    coarse = rng.standard_normal((cells, cells, channels)).astype(np.float32)
    fine = cv2.resize(coarse, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    return np.asarray(fine, dtype=np.float32).reshape(side_px, side_px, channels)


def paint_texture(rng: np.random.Generator, *, side_px: int, cells: int, contrast: float) -> Floats:
    """Patches of two colours with finer colour noise over them.

    Args:
        rng: Source of the colours and the patches; the picture is the same at any resolution.
        side_px: Side K of the texture.
        cells: About how many patches fit along the side.
        contrast: 1 for colours that lie far apart, less for nearer ones.

    Returns:
        [K, K, 3], intensity in [0, 1].
    """
    first = rng.uniform(0, 1, size=3)
    second = (first + 0.5 + rng.uniform(-0.2, 0.2, size=3)) % 1
    middle, apart = (first + second) / 2, (second - first) / 2
    patches = np.tanh(3 * _noise(rng, cells=cells, channels=1, side_px=side_px))
    colours = middle.astype(np.float32) + contrast * apart.astype(np.float32) * patches
    colours += 0.12 * contrast * _noise(rng, cells=2 * cells, channels=3, side_px=side_px)
    colours += 0.06 * contrast * _noise(rng, cells=4 * cells, channels=3, side_px=side_px)
    return np.clip(colours, 0, 1)


def cut_silhouette(texture: Floats, outline: Callable[[Floats], Floats]) -> Floats:
    """Cut a body out of a texture, with a soft edge and a darker rim.

    Args:
        texture: [K, K, 3], covers ±``TEXTURE_MARGIN`` radii.
        outline: Bearing in radians to radius of the body's edge.

    Returns:
        [K, K, 4], colour times coverage, and coverage.
    """
    side_px = len(texture)
    axis = ((np.arange(side_px, dtype=np.float32) + 0.5) * 2 / side_px - 1) * TEXTURE_MARGIN
    radius = np.hypot(axis[:, None], axis[None, :])
    inside = outline(np.arctan2(axis[:, None], axis[None, :])) - radius
    coverage = np.clip(inside * side_px / (2 * TEXTURE_MARGIN) + 0.5, 0, 1)
    shade = coverage * np.clip(0.55 + 4 * inside, 0.55, 1)
    return np.dstack([texture * shade[:, :, None], coverage]).astype(np.float32)


# Scenes.


@dataclass(frozen=True)
class Body:
    """One body: its picture and its pose in every frame."""

    texture: Floats
    """[K, K, 4], colour times coverage, and coverage."""
    centre_px: NDArray[np.float64]
    """[T, 2], x and y."""
    angle_rad: NDArray[np.float64]
    """[T]."""
    radius_px: NDArray[np.float64]
    """[T]."""
    depth_mm: NDArray[np.float64]
    """[T], distance of the body's centre."""
    relief_mm: NDArray[np.float64]
    """[2], how much farther the body lies one radius along its own x and y axes."""
    surface: int
    """What it is called in ``Clip.surface``."""


@dataclass(frozen=True)
class Scene:
    """Everything that ``render_clip`` paints."""

    size_px: int
    num_frames: int
    background: Floats
    """[K, K, 3]."""
    pan_px: NDArray[np.float64]
    """[T, 2], how far the background has moved from its place at the middle."""
    background_depth_mm: float
    """At the centre of the frame, at the middle of the clip."""
    background_slope: NDArray[np.float64]
    """[2], relative change of inverse depth over one frame side along x and y."""
    bodies: tuple[Body, ...]
    """From far to near."""


@dataclass(frozen=True)
class Identity:
    """What a clip's random numbers are drawn from, besides its class."""

    seed: int
    group: int
    """Clips of one group, of whatever class, share a pool of textures."""
    clip: int


def _pooled_rng(identity: Identity, kind: str, rng: np.random.Generator) -> np.random.Generator:
    """The generator of one texture of the group's pool, chosen by the clip's generator."""
    index = int(rng.integers(TEXTURES_PER_GROUP[kind]))
    kind_index = list(TEXTURES_PER_GROUP).index(kind)
    return np.random.default_rng(np.random.SeedSequence([identity.seed, 1, identity.group, kind_index, index]))


def _compose_body(
    rng: np.random.Generator,
    identity: Identity,
    track: Track,
    *,
    size_px: int,
    place: NDArray[np.float64],
    radius: float,
    depth_mm: float,
    relief: float,
    surface: int,
) -> Body:
    """Dress a body at random and put it on its track; ``place`` and ``radius`` in frame sides at the middle."""
    outline = list(SILHOUETTES.values())[rng.integers(len(SILHOUETTES))]
    side_px = math.ceil(2 * TEXTURE_MARGIN * radius * size_px * SUPERSAMPLING)
    texture = paint_texture(_pooled_rng(identity, "body", rng), side_px=side_px, cells=3, contrast=1.0)
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
    rng: np.random.Generator, identity: Identity, instants: NDArray[np.float64], *, size_px: int, depth_mm: float
) -> list[Body]:
    """Up to two smaller bodies, each in front of the acting body or behind it."""
    bodies = []
    for i in range(rng.integers(3)):
        distances = FRONT_DISTANCES if rng.random() < 0.5 else BEHIND_DISTANCES
        body = _compose_body(
            rng,
            identity,
            _drift(rng, instants),
            size_px=size_px,
            place=rng.uniform(0.05, 0.95, size=2),
            radius=rng.uniform(0.06, 0.10),
            depth_mm=depth_mm * (distances[i] + rng.uniform(-DISTANCE_JITTER, DISTANCE_JITTER)),
            relief=DISTRACTOR_RELIEF,
            surface=2 + i,
        )
        bodies.append(body)
    return bodies


def compose_scene(action: str, identity: Identity, *, size_px: int, num_frames: int) -> Scene:
    """Draw a scene at random.

    Args:
        action: One of ``ACTIONS``.
        identity: Seed, group and clip; the same ones give the same scene.
        size_px: Side of the frame, even.
        num_frames: T.
    """
    ids = [identity.seed, 0, list(ACTIONS).index(action), identity.group, identity.clip]
    rng = np.random.default_rng(np.random.SeedSequence(ids))
    instants: NDArray[np.float64] = np.arange(num_frames, dtype=np.float64) - (num_frames - 1) / 2
    depth_mm = rng.uniform(1500, 2500)
    acting = _compose_body(
        rng,
        identity,
        ACTIONS[action](rng, instants),
        size_px=size_px,
        place=rng.uniform(0.36, 0.64, size=2),
        radius=rng.uniform(0.2, 0.3),
        depth_mm=depth_mm,
        relief=RELIEF,
        surface=1,
    )
    distractors = _compose_distractors(rng, identity, instants, size_px=size_px, depth_mm=depth_mm)
    pan_heading = rng.uniform(0, 2 * math.pi)
    pan_speed_px = rng.choice([0.0, 1.0]) * rng.uniform(0.1, 0.35) * size_px / REFERENCE_SIDE_PX * _slowdown(instants)
    return Scene(
        size_px=size_px,
        num_frames=num_frames,
        background=paint_texture(
            _pooled_rng(identity, "background", rng),
            side_px=math.ceil(BACKGROUND_SIDE * size_px * SUPERSAMPLING),
            cells=6,
            contrast=0.2,
        ),
        pan_px=pan_speed_px * np.outer(instants, [math.cos(pan_heading), math.sin(pan_heading)]),
        background_depth_mm=rng.uniform(7500, 10000),
        background_slope=rng.uniform(-0.25, 0.25, size=2),
        bodies=tuple(sorted([acting, *distractors], key=lambda body: -float(body.depth_mm.mean()))),
    )


# Painting.


@dataclass(frozen=True)
class Clip:
    """What a scene looks like, frame by frame."""

    rgb: Floats
    """[T, H, W, 3], intensity in [0, 1]."""
    flow_px: Floats
    """[T - 1, H, W, 2], motion to the next frame of the surface seen at each pixel; x and y."""
    depth_mm: NDArray[np.uint16]
    """[T, H, W, 1], distance of the surface seen at each pixel."""
    surface: NDArray[np.uint8]
    """[T, H, W], which surface that is: 0 the background, 1 the acting body, 2 and 3 the others."""


@dataclass(frozen=True)
class _Canvas:
    """One frame while it is painted; colour is supersampled, the rest is per pixel."""

    rgb: Floats
    depth_mm: Floats
    flow_px: Floats
    """[2, H, W]."""
    surface: NDArray[np.uint8]


def _warp(texture: Floats, matrix: NDArray[np.float64], extent_px: tuple[int, int]) -> Floats:
    """Resample a texture; ``matrix`` [2, 3] takes a pixel of the result to a place in the texture."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(texture, matrix, extent_px, flags=flags), dtype=np.float32)


def _paint_background(scene: Scene, t: int) -> _Canvas:
    size_px, pan_px = scene.size_px, scene.pan_px[t]
    step_px = scene.pan_px[min(t + 1, scene.num_frames - 1)] - pan_px
    side_px = size_px * SUPERSAMPLING
    shift = (len(scene.background) - side_px) / 2 - pan_px * SUPERSAMPLING
    matrix = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    axis = np.arange(size_px) / size_px - 0.5
    slope = scene.background_slope
    along_x, along_y = slope[0] * (axis - pan_px[0] / size_px), slope[1] * (axis - pan_px[1] / size_px)
    return _Canvas(
        rgb=_warp(scene.background, matrix, (side_px, side_px)),
        depth_mm=(scene.background_depth_mm / (1 + along_x[None, :] + along_y[:, None])).astype(np.float32),
        flow_px=np.broadcast_to(step_px.astype(np.float32)[:, None, None], (2, size_px, size_px)).copy(),
        surface=np.zeros((size_px, size_px), dtype=np.uint8),
    )


def _warp_body(body: Body, t: int, corner_px: NDArray[np.int64], extent_px: NDArray[np.int64]) -> Floats:
    """The body's colour and coverage, supersampled, in the box of frame t that starts at ``corner_px``."""
    cos, sin = math.cos(body.angle_rad[t]), math.sin(body.angle_rad[t])
    side_px = len(body.texture)
    linear = np.array([[cos, sin], [-sin, cos]]) * side_px / (2 * TEXTURE_MARGIN * body.radius_px[t])
    # The centre of the box's first supersampled pixel, relative to the body's centre.
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
    # Whole pictures of three channels: numpy's broadcasting over a last axis of 3 is several times slower.
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
    """[3, 2]: change of flow x, flow y and depth over one pixel along x and y."""
    following = min(t + 1, len(body.angle_rad) - 1)
    turn, growth = body.angle_rad[following] - body.angle_rad[t], body.radius_px[following] / body.radius_px[t]
    cos, sin = growth * math.cos(turn), growth * math.sin(turn)
    own_cos, own_sin = math.cos(body.angle_rad[t]), math.sin(body.angle_rad[t])
    slant = np.array([[own_cos, -own_sin], [own_sin, own_cos]]) @ body.relief_mm / body.radius_px[t]
    return np.array([[cos - 1, -sin], [sin, cos - 1], slant], dtype=np.float32)


def _render_canvas(scene: Scene, t: int) -> _Canvas:
    canvas = _paint_background(scene, t)
    for body in scene.bodies:
        _paint_body(canvas, body, t)
    return canvas


def _reduce(rgb: Floats, size_px: int) -> Floats:
    return np.asarray(cv2.resize(rgb, (size_px, size_px), interpolation=cv2.INTER_AREA), dtype=np.float32)


def render_frame(scene: Scene, t: int) -> Clip:
    """Paint frame t alone, as a clip of one frame."""
    return _clip(scene, [_render_canvas(scene, t)])


def render_clip(scene: Scene) -> Clip:
    """Paint all frames of a scene."""
    return _clip(scene, [_render_canvas(scene, t) for t in range(scene.num_frames)])


def _clip(scene: Scene, canvases: list[_Canvas]) -> Clip:
    return Clip(
        rgb=np.stack([_reduce(canvas.rgb, scene.size_px) for canvas in canvases]),
        flow_px=np.stack([canvas.flow_px for canvas in canvases]).transpose(0, 2, 3, 1)[:-1],
        depth_mm=np.rint(np.stack([canvas.depth_mm for canvas in canvases])).astype(np.uint16)[..., None],
        surface=np.stack([canvas.surface for canvas in canvases]),
    )
