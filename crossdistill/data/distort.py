"""Strong views: distortions of what a student sees that leave the moment recognisable, on the device.

They know nothing of modalities: values are normalised, so that a gain changes the contrast of pictures and the speed of
flow alike, and zero is the mean. With crops and mirroring they stand for the strong augmentation of Tejankar et al.,
ISD, ICCV 2021, whose changes of hue have no meaning for flow and depth.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

GAIN_RANGE = (0.6, 1.4)
# In standard deviations of the normalised values.
OFFSET_MAX = 0.4
ERASE_PROBABILITY = 0.5
# Of the height and of the width, so between 4 and 25 percent of the picture.
ERASED_SIDE_RANGE = (0.2, 0.5)


def distort(clip_bcthw: Tensor) -> Tensor:
    """Change contrast and brightness of every channel, and erase a box from all frames of half of the clips.

    Draws from torch's generator of the CPU, which checkpoints keep.

    Args:
        clip_bcthw: [B, C, T, H, W], normalised; not changed.
    """
    num_clips, channels, _, height, width = clip_bcthw.shape
    shape = (num_clips, channels, 1, 1, 1)
    gain = torch.empty(shape).uniform_(*GAIN_RANGE).to(clip_bcthw)
    offset = torch.empty(shape).uniform_(-OFFSET_MAX, OFFSET_MAX).to(clip_bcthw)
    is_erased = _in_random_span(num_clips, height)[:, :, None] & _in_random_span(num_clips, width)[:, None, :]
    is_erased &= (torch.rand(num_clips) < ERASE_PROBABILITY)[:, None, None]
    kept = (~is_erased)[:, None, None].to(clip_bcthw)
    return (clip_bcthw * gain + offset) * kept


def _in_random_span(num_clips: int, length: int) -> Tensor:
    """[B, length] bool: whether a position is inside a span, a random one for each clip."""
    span = torch.empty(num_clips, 1).uniform_(*ERASED_SIDE_RANGE)
    start = torch.rand(num_clips, 1) * (1 - span)
    position = (torch.arange(length) + 0.5) / length
    return (position >= start) & (position < start + span)
