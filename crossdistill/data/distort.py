"""Strong augmentation of the student's view, on the device (``--strong-views``).

It works on normalised values of any modality: a gain changes the contrast of pictures and the speed of flow, and 0 is
the mean. Together with crops and mirroring it replaces the strong augmentation of ISD (Tejankar et al., ICCV 2021),
whose changes of hue have no meaning for flow and depth.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

GAIN_RANGE = (0.6, 1.4)
# In standard deviations, because the values are normalised.
OFFSET_MAX = 0.4
ERASE_PROBABILITY = 0.5
# Share of the height and of the width: the box covers 4 to 25 percent of the picture.
ERASED_SIDE_RANGE = (0.2, 0.5)


def distort(clip_bcthw: Tensor) -> Tensor:
    """Change contrast and brightness of each channel of normalised clips, and erase a box in half of the clips.

    All frames of a clip are changed in the same way. The draws come from torch's CPU generator, whose state is part of
    checkpoints.
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
    """Draw one span for each clip, and return [B, length] bool, whether each position is inside."""
    span = torch.empty(num_clips, 1).uniform_(*ERASED_SIDE_RANGE)
    start = torch.rand(num_clips, 1) * (1 - span)
    position = (torch.arange(length) + 0.5) / length
    return (position >= start) & (position < start + span)
