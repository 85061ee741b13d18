"""Code that timm and Hugging Face share: build a network, and find its sizes by a run on the meta device.

Shapes: B batch, C channels, T frames, H height, W width, D features.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from crossdistill.encoders.architecture import view_error
from crossdistill.encoders.base import Encoder, EncoderInfo
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.errors import UserError
from crossdistill.modalities import IMAGE, MODALITIES
from crossdistill.types import ViewSpec

PICTURE_MODALITIES = tuple(kind.name for kind in MODALITIES.values() if kind.stream == IMAGE.stream)
"""Modalities that statistics and weights of a network of pictures fit."""
NUM_POOLED_FRAMES = 8
"""Number of frames of a clip that a network of pictures embeds one by one."""
POOLED_STRIDE = 4
"""Distance between these frames: 8 frames span about a second, like the clips of most networks."""
PRETRAINED = "pretrained"
"""Name of the published weights of a library's model for ``--teacher-weights``."""
# Errors that libraries raise for a network or a view that cannot be built.
BUILD_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def assemble(build: Callable[[], nn.Module], *, own: ViewSpec, name: str, view: ViewSpec, info: EncoderInfo) -> Encoder:
    """Build an encoder, whose body ``build`` returns with fresh weights, and find its ``embed_dim`` by a trial.

    Raises:
        UserError: The network cannot be built, or does not return [B, D] for such a view.
    """
    try:
        embed_dim, unused = _try(build, name=name, view=view, info=info)
        # A caller on the meta device wants sizes only; elsewhere the weights need their random values.
        with SizesOnly() if torch.get_default_device().type == "meta" else contextlib.nullcontext():
            body = build()
    except BUILD_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise view_error(name, view, own, error) from error
    for parameter in unused:  # a parameter without a gradient stops DDP
        body.get_parameter(parameter).requires_grad_(False)
    return Encoder(body, name=name, view=view, info=replace(info, embed_dim=embed_dim))


def _try(build: Callable[[], nn.Module], *, name: str, view: ViewSpec, info: EncoderInfo) -> tuple[int, list[str]]:
    """Return the number of features, and the parameters that they do not depend on (of masks, predictors and so on)."""
    with torch.device("meta"), torch.enable_grad():
        with SizesOnly():
            body = build()
        encoder = Encoder(body, name=name, view=view, info=info).eval()
        features = encoder(torch.empty(1, view.kind.channels, view.num_frames, view.size_px, view.size_px))
        if features.dim() != 2 or len(features) != 1:
            raise ValueError(f"it gives {list(features.shape)}, not one row of features")
        parameters = {key: parameter for key, parameter in body.named_parameters() if parameter.requires_grad}
        gradients = torch.autograd.grad(features.sum(), list(parameters.values()), allow_unused=True)
    return features.shape[1], [key for key, gradient in zip(parameters, gradients, strict=True) if gradient is None]
