"""torchvision's networks of images and of clips, without their classifiers.

A network is one line of ``NETWORKS``: the rest of its card (view, statistics, published accuracy, parameters and
operations) is read from the library's own description of its weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torchvision.models import get_model, get_model_weights

from crossdistill.encoders.base import CLIP_MODALITIES, Architecture, PublicWeights, Statistics, replace_stem
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec

# What the library's descriptions call the data sets, to what --teacher-weights does.
WEIGHT_NAMES = {"Kinetics-400": "kinetics400", "ImageNet-1K": "imagenet"}


@dataclass(frozen=True)
class Network:
    """What the library does not say of one of its networks."""

    head: str
    """Module that becomes the identity; its input are the features."""
    stem: str
    """First convolution."""
    embed_dim: int
    classifier: str = ""
    """Prefix of the classifier's weights, if it is not the head's."""
    num_frames: int = 1
    stride: int = 1
    name: str = ""
    """The library's, if it is not ours."""
    adapt: Callable[[nn.Module], None] = lambda body: None
    """Makes the body fit for views of any size."""
    is_of_one_size: bool = False
    """Its positions are numbered, so it takes no other number of frames or size."""
    size_options: Callable[[ViewSpec], dict[str, Any]] = lambda view: {}
    """Arguments of the constructor that follow the view."""
    channels_last_pays_on_cpu: bool = False
    bf16_pays_on_cpu: bool = False
    modalities: tuple[str, ...] = field(default=("image",))


def _pool_to_one(body: nn.Module) -> None:
    """S3D pools with a window of 2x7x7, which at its own size is all there is."""
    body.avgpool = nn.AdaptiveAvgPool3d(1)


def _pool_features(body: nn.Module) -> None:
    """SqueezeNet's classifier is a convolution: in its place the features are pooled."""
    body.classifier = nn.AdaptiveAvgPool2d(1)


def _vit_size(view: ViewSpec) -> dict[str, Any]:
    return {"image_size": view.size_px}


_image = functools.partial(Network, channels_last_pays_on_cpu=True)
_clip = functools.partial(Network, modalities=CLIP_MODALITIES)

NETWORKS: dict[str, Network] = {
    "alexnet": _image("classifier.6", "features.0", 4096),
    "vgg16": _image("classifier.6", "features.0", 4096),
    "squeezenet1_0": _image("", "features.0", 512, classifier="classifier.", adapt=_pool_features),
    "resnet18": _image("fc", "conv1", 512),
    "resnet34": _image("fc", "conv1", 512),
    "resnet50": _image("fc", "conv1", 2048),
    "resnet101": _image("fc", "conv1", 2048),
    "resnext50_32x4d": _image("fc", "conv1", 2048),
    "wide_resnet50_2": _image("fc", "conv1", 2048),
    "densenet121": _image("classifier", "features.conv0", 1024),
    "shufflenet_v2_x1_0": _image("fc", "conv1.0", 1024),
    "mobilenet_v2": _image("classifier", "features.0.0", 1280),
    "mobilenet_v3_small": _image("classifier.3", "features.0.0", 1024),
    "mobilenet_v3_large": _image("classifier.3", "features.0.0", 1280),
    "efficientnet_b0": _image("classifier", "features.0.0", 1280),
    "mnasnet1_0": _image("classifier", "layers.0", 1280),
    "convnext_tiny": _image("classifier.2", "features.0.0", 768),
    "swin_t": _image("head", "features.0.0", 768),
    "vit_b_16": _image("heads", "conv_proj", 768, size_options=_vit_size),
    "r3d18": _clip("fc", "stem.0", 512, name="r3d_18", num_frames=16, stride=2, bf16_pays_on_cpu=True),
    "mc3_18": _clip("fc", "stem.0", 512, num_frames=16, stride=2),
    "r2plus1d_18": _clip("fc", "stem.0", 512, num_frames=16, stride=2),
    "s3d": _clip("classifier", "features.0.0.0", 1024, num_frames=16, stride=2, adapt=_pool_to_one),
    "mvit_v2_s": _clip("head", "conv_proj", 768, num_frames=16, stride=4, is_of_one_size=True),
    "swin3d_t": _clip("head", "patch_embed.proj", 768, num_frames=32, stride=2),
}


def _build(network: Network, name: str, view: ViewSpec) -> nn.Module:
    """The library's own network with its classifier taken off, and a stem of the modality's channels."""
    own_px = get_model_weights(name).DEFAULT.transforms().crop_size[0]
    if network.is_of_one_size and (view.num_frames, view.size_px) != (network.num_frames, own_px):
        raise UserError(
            f"{name} takes {network.num_frames} frames of {own_px} pixels, not {view.num_frames} of {view.size_px}: "
            "leave out the options that change its view"
        )
    body: nn.Module = get_model(name, weights=None, **network.size_options(view))
    network.adapt(body)
    if network.head:
        parent, _, leaf = network.head.rpartition(".")
        setattr(body.get_submodule(parent), leaf, nn.Identity())
    replace_stem(body, network.stem, view.kind.channels)
    return body


def _architecture(ours: str, network: Network) -> Architecture:
    name = network.name or ours
    modality = network.modalities[0]
    weights = get_model_weights(name).DEFAULT
    preset = weights.transforms()
    ((data, metrics),) = weights.meta["_metrics"].items()
    return Architecture(
        build=functools.partial(_build, network, name),
        embed_dim=network.embed_dim,
        modalities=network.modalities,
        takes="frames" if network.modalities == ("image",) else "clip",
        num_frames=network.num_frames,
        stride=network.stride,
        size_px=preset.crop_size[0],
        stem=network.stem,
        classifier=network.classifier or f"{network.head}.",
        statistics={modality: Statistics(tuple(preset.mean), tuple(preset.std))},
        bf16_pays_on_cpu=network.bf16_pays_on_cpu,
        channels_last_pays_on_cpu=network.channels_last_pays_on_cpu,
        source=f"torchvision.models.{name}",
        public_weights=(PublicWeights(WEIGHT_NAMES[data], modality, weights.url, metrics["acc@1"]),),
        published_gmacs=weights.meta["_ops"],
    )


TORCHVISION: dict[str, Architecture] = {ours: _architecture(ours, network) for ours, network in NETWORKS.items()}
