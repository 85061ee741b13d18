"""pytorchvideo's networks for clips: a true 3D ResNet-50, and X3D (Feichtenhofer, CVPR 2020)."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from crossdistill.encoders.base import CLIP_MODALITIES, Architecture

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it compiles an activation with torch.jit.script when imported
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
    model.blocks.append(nn.AdaptiveAvgPool3d(1))
    return Blocks(model.blocks)


def build_x3d_xs(channels: int) -> nn.Module:
    """X3D-XS up to the 2048 features before its last linear layer: 4 frames, stride 12, 160 pixels."""
    model = create_x3d(input_channel=channels, input_clip_length=4, input_crop_size=160)
    init_net_weights(model)
    head = model.blocks[-1]
    # The library pools with a window of one clip size; the mean over all there is equals it there.
    head.pool.pool = nn.AdaptiveAvgPool3d(1)
    head.dropout, head.proj, head.activation, head.output_pool = None, nn.Identity(), None, None
    return Blocks(model.blocks)


PYTORCHVIDEO: dict[str, Architecture] = {
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
    "x3d_xs": Architecture(
        build=build_x3d_xs,
        embed_dim=2048,
        modalities=CLIP_MODALITIES,
        num_frames=4,
        stride=12,
        size_px=160,
        stem="blocks.0.conv.conv_t",
        classifier="blocks.5.proj.",
        channels_last_pays_on_cpu=True,
        source="pytorchvideo.models.x3d.create_x3d",
    ),
}
