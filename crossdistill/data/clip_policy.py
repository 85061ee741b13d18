"""RandAugment and TrivialAugment of whole clips: every operation has one strength and one geometry for all frames.

Cubuk, Zoph, Shlens, Le: RandAugment, CVPR 2020 workshops, arXiv 1909.13719: a fixed number of random operations of one
strength. Mueller, Hutter: TrivialAugment, ICCV 2021, arXiv 2103.10158: one operation of a random strength. Both are
torchvision's; what they turn or shift out of the frame becomes the mean colour of the encoder's weights. Operations
that stretch the histogram (AutoContrast, Equalize) do so for each frame by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from crossdistill.data.transforms import CutClip
from crossdistill.types import ViewSpec

MAX_MAGNITUDE = 30
"""Strongest strength of torchvision's RandAugment, which counts from 0."""


@dataclass(frozen=True)
class ClipPolicy:
    """Random changes of colour and geometry for clips of one view, which has colours."""

    kind: Literal["rand", "trivial"]
    view: ViewSpec
    num_operations: int = 2
    """Operations one after the other; ``trivial`` has one."""
    magnitude: int = 9
    """Strength of each, 0 to ``MAX_MAGNITUDE``; that of ``trivial`` is random."""

    @cached_property
    def _transform(self) -> nn.Module:
        options = {
            "interpolation": InterpolationMode.BILINEAR,
            "fill": [round(255 * value) for value in self.view.mean],
        }
        if self.kind == "trivial":
            return v2.TrivialAugmentWide(**options)
        return v2.RandAugment(num_ops=self.num_operations, magnitude=self.magnitude, **options)

    def __call__(self, clip: CutClip, *, seed: int) -> CutClip:
        """Change a clip. The seed decides the draws alone; torch's generator is left as it was."""
        frames_tchw = torch.from_numpy(np.stack(clip.frames)).permute(0, 3, 1, 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed_tchw = self._transform(frames_tchw)
        return CutClip(list(changed_tchw.permute(0, 2, 3, 1).contiguous().numpy()), clip.channel_scale)
