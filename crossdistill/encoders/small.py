"""Small networks of our own, for laptops and tests."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, Conv3DSimple

from crossdistill.encoders.base import CLIP_MODALITIES, Architecture, TokenLayer
from crossdistill.types import ViewSpec

R3D10_WIDTH = 16


class R3D10(nn.Module):
    """A 3D ResNet with one basic block a stage, for laptops and tests.

    Stem of 3x7x7 with stride (1, 2, 2), then four of torchvision's ``BasicBlock`` with ``width`` times
    1, 2, 4, 8 channels, the last three halving time and space; then the mean over both.
    """

    def __init__(self, channels: int, *, width: int, norm: Callable[[int], nn.Module] = nn.BatchNorm3d) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(channels, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
            norm(width),
            nn.ReLU(inplace=True),
        )
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        stages = [_basic_block(w_in, w_out) for w_in, w_out in itertools.pairwise(widths)]
        self.stages = nn.Sequential(*stages)
        _replace_batch_norm(self.stages, norm)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, 8 * width]."""
        features: Tensor = self.stages(self.stem(clip_bcthw))
        return features.mean(dim=(2, 3, 4))


def _basic_block(inplanes: int, planes: int) -> BasicBlock:
    if inplanes == planes:
        return BasicBlock(inplanes, planes, Conv3DSimple)
    shortcut = nn.Sequential(nn.Conv3d(inplanes, planes, 1, 2, bias=False), nn.BatchNorm3d(planes))
    return BasicBlock(inplanes, planes, Conv3DSimple, stride=2, downsample=shortcut)


def _replace_batch_norm(module: nn.Module, norm: Callable[[int], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(module, name, norm(child.num_features))
        else:
            _replace_batch_norm(child, norm)


def group_norm(channels: int) -> nn.Module:
    """GroupNorm with 8 channels a group: no statistics of the batch, so any batch size trains alike."""
    return nn.GroupNorm(max(1, channels // 8), channels)


def build_r3d10(view: ViewSpec) -> nn.Module:
    """``R3D10`` of width 16: 0.9 M parameters."""
    return R3D10(view.kind.channels, width=R3D10_WIDTH)


def build_r3d10_gn(view: ViewSpec) -> nn.Module:
    """``R3D10`` of width 16 with GroupNorm, for batches too small for BatchNorm."""
    return R3D10(view.kind.channels, width=R3D10_WIDTH, norm=group_norm)


class Tiny3D(nn.Module):
    """Four 3x3x3 convolutions with BatchNorm and ReLU, pooled to four moments: for experiments on laptops.

    ``width`` times 1, 2, 4, 8 channels; the first two halve space, the last two space and time.

    Args:
        channels: Of the modality.
        width: Of the first convolution.
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
        """[B, C, T, H, W] to [B, 32 * width]."""
        features: Tensor = self.features(clip_bcthw)
        num_times = features.shape[2]
        if num_times % self.NUM_MOMENTS == 0:
            pooled: Tensor = self.pool(features)
        else:  # the same as a product, because ONNX knows no moments of unequal length
            pooled = features.mean(dim=(3, 4)) @ _shares(num_times, self.NUM_MOMENTS).to(features)
        return pooled.flatten(1)


def _shares(num_times: int, num_moments: int) -> Tensor:
    """[times, moments]: what each time gives to each moment, as adaptive pooling shares them out."""
    rows = []
    for moment in range(num_moments):
        start, stop = moment * num_times // num_moments, -(-(moment + 1) * num_times // num_moments)
        rows.append([1 / (stop - start) if start <= time < stop else 0.0 for time in range(num_times)])
    return torch.tensor(rows).T


def build_tiny3d(view: ViewSpec, *, width: int) -> nn.Module:
    """``Tiny3D`` of one width."""
    return Tiny3D(view.kind.channels, width=width)


def _tiny3d(width: int) -> Architecture:
    return Architecture(
        build=partial(build_tiny3d, width=width),
        embed_dim=8 * width * Tiny3D.NUM_MOMENTS,
        modalities=CLIP_MODALITIES,
        num_frames=16,
        stride=2,
        size_px=64,
        stem="features.0",
        classifier_prefix="fc.",
        token_layer=TokenLayer("features"),
        channels_last_pays_on_cpu=True,
        source=f"crossdistill.encoders.small.Tiny3D(width={width})",
    )


_R3D10 = Architecture(
    build=build_r3d10,
    embed_dim=8 * R3D10_WIDTH,
    modalities=CLIP_MODALITIES,
    num_frames=16,
    stride=1,
    size_px=64,
    stem="stem.0",
    classifier_prefix="fc.",
    bf16_pays_on_cpu=True,
    channels_last_pays_on_cpu=True,
    token_layer=TokenLayer("stages"),
    source="crossdistill.encoders.small.R3D10(width=16)",
)
SMALL: dict[str, Architecture] = {
    "r3d10": _R3D10,
    "r3d10_gn": replace(
        _R3D10, build=build_r3d10_gn, source="crossdistill.encoders.small.R3D10(width=16, norm=group_norm)"
    ),
    **{f"tiny3d_{width}": _tiny3d(width) for width in (8, 16, 32)},
}
