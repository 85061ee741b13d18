"""Image networks of torchvision, for single frames."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.models import alexnet, mobilenet_v2, resnet18, resnet50

from crossdistill.encoders.base import Architecture
from crossdistill.errors import UserError


def _require_rgb(channels: int) -> None:
    if channels != 3:
        raise UserError(f"torchvision's image networks take 3 channels, not {channels}: choose a clip architecture")


def build_alexnet(channels: int) -> nn.Module:
    """AlexNet (Krizhevsky et al., 2012) up to fc7 and its ReLU: 4096 features, as CompRess evaluates it."""
    _require_rgb(channels)
    body = alexnet()
    body.classifier[6] = nn.Identity()
    return body


def _resnet(constructor: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def build(channels: int) -> nn.Module:
        _require_rgb(channels)
        body = constructor()
        body.fc = nn.Identity()
        return body

    return build


def build_mobilenet_v2(channels: int) -> nn.Module:
    """MobileNetV2 (Sandler et al., CVPR 2018) up to its pooled 1280 features."""
    _require_rgb(channels)
    body = mobilenet_v2()
    body.classifier = nn.Identity()
    return body


def _image(
    build: Callable[[int], nn.Module], *, embed_dim: int, stem: str, classifier: str, source: str
) -> Architecture:
    return Architecture(
        build=build,
        embed_dim=embed_dim,
        modalities=("image",),
        num_frames=1,
        stride=1,
        size_px=224,
        stem=stem,
        classifier=classifier,
        channels_last_pays_on_cpu=True,
        source=f"torchvision.models.{source}",
    )


TORCHVISION_IMAGE: dict[str, Architecture] = {
    "alexnet": _image(build_alexnet, embed_dim=4096, stem="features.0", classifier="classifier.6.", source="alexnet"),
    "resnet18": _image(_resnet(resnet18), embed_dim=512, stem="conv1", classifier="fc.", source="resnet18"),
    "resnet50": _image(_resnet(resnet50), embed_dim=2048, stem="conv1", classifier="fc.", source="resnet50"),
    "mobilenet_v2": _image(
        build_mobilenet_v2, embed_dim=1280, stem="features.0.0", classifier="classifier.", source="mobilenet_v2"
    ),
}
