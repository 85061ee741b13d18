"""MobileNetV2 for clips, whose frames exchange channels with their neighbours (Lin et al., TSM, ICCV 2019).

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual

from crossdistill.encoders.architecture import CLIP_MODALITIES, Architecture, replace_stem
from crossdistill.encoders.tokens import TokenLayer

SHIFTED_FRACTION = 1 / 8
"""Fraction of the channels that comes from the next frame; as many come from the previous one."""


def temporal_shift(frames_btchw: Tensor, *, fraction: float) -> Tensor:
    """Replace some channels of each frame by those of its neighbours (Lin et al., section 3.1).

    The first ``fraction`` of the channels comes from the next frame, the second from the previous one, with zeros
    beyond the ends of the clip.

    Example:
        >>> frames = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(1, 3, 4, 1, 1)
        >>> temporal_shift(frames, fraction=1 / 4)[0, :, :, 0, 0]
        tensor([[1., 0., 0., 0.],
                [2., 0., 1., 1.],
                [0., 1., 2., 2.]])
    """
    num_shifted = int(frames_btchw.shape[2] * fraction)
    num_kept = frames_btchw.shape[2] - 2 * num_shifted
    from_next, from_previous, kept = frames_btchw.split([num_shifted, num_shifted, num_kept], dim=2)
    none = torch.zeros_like(from_next[:, :1])
    from_next = torch.cat([from_next[:, 1:], none], dim=1)
    from_previous = torch.cat([none, from_previous[:, :-1]], dim=1)
    return torch.cat([from_next, from_previous, kept], dim=2)


class TSMMobileNetV2(nn.Module):
    """MobileNetV2 for clips: the branch of every residual block takes shifted channels, its shortcut does not.

    It has torchvision's parameters under torchvision's names. A ``fraction`` of the channels is shifted each way; 0
    gives the mean of a 2D network over frames.
    """

    def __init__(self, channels: int, *, fraction: float = SHIFTED_FRACTION) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features
        self.fraction = fraction
        self.map = nn.Identity()  # for hooks: the features before pooling, with time as an axis
        replace_stem(self, "features.0.0", channels)

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """Map [B, C, T, H, W] to [B, 1280]."""
        num_frames = clip_bcthw.shape[2]
        frames = rearrange(clip_bcthw, "b c t h w -> (b t) c h w")
        for block in self.features:
            if isinstance(block, InvertedResidual) and block.use_res_connect:
                clips = rearrange(frames, "(b t) c h w -> b t c h w", t=num_frames)
                frames = frames + block.conv(temporal_shift(clips, fraction=self.fraction).flatten(0, 1))
            else:
                frames = block(frames)
        return self.map(rearrange(frames, "(b t) c h w -> b c t h w", t=num_frames)).mean(dim=(2, 3, 4))


def shifted(mobilenet: Architecture) -> Architecture:
    """Describe the network of clips that torchvision's MobileNetV2 becomes with shifted channels."""
    return replace(
        mobilenet,
        build=lambda view: TSMMobileNetV2(view.kind.channels),
        modalities=CLIP_MODALITIES,
        num_frames=8,
        stride=8,  # the authors' dense sampling: 8 of 64 frames
        takes="clip",
        token_layer=TokenLayer("map"),
        source="crossdistill.encoders.tsm.TSMMobileNetV2, weights as torchvision.models.mobilenet_v2",
        # They were trained without the shift: a student may start from them, but they make no teacher of clips.
        public_weights=tuple(replace(public, modalities=("image",)) for public in mobilenet.public_weights),
        published_gmacs=None,
    )
