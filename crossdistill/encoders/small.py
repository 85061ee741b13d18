"""Small networks of this package, for laptops and tests.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, Conv3DSimple

from crossdistill.encoders.architecture import CLIP_MODALITIES, Architecture
from crossdistill.encoders.tokens import TokenLayer
from crossdistill.types import ViewSpec


class R3D10(nn.Module):
    """A 3D ResNet with one basic block per stage.

    The stem is a convolution of 3x7x7 with stride (1, 2, 2). Four of torchvision's ``BasicBlock`` follow, with 1, 2, 4
    and 8 times ``width`` channels; the last three halve time and space. The features are the mean over time and space.
    ``norm`` makes a normalisation layer of a number of channels.
    """

    def __init__(self, channels: int, *, width: int, norm: Callable[[int], nn.Module] = nn.BatchNorm3d) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(channels, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), norm(width), nn.ReLU(inplace=True)
        )
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(*(_basic_block(w_in, w_out) for w_in, w_out in itertools.pairwise(widths)))
        for name, module in list(self.stages.named_modules()):
            if isinstance(module, nn.BatchNorm3d):  # torchvision's block has no argument for its norm
                self.stages.set_submodule(name, norm(module.num_features))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """Map [B, C, T, H, W] to [B, 8 * width]."""
        return self.stages(self.stem(clip_bcthw)).mean(dim=(2, 3, 4))


def _basic_block(inplanes: int, planes: int) -> BasicBlock:
    if inplanes == planes:
        return BasicBlock(inplanes, planes, Conv3DSimple)
    shortcut = nn.Sequential(nn.Conv3d(inplanes, planes, 1, 2, bias=False), nn.BatchNorm3d(planes))
    return BasicBlock(inplanes, planes, Conv3DSimple, stride=2, downsample=shortcut)


def group_norm(channels: int) -> nn.Module:
    """Return GroupNorm with 8 channels a group, for batches that are too small for BatchNorm."""
    return nn.GroupNorm(max(1, channels // 8), channels)


class Tiny3D(nn.Module):
    """Four 3x3x3 convolutions with BatchNorm and ReLU, pooled over space and to four moments of time.

    They have 1, 2, 4 and 8 times ``width`` channels. The first two halve space, the last two space and time.
    """

    STRIDES = ((1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    NUM_MOMENTS = 4

    def __init__(self, channels: int, *, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        for (w_in, w_out), stride in zip(itertools.pairwise(widths), self.STRIDES, strict=True):
            convolution = nn.Conv3d(w_in, w_out, 3, stride, 1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm3d(w_out), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool3d((self.NUM_MOMENTS, 1, 1))

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """Map [B, C, T, H, W] to [B, 32 * width]."""
        features: Tensor = self.features(clip_bcthw)
        num_times = features.shape[2]
        if num_times % self.NUM_MOMENTS == 0:
            pooled: Tensor = self.pool(features)
        else:  # the same as a matrix product, because ONNX has no adaptive pooling to parts of unequal length
            pooled = features.mean(dim=(3, 4)) @ _shares(num_times, self.NUM_MOMENTS).to(features)
        return pooled.flatten(1)


def _shares(num_times: int, num_moments: int) -> Tensor:
    """Return the weight [times, moments] of each time in each moment, equal to those of adaptive pooling."""
    rows = []
    for moment in range(num_moments):
        start, stop = moment * num_times // num_moments, -(-(moment + 1) * num_times // num_moments)
        rows.append([1 / (stop - start) if start <= time < stop else 0.0 for time in range(num_times)])
    return torch.tensor(rows).T


def tiny3d(width: int) -> Architecture:
    """Describe ``Tiny3D`` of one width."""
    return _architecture(
        lambda view: Tiny3D(view.kind.channels, width=width),
        f"Tiny3D(width={width})",
        embed_dim=8 * width * Tiny3D.NUM_MOMENTS,
        stride=2,
        stem="features.0",
        tokens="features",
    )


def r3d10(norm: Callable[[int], nn.Module] = nn.BatchNorm3d, argument: str = "", *, width: int = 16) -> Architecture:
    """Describe ``R3D10``, which has 0.9 M parameters. ``argument`` shows in the source which norm it has."""
    return _architecture(
        lambda view: R3D10(view.kind.channels, width=width, norm=norm),
        f"R3D10(width={width}{argument})",
        embed_dim=8 * width,
        stride=1,
        stem="stem.0",
        tokens="stages",
        bf16_pays_on_cpu=True,
    )


def _architecture(
    build: Callable[[ViewSpec], nn.Module], source: str, *, stem: str, tokens: str, **facts: Any
) -> Architecture:
    return Architecture(
        build=build,
        modalities=CLIP_MODALITIES,
        num_frames=16,
        size_px=64,
        stems=(stem,),
        classifier_prefix="fc.",
        token_layer=TokenLayer(tokens),
        channels_last_pays_on_cpu=True,
        source=f"crossdistill.encoders.small.{source}",
        **facts,
    )
