"""torchvision's networks of pictures and clips, without their classifiers and with random weights.

View, statistics, accuracy and operations come from the library's own description of its weights; ``network`` takes what
that description does not say.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchvision.models import get_model, get_model_weights

from crossdistill.encoders.architecture import CLIP_MODALITIES, Architecture, Statistics, replace_stem
from crossdistill.encoders.base import PublicWeights
from crossdistill.encoders.tokens import TokenLayer
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec

# The library's name of a dataset -> its name for --teacher-weights, and the modalities with such pixels.
DATA = {"Kinetics-400": ("kinetics400", ("rgb",)), "ImageNet-1K": ("imagenet", ("image", "rgb"))}


def network(
    name: str,
    head: str,
    stem: str,
    embed_dim: int,
    token_layer: TokenLayer,
    *,
    modalities: tuple[str, ...] = CLIP_MODALITIES,
    num_frames: int = 16,
    stride: int = 2,
    classifier_prefix: str | None = None,
    adapt: Callable[[nn.Module], None] = lambda body: None,
    size_options: Callable[[ViewSpec], dict[str, Any]] = lambda view: {},
    is_of_one_size: bool = False,
    **facts: Any,
) -> Architecture:
    """Describe a network of torchvision.

    Args:
        name: The library's name.
        head: Module that becomes the identity; its input are the features.
        stem: Name of the first convolution.
        embed_dim: Number of features.
        token_layer: The layer before pooling.
        modalities: See ``Architecture``, also for the next two.
        num_frames: Number of frames of a clip.
        stride: Distance between frames.
        classifier_prefix: Prefix of the classifier's tensors; the head's name if None.
        adapt: Changes the network so that it takes views of any size.
        size_options: Arguments of the constructor that depend on the view.
        is_of_one_size: Whether the network takes its own number of frames and pixels only.
        facts: Further fields of ``Architecture``.
    """
    weights = get_model_weights(name).DEFAULT
    preset = weights.transforms()
    size_px = preset.crop_size[0]
    ((data, metrics),) = weights.meta["_metrics"].items()
    weights_name, trained_modalities = DATA[data]
    # The preset resizes the shorter side, then crops its centre.
    statistics = Statistics(tuple(preset.mean), tuple(preset.std), size_px / preset.resize_size[0])

    def build(view: ViewSpec) -> nn.Module:
        if is_of_one_size and (view.num_frames, view.size_px) != (num_frames, size_px):
            raise UserError(
                f"{name} takes {num_frames} frames of {size_px} pixels, not {view.num_frames} of {view.size_px}: "
                "remove the options that change its view"
            )
        body = get_model(name, weights=None, **size_options(view))
        adapt(body)
        if head:
            body.set_submodule(head, nn.Identity())
        replace_stem(body, stem, view.kind.channels)
        return body

    return Architecture(
        build=build,
        embed_dim=embed_dim,
        modalities=modalities,
        token_layer=token_layer,
        num_frames=num_frames,
        stride=stride,
        size_px=size_px,
        stems=(stem,),
        classifier_prefix=f"{head}." if classifier_prefix is None else classifier_prefix,
        statistics=dict.fromkeys(trained_modalities, statistics),
        source=f"torchvision.models.{name}",
        public_weights=(PublicWeights(weights_name, trained_modalities, weights.url, metrics["acc@1"]),),
        published_gmacs=weights.meta["_ops"],
        **facts,
    )


picture_network = partial(
    network,
    takes="frames",
    modalities=("image", *CLIP_MODALITIES),
    num_frames=8,
    stride=4,
    channels_last_pays_on_cpu=True,
)
"""``network`` for networks of pictures, which embed a clip frame by frame."""


def pool_to_one(body: nn.Module) -> None:
    """Let S3D take any size: its own pooling has a window of 2x7x7, which covers all of its own view."""
    body.avgpool = nn.AdaptiveAvgPool3d(1)


def pool_features(body: nn.Module) -> None:
    """Pool the features of SqueezeNet, whose classifier is a convolution before the pooling."""
    body.classifier = nn.AdaptiveAvgPool2d(1)


def remove_dropout(body: nn.Module) -> None:
    """Take the dropout out of AlexNet, as CompRess' authors do: its features are then the same in every pass."""
    for name, module in list(body.named_modules()):
        if isinstance(module, nn.Dropout):
            body.set_submodule(name, nn.Identity())


def image_size(view: ViewSpec) -> dict[str, Any]:
    """Return the argument that gives a ViT positions for one size; its weights then fit that size only."""
    return {"image_size": view.size_px}
