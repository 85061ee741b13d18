"""Two networks of a few hundred weights, so that the files of a whole run stay small."""

from torch import nn

import crossdistill as cd


def _network(modality: str, channels: int, width: int) -> cd.Encoder:
    body = nn.Sequential(
        nn.Conv3d(channels, width, 3, stride=(1, 4, 4), padding=1, bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
    )
    view = cd.ViewSpec(modality, num_frames=2, stride=1, size_px=32, mean=(0.5,) * channels, std=(0.25,) * channels)
    return cd.wrap_encoder(body, view=view, modality=modality, embed_dim=width)


def teacher() -> cd.Encoder:
    """Build the teacher, of RGB clips."""
    return _network("rgb", 3, 8)


def student() -> cd.Encoder:
    """Build the student, of optical flow."""
    return _network("flow", 2, 4)
