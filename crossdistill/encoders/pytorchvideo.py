"""pytorchvideo's networks for clips, without their heads, and a true 3D ResNet-50 made of its parts."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crossdistill.encoders.base import CLIP_MODALITIES, Architecture, PublicWeights, TokenLayer
from crossdistill.types import ViewSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it compiles an activation with torch.jit.script when imported
    from pytorchvideo.models import hub
    from pytorchvideo.models.resnet import create_resnet
    from pytorchvideo.models.weight_init import init_net_weights
    from pytorchvideo.models.x3d import create_x3d


class Blocks(nn.Module):
    """pytorchvideo's ``Net`` with a pooling for its classifier, so that it takes clips of any size."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, D]."""
        for block in self.blocks:
            clip_bcthw = block(clip_bcthw)
        return clip_bcthw.flatten(1)


def build_r3d50(view: ViewSpec) -> nn.Module:
    """A true 3D ResNet-50: every bottleneck's middle convolution is 3x3x3 (Hara et al., CVPR 2018).

    Built from pytorchvideo's ``create_resnet``; 46.2 M parameters, time halved at the pooling of the
    stem and at stages 2 to 4.
    """
    model = create_resnet(
        input_channel=view.kind.channels,
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
    model.blocks.append(nn.AdaptiveAvgPool3d(1))
    return Blocks(model.blocks)


def _without_head(blocks: nn.ModuleList) -> nn.Module:
    """The library pools with a window of one clip size; the mean over all there is equals it there."""
    blocks[-1] = nn.AdaptiveAvgPool3d(1)
    return Blocks(blocks)


def build_slow_r50(view: ViewSpec) -> nn.Module:
    """The slow pathway alone (Feichtenhofer et al., ICCV 2019): no convolution in time before stage 4."""
    return _without_head(hub.slow_r50(input_channel=view.kind.channels).blocks)


def build_r2plus1d_r50(view: ViewSpec) -> nn.Module:
    """R(2+1)D-50 (Tran et al., CVPR 2018)."""
    return _without_head(hub.r2plus1d_r50(input_channel=view.kind.channels).blocks)


def build_csn_r101(view: ViewSpec) -> nn.Module:
    """Channel-separated ResNet-101 (Tran et al., ICCV 2019)."""
    return _without_head(hub.csn_r101(input_channel=view.kind.channels).blocks)


class TwoPathways(nn.Module):
    """SlowFast (Feichtenhofer et al., ICCV 2019): the slow pathway sees every fourth frame.

    Args:
        blocks: pytorchvideo's; the last two (fixed pooling, head) give way to the mean of each pathway.
    """

    SLOW_STRIDE = 4

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks[:-2]

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, 2304]."""
        pathways = [clip_bcthw[:, :, :: self.SLOW_STRIDE], clip_bcthw]
        for block in self.blocks:
            pathways = block(pathways)
        return torch.cat([pathway.mean(dim=(2, 3, 4)) for pathway in pathways], dim=1)


def build_slowfast_r50(view: ViewSpec) -> nn.Module:
    """SlowFast 8x8, R50."""
    return TwoPathways(hub.slowfast_r50(input_channels=(view.kind.channels,) * 2).blocks)


class _ReadableNumbers(TorchFunctionMode):
    """MViT keeps rates and factors of its blocks in tensors and reads them, which is impossible on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in (torch.linspace, torch.ones):
            options["device"] = "cpu"
        return func(*args, **options)


def build_mvit_b(view: ViewSpec) -> nn.Module:
    """MViT-B (Fan et al., ICCV 2021); its positions are numbered, so weights fit one size only."""
    with _ReadableNumbers():
        model = hub.mvit_base_16x4(
            spatial_size=view.size_px, temporal_size=view.num_frames, input_channels=view.kind.channels
        )
    model.head.proj, model.head.dropout = nn.Identity(), None
    body: nn.Module = model
    return body


def build_x3d(view: ViewSpec, *, num_frames: int, size_px: int) -> nn.Module:
    """X3D up to the 2048 features before its last linear layer; XS, S and M differ only in what they see."""
    model = create_x3d(input_channel=view.kind.channels, input_clip_length=num_frames, input_crop_size=size_px)
    init_net_weights(model)
    head = model.blocks[-1]
    # The library pools with a window of one clip size; the mean over all there is equals it there.
    head.pool.pool = nn.AdaptiveAvgPool3d(1)
    head.dropout, head.proj, head.activation, head.output_pool = None, nn.Identity(), None, None
    return Blocks(model.blocks)


ZOO_URL = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"


def _kinetics(file: str, top1_percent: float) -> tuple[PublicWeights, ...]:
    return (PublicWeights("kinetics400", ("rgb",), ZOO_URL + file, top1_percent),)


_clip = functools.partial(
    Architecture,
    embed_dim=2048,
    modalities=CLIP_MODALITIES,
    stem="blocks.0.conv",
    classifier_prefix="blocks.5.",
    token_layer=TokenLayer("blocks.4"),
)


def _x3d(name: str, num_frames: int, stride: int, size_px: int, *, top1_percent: float, gmacs: float) -> Architecture:
    """Operations as PySlowFast's model zoo has them, at the size that is trained."""
    return _clip(
        functools.partial(build_x3d, num_frames=num_frames, size_px=size_px),
        num_frames=num_frames,
        stride=stride,
        size_px=size_px,
        stem="blocks.0.conv.conv_t",
        classifier_prefix="blocks.5.proj.",
        channels_last_pays_on_cpu=True,
        source=f"pytorchvideo.models.hub.{name}",
        public_weights=_kinetics(f"{name.upper()}.pyth", top1_percent),
        published_gmacs=gmacs,
    )


# Views and accuracies of the library's model zoo.
PYTORCHVIDEO: dict[str, Architecture] = {
    "r3d50": _clip(
        build_r3d50,
        num_frames=16,
        stride=2,
        size_px=112,
        bf16_pays_on_cpu=True,
        source="pytorchvideo.models.resnet.create_resnet",
    ),
    "slow_r50": _clip(
        build_slow_r50,
        num_frames=8,
        stride=8,
        size_px=224,
        bf16_pays_on_cpu=True,
        source="pytorchvideo.models.hub.slow_r50",
        public_weights=_kinetics("SLOW_8x8_R50.pyth", 74.58),
    ),
    "slowfast_r50": _clip(
        build_slowfast_r50,
        embed_dim=2304,
        num_frames=32,
        stride=2,
        size_px=224,
        stem="blocks.0.multipathway_blocks.0.conv",
        more_stems=("blocks.0.multipathway_blocks.1.conv",),
        classifier_prefix="blocks.6.",
        token_layer=TokenLayer("blocks.4.multipathway_blocks.0"),  # the slow pathway's
        source="pytorchvideo.models.hub.slowfast_r50",
        public_weights=_kinetics("SLOWFAST_8x8_R50.pyth", 76.94),
    ),
    "r2plus1d_r50": _clip(
        build_r2plus1d_r50,
        num_frames=16,
        stride=4,
        size_px=224,
        source="pytorchvideo.models.hub.r2plus1d_r50",
        public_weights=_kinetics("R2PLUS1D_16x4_R50.pyth", 76.01),
    ),
    "csn_r101": _clip(
        build_csn_r101,
        num_frames=32,
        stride=2,
        size_px=224,
        source="pytorchvideo.models.hub.csn_r101",
        public_weights=_kinetics("CSN_32x2_R101.pyth", 77.0),
    ),
    "mvit_b": _clip(
        build_mvit_b,
        embed_dim=768,
        num_frames=16,
        stride=4,
        size_px=224,
        stem="patch_embed.patch_model",
        classifier_prefix="head.proj.",
        token_layer=TokenLayer("norm_embed", "sequence", frames_per_token=2, num_prefix=1),
        source="pytorchvideo.models.hub.mvit_base_16x4",
        public_weights=_kinetics("MVIT_B_16x4.pyth", 78.9),
        published_gmacs=70.5,
    ),
    "x3d_xs": _x3d("x3d_xs", 4, 12, 160, top1_percent=69.12, gmacs=0.60),
    "x3d_s": _x3d("x3d_s", 13, 6, 160, top1_percent=73.33, gmacs=1.96),
    "x3d_m": _x3d("x3d_m", 16, 5, 224, top1_percent=75.94, gmacs=4.73),
}
