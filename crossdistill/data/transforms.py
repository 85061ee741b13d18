"""Crops that all views of a sample share, and normalisation on the device.

A worker crops, resizes and mirrors the stored integers; the device converts them to floats. A ``Crop`` is in fractions
of the picture, so that it fits every stream of a sample at any size. A stream that is not a picture (skeletons) is
mirrored with the others and never cropped.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.data.streams import Picture
from crossdistill.modalities import Modality
from crossdistill.types import View, ViewSpec


@dataclass(frozen=True)
class Crop:
    """A part of a picture, in fractions of its width and height."""

    left: float
    top: float
    width: float
    height: float
    is_mirrored: bool = False


@dataclass(frozen=True)
class Augmentation:
    """Random resized crop and mirroring, as in the authors' code of CompRess, where ``area_min`` is 0.08."""

    area_min: float = 0.2
    """Smallest area of a crop, as a share of the picture's area."""
    area_max: float = 1.0
    ratio_min: float = 3 / 4
    """Smallest ratio of width to height, in pixels."""
    ratio_max: float = 4 / 3
    mirror_probability: float = 0.5

    def draw(self, generator: np.random.Generator, *, width_px: int, height_px: int) -> Crop:
        """Draw a crop for a picture; the centre crop if ten drawn crops in a row do not fit into it."""
        # The order of the draws decides which crops a seed gives, so it must not change.
        is_mirrored = bool(generator.random() < self.mirror_probability)
        for _ in range(10):
            area = generator.uniform(self.area_min, self.area_max)
            ratio = np.exp(generator.uniform(np.log(self.ratio_min), np.log(self.ratio_max)))
            # A crop that is square in pixels is not square in fractions, unless the picture is.
            width = float(np.sqrt(area * ratio * height_px / width_px))
            height = float(area / width)
            if width <= 1 and height <= 1:
                left, top = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
                return Crop(float(left), float(top), width, height, is_mirrored)
        return centre_crop(width_px=width_px, height_px=height_px, is_mirrored=is_mirrored)


def centre_crop(*, width_px: int, height_px: int, is_mirrored: bool = False, fraction: float = 1.0) -> Crop:
    """Return the centred square of a picture. Its side is ``fraction``, in (0, 1], of the picture's shorter side.

    Example:
        >>> centre_crop(width_px=160, height_px=120)
        Crop(left=0.125, top=0.0, width=0.75, height=1.0, is_mirrored=False)
    """
    side_px = min(width_px, height_px) * fraction
    width, height = side_px / width_px, side_px / height_px
    return Crop((1 - width) / 2, (1 - height) / 2, width, height, is_mirrored)


@dataclass(frozen=True)
class CutClip:
    """One clip after cropping, resizing and mirroring, not yet copied into a batch."""

    frames: list[Picture]
    """T arrays [S, S, C] of stored integers: parts of the decoded pictures unless resized or mirrored."""
    channel_scale: NDArray[np.float32]
    """[C], the factor by which resizing scaled each channel's values."""

    @property
    def values(self) -> Tensor:
        """[C, T, S, S], the frames copied into one tensor."""
        return torch.from_numpy(np.stack(self.frames).transpose(3, 0, 1, 2))


def cut_view(frames: Sequence[Picture], crop: Crop, *, modality: Modality, size_px: int) -> CutClip:
    """Crop, resize and mirror the stored integers of one clip.

    Args:
        frames: T arrays [H, W, C], or one array [T, H, W, C], of stored integers.
        crop: Part of the picture, and whether it is mirrored.
        modality: Rules for cropping, resizing and mirroring.
        size_px: Height and width S of the result.
    """
    if not modality.is_picture:
        crop = replace(crop, left=0.0, top=0.0, width=1.0, height=1.0)
    if crop.is_mirrored and modality.mirrored_rows:
        frames = [frame[list(modality.mirrored_rows)] for frame in frames]
    height, width, _ = frames[0].shape
    crop_width = max(1, round(crop.width * width))
    crop_height = max(1, round(crop.height * height))
    # Rounding may move a crop one pixel over the edge.
    left = min(round(crop.left * width), width - crop_width)
    top = min(round(crop.top * height), height - crop_height)
    parts = [frame[top : top + crop_height, left : left + crop_width] for frame in frames]
    if (crop_height, crop_width) != (size_px, size_px):
        parts = [_resize(part, size_px, modality) for part in parts]
    if crop.is_mirrored:
        parts = [_mirror(part, modality) for part in parts]
    if not modality.resize_axes:
        return CutClip(parts, _unscaled(modality.channels))
    stretch = {"x": size_px / crop_width, "y": size_px / crop_height, None: 1.0}
    return CutClip(parts, np.asarray([stretch[axis] for axis in modality.resize_axes], dtype=np.float32))


@functools.cache
def _unscaled(channels: int) -> NDArray[np.float32]:
    """Factors of channels whose values resizing does not scale."""
    return np.ones(channels, dtype=np.float32)


def _mirror(frame_hwc: Picture, modality: Modality) -> Picture:
    """Mirror left to right, and change the sign of the modality's ``flip_negates`` channels, such as x of flow."""
    frame_hwc = np.ascontiguousarray(frame_hwc)
    mirrored: Picture = cv2.flip(frame_hwc, 1).reshape(frame_hwc.shape) if modality.is_picture else frame_hwc.copy()
    for channel in modality.flip_negates:
        # Reflecting the integer at the stored zero changes the sign of the value exactly.
        negated = 2 * modality.stored_zero - mirrored[..., channel].astype(np.int32)
        mirrored[..., channel] = negated.clip(0, np.iinfo(mirrored.dtype).max)
    return mirrored


def _resize(frame_hwc: Picture, size_px: int, modality: Modality) -> Picture:
    height, width, channels = frame_hwc.shape
    if modality.interpolation == "nearest":
        method = cv2.INTER_NEAREST_EXACT
    else:
        # INTER_AREA averages pixels and so avoids aliasing, but it cannot enlarge.
        method = cv2.INTER_AREA if min(height, width) > size_px else cv2.INTER_LINEAR
    resized: Picture = cv2.resize(frame_hwc, (size_px, size_px), interpolation=method)
    return resized.reshape(size_px, size_px, channels)  # OpenCV drops the axis of a single channel


def normalise(view: View, spec: ViewSpec) -> Tensor:
    """Convert stored integers to the normalised floats that an encoder takes, on the device of the view.

    The result [B, C, T, H, W] is float32 and has the memory layout of ``view.values``.

    Example:
        >>> spec = ViewSpec("image", num_frames=1, stride=1, size_px=2, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> white = View(torch.full((1, 3, 1, 2, 2), 255, dtype=torch.uint8), torch.ones(1, 3))
        >>> normalise(white, spec).unique()
        tensor([1.])
    """
    modality = spec.kind
    values = view.values.to(torch.float32) * modality.value_scale + modality.value_offset
    if modality.resize_axes:
        values = values * view.channel_scale[:, :, None, None, None]
    if modality.normalise_clip is not None:
        values = modality.normalise_clip(values)
    per_channel = (1, -1, 1, 1, 1)
    mean = torch.tensor(spec.mean, device=values.device).view(per_channel)
    std = torch.tensor(spec.std, device=values.device).view(per_channel)
    return (values - mean) / std
