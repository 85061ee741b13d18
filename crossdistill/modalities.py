"""The modalities: how the stored integers of RGB, flow, depth and skeletons become the floats that encoders see.

This module only declares the rules; ``data/transforms.py`` applies them (``cut_view``, ``normalise``). No other module
tests for the name of a modality. A new one is one entry in ``MODALITIES``, and one entry in
``crossdistill.data.streams.STREAM_FORMATS`` if no stream carries it yet; see ``docs/how_to/add_a_modality.md``.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from crossdistill.errors import unknown_name

if TYPE_CHECKING:  # data preparation stands on this module and needs no torch
    from torch import Tensor

FLOW_BOUND_PX = 20.0
# Bytes 1 to 255 span -20 to 20 px, and 128 is exactly 0, because most of a flow field does not move.
FLOW_ZERO = 128
FLOW_STEP_PX = FLOW_BOUND_PX / 127
# 16 bits of millimetres, with the camera in the middle.
JOINT_STEP_METRES = 0.001
JOINT_ZERO = 32768


@dataclass(frozen=True)
class Modality:
    """How one kind of input is stored, cropped, resized, mirrored and normalised.

    A stored integer ``q`` stands for the value ``q * value_scale + value_offset`` in ``unit``.
    """

    name: str
    stream: str
    """Stream of a prepared dataset from which it is read."""
    channels: int
    has_time: bool
    """Whether its encoders take clips. If not, they take single frames."""
    unit: str
    value_scale: float
    value_offset: float
    mean: tuple[float, ...]
    """Mean of each channel, in ``unit``. Used for encoders whose library gives no statistics."""
    std: tuple[float, ...]
    """Standard deviation of each channel, in ``unit``."""
    flip_negates: tuple[int, ...] = ()
    """Channels whose sign changes when the picture is mirrored left to right."""
    resize_axes: tuple[Literal["x", "y"] | None, ...] = ()
    """Per channel, the axis along which resizing scales the value. None or an empty tuple: it does not."""
    interpolation: Literal["area", "nearest"] = "area"
    """How frames are resized. ``nearest`` if the mean of two values has no meaning, as at the edges of depth."""
    normalise_clip: Callable[[Tensor], Tensor] | None = None
    """Function of clips [B, C, T, H, W] in ``unit`` that is applied before mean and std."""
    is_picture: bool = True
    """Whether rows and columns are positions in a picture. If not, frames are not cropped, and mirroring keeps the
    order of the columns."""
    is_colour: bool = False
    """Whether frames are RGB pictures of 8 bits, as cameras and codecs give them."""
    measures_motion: bool = False
    """Whether a frame holds the change to the next one, so that frames cannot be put into another order."""
    mirrored_rows: tuple[int, ...] = ()
    """For each row of a mirrored frame, the row of the stored frame that it is taken from. Empty: rows stay."""

    @property
    def stored_zero(self) -> int:
        """Stored integer that stands for the value 0."""
        return round(-self.value_offset / self.value_scale)


def disparity_per_clip(depth_mm: Tensor) -> Tensor:
    """Convert metric depth to disparity in [0, 1], with one scale per clip.

    0 means "not measured" and stays 0. The nearest measured point of the clip becomes 1. A scale per frame would hide
    that something comes closer or moves away.

    Args:
        depth_mm: [B, 1, T, H, W], millimetres, 0 where nothing was measured.
    """
    import torch

    measured = depth_mm > 0
    disparity = torch.where(measured, depth_mm.clamp(min=1).reciprocal(), 0.0)
    nearest = disparity.amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=torch.finfo(disparity.dtype).tiny)
    return disparity / nearest


def centre_joints(joints_metres: Tensor) -> Tensor:
    """Centre the joints of each clip: subtract their mean position over all frames.

    Where somebody stands says little about the action. A shift per frame would hide walking and crouching.

    Args:
        joints_metres: [B, 3, T, H, W].
    """
    return joints_metres - joints_metres.mean(dim=(2, 3, 4), keepdim=True)


IMAGE = Modality(
    name="image",
    stream="rgb",
    channels=3,
    has_time=False,
    unit="intensity in [0, 1]",
    value_scale=1 / 255,
    value_offset=0.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    is_colour=True,
)

RGB = Modality(
    name="rgb",
    stream="rgb",
    channels=3,
    has_time=True,
    unit="intensity in [0, 1]",
    value_scale=1 / 255,
    value_offset=0.0,
    mean=(0.45, 0.45, 0.45),
    std=(0.225, 0.225, 0.225),
    is_colour=True,
)

FLOW = Modality(
    name="flow",
    stream="flow",
    channels=2,
    has_time=True,
    unit="pixels of the view per frame",
    value_scale=FLOW_STEP_PX,
    value_offset=-FLOW_ZERO * FLOW_STEP_PX,
    mean=(0.0, 0.0),
    std=(2.0, 2.0),
    flip_negates=(0,),
    resize_axes=("x", "y"),
    measures_motion=True,
)

DEPTH = Modality(
    name="depth",
    stream="depth",
    channels=1,
    has_time=True,
    unit="millimetres",
    value_scale=1.0,
    value_offset=0.0,
    mean=(0.45,),
    std=(0.225,),
    interpolation="nearest",
    normalise_clip=disparity_per_clip,
)

SKELETON = Modality(
    name="skeleton",
    stream="skeleton",
    channels=3,  # x to the right of the picture, y up, z away from the camera
    has_time=True,
    unit="metres",
    value_scale=JOINT_STEP_METRES,
    value_offset=-JOINT_ZERO * JOINT_STEP_METRES,
    mean=(0.0, 0.0, 0.0),
    std=(0.14, 0.47, 0.13),
    flip_negates=(0,),
    interpolation="nearest",
    normalise_clip=centre_joints,
    is_picture=False,
    # Head, neck, spine and hip stay. Left and right arms, and left and right legs, swap.
    mirrored_rows=(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15),
)

MODALITIES: dict[str, Modality] = {m.name: m for m in (IMAGE, RGB, FLOW, DEPTH, SKELETON)}


def get_modality(name: str) -> Modality:
    """Look up a modality by name; for an unknown name, the ``UserError`` lists the known ones.

    Example:
        >>> get_modality("flow").channels
        2
    """
    if name not in MODALITIES:
        raise unknown_name("modality", name, MODALITIES)
    return MODALITIES[name]
