"""timm's networks: ``<modality>_timm:<timm's name>``, for example ``image_timm:resnet50.a1_in1k``.

They are networks of pictures. They embed a clip frame by frame, and the features are averaged. The body is timm's own
model, so its weights load strictly into ``timm.create_model(name, num_classes=0, in_chans=...)``. View, statistics,
stem and classifier come from timm's own description of the weights.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os.path
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.encoders.architecture import Statistics, change_view, make_view
from crossdistill.encoders.base import Encoder, EncoderInfo, PublicWeights
from crossdistill.encoders.library import NUM_POOLED_FRAMES, PICTURE_MODALITIES, POOLED_STRIDE, PRETRAINED, assemble
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.encoders.tokens import find_token_layer
from crossdistill.errors import UserError, first_line, require_package

OF_PUBLISHED_WEIGHTS = ("tag", "license", "origin_url", "paper_ids", "test_input_size", "test_crop_pct")
"""Facts of timm's description that are about the weights it publishes, and not about a student's."""


def create(
    model: str, *, name: str, modality: str, config: dict[str, Any] | None, **view_changes: int | None
) -> Encoder:
    """Build a network of timm, with or without the tag of its weights in ``model``, with fresh weights.

    ``config`` is ignored, because the name says everything. Where ``view_changes`` (``num_frames``, ``stride``,
    ``size_px``) are None, a clip has 8 frames with stride 4 and timm's own size. At another size a network interpolates
    its position embeddings (``dynamic_img_size``), or is built for that size (``img_size``) if it cannot. Raise a
    ``UserError`` if timm is not installed, does not know the name, or if the network cannot take such a view.
    """
    timm = require_package("timm", target=name, extra="hf")
    _require_known(timm, model)
    with torch.device("meta"), SizesOnly():
        native = timm.create_model(model, num_classes=0).eval()
    data = timm.data.resolve_model_data_config(native)
    statistics = Statistics(tuple(data["mean"]), tuple(data["std"]), data["crop_pct"])
    trained = statistics if modality in PICTURE_MODALITIES else None
    own = make_view(modality, NUM_POOLED_FRAMES, POOLED_STRIDE, data["input_size"][-1], trained)
    view = change_view(own, **view_changes)
    size_options = {} if view.size_px == own.size_px else _size_options(native, view.size_px)
    info = EncoderInfo(
        embed_dim=0,  # assemble finds it
        takes="frames",
        classifier_prefix=_classifier_prefix(native),
        stems=_stems(native),
        token_layer=find_token_layer(native, channels=native.num_features, size_px=own.size_px),
        public_weights=_public_weights(model, native, size_options),
    )
    build = partial(timm.create_model, model, num_classes=0, in_chans=view.kind.channels, **size_options)
    return assemble(build, own=own, name=name, view=view, info=info)


def is_timm_model(encoder: Encoder) -> bool:
    """Whether the body is a class of timm that loads what it saved: of this file, and not quantised."""
    return encoder.bits is None and encoder.name.partition("_")[2].startswith("timm:")


def write_folder(encoder: Encoder, folder: Path, **facts: Any) -> None:
    """Write ``config.json`` and ``model.safetensors`` of timm's own format, which ``timm.create_model`` reads.

    Args:
        encoder: An encoder of this file.
        folder: An existing folder.
        facts: Further keys of ``config.json``, which timm keeps and ignores.
    """
    hub = importlib.import_module("timm.models._hub")
    native: Any = encoder.body
    view = encoder.view
    own_px = native.pretrained_cfg["input_size"][-1]
    size_options = {} if view.size_px == own_px else _size_options(native, view.size_px)
    preprocessing = {
        "input_size": (view.kind.channels, view.size_px, view.size_px),
        "mean": view.mean,
        "std": view.std,
        "crop_pct": view.centre_fraction,
    }
    hub.save_for_hf(
        native,
        folder,
        model_config={**facts, "pretrained_cfg": preprocessing},
        model_args={"in_chans": view.kind.channels, **size_options},
        safe_serialization=True,
    )
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers, which reads such folders too, gives the number of classes itself.
    config["model_args"].pop("num_classes", None)
    for name in OF_PUBLISHED_WEIGHTS:
        config["pretrained_cfg"].pop(name, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_folder(folder: Path) -> nn.Module:
    """Build the network of a folder that ``write_folder`` wrote, with its weights."""
    import timm

    network: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return network.eval()


def _require_known(timm: Any, model: str) -> None:
    """Raise a ``UserError`` for an unknown name; it names similar networks, because timm has over a thousand."""
    if not timm.is_model(model):
        known = timm.list_models()
        near = difflib.get_close_matches(model, known, n=5) or [one for one in known if model in one][:5]
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists what there is"
        raise UserError(f"timm {timm.__version__} has no network {model!r}: {hint}")
    architecture, _, tag = model.partition(".")
    known = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and model not in known:
        raise UserError(
            f"timm has no weights {tag!r} of {architecture}: choose one of {', '.join(known)}, or remove .{tag}"
            if known
            else f"timm has no weights of {architecture}: remove .{tag}"
        )


def _size_options(native: nn.Module, size_px: int) -> dict[str, Any]:
    """Return arguments that let a network of one size take another size, if it needs any."""
    kinds = [kind for kind in type(native).__mro__ if issubclass(kind, nn.Module)]
    accepted = {name for kind in kinds for name in inspect.signature(kind).parameters}
    if "dynamic_img_size" in accepted:  # weights of the network's own size then still fit
        return {"dynamic_img_size": True}
    return {"img_size": size_px} if "img_size" in accepted else {}


def _classifiers(native: Any) -> tuple[str, ...]:
    """Return the names of the classifiers; a network that was distilled or takes several sizes has more than one."""
    names = native.pretrained_cfg.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _classifier_prefix(native: Any) -> str:
    """Return a prefix of all classifiers' tensors and of no other tensor."""
    prefix: str = os.path.commonprefix([f"{name}." for name in _classifiers(native)])  # noqa: RUF071
    # ``native`` has no classifier, so a tensor with this prefix belongs to the body.
    return "" if any(name.startswith(prefix) for name in native.state_dict()) else prefix


def _stems(native: Any) -> tuple[str, ...]:
    """Return the name of the first convolution if it takes the channels of the picture, without folded pixels."""
    stem = native.pretrained_cfg.get("first_conv")
    if not isinstance(stem, str):
        return ()
    module = dict(native.named_modules()).get(stem)
    return (stem,) if getattr(module, "in_channels", None) == native.pretrained_cfg["input_size"][0] else ()


def _public_weights(model: str, native: Any, size_options: dict[str, Any]) -> tuple[PublicWeights, ...]:
    described = native.pretrained_cfg
    place = described.get("hf_hub_id") and f"https://huggingface.co/{described['hf_hub_id']}"
    if not place and not described.get("url"):
        return ()
    # ``load_tensors`` takes the tensors with the prefix off and keeps a linear classifier. Others are dropped here.
    prefix = _classifier_prefix(native)
    dropped = tuple(f"{name}." for name in _classifiers(native) if f"{name}." != prefix)
    read = partial(_read_pretrained, model, size_options, dropped)
    return (PublicWeights(PRETRAINED, PICTURE_MODALITIES, place or described["url"], read=read),)


def _read_pretrained(model: str, size_options: dict[str, Any], dropped: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Read published weights with timm's own code, which fits position embeddings to the size."""
    import timm

    try:  # with the classifier, because timm loads strictly only then
        network = timm.create_model(model, pretrained=True, **size_options)
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        raise UserError(
            f"the published weights of timm's {model} cannot be read ({first_line(error)}): get the file elsewhere and "
            "give it with --teacher-weights FILE (or --student-weights FILE)"
        ) from error
    tensors: dict[str, Tensor] = network.state_dict()
    return {name: value for name, value in tensors.items() if not name.startswith(dropped)}
