"""pytorchvideo's networks of clips without their heads, and a 3D ResNet-50 built from its parts.

Shapes: B batch, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from crossdistill.encoders.architecture import CLIP_MODALITIES, Architecture
from crossdistill.encoders.base import PublicWeights
from crossdistill.encoders.tokens import TokenLayer
from crossdistill.types import ViewSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # the import compiles an activation with torch.jit.script
    from pytorchvideo.models import hub
    from pytorchvideo.models.resnet import create_resnet
    from pytorchvideo.models.weight_init import init_net_weights
    from pytorchvideo.models.x3d import create_x3d


class Blocks(nn.Module):
    """pytorchvideo's ``Net`` whose last block pools instead of classifying, so that it takes clips of any size."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """Map [B, C, T, H, W] to [B, D]."""
        for block in self.blocks:
            clip_bcthw = block(clip_bcthw)
        return clip_bcthw.flatten(1)


def build_r3d50(view: ViewSpec) -> nn.Module:
    """Build a 3D ResNet-50 in which the middle convolution of every bottleneck is 3x3x3 (Hara et al., CVPR 2018).

    It has 46.2 M parameters. The pooling of the stem and stages 2 to 4 halve the number of frames.
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
    init_net_weights(model)  # a deep ResNet hardly learns from PyTorch's default initialisation
    model.blocks.append(nn.AdaptiveAvgPool3d(1))
    return Blocks(model.blocks)


def build_resnet(view: ViewSpec, *, name: str) -> nn.Module:
    """Build a ResNet of ``pytorchvideo.models.hub`` without its head."""
    blocks = getattr(hub, name)(input_channel=view.kind.channels).blocks
    # The library pools with a window that fits one clip size. A mean over all places gives the same at that size.
    blocks[-1] = nn.AdaptiveAvgPool3d(1)
    return Blocks(blocks)


class TwoPathways(nn.Module):
    """SlowFast (Feichtenhofer et al., ICCV 2019): the slow pathway sees every fourth frame.

    The mean of each pathway replaces the last two of pytorchvideo's ``blocks`` (fixed pooling and head).
    """

    SLOW_STRIDE = 4

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks[:-2]

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """Map [B, C, T, H, W] to [B, 2304]."""
        pathways = [clip_bcthw[:, :, :: self.SLOW_STRIDE], clip_bcthw]
        for block in self.blocks:
            pathways = block(pathways)
        return torch.cat([pathway.mean(dim=(2, 3, 4)) for pathway in pathways], dim=1)


class _ReadableNumbers(TorchFunctionMode):
    """Keeps small tensors on the CPU: MViT reads the rates of its blocks from them, which the meta device cannot."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in (torch.linspace, torch.ones):
            options["device"] = "cpu"
        return func(*args, **options)


def build_mvit_b(view: ViewSpec) -> nn.Module:
    """Build MViT-B (Fan et al., ICCV 2021); it has one embedding per position, so weights fit one size only."""
    with _ReadableNumbers():
        model = hub.mvit_base_16x4(
            spatial_size=view.size_px, temporal_size=view.num_frames, input_channels=view.kind.channels
        )
    model.head.proj, model.head.dropout = nn.Identity(), None
    return model


def build_x3d(view: ViewSpec, *, num_frames: int, size_px: int) -> nn.Module:
    """Build X3D up to the 2048 features before its last linear layer; XS, S and M differ only in their views."""
    model = create_x3d(input_channel=view.kind.channels, input_clip_length=num_frames, input_crop_size=size_px)
    init_net_weights(model)
    head = model.blocks[-1]
    head.pool.pool = nn.AdaptiveAvgPool3d(1)  # as in ``build_resnet``
    head.dropout, head.proj, head.activation, head.output_pool = None, nn.Identity(), None, None
    return Blocks(model.blocks)


ZOO_URL = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"
# Facts that the ResNets share; block 0 is the stem, so the tokens are those of stage 5.
RESNET: dict[str, Any] = {
    "embed_dim": 2048,
    "stems": ("blocks.0.conv",),
    "classifier_prefix": "blocks.5.",
    "token_layer": TokenLayer("blocks.4"),
}
SLOWFAST: dict[str, Any] = {
    "build": lambda view: TwoPathways(hub.slowfast_r50(input_channels=(view.kind.channels,) * 2).blocks),
    "embed_dim": 2304,
    "stems": ("blocks.0.multipathway_blocks.0.conv", "blocks.0.multipathway_blocks.1.conv"),
    "classifier_prefix": "blocks.6.",
    "token_layer": TokenLayer("blocks.4.multipathway_blocks.0"),  # of the slow pathway
}
MVIT: dict[str, Any] = {
    "build": build_mvit_b,
    "embed_dim": 768,
    "stems": ("patch_embed.patch_model",),
    "classifier_prefix": "head.proj.",
    "token_layer": TokenLayer("norm_embed", "sequence", frames_per_token=2, num_prefix=1),
    "published_gmacs": 70.5,
}


def network(
    source: str,
    num_frames: int,
    stride: int,
    size_px: int,
    file: str = "",
    top1_percent: float | None = None,
    *,
    build: Callable[[ViewSpec], nn.Module] | None = None,
    **facts: Any,
) -> Architecture:
    """Describe a network of clips, by default a ResNet; views and accuracies are those of the library's model zoo.

    ``source`` is the library's function, below ``pytorchvideo.models``. ``file`` names the weights in the model zoo,
    trained on Kinetics-400, and is empty if there are none. ``facts`` are further fields of ``Architecture``.
    """
    weights = (PublicWeights("kinetics400", ("rgb",), ZOO_URL + file, top1_percent),) if file else ()
    return Architecture(
        build=build or functools.partial(build_resnet, name=source.removeprefix("hub.")),
        modalities=CLIP_MODALITIES,
        num_frames=num_frames,
        stride=stride,
        size_px=size_px,
        source=f"pytorchvideo.models.{source}",
        public_weights=weights,
        **(RESNET | facts),
    )


def x3d(name: str, num_frames: int, stride: int, size_px: int, top1_percent: float, *, gmacs: float) -> Architecture:
    """Describe X3D of one size; operations are those of PySlowFast's model zoo, at the training size."""
    return network(
        f"hub.{name}",
        num_frames,
        stride,
        size_px,
        f"{name.upper()}.pyth",
        top1_percent,
        build=functools.partial(build_x3d, num_frames=num_frames, size_px=size_px),
        stems=("blocks.0.conv.conv_t",),
        classifier_prefix="blocks.5.proj.",
        channels_last_pays_on_cpu=True,
        published_gmacs=gmacs,
    )
