"""Hugging Face's networks: ``<modality>_hf:<model>``, where the model is a name on the hub or a folder.

Networks of clips are VideoMAE, V-JEPA 2, TimeSformer and ViViT; for flow and depth their stem has other channels.
Networks of pictures are DINOv2, DINOv3, ViT, the vision towers of CLIP and SigLIP, and others that ``AutoModel`` builds
for ``pixel_values``. They embed a clip frame by frame, and the features are averaged.

The body is the library's own model, so its weights load strictly into the library's class. It is built from its
configuration alone, which a student keeps in ``student.json``; code that comes with a model never runs. Two hooks make
an encoder of it: one passes the input by name, the other maps the output to features.

Shapes: B batch, C channels, T frames, H height, W width, D features, N tokens.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from crossdistill.encoders.architecture import CLIP_MODALITIES, Statistics, change_view, make_view
from crossdistill.encoders.base import Encoder, EncoderInfo, PublicWeights
from crossdistill.encoders.huggingface_families import Family, Features, family_of, quiet_transformers
from crossdistill.encoders.library import (
    BUILD_ERRORS,
    NUM_POOLED_FRAMES,
    PICTURE_MODALITIES,
    POOLED_STRIDE,
    PRETRAINED,
    assemble,
)
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.encoders.tokens import TokenLayer
from crossdistill.errors import UserError, first_line
from crossdistill.modalities import IMAGE
from crossdistill.types import ViewSpec

DEFAULT_SIZE_PX = 224
# Names of the same setting in different configurations.
CHANNELS_KEYS = ("num_channels", "in_chans", "in_channels")
FRAMES_KEYS = ("num_frames", "frames_per_clip")
SIZE_KEYS = ("image_size", "crop_size")
# Keys of a configuration that do not concern the body; the classes of a classifier can be thousands of lines.
NOT_OF_THE_BODY = ("id2label", "label2id", "_name_or_path")


def create(
    model: str, *, name: str, modality: str, config: dict[str, Any] | None, **view_changes: int | None
) -> Encoder:
    """Build a network of transformers with fresh weights.

    ``model`` is a name on the hub (nothing is downloaded if ``HF_HUB_OFFLINE`` is set) or a folder with
    ``config.json``. It is not read if ``config``, which is ``Encoder.config`` of an encoder that was built before, is
    given. A network of clips takes modalities of clips, a network of pictures any. ``view_changes`` are ``num_frames``,
    ``stride`` and ``size_px``; those of the published weights where None.

    Raise a ``UserError`` if transformers is not installed, if the model cannot be read, or if it does not take the
    modality or view.
    """
    transformers = quiet_transformers(name)
    own_config = _vision_part(_rebuild(transformers, config, name) if config else _read_config(transformers, model))
    family = family_of(own_config)
    if family.stride is not None and modality not in CLIP_MODALITIES:
        raise UserError(
            f"{model} is a network of clips ({own_config.model_type}), which takes {', '.join(CLIP_MODALITIES)}, not "
            f"{modality}: name it {CLIP_MODALITIES[0]}_hf:{model}"
        )
    preprocessing = {} if config else _read_preprocessing(model)
    own = _own_view(model, own_config, family, modality, preprocessing)
    view = change_view(own, **view_changes)
    fitted = _fit(own_config, family, view)
    _set_channels(fitted, name, view.kind.channels)
    public = PublicWeights(
        PRETRAINED,
        PICTURE_MODALITIES if family.stride is None else ("rgb",),
        model if Path(model).is_dir() else f"https://huggingface.co/{model}",
        read=partial(_read_pretrained, model, family, view),
    )
    info = EncoderInfo(
        embed_dim=0,  # assemble finds it
        takes="frames" if family.stride is None else "clip",
        stems=_stems(own_config, family),
        token_layer=_token_layer(family, fitted),
        public_weights=(public,),
        config=_to_json(fitted),
    )
    return assemble(partial(_build, fitted, family, view), own=own, name=name, view=view, info=info)


def _read_config(transformers: Any, model: str) -> Any:
    """Read a model's configuration from its folder or the hub, without code that comes with the model."""
    if Path(model).is_dir() and not Path(model, "config.json").is_file():
        raise UserError(f"the folder {model} holds no config.json: give a folder that a model was saved to")
    try:
        return transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"the model {model!r} is not a local folder and cannot be read from the Hugging Face hub "
            f"({first_line(error)}): check its name and the network, or download it elsewhere and give "
            "<modality>_hf:/path/to/folder"
            if not Path(model).is_dir()
            else f"the configuration in {model} cannot be read ({first_line(error)}): give a model that transformers "
            f"{transformers.__version__} knows without code of its own, or update transformers"
        ) from error


def _rebuild(transformers: Any, config: Mapping[str, Any], name: str) -> Any:
    try:
        return transformers.AutoConfig.for_model(**config)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"the stored configuration of {name} cannot be read ({first_line(error)}): it was written with "
            f"transformers {config.get('transformers_version')}, so install that in place of {transformers.__version__}"
        ) from error


def _vision_part(config: Any) -> Any:
    """Return the configuration of the vision tower, for a model of pictures and text."""
    return getattr(config, "vision_config", None) or config


def _read_preprocessing(model: str) -> dict[str, Any]:
    """Read the model's description of its preprocessing, which is in one of two files; empty if there is none."""
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.video_processing_utils import BaseVideoProcessor

    for read in (BaseImageProcessor.get_image_processor_dict, BaseVideoProcessor.get_video_processor_dict):
        with contextlib.suppress(OSError, ValueError):  # there is no such file: try the next one
            return read(model)[0]
    return {}


def _own_view(model: str, config: Any, family: Family, modality: str, preprocessing: Mapping[str, Any]) -> ViewSpec:
    # Read for every modality, because it refuses pictures that are not square.
    statistics = replace(_statistics(family, preprocessing), centre_fraction=_centre_fraction(preprocessing, model))
    configured = _side(getattr(config, _key(config, SIZE_KEYS) or "", None), model)
    prepared = None
    if family.resizing is not None:  # it takes any size; the preprocessing names the size of training
        prepared = _side(preprocessing.get("crop_size" if preprocessing.get("do_center_crop") else "size"), model)
    size_px = prepared or configured or DEFAULT_SIZE_PX
    trained = statistics if modality in PICTURE_MODALITIES else None
    if family.stride is None:
        return make_view(modality, NUM_POOLED_FRAMES, POOLED_STRIDE, size_px, trained)
    num_frames = getattr(config, _key(config, FRAMES_KEYS) or "")
    return replace(make_view(modality, num_frames, family.stride, size_px, trained), layout="BTCHW")


def _statistics(family: Family, preprocessing: Mapping[str, Any]) -> Statistics:
    """Return mean and deviation for intensities in [0, 1] that equal the preprocessing of bytes."""
    scale, offset, mean, std = 1.0, 0.0, _triple(0.0), _triple(1.0)
    if preprocessing.get("do_rescale", True):
        scale = preprocessing.get("rescale_factor") or family.rescale
        offset = float(preprocessing.get("offset", family.offset))
    if preprocessing.get("do_normalize", True):
        mean = _triple(preprocessing.get("image_mean") or family.mean)
        std = _triple(preprocessing.get("image_std") or family.std)
    unit = 255 * scale  # (intensity * unit - offset - mean) / std
    return Statistics(tuple((value + offset) / unit for value in mean), tuple(value / unit for value in std))


def _token_layer(family: Family, config: Any) -> TokenLayer | None:
    if not family.has_tokens:
        return None
    num_prefix = family.num_class_tokens + int(getattr(config, "num_register_tokens", 0))
    return TokenLayer("to_features.tokens", "sequence", family.frames_per_token(config), num_prefix)


def _centre_fraction(preprocessing: Mapping[str, Any], model: str) -> float:
    """Return the fraction of a picture's shorter side that its resizing and central crop keep."""
    if not preprocessing.get("do_center_crop"):
        return 1.0
    shrunk, cut = (_side(preprocessing.get(key), model) for key in ("size", "crop_size"))
    return min(1.0, cut / shrunk) if shrunk and cut else 1.0


def _triple(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),) * IMAGE.channels


def _side(size: Any, model: str) -> int | None:
    """Read a size, which is written as n, [n, n] or a dict of named sides."""
    if isinstance(size, Mapping):
        size = [value for key, value in size.items() if key in ("height", "width", "shortest_edge") and value]
    sides = {size} if isinstance(size, int) else set(size or ())
    if len(sides) > 1:
        raise UserError(f"{model} takes pictures of {sorted(sides)} pixels: choose a network of square pictures")
    return int(sides.pop()) if sides else None


def _key(config: Any, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if hasattr(config, key)), None)


def _fit(config: Any, family: Family, view: ViewSpec) -> Any:
    """Copy a configuration, with the size and number of frames of a view if its position embeddings need them."""
    fitted = copy.deepcopy(config)
    for name, setting in {"return_dict": True, **family.settings}.items():
        setattr(fitted, name, setting)
    if family.resizing is None:
        for names, value in ((FRAMES_KEYS, view.num_frames), (SIZE_KEYS, view.size_px)):
            key = _key(config, names)
            if key is not None and getattr(config, key) != value:
                setattr(fitted, key, value)
    return fitted


def _set_channels(config: Any, name: str, channels: int) -> None:
    key = _key(config, CHANNELS_KEYS)
    if key is not None:
        setattr(config, key, channels)
    elif channels != IMAGE.channels:
        raise UserError(
            f"{name} cannot take {channels} channels, because the configuration of a {config.model_type} has no number "
            f"of channels: use it for {' or '.join(PICTURE_MODALITIES)}, or choose another network"
        )


def _build(config: Any, family: Family, view: ViewSpec) -> nn.Module:
    """Build the library's own model with fresh weights and the two hooks that map views to [B, D]."""
    model = _from_config(config, family)
    if getattr(model, "main_input_name", "").removesuffix("_videos") != "pixel_values":
        raise UserError(f"a {config.model_type} does not take pictures: choose a network of pictures or clips")
    model.add_module("to_features", Features(family, view.num_frames))
    arguments = dict(family.forward)
    if family.resizing and view.size_px != getattr(config, _key(config, SIZE_KEYS) or "", None):
        arguments.update(family.resizing)
    model.register_forward_pre_hook(partial(_name_input, arguments), with_kwargs=True)
    model.register_forward_hook(_make_features)
    return model


def _make_features(model: Any, inputs: tuple[Any, ...], output: Any) -> Tensor:
    return model.to_features(output)


def _from_config(config: Any, family: Family) -> nn.Module:
    from transformers import AutoModel

    own = copy.deepcopy(config)  # the library writes into it
    return AutoModel.from_config(own, dtype=torch.float32, trust_remote_code=False, **family.build)


def _name_input(
    arguments: Mapping[str, Any], model: Any, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pass the input under the model's own name for it."""
    return (), {**arguments, **dict(zip((model.main_input_name,), inputs, strict=False)), **named}


def _stems(config: Any, family: Family) -> tuple[str, ...]:
    """Return the name of the first convolution if it takes the channels of the picture, otherwise an empty tuple."""
    channels = getattr(config, _key(config, CHANNELS_KEYS) or "", IMAGE.channels)
    try:
        with torch.device("meta"), SizesOnly():
            model = _from_config(config, family)
    except BUILD_ERRORS as error:
        raise UserError(
            f"transformers builds no network of features from a configuration of {config.model_type!r} "
            f"({first_line(error)}): choose another model"
        ) from error
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return (name,) if module.in_channels == channels else ()
    return ()


def _to_json(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in content.items() if key not in NOT_OF_THE_BODY}


def _read_pretrained(model: str, family: Family, view: ViewSpec) -> Mapping[str, Tensor]:
    """Read published weights with the library's own code, strictly and with a stem of three channels."""
    import transformers

    config = _fit(_vision_part(_read_config(transformers, model)), family, view)
    try:
        network, report = transformers.AutoModel.from_pretrained(
            model,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,  # the library's other format can hold code
            trust_remote_code=False,
            output_loading_info=True,
            **family.build,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the published weights of {model!r} cannot be read for {view.num_frames} frames of {view.size_px} pixels "
            f"({first_line(error)}): remove the options that change its view, or download it elsewhere (with its "
            "model.safetensors) and give <modality>_hf:/path/to/folder"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{model!r} does not hold the whole network: {len(missing)} of its tensors are missing (first: "
            f"{missing[0]}), so choose a model that was saved as a whole"
        )
    return network.state_dict()
