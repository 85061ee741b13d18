"""3D ResNets for clips: r3d18 (torchvision), r3d50 (pytorchvideo), r3d10 for laptops (here)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from pytorchvideo.models.resnet import create_resnet
from pytorchvideo.models.weight_init import init_net_weights
from torch import Tensor, nn
from torchvision.models.video import r3d_18
from torchvision.models.video.resnet import BasicBlock, Conv3DSimple

from crossdistill.encoders.base import Architecture, Statistics

CLIP_MODALITIES = ("rgb", "flow", "depth")
# Of Kinetics-400, as torchvision trained its video models (R3D_18_Weights.KINETICS400_V1).
TORCHVISION_KINETICS = Statistics(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))

R3D10_WIDTH = 16


def build_r3d18(channels: int) -> nn.Module:
    """``r3d_18`` of torchvision (Tran et al., CVPR 2018) without ``fc``."""
    body = r3d_18()
    if channels != 3:
        stem = body.stem[0]
        body.stem[0] = nn.Conv3d(channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False)
        nn.init.kaiming_normal_(body.stem[0].weight, mode="fan_out", nonlinearity="relu")
    body.fc = nn.Identity()
    return body


class PooledBlocks(nn.Module):
    """pytorchvideo's ``Net`` without its head: its blocks, then the mean over time and space."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, D]."""
        for block in self.blocks:
            clip_bcthw = block(clip_bcthw)
        return clip_bcthw.mean(dim=(2, 3, 4))


def build_r3d50(channels: int) -> nn.Module:
    """A true 3D ResNet-50: every bottleneck's middle convolution is 3x3x3 (Hara et al., CVPR 2018).

    Built from pytorchvideo's ``create_resnet``; 46.2 M parameters, time halved at the pooling of the
    stem and at stages 2 to 4.
    """
    model = create_resnet(
        input_channel=channels,
        model_depth=50,
        stem_conv_kernel_size=(7, 7, 7),
        stem_conv_stride=(1, 2, 2),
        stem_pool=nn.MaxPool3d,
        stem_pool_kernel_size=(3, 3, 3),
        stem_pool_stride=(2, 2, 2),
        stage_conv_a_kernel_size=((1, 1, 1),) * 4,
        stage_conv_b_kernel_size=((3, 3, 3),) * 4,
        stage_temporal_stride=(1, 2, 2, 2),
        head=None,
    )
    init_net_weights(model)  # pytorchvideo leaves PyTorch's default, from which a deep ResNet hardly learns
    return PooledBlocks(model.blocks)


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


def build_r3d10(channels: int) -> nn.Module:
    """``R3D10`` of width 16: 0.9 M parameters."""
    return R3D10(channels, width=R3D10_WIDTH)


def build_r3d10_gn(channels: int) -> nn.Module:
    """``R3D10`` of width 16 with GroupNorm, for batches too small for BatchNorm."""
    return R3D10(channels, width=R3D10_WIDTH, norm=group_norm)


RESNET3D: dict[str, Architecture] = {
    "r3d10": Architecture(
        build=build_r3d10,
        embed_dim=8 * R3D10_WIDTH,
        modalities=CLIP_MODALITIES,
        num_frames=16,
        stride=1,
        size_px=64,
        stem="stem.0",
        classifier="fc.",
        bf16_pays_on_cpu=True,
        channels_last_pays_on_cpu=True,
        source="crossdistill.encoders.resnet3d.R3D10(width=16)",
    ),
    "r3d10_gn": Architecture(
        build=build_r3d10_gn,
        embed_dim=8 * R3D10_WIDTH,
        modalities=CLIP_MODALITIES,
        num_frames=16,
        stride=1,
        size_px=64,
        stem="stem.0",
        classifier="fc.",
        bf16_pays_on_cpu=True,
        channels_last_pays_on_cpu=True,
        source="crossdistill.encoders.resnet3d.R3D10(width=16, norm=group_norm)",
    ),
    "r3d18": Architecture(
        build=build_r3d18,
        embed_dim=512,
        modalities=CLIP_MODALITIES,
        num_frames=16,
        stride=2,
        size_px=112,
        stem="stem.0",
        classifier="fc.",
        statistics={"rgb": TORCHVISION_KINETICS},
        bf16_pays_on_cpu=True,
        source="torchvision.models.video.r3d_18",
    ),
    "r3d50": Architecture(
        build=build_r3d50,
        embed_dim=2048,
        modalities=CLIP_MODALITIES,
        num_frames=16,
        stride=2,
        size_px=112,
        stem="blocks.0.conv",
        classifier="blocks.5.",
        bf16_pays_on_cpu=True,
        source="pytorchvideo.models.resnet.create_resnet",
    ),
}
