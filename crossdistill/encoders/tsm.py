"""MobileNetV2 for clips, whose frames exchange channels with their neighbours (Lin et al., TSM, ICCV 2019).

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
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


def temporal_shift(frames_btchw: Tensor, *, fraction: float, is_online: bool = False) -> Tensor:
    """Replace some channels of each frame by those of its neighbours (Lin et al., section 3.1).

    The first ``fraction`` of the channels comes from the next frame, the second from the previous one, with zeros
    beyond the ends of the clip. Online (section 4.2), the first ``fraction`` comes from the previous frame, and none
    from the next.

    Example:
        >>> frames = torch.arange(3.0).view(1, 3, 1, 1, 1).expand(1, 3, 4, 1, 1)
        >>> temporal_shift(frames, fraction=1 / 4)[0, :, :, 0, 0]
        tensor([[1., 0., 0., 0.],
                [2., 0., 1., 1.],
                [0., 1., 2., 2.]])
    """
    num_shifted = int(frames_btchw.shape[2] * fraction)
    if is_online:
        previous = torch.cat([torch.zeros_like(frames_btchw[:, :1]), frames_btchw[:, :-1]], dim=1)
        return take_from(previous, frames_btchw, num_shifted, dim=2)
    num_kept = frames_btchw.shape[2] - 2 * num_shifted
    from_next, from_previous, kept = frames_btchw.split([num_shifted, num_shifted, num_kept], dim=2)
    none = torch.zeros_like(from_next[:, :1])
    from_next = torch.cat([from_next[:, 1:], none], dim=1)
    from_previous = torch.cat([none, from_previous[:, :-1]], dim=1)
    return torch.cat([from_next, from_previous, kept], dim=2)


def take_from(previous: Tensor, frames: Tensor, num_shifted: int, *, dim: int) -> Tensor:
    """Replace the first channels of frames by those of the previous frames; ``dim`` is the axis of channels."""
    kept = frames.narrow(dim, num_shifted, frames.shape[dim] - num_shifted)
    return torch.cat([previous.narrow(dim, 0, num_shifted), kept], dim=dim)


class TSMMobileNetV2(nn.Module):
    """MobileNetV2 for clips: the branch of every residual block takes shifted channels, its shortcut does not.

    It has torchvision's parameters under torchvision's names. A ``fraction`` of the channels is shifted each way; 0
    gives the mean of a 2D network over frames. An online network takes channels from the past alone, so that
    ``FrameByFrame`` can run it on a stream.
    """

    def __init__(self, channels: int, *, fraction: float = SHIFTED_FRACTION, is_online: bool = False) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features
        self.fraction = fraction
        self.is_online = is_online
        self.map = nn.Identity()  # for hooks: the features before pooling, with time as an axis
        replace_stem(self, "features.0.0", channels)

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """Map [B, C, T, H, W] to [B, 1280]."""
        num_frames = clip_bcthw.shape[2]

        def shift(frames: Tensor) -> Tensor:
            clips = rearrange(frames, "(b t) c h w -> b t c h w", t=num_frames)
            return temporal_shift(clips, fraction=self.fraction, is_online=self.is_online).flatten(0, 1)

        frames = self.run_frames(rearrange(clip_bcthw, "b c t h w -> (b t) c h w"), shift)
        return self.map(rearrange(frames, "(b t) c h w -> b c t h w", t=num_frames)).mean(dim=(2, 3, 4))

    def run_frames(self, frames: Tensor, shift: Callable[[Tensor], Tensor]) -> Tensor:
        """Map frames [N, C, H, W] to features before pooling; ``shift`` gives what the branch of a block takes."""
        for block in self.features:
            if isinstance(block, InvertedResidual) and block.use_res_connect:
                frames = frames + block.conv(shift(frames))
            else:
                frames = block(frames)
        return frames


class FrameByFrame:
    """Runs an online network on the frames of a stream, one at a time, and holds the channels that the next one takes.

    The mean over the frames of a clip equals the network's output for that clip.

    Example:
        >>> network, clip = TSMMobileNetV2(3, is_online=True).eval(), torch.rand(1, 3, 4, 32, 32)
        >>> run = FrameByFrame(network)
        >>> with torch.no_grad():
        ...     features = torch.stack([run(clip[:, :, t]) for t in range(4)])
        ...     torch.allclose(features.mean(dim=0), network(clip), atol=1e-5)
        True
    """

    def __init__(self, network: TSMMobileNetV2) -> None:
        if not network.is_online:
            raise ValueError("the network takes channels from the next frame, which a stream does not have yet")
        self._network = network
        self._held: list[Tensor] = []

    def __call__(self, frames_bchw: Tensor) -> Tensor:
        """Map the next frame of each stream, [B, C, H, W], to [B, 1280]."""
        previous, self._held = iter(self._held), []

        def shift(frames: Tensor) -> Tensor:
            num_shifted = int(frames.shape[1] * self._network.fraction)
            self._held.append(frames[:, :num_shifted])
            none = torch.zeros_like(self._held[-1])
            return take_from(next(previous, none), frames, num_shifted, dim=1)

        return self._network.run_frames(frames_bchw, shift).mean(dim=(2, 3))


def shifted(mobilenet: Architecture, *, is_online: bool = False) -> Architecture:
    """Describe the network of clips that torchvision's MobileNetV2 becomes with shifted channels."""
    return replace(
        mobilenet,
        build=lambda view: TSMMobileNetV2(view.kind.channels, is_online=is_online),
        modalities=CLIP_MODALITIES,
        num_frames=8,
        stride=8,  # the authors' dense sampling: 8 of 64 frames
        takes="clip",
        token_layer=TokenLayer("map"),
        frame_by_frame=FrameByFrame if is_online else None,
        source="crossdistill.encoders.tsm.TSMMobileNetV2, weights as torchvision.models.mobilenet_v2",
        # They were trained without the shift: a student may start from them, but they make no teacher of clips.
        public_weights=tuple(replace(public, modalities=("image",)) for public in mobilenet.public_weights),
        published_gmacs=None,
    )
