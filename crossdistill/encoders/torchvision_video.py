"""torchvision's networks for clips."""

from __future__ import annotations

from torch import nn
from torchvision.models.video import r3d_18

from crossdistill.encoders.base import CLIP_MODALITIES, Architecture, Statistics

# Of Kinetics-400, as torchvision trained its video models (R3D_18_Weights.KINETICS400_V1).
TORCHVISION_KINETICS = Statistics(mean=(0.43216, 0.394666, 0.37645), std=(0.22803, 0.22145, 0.216989))


def build_r3d18(channels: int) -> nn.Module:
    """``r3d_18`` of torchvision (Tran et al., CVPR 2018) without ``fc``."""
    body = r3d_18()
    if channels != 3:
        stem = body.stem[0]
        body.stem[0] = nn.Conv3d(channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False)
        nn.init.kaiming_normal_(body.stem[0].weight, mode="fan_out", nonlinearity="relu")
    body.fc = nn.Identity()
    return body


TORCHVISION_VIDEO: dict[str, Architecture] = {
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
}
