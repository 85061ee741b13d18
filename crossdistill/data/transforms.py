"""Geometry that all views of a sample share, and normalisation on the device.

A worker crops, resizes and mirrors the stored integers; floats appear on the device. One ``Crop`` in
fractions of the picture serves every stream of a sample, whatever its size. A stream that is no picture
is mirrored with the others and never cropped.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

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
    """A part of a picture, as fractions of its width and height."""

    left: float
    top: float
    width: float
    height: float
    is_mirrored: bool = False


@dataclass(frozen=True)
class Augmentation:
    """Random-resized-crop and mirroring, the augmentation of CompRess (sec. 4.1)."""

    area_min: float = 0.2
    """Smallest share of the picture's area that a crop may have."""
    area_max: float = 1.0
    ratio_min: float = 3 / 4
    ratio_max: float = 4 / 3
    mirror_probability: float = 0.5

    def draw(self, generator: np.random.Generator, *, width_px: int, height_px: int) -> Crop:
        """Draw one crop; after ten tries that do not fit, the largest centred one within the ratios."""
        is_mirrored = bool(generator.random() < self.mirror_probability)
        for _ in range(10):
            area = generator.uniform(self.area_min, self.area_max)
            ratio = np.exp(generator.uniform(np.log(self.ratio_min), np.log(self.ratio_max)))
            # In fractions: the picture's own ratio turns a square of pixels into an oblong of fractions.
            width = float(np.sqrt(area * ratio * height_px / width_px))
            height = float(area / width)
            if width <= 1 and height <= 1:
                left, top = generator.uniform(0, 1 - width), generator.uniform(0, 1 - height)
                return Crop(float(left), float(top), width, height, is_mirrored)
        return centre_crop(width_px=width_px, height_px=height_px, is_mirrored=is_mirrored)


def centre_crop(*, width_px: int, height_px: int, is_mirrored: bool = False, fraction: float = 1.0) -> Crop:
    """A centred square of a share of the shorter side, as a crop in fractions."""
    side_px = min(width_px, height_px) * fraction
    width, height = side_px / width_px, side_px / height_px
    return Crop((1 - width) / 2, (1 - height) / 2, width, height, is_mirrored)


@dataclass(frozen=True)
class CutClip:
    """One clip of one stream after the geometry, not yet copied into a batch."""

    frames: list[Picture]
    """T times [S, S, C] as stored: parts of the decoded pictures where nothing had to change."""
    channel_scale: NDArray[np.float32]
    """[C]: how far resizing stretched the values."""

    @property
    def values(self) -> Tensor:
        """[C, T, S, S], a copy."""
        return torch.from_numpy(np.stack(self.frames).transpose(3, 0, 1, 2))


def cut_view(frames: Sequence[Picture], crop: Crop, *, modality: Modality, size_px: int) -> CutClip:
    """Crop, resize and mirror the stored integers of one clip.

    Args:
        frames: T times [H, W, C], or [T, H, W, C], as stored.
        crop: Which part, and whether mirrored.
        modality: Says how to resample, what mirrors with a change of sign, and what stretches.
        size_px: Height and width of the result, S.
    """
    if not modality.is_picture:
        crop = replace(crop, left=0.0, top=0.0, width=1.0, height=1.0)
    if crop.is_mirrored and modality.mirrored_rows:
        frames = [frame[list(modality.mirrored_rows)] for frame in frames]
    height, width, _ = frames[0].shape
    crop_width = max(1, round(crop.width * width))
    crop_height = max(1, round(crop.height * height))
    left = min(round(crop.left * width), width - crop_width)
    top = min(round(crop.top * height), height - crop_height)
    parts = [frame[top : top + crop_height, left : left + crop_width] for frame in frames]
    if (crop_height, crop_width) != (size_px, size_px):
        parts = [_resize(part, size_px, modality) for part in parts]
    if crop.is_mirrored:
        parts = [_mirror(part, modality) for part in parts]
    stretch = {"x": size_px / crop_width, "y": size_px / crop_height, None: 1.0}
    axes = modality.resize_axes or (None,) * modality.channels
    return CutClip(parts, np.asarray([stretch[axis] for axis in axes], dtype=np.float32))


def _mirror(frame_hwc: Picture, modality: Modality) -> Picture:
    frame_hwc = np.ascontiguousarray(frame_hwc)
    mirrored: Picture = cv2.flip(frame_hwc, 1).reshape(frame_hwc.shape) if modality.is_picture else frame_hwc.copy()
    for channel in modality.flip_negates:
        # Counted from the other side of zero: turns the sign exactly.
        negated = 2 * modality.stored_zero - mirrored[..., channel].astype(np.int32)
        mirrored[..., channel] = negated.clip(0, np.iinfo(mirrored.dtype).max)
    return mirrored


def _resize(frame_hwc: Picture, size_px: int, modality: Modality) -> Picture:
    height, width, channels = frame_hwc.shape
    if modality.interpolation == "nearest":
        method = cv2.INTER_NEAREST_EXACT
    else:
        method = cv2.INTER_AREA if min(height, width) > size_px else cv2.INTER_LINEAR
    resized: Picture = cv2.resize(np.ascontiguousarray(frame_hwc), (size_px, size_px), interpolation=method)
    return resized.reshape(size_px, size_px, channels)


def normalise(view: View, spec: ViewSpec) -> Tensor:
    """Turn stored integers into the floats that an encoder sees, on the device where they are.

    Args:
        view: [B, C, T, H, W] integers, with the stretch of each channel.
        spec: The encoder's view: its modality, mean and deviation.

    Returns:
        [B, C, T, H, W] float32, in memory as ``view.values`` is.
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
