"""Renderer of toyactions: clips of textured bodies with exact flow and depth, in which only motion tells the class.

``compose_scene`` draws a scene from random numbers and ``render_clip`` renders its frames: a textured background, one
acting body whose motion is the class, and up to two smaller distractors that move on their own. Everything except the
acting body's motion is drawn independently of the class.

Place, size, angle and distance of the acting body have the same distribution for every class at the clip's middle, and
every motion is symmetric in time about the middle. A clip of a class played backwards is therefore as likely as a clip
of the opposite class (left and right, approach and recede, ...), and a single frame at a uniformly random time does
not tell the two apart.

Geometry: a pinhole camera whose focal length is the frame's side. A body approaches and recedes along its line of
sight, so that its radius is proportional to 1 / distance. Within a body the projection is orthographic, and its relief
(a slanted plane) turns with it. Bodies stay in separate ranges of distance, so that painting from far to near gives an
exact z-buffer.

Coordinates: x to the right, y down, pixel centres at whole numbers. Places and lengths before rendering are in frame
sides. Positive angles turn clockwise on the screen.

Example:
    >>> key = SceneKey(seed=0, group=1, clip=1)
    >>> clip = render_clip(compose_scene("SlideLeft", key, size_px=32, num_frames=4))
    >>> clip.rgb.shape, clip.flow_px.shape, clip.depth_mm.shape
    ((4, 32, 32, 3), (3, 32, 32, 2), (4, 32, 32, 1))
"""

from data_prep.datasets.toyactions_renderer.motions import ACTIONS, Motion, Track
from data_prep.datasets.toyactions_renderer.rendering import Clip, render_clip
from data_prep.datasets.toyactions_renderer.scene import Scene, SceneKey, compose_scene

__all__ = [
    "ACTIONS",
    "RENDERER_VERSION",
    "Clip",
    "Motion",
    "Scene",
    "SceneKey",
    "Track",
    "compose_scene",
    "render_clip",
]

RENDERER_VERSION = 3
"""Raise it when the same options give different pictures: datasets of an older version are then refused."""
