"""Entries of the registry: how to build a network of fresh weights for a modality and a view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from crossdistill.encoders.base import Encoder, EncoderInfo
from crossdistill.encoders.sizes import output_shape
from crossdistill.errors import UserError, first_line
from crossdistill.modalities import MODALITIES, get_modality
from crossdistill.types import ViewSpec

CLIP_MODALITIES = tuple(kind.name for kind in MODALITIES.values() if kind.has_time)
"""Modalities that a network of clips can be built for: only its first convolution differs."""


@dataclass(frozen=True)
class Statistics:
    """Normalisation and centre crop of the pictures that a network was trained with."""

    mean: tuple[float, ...]
    """One value for each channel, in the modality's unit."""
    std: tuple[float, ...]
    centre_fraction: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Architecture(EncoderInfo):
    """One entry of the registry."""

    build: Callable[[ViewSpec], nn.Module]
    """Builds a body that maps such views to [B, D], without a classifier."""
    modalities: tuple[str, ...]
    num_frames: int
    stride: int
    """Distance between the frames of a clip, in frames of the video."""
    size_px: int
    statistics: dict[str, Statistics] = field(default_factory=dict)
    """Statistics by modality; the modality's own where absent."""
    source: str = ""
    """The library and class that the body's weights load into, as text."""
    published_gmacs: float | None = None
    """Published billions of multiply-adds of one view with the classifier (of one frame if it takes frames)."""

    def view(self, modality: str) -> ViewSpec:
        """Return the view that this architecture takes in one of its modalities."""
        statistics = self.statistics.get(modality)
        return make_view(modality, self.num_frames, self.stride, self.size_px, statistics)


def make_view(
    modality: str, num_frames: int, stride: int, size_px: int, statistics: Statistics | None = None
) -> ViewSpec:
    """Return a network's own view in a modality, with the modality's own statistics if ``statistics`` is None.

    In a modality without time, ``num_frames`` and ``stride`` are 1.
    """
    kind = get_modality(modality)
    if not kind.has_time:
        num_frames, stride = 1, 1
    own = statistics or Statistics(kind.mean, kind.std)
    return ViewSpec(modality, num_frames, stride, size_px, own.mean, own.std, centre_fraction=own.centre_fraction)


def change_view(own: ViewSpec, **changes: int | None) -> ViewSpec:
    """Return a view with the fields that the user gave; None keeps the network's own."""
    return replace(own, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]


def view_error(name: str, view: ViewSpec, own: ViewSpec, error: Exception) -> UserError:
    """Build one error for all the errors that libraries raise for an unsupported view."""
    return UserError(
        f"{name} cannot take {view.num_frames} frames of {view.size_px} pixels ({first_line(error)}): its own view is "
        f"{own.num_frames} of {own.size_px}, so remove the options that change it, give more or larger frames, or "
        "choose another network"
    )


def build_encoder(architecture: Architecture, *, name: str, modality: str, **view_changes: int | None) -> Encoder:
    """Build an entry of the registry with fresh weights.

    ``view_changes`` are ``num_frames``, ``stride`` and ``size_px``; the architecture's own where None or absent.

    Raises:
        UserError: The network cannot take such a view.
    """
    own = architecture.view(modality)
    view = change_view(own, **view_changes)
    try:
        body = architecture.build(view)
        if replace(view, stride=own.stride) != own:
            _require_features(body, view, architecture)
    except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as error:
        if view == own or isinstance(error, UserError):
            raise
        raise view_error(name, view, own, error) from error
    return Encoder(body, name=name, view=view, info=architecture)


def _require_features(body: nn.Module, view: ViewSpec, architecture: Architecture) -> None:
    """Run the body on the meta device, because strides can reduce a small view to an empty feature map."""
    num_frames = () if architecture.takes == "frames" else (view.num_frames,)
    shape = output_shape(body, 1, view.kind.channels, *num_frames, view.size_px, view.size_px)
    if shape != (1, architecture.embed_dim):
        raise ValueError(f"it gives {list(shape)} instead of {architecture.embed_dim} features")


def replace_stem(body: nn.Module, stem: str, channels: int) -> None:
    """Give the convolution ``stem`` another number of input channels and fresh weights, unless the number is right."""
    old = body.get_submodule(stem)
    assert isinstance(old, nn.Conv2d | nn.Conv3d)
    if old.in_channels == channels:
        return
    kind: Any = type(old)
    new = kind(channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    body.set_submodule(stem, new)
