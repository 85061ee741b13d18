"""Strong augmentation of the student's view, on the device (``--strong-views``).

It works on normalised values of any modality: a gain changes the contrast of pictures and the speed of flow, and 0 is
the mean. Single pictures also change their colours and are blurred. Together with crops and mirroring it replaces the
strong augmentation of ISD (Tejankar et al., ICCV 2021), whose changes of hue have no meaning for flow and depth.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

GAIN_RANGE = (0.6, 1.4)
# In standard deviations, because the values are normalised.
OFFSET_MAX = 0.4
ERASE_PROBABILITY = 0.5
BLUR_PROBABILITY = 0.5
# Colour jitter of MoCo-v2 (arXiv 2003.04297), as ISD and CompRess have it; hue in turns.
SATURATION_RANGE, HUE_MAX, JITTER_PROBABILITY, GRAY_PROBABILITY = (0.6, 1.4), 0.1, 0.8, 0.2
# Rows: brightness, and the two axes of colour (YIQ of NTSC).
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
# Standard deviation in pixels of a picture of BLUR_SIDE_PX, as in SimCLR.
BLUR_SIGMA_RANGE, BLUR_SIDE_PX = (0.1, 2.0), 224
# Share of the height and of the width: the box covers 4 to 25 percent of the picture.
ERASED_SIDE_RANGE = (0.2, 0.5)


def distort(clip_bcthw: Tensor, *, is_picture: bool = False) -> Tensor:
    """Change contrast and brightness of each channel of normalised clips, and erase a box in half of the clips.

    All frames of a clip are changed in the same way. The draws come from torch's CPU generator, whose state is part of
    checkpoints.

    Args:
        clip_bcthw: Normalised clips.
        is_picture: Whether the clips are single pictures: half of them are blurred before, and those of three channels
            change saturation and hue.
    """
    if is_picture:
        clip_bcthw = _blur(clip_bcthw)
    if is_picture and clip_bcthw.shape[1] == len(YIQ):
        clip_bcthw = _change_colours(clip_bcthw)
    num_clips, channels, _, height, width = clip_bcthw.shape
    shape = (num_clips, channels, 1, 1, 1)
    gain = torch.empty(shape).uniform_(*GAIN_RANGE).to(clip_bcthw)
    offset = torch.empty(shape).uniform_(-OFFSET_MAX, OFFSET_MAX).to(clip_bcthw)
    is_erased = _in_random_span(num_clips, height)[:, :, None] & _in_random_span(num_clips, width)[:, None, :]
    is_erased &= (torch.rand(num_clips) < ERASE_PROBABILITY)[:, None, None]
    kept = (~is_erased)[:, None, None].to(clip_bcthw)
    return (clip_bcthw * gain + offset) * kept


def _blur(clip_bcthw: Tensor) -> Tensor:
    """Blur half of the clips with a Gaussian of a random width, as SimCLR does."""
    num_clips, channels, frames, height, width = clip_bcthw.shape
    sigma_px = torch.empty(num_clips).uniform_(*BLUR_SIGMA_RANGE) * (width / BLUR_SIDE_PX)
    # A narrow Gaussian is 1 at its middle and 0 beside it, so that the other half stays as it is.
    sigma_px[torch.rand(num_clips) >= BLUR_PROBABILITY] = 1e-3
    radius = max(1, math.ceil(2 * BLUR_SIGMA_RANGE[1] * width / BLUR_SIDE_PX))
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma_px[:, None]).square())
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(clip_bcthw)
    planes = num_clips * channels * frames
    kernel = weights.repeat_interleave(channels * frames, dim=0)[:, None, None]
    rows = F.pad(clip_bcthw.reshape(1, planes, height, width), (radius,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(rows, kernel, groups=planes), kernel.mT, groups=planes)
    return blurred.view_as(clip_bcthw)


def _change_colours(clip_bcthw: Tensor) -> Tensor:
    """Change saturation and hue of most clips, and make some gray. The brightness of each pixel stays."""
    num_clips = len(clip_bcthw)
    is_kept = torch.rand(num_clips) >= JITTER_PROBABILITY
    saturation = torch.empty(num_clips).uniform_(*SATURATION_RANGE).masked_fill(is_kept, 1.0)
    saturation[torch.rand(num_clips) < GRAY_PROBABILITY] = 0.0
    hue = 2 * math.pi * torch.empty(num_clips).uniform_(-HUE_MAX, HUE_MAX).masked_fill(is_kept, 0.0)
    turn = torch.zeros(num_clips, 3, 3)
    turn[:, 0, 0] = 1.0
    turn[:, 1, 1] = turn[:, 2, 2] = saturation * hue.cos()
    turn[:, 2, 1] = saturation * hue.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    matrix = (torch.linalg.inv(YIQ) @ turn @ YIQ).to(clip_bcthw)
    return torch.einsum("bdc,bcthw->bdthw", matrix, clip_bcthw)


def _in_random_span(num_clips: int, length: int) -> Tensor:
    """Draw one span for each clip, and return [B, length] bool, whether each position is inside."""
    span = torch.empty(num_clips, 1).uniform_(*ERASED_SIDE_RANGE)
    start = torch.rand(num_clips, 1) * (1 - span)
    position = (torch.arange(length) + 0.5) / length
    return (position >= start) & (position < start + span)
