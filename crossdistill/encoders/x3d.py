"""X3D (Feichtenhofer, CVPR 2020), from pytorchvideo."""

from __future__ import annotations

from pytorchvideo.models.weight_init import init_net_weights
from pytorchvideo.models.x3d import create_x3d
from torch import Tensor, nn

from crossdistill.encoders.base import Architecture
from crossdistill.encoders.resnet3d import CLIP_MODALITIES


class X3DBody(nn.Module):
    """pytorchvideo's X3D up to the 2048 features before its last linear layer, for any clip size."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, 2048]."""
        for block in self.blocks:
            clip_bcthw = block(clip_bcthw)
        return clip_bcthw.flatten(1)


def build_x3d_xs(channels: int) -> nn.Module:
    """X3D-XS: 4 frames, stride 12, 160 pixels."""
    model = create_x3d(input_channel=channels, input_clip_length=4, input_crop_size=160)
    init_net_weights(model)
    head = model.blocks[-1]
    # The library pools with a window of one clip size; the mean over all there is equals it there.
    head.pool.pool = nn.AdaptiveAvgPool3d(1)
    head.dropout, head.proj, head.activation, head.output_pool = None, nn.Identity(), None, None
    return X3DBody(model.blocks)


X3D: dict[str, Architecture] = {
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
