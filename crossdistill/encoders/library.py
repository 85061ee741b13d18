"""What encoders of libraries with networks past listing share: their view, and what a trial on the meta device tells.

Shapes: B batch, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from crossdistill.encoders.base import Encoder, Statistics, TokenLayer
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.errors import UserError
from crossdistill.modalities import IMAGE, MODALITIES, get_modality
from crossdistill.types import ViewSpec

PICTURE_MODALITIES = tuple(kind.name for kind in MODALITIES.values() if kind.stream == IMAGE.stream)
"""Whose pixels are those of a picture, so that a network of pictures keeps its statistics and weights."""
NUM_POOLED_FRAMES = 8
POOLED_STRIDE = 4
"""The clip whose frames a network of pictures embeds one by one: about a second, as most networks of clips see."""
# What libraries raise for a network or a view that cannot be.
BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Trial:
    """What one pass of a network on the meta device told."""

    embed_dim: int
    unused: tuple[str, ...]
    """Parameters of the body that its features do not depend on: of masks, predictors and the like."""


def own_view(
    modality: str,
    *,
    size_px: int,
    statistics: Statistics,
    num_frames: int = NUM_POOLED_FRAMES,
    stride: int = POOLED_STRIDE,
) -> ViewSpec:
    """The view that a network asks for.

    Args:
        modality: The network's.
        size_px: Height and width.
        statistics: Of the network's pictures; another kind of input keeps its own.
        num_frames: Of a clip; a modality without time has one frame.
        stride: Of a clip, likewise.
    """
    kind = get_modality(modality)
    if modality not in PICTURE_MODALITIES:
        statistics = Statistics(kind.mean, kind.std)
    return ViewSpec(
        modality=modality,
        num_frames=num_frames if kind.has_time else 1,
        stride=stride if kind.has_time else 1,
        size_px=size_px,
        mean=statistics.mean,
        std=statistics.std,
        centre_fraction=statistics.centre_fraction,
    )


def change_view(own: ViewSpec, **changes: int | None) -> ViewSpec:
    """A view with what a person asked for in place of the network's own."""
    return replace(own, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]


def assemble(build: Callable[[], nn.Module], *, own: ViewSpec, name: str, view: ViewSpec, **options: Any) -> Encoder:
    """Build an encoder, its number of features found by a trial.

    Args:
        build: Makes a body with fresh weights.
        own: The network's own view, for the error.
        name: Of the encoder.
        view: What the encoder is to see.
        options: Further arguments of ``Encoder``.

    Raises:
        UserError: The network cannot be built, or gives no [B, D] for such a view.
    """
    try:
        trial = _try(build, name=name, view=view, **options)
        with SizesOnly() if torch.get_default_device().type == "meta" else contextlib.nullcontext():
            body = build()
    except BUILD_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{name} cannot take {view.num_frames} frames of {view.size_px} pixels ({reason_of(error)}): its own view "
            f"is {own.num_frames} of {own.size_px}, so leave out the options that change it, or choose another network"
        ) from error
    for parameter in trial.unused:  # a parameter without a gradient stops training on several processes
        body.get_parameter(parameter).requires_grad_(False)
    return Encoder(body, name=name, view=view, embed_dim=trial.embed_dim, **options)


def _try(build: Callable[[], nn.Module], *, view: ViewSpec, **options: Any) -> Trial:
    with torch.device("meta"), torch.enable_grad():
        with SizesOnly():
            body = build()
        encoder = Encoder(body, view=view, embed_dim=0, **options).eval()
        clip = torch.empty(1, view.kind.channels, view.num_frames, view.size_px, view.size_px)
        features = encoder(clip)
        if features.dim() != 2 or len(features) != 1:
            raise ValueError(f"it gives {list(features.shape)}, not one row of features")
        parameters = {name: parameter for name, parameter in body.named_parameters() if parameter.requires_grad}
        gradients = torch.autograd.grad(features.sum(), list(parameters.values()), allow_unused=True)
    unused = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    return Trial(features.shape[1], tuple(unused))


def find_token_layer(body: nn.Module, *, channels: int, size_px: int) -> TokenLayer | None:
    """Where a network of pictures has its last features with a place: the last output that is a grid or a sequence.

    Args:
        body: Maps [B, 3, H, W] to features; on the meta device.
        channels: Of its features before pooling.
        size_px: Of its own view, where the grid is larger than 1x1.
    """
    found: list[TokenLayer] = []

    def look(name: str, output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
        if len(shape) == 4 and shape[1] == channels and shape[2] == shape[3] > 1:
            found.append(TokenLayer(name, "channels-first"))
        elif len(shape) == 4 and shape[3] == channels and shape[1] == shape[2] > 1:
            found.append(TokenLayer(name, "channels-last"))
        elif len(shape) == 3 and shape[2] == channels and shape[1] > 1:
            prefix = getattr(body, "num_prefix_tokens", shape[1] - math.isqrt(shape[1]) ** 2)
            found.append(TokenLayer(name, "sequence", num_prefix=prefix))

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, output))
        for name, module in body.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            body(torch.empty(1, IMAGE.channels, size_px, size_px, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1] if found else None


def reason_of(error: BaseException) -> str:
    """The first line of an error without its full stop, to stand in brackets in a sentence."""
    first = str(error).strip().split("\n", 1)[0]
    return " ".join(first.split()).rstrip(".") or type(error).__name__
