"""Every network of timm, as ``<modality>_timm:<timm's name>``, for example ``image_timm:resnet50.a1_in1k``.

They are networks of pictures: a clip of colour, flow or depth is embedded frame by frame and the features are
averaged. The body is timm's own model with ``num_classes=0`` and ``in_chans`` of the modality, so that its weights
load strictly into ``timm.create_model(name, num_classes=0, in_chans=...)``. View, statistics, stem and classifier are
read from timm's own description of the weights.
"""

from __future__ import annotations

import difflib
import inspect
import os.path
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.encoders.base import Encoder, PublicWeights, Statistics
from crossdistill.encoders.library import (
    PICTURE_MODALITIES,
    assemble,
    change_view,
    find_token_layer,
    own_view,
    reason_of,
)
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.errors import UserError

PRETRAINED = "pretrained"


def create(
    model: str,
    *,
    name: str,
    modality: str,
    num_frames: int | None,
    stride: int | None,
    size_px: int | None,
    config: dict[str, Any] | None,
) -> Encoder:
    """Build a network of timm with fresh weights.

    Args:
        model: timm's name, with or without the tag of its weights.
        name: The encoder's, for example ``flow_timm:resnet50``.
        modality: Any.
        num_frames: Single frames that are embedded and averaged; 1 of a picture and 8 of a clip if None.
        stride: 1 and 4 if None.
        size_px: timm's own if None. A network of numbered positions interpolates them (``dynamic_img_size``), or is
            built for the size (``img_size``) where it cannot.
        config: Not needed: the name says everything.

    Raises:
        UserError: timm is absent, does not know the name, or the network cannot take such a view.
    """
    timm = _import_timm(name)
    _require_known(timm, model)
    with torch.device("meta"), SizesOnly():
        native = timm.create_model(model, num_classes=0).eval()
    data = timm.data.resolve_model_data_config(native)
    statistics = Statistics(tuple(data["mean"]), tuple(data["std"]), data["crop_pct"])
    own = own_view(modality, size_px=data["input_size"][-1], statistics=statistics)
    view = change_view(own, num_frames=num_frames, stride=stride, size_px=size_px)
    size_options = {} if view.size_px == own.size_px else _size_options(native, view.size_px)
    channels = view.kind.channels
    return assemble(
        partial(timm.create_model, model, num_classes=0, in_chans=channels, **size_options),
        own=own,
        name=name,
        view=view,
        takes="frames",
        classifier_prefix=_classifier_prefix(native),
        stem=_stem(native),
        token_layer=find_token_layer(native, channels=native.num_features, size_px=own.size_px),
        public_weights=_public_weights(model, native, size_options),
    )


def _import_timm(name: str) -> Any:
    try:
        import timm
        import timm.data
    except ImportError as error:
        raise UserError(f"{name} needs timm, which is not installed: pip install 'crossdistill[hf]'") from error
    return timm


def _require_known(timm: Any, model: str) -> None:
    """Raise a ``UserError`` that names the nearest networks or tags instead of all thirteen hundred."""
    if not timm.is_model(model):
        known = timm.list_models()
        near = difflib.get_close_matches(model, known, n=5) or [one for one in known if model in one][:5]
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists what there is"
        raise UserError(f"timm {timm.__version__} has no network {model!r}: {hint}")
    architecture, _, tag = model.partition(".")
    known = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and model not in known:
        raise UserError(
            f"timm has no weights {tag!r} of {architecture}: choose one of {', '.join(known)}, or leave out .{tag}"
            if known
            else f"timm has no weights of {architecture}: leave out .{tag}"
        )


def _size_options(native: nn.Module, size_px: int) -> dict[str, Any]:
    """Arguments that let a network of one size see another, if it needs any."""
    kinds = [kind for kind in type(native).__mro__ if issubclass(kind, nn.Module)]
    accepted = {name for kind in kinds for name in inspect.signature(kind).parameters}
    if "dynamic_img_size" in accepted:  # the weights stay those of the network's own size
        return {"dynamic_img_size": True}
    return {"img_size": size_px} if "img_size" in accepted else {}


def _classifiers(native: Any) -> tuple[str, ...]:
    """Names of the classifier's modules: several, if the network was distilled or sees several sizes."""
    names = native.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _classifier_prefix(native: Any) -> str:
    """A prefix of all classifiers' weights and of nothing else."""
    prefix: str = os.path.commonprefix([f"{name}." for name in _classifiers(native)])  # noqa: RUF071
    return "" if any(name.startswith(prefix) for name in native.state_dict()) else prefix


def _stem(native: Any) -> str:
    """The first convolution, if it is one and sees the channels themselves (not pixels folded into channels)."""
    stem = native.pretrained_cfg.get("first_conv")
    if not isinstance(stem, str):
        return ""
    module = dict(native.named_modules()).get(stem)
    return stem if getattr(module, "in_channels", None) == native.pretrained_cfg["input_size"][0] else ""


def _public_weights(model: str, native: Any, size_options: dict[str, Any]) -> tuple[PublicWeights, ...]:
    described = native.pretrained_cfg
    place = described.get("hf_hub_id") and f"https://huggingface.co/{described['hf_hub_id']}"
    if not place and not described.get("url"):
        return ()
    # The encoder drops its one classifier itself, and keeps it where it is a linear layer.
    prefix = _classifier_prefix(native)
    dropped = tuple(f"{name}." for name in _classifiers(native) if f"{name}." != prefix)
    return (
        PublicWeights(
            PRETRAINED,
            PICTURE_MODALITIES,
            place or described["url"],
            read=partial(_read_pretrained, model, size_options, dropped),
        ),
    )


def _read_pretrained(model: str, size_options: dict[str, Any], dropped: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Published weights by timm's own code, whose positions follow the size; without further classifiers.

    The network is built with its own classifier, because timm loads strictly only then.
    """
    import timm

    try:
        network = timm.create_model(model, pretrained=True, **size_options)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise UserError(
            f"the published weights of timm's {model} cannot be had ({reason_of(error)}): get the file elsewhere and "
            "give it with --teacher-weights FILE (or --student-weights FILE)"
        ) from error
    tensors: dict[str, Tensor] = network.state_dict()
    return {name: value for name, value in tensors.items() if not name.startswith(dropped)}
