"""Networks of single frames that exchange channels between neighbouring frames (Lin et al., TSM, ICCV 2019)."""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual

from crossdistill.encoders.base import CLIP_MODALITIES, Architecture, TokenLayer, replace_stem
from crossdistill.encoders.torchvision import TORCHVISION
from crossdistill.types import ViewSpec

SHIFTED_FRACTION = 1 / 8
"""Of the channels that come from the next frame, and again of those from the previous one."""


def temporal_shift(frames_btchw: Tensor, *, fraction: float) -> Tensor:
    """Give each frame some channels of its neighbours (Lin et al., section 3.1; zeros beyond the ends of the clip).

    Args:
        frames_btchw: [B, T, C, H, W].
        fraction: The first such part of the channels comes from the next frame, the second from the previous one.

    Returns:
        [B, T, C, H, W].
    """
    num_shifted = int(frames_btchw.shape[2] * fraction)
    num_kept = frames_btchw.shape[2] - 2 * num_shifted
    from_next, from_previous, kept = frames_btchw.split([num_shifted, num_shifted, num_kept], dim=2)
    none = torch.zeros_like(from_next[:, :1])
    from_next = torch.cat([from_next[:, 1:], none], dim=1)
    from_previous = torch.cat([none, from_previous[:, :-1]], dim=1)
    return torch.cat([from_next, from_previous, kept], dim=2)


class TSMMobileNetV2(nn.Module):
    """MobileNetV2 for clips: the branch of every residual block sees shifted channels, its shortcut does not.

    No parameters are added, and all have torchvision's names.

    Args:
        channels: Of the modality.
        fraction: Of the channels that is shifted each way; 0 leaves the mean of a 2D network over frames.
    """

    def __init__(self, channels: int, *, fraction: float = SHIFTED_FRACTION) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features
        self.fraction = fraction
        self.map = nn.Identity()  # a place for hooks: the features before pooling, with time as an axis
        replace_stem(self, "features.0.0", channels)

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, 1280]."""
        num_frames = clip_bcthw.shape[2]
        frames = rearrange(clip_bcthw, "b c t h w -> (b t) c h w")
        for block in self.features:
            if isinstance(block, InvertedResidual) and block.use_res_connect:
                clips = rearrange(frames, "(b t) c h w -> b t c h w", t=num_frames)
                frames = frames + block.conv(temporal_shift(clips, fraction=self.fraction).flatten(0, 1))
            else:
                frames = block(frames)
        features: Tensor = self.map(rearrange(frames, "(b t) c h w -> b c t h w", t=num_frames))
        return features.mean(dim=(2, 3, 4))


def build_tsm_mobilenet_v2(view: ViewSpec) -> nn.Module:
    """``TSMMobileNetV2`` with an eighth of the channels shifted each way."""
    return TSMMobileNetV2(view.kind.channels)


_MOBILENET_V2 = TORCHVISION["mobilenet_v2"]
TSM: dict[str, Architecture] = {
    "tsm_mobilenet_v2": replace(
        _MOBILENET_V2,
        build=build_tsm_mobilenet_v2,
        modalities=CLIP_MODALITIES,
        num_frames=8,
        stride=8,  # the authors' dense sampling: 8 of 64 frames
        takes="clip",
        token_layer=TokenLayer("map"),
        source="crossdistill.encoders.tsm.TSMMobileNetV2, weights as torchvision.models.mobilenet_v2",
        # Trained without the shift: where training starts, but no teacher.
        public_weights=tuple(replace(public, modalities=("image",)) for public in _MOBILENET_V2.public_weights),
        published_gmacs=None,
    ),
}
