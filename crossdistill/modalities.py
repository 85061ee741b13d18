"""What a modality is. The only file that knows how flow, depth, colour and joints differ.

A new modality is one entry in ``MODALITIES`` and, if no stored stream carries it yet, one entry in
``crossdistill.data.streams.STREAM_FORMATS``; ``docs/add_a_modality.md`` walks through that.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from crossdistill.errors import unknown_name

FLOW_BOUND_PX = 20.0
# Bytes 1 to 255 span the bound on both sides of 128, which is zero exactly: most of a flow field stands still.
FLOW_ZERO = 128
FLOW_STEP_PX = FLOW_BOUND_PX / 127
# Sixteen bits of millimetres on both sides of the camera.
JOINT_STEP_METRES = 0.001
JOINT_ZERO = 32768


@dataclass(frozen=True)
class Modality:
    """How the stored integers of one kind of input become the floats that an encoder sees.

    A stored value ``q`` stands for ``q * value_scale + value_offset`` in ``unit``.
    """

    name: str
    stream: str
    """The stream of a prepared dataset that carries it."""
    channels: int
    has_time: bool
    """Whether an encoder of this modality sees a clip; if not it sees single frames."""
    unit: str
    value_scale: float
    value_offset: float
    mean: tuple[float, ...]
    """Per channel, in ``unit``; for encoders that bring no statistics of their own."""
    std: tuple[float, ...]
    flip_negates: tuple[int, ...] = ()
    """Channels whose sign turns when the picture is mirrored left to right."""
    resize_axes: tuple[Literal["x", "y"] | None, ...] = ()
    """Per channel, the picture axis along which the value stretches; empty: none does."""
    interpolation: Literal["area", "nearest"] = "area"
    """How pixels are resampled; ``nearest`` where a mixture of two values means nothing."""
    normalise_clip: Callable[[Tensor], Tensor] | None = None
    """Applied to whole clips [B, C, T, H, W] in ``unit``, before mean and std."""
    is_picture: bool = True
    """Whether rows and columns are places in the picture. If not, every view sees all of them: nothing is cropped,
    and mirroring leaves the columns in their order."""
    mirrored_rows: tuple[int, ...] = ()
    """The row that each row becomes when the scene is mirrored, of the stored frame; empty: none moves."""

    @property
    def stored_zero(self) -> int:
        """The stored value that stands for zero."""
        return round(-self.value_offset / self.value_scale)


def disparity_per_clip(depth_mm: Tensor) -> Tensor:
    """Turn metric depth into disparity in [0, 1], one scale per clip.

    Zero means "no measurement" and stays zero; the nearest measured point of the clip becomes 1.
    One scale per clip, never per frame: a frame's own scale would hide approach and retreat.

    Args:
        depth_mm: [B, 1, T, H, W], millimetres, 0 where nothing was measured.

    Returns:
        [B, 1, T, H, W], nearest distance of the clip divided by distance.
    """
    measured = depth_mm > 0
    disparity = torch.where(measured, depth_mm.clamp(min=1).reciprocal(), 0.0)
    nearest = disparity.amax(dim=(1, 2, 3, 4), keepdim=True).clamp(min=torch.finfo(disparity.dtype).tiny)
    return disparity / nearest


def around_its_centre(joints_metres: Tensor) -> Tensor:
    """Move every clip of joints so that its mean position is zero: where a person stands says little.

    One shift per clip, never per frame: a frame's own shift would hide walking and crouching.

    Args:
        joints_metres: [B, 3, T, H, W].

    Returns:
        [B, 3, T, H, W], metres from the centre.
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
    normalise_clip=around_its_centre,
    is_picture=False,
    # Head, neck, spine and hip stay; the arm and the leg of one side become those of the other.
    mirrored_rows=(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15),
)

MODALITIES: dict[str, Modality] = {m.name: m for m in (IMAGE, RGB, FLOW, DEPTH, SKELETON)}


def get_modality(name: str) -> Modality:
    """Look up a modality by name; an unknown name is a ``UserError`` that lists the known ones."""
    if name not in MODALITIES:
        raise unknown_name("modality", name, MODALITIES)
    return MODALITIES[name]
