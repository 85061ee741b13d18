"""torchvision's networks of images and of clips, without their classifiers.

A network is one line of ``NETWORKS``: the rest of its card (view, statistics, published accuracy, parameters and
operations) is read from the library's own description of its weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision.models import get_model, get_model_weights

from crossdistill.encoders.base import (
    CLIP_MODALITIES,
    Architecture,
    PublicWeights,
    Statistics,
    Takes,
    TokenLayer,
    replace_stem,
)
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec

# What the library's descriptions call the data sets, to what --teacher-weights does and the modalities of their pixels.
DATA = {"Kinetics-400": ("kinetics400", ("rgb",)), "ImageNet-1K": ("imagenet", ("image", "rgb"))}


@dataclass(frozen=True)
class Network:
    """What the library does not say of one of its networks."""

    head: str
    """Module that becomes the identity; its input are the features."""
    stem: str
    """First convolution."""
    embed_dim: int
    tokens: TokenLayer
    """Its features before pooling."""
    classifier_prefix: str = ""
    """Prefix of the classifier's weights, if it is not the head's."""
    num_frames: int = 16
    """Of a clip, as its stride."""
    stride: int = 2
    takes: Takes = "clip"
    name: str = ""
    """The library's, if it is not ours."""
    adapt: Callable[[nn.Module], None] = lambda body: None
    """Makes the body fit for views of any size."""
    is_of_one_size: bool = False
    """Its positions are numbered and its constructor takes no size: no other number of frames or pixels."""
    size_options: Callable[[ViewSpec], dict[str, Any]] = lambda view: {}
    """Arguments of the constructor that follow the view."""
    channels_last_pays_on_cpu: bool = False
    bf16_pays_on_cpu: bool = False
    modalities: tuple[str, ...] = CLIP_MODALITIES


def _pool_to_one(body: nn.Module) -> None:
    """S3D pools with a window of 2x7x7, which at its own size is all there is."""
    body.avgpool = nn.AdaptiveAvgPool3d(1)


def _pool_features(body: nn.Module) -> None:
    """SqueezeNet's classifier is a convolution: in its place the features are pooled."""
    body.classifier = nn.AdaptiveAvgPool2d(1)


def _image_size(view: ViewSpec) -> dict[str, Any]:
    """Positions are numbered, so weights fit one size only."""
    return {"image_size": view.size_px}


FEATURES, LAYER4 = TokenLayer("features"), TokenLayer("layer4")

_image = functools.partial(
    Network,
    takes="frames",
    num_frames=8,
    stride=4,
    modalities=("image", *CLIP_MODALITIES),
    channels_last_pays_on_cpu=True,
)

NETWORKS: dict[str, Network] = {
    "alexnet": _image("classifier.6", "features.0", 4096, FEATURES),
    "vgg16": _image("classifier.6", "features.0", 4096, FEATURES),
    "squeezenet1_0": _image("", "features.0", 512, FEATURES, classifier_prefix="classifier.", adapt=_pool_features),
    "resnet18": _image("fc", "conv1", 512, LAYER4),
    "resnet34": _image("fc", "conv1", 512, LAYER4),
    "resnet50": _image("fc", "conv1", 2048, LAYER4),
    "resnet101": _image("fc", "conv1", 2048, LAYER4),
    "resnext50_32x4d": _image("fc", "conv1", 2048, LAYER4),
    "wide_resnet50_2": _image("fc", "conv1", 2048, LAYER4),
    "densenet121": _image("classifier", "features.conv0", 1024, FEATURES),
    "shufflenet_v2_x1_0": _image("fc", "conv1.0", 1024, TokenLayer("conv5")),
    "mobilenet_v2": _image("classifier", "features.0.0", 1280, FEATURES),
    "mobilenet_v3_small": _image("classifier.3", "features.0.0", 1024, FEATURES),
    "mobilenet_v3_large": _image("classifier.3", "features.0.0", 1280, FEATURES),
    "efficientnet_b0": _image("classifier", "features.0.0", 1280, FEATURES),
    "mnasnet1_0": _image("classifier", "layers.0", 1280, TokenLayer("layers")),
    "convnext_tiny": _image("classifier.2", "features.0.0", 768, FEATURES),
    "swin_t": _image("head", "features.0.0", 768, TokenLayer("norm", "channels-last")),
    "vit_b_16": _image(
        "heads", "conv_proj", 768, TokenLayer("encoder", "sequence", num_prefix=1), size_options=_image_size
    ),
    "r3d18": Network("fc", "stem.0", 512, LAYER4, name="r3d_18", bf16_pays_on_cpu=True),
    "mc3_18": Network("fc", "stem.0", 512, LAYER4),
    "r2plus1d_18": Network("fc", "stem.0", 512, LAYER4),
    "s3d": Network("classifier", "features.0.0.0", 1024, FEATURES, adapt=_pool_to_one),
    "mvit_v2_s": Network("head", "conv_proj", 768, TokenLayer("norm", "sequence", 2, 1), stride=4, is_of_one_size=True),
    "swin3d_t": Network("head", "patch_embed.proj", 768, TokenLayer("norm", "channels-last"), num_frames=32),
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
    weights = get_model_weights(name).DEFAULT
    preset = weights.transforms()
    ((data, metrics),) = weights.meta["_metrics"].items()
    weights_name, trained_modalities = DATA[data]
    statistics = Statistics(tuple(preset.mean), tuple(preset.std), preset.crop_size[0] / preset.resize_size[0])
    return Architecture(
        build=functools.partial(_build, network, name),
        embed_dim=network.embed_dim,
        modalities=network.modalities,
        takes=network.takes,
        token_layer=network.tokens,
        num_frames=network.num_frames,
        stride=network.stride,
        size_px=preset.crop_size[0],
        stem=network.stem,
        classifier_prefix=network.classifier_prefix or f"{network.head}.",
        statistics=dict.fromkeys(trained_modalities, statistics),
        bf16_pays_on_cpu=network.bf16_pays_on_cpu,
        channels_last_pays_on_cpu=network.channels_last_pays_on_cpu,
        source=f"torchvision.models.{name}",
        public_weights=(PublicWeights(weights_name, trained_modalities, weights.url, metrics["acc@1"]),),
        published_gmacs=weights.meta["_ops"],
    )


TORCHVISION: dict[str, Architecture] = {ours: _architecture(ours, network) for ours, network in NETWORKS.items()}
