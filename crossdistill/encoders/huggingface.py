"""Hugging Face's networks, as ``<modality>_hf:<model>``, where the model is one of the hub or a folder of one.

Networks of clips, as ``rgb_hf:...`` (or of flow and depth, with a stem of their channels): VideoMAE, V-JEPA 2,
TimeSformer, ViViT. Networks of pictures, as ``image_hf:...``: DINOv2, DINOv3, ViT, the vision towers of CLIP and
SigLIP, and others that ``AutoModel`` builds for ``pixel_values``; under the name of a modality of clips they embed its
frames one by one, and the features are averaged.

The body is the library's own model, so that its weights load strictly into the library's class. It is built from a
configuration alone, which a student keeps in ``student.json``, and no code of a stranger is ever run. Two hooks make an
encoder of it: one hands it its input by name, one makes features of its output.

Shapes: B batch, C channels, T frames, H height, W width, D features, N tokens.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor, nn

from crossdistill.encoders.base import CLIP_MODALITIES, Encoder, PublicWeights, Statistics, TokenLayer
from crossdistill.encoders.library import BUILD_ERRORS, PICTURE_MODALITIES, assemble, change_view, own_view, reason_of
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.errors import UserError
from crossdistill.modalities import IMAGE
from crossdistill.types import ViewSpec

PRETRAINED = "pretrained"
DEFAULT_SIZE_PX = 224
# What configurations call the same thing.
CHANNELS_KEYS = ("num_channels", "in_chans", "in_channels")
FRAMES_KEYS = ("num_frames", "frames_per_clip")
SIZE_KEYS = ("image_size", "crop_size")
# What is in a configuration and says nothing of the body; the classes of a classifier can be thousands of lines.
NOT_OF_THE_BODY = ("id2label", "label2id", "_name_or_path")


def class_token(output: Any) -> Tensor:
    """The class token [B, D] after the last normalisation."""
    token: Tensor = output.last_hidden_state[:, 0]
    return token


def mean_of_tokens(output: Any) -> Tensor:
    """The mean over all tokens, [B, D]."""
    mean: Tensor = output.last_hidden_state.mean(dim=1)
    return mean


def pooled(output: Any) -> Tensor:
    """What the network itself pools, [B, D]; where it does not, the mean over its tokens or its grid."""
    features: Tensor | None = getattr(output, "pooler_output", None)
    if features is not None:
        return features.flatten(1)
    last: Tensor = output.last_hidden_state
    return last.mean(dim=1) if last.dim() == 3 else last.flatten(2).mean(dim=2)


def _tubelet(config: Any) -> int:
    size = config.tubelet_size
    return int(size if isinstance(size, int) else size[0])


@dataclass(frozen=True)
class Family:
    """What a configuration does not say of one kind of network."""

    features: Callable[[Any], Tensor] = pooled
    stride: int | None = None
    """Frames between frames that its published weights were trained with; None for networks of pictures."""
    mean: tuple[float, ...] = IMAGE.mean
    """As its preprocessing has it, where the model brings no description of that; and so for the next three."""
    std: tuple[float, ...] = IMAGE.std
    rescale: float = 1 / 255
    """Factor of a byte before mean and deviation."""
    offset: float = 0.0
    """Subtracted after that factor."""
    resizing: Mapping[str, Any] | None = field(default_factory=dict)
    """Arguments with which it takes other sizes than its own. None: its positions belong to one size and number of
    frames, so these go into its configuration."""
    build: Mapping[str, Any] = field(default_factory=dict)
    forward: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of every call."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the configuration, where published ones serve another end than features."""
    has_tokens: bool = True
    frames_per_token: Callable[[Any], int] = lambda config: 1
    num_class_tokens: int = 1
    """Before the grid of its tokens; the registers after them are in the configuration."""
    is_time_last: bool = False
    """Whether its tokens are in the order of rows, columns, time."""


_HALF = (0.5, 0.5, 0.5)
_INTERPOLATED = {"interpolate_pos_encoding": True}
_NO_POOLER: dict[str, Any] = {"add_pooling_layer": False}

FAMILIES: dict[str, Family] = {
    # 16 frames, stride 4. The mean is what its classifier takes; the norm after it belongs to the classifier.
    "videomae": Family(mean_of_tokens, stride=4, resizing=None, frames_per_token=_tubelet, num_class_tokens=0),
    # 64 frames, stride 4 as in its evaluations. The library has its attentive pooler in the classifier alone.
    "vjepa2": Family(
        mean_of_tokens,
        stride=4,
        resizing=None,
        frames_per_token=_tubelet,
        forward={"skip_predictor": True},
        num_class_tokens=0,
    ),
    # 8 frames, stride 32.
    "timesformer": Family(
        class_token, stride=32, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225), resizing=None, is_time_last=True
    ),
    # 32 frames, stride 2. Bytes become -1 to 1 before mean and deviation. Its published weights have no pooler.
    "vivit": Family(
        class_token,
        stride=2,
        mean=_HALF,
        std=_HALF,
        rescale=1 / 127.5,
        offset=1.0,
        resizing=None,
        build=_NO_POOLER,
        frames_per_token=_tubelet,
    ),
    "dinov2": Family(class_token),
    "dinov2_with_registers": Family(class_token),
    "dinov3_vit": Family(class_token),
    # Many published weights have no pooler, and where they do it is a part of pretraining.
    "vit": Family(class_token, mean=_HALF, std=_HALF, resizing=_INTERPOLATED, build=_NO_POOLER),
    # Left as it is, it would hide three quarters of every picture; it shuffles the tokens even so.
    "vit_mae": Family(class_token, resizing=_INTERPOLATED, settings={"mask_ratio": 0.0}, has_tokens=False),
    "clip_vision_model": Family(
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), resizing=_INTERPOLATED
    ),
    "siglip_vision_model": Family(mean=_HALF, std=_HALF, resizing=_INTERPOLATED, num_class_tokens=0),
}
"""By ``model_type`` of the configuration. Strides, means and deviations are those of the published weights' papers and
preprocessing."""
OTHER = Family(has_tokens=False)


class Features(nn.Module):
    """Makes features of a model's output; a child of the body without weights, so that names stay the library's.

    ``tokens`` passes the tokens [B, N, D] on in the order of time, rows, columns, for ``TokenLayer``.

    Args:
        family: The model's.
        num_frames: T of its clips.
    """

    def __init__(self, family: Family, num_frames: int) -> None:
        super().__init__()
        self.pool = family.features
        self.is_time_last = family.is_time_last
        self.num_frames = num_frames
        self.tokens = nn.Identity()

    def forward(self, output: Any) -> Tensor:
        """A model's output to [B, D]."""
        last = output.last_hidden_state
        if self.is_time_last:
            grid = rearrange(last[:, 1:], "b (s t) d -> b (t s) d", t=self.num_frames)
            last = torch.cat([last[:, :1], grid], dim=1)
        self.tokens(last)
        return self.pool(output)


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
    """Build a network of transformers with fresh weights.

    Args:
        model: Of the hub (nothing is fetched where ``HF_HUB_OFFLINE`` is set), or a folder with its ``config.json``.
        name: The encoder's, for example ``rgb_hf:MCG-NJU/videomae-base``.
        modality: Of clips for a network of clips; any for one of pictures.
        num_frames: The network's own if None; of pictures see ``own_view``.
        stride: That of the published weights if None.
        size_px: That of the model's preprocessing or configuration if None.
        config: ``Encoder.config`` of one built before: then nothing is read and ``model`` is but a name.

    Raises:
        UserError: transformers is absent, the model cannot be read, is of another modality or cannot take such a view.
    """
    transformers = _import_transformers(name)
    own_config = _vision_part(_rebuild(transformers, config, name) if config else _read_config(transformers, model))
    family = FAMILIES.get(own_config.model_type, OTHER)
    _require_modality(model, own_config, family, modality)
    preprocessing = {} if config else _read_preprocessing(model)
    own = _own_view(model, own_config, family, modality, preprocessing)
    view = change_view(own, num_frames=num_frames, stride=stride, size_px=size_px)
    fitted = _fit(own_config, family, view)
    _set_channels(fitted, name, view.kind.channels)
    return assemble(
        partial(_build, fitted, family, view),
        own=own,
        name=name,
        view=view,
        takes="frames" if family.stride is None else "clip",
        stem=_stem(own_config, family),
        token_layer=_token_layer(family, fitted),
        public_weights=(
            PublicWeights(
                PRETRAINED,
                PICTURE_MODALITIES if family.stride is None else ("rgb",),
                model if Path(model).is_dir() else f"https://huggingface.co/{model}",
                read=partial(_read_pretrained, model, family, view),
            ),
        ),
        config=_to_json(fitted),
    )


def _import_transformers(name: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"{name} needs transformers, which is not installed: pip install 'crossdistill[hf]'") from error
    transformers.utils.logging.set_verbosity_error()  # its sentences are in ours
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _read_config(transformers: Any, model: str) -> Any:
    """A model's configuration, from its folder or the hub; code that comes with a model is refused."""
    if Path(model).is_dir() and not Path(model, "config.json").is_file():
        raise UserError(f"the folder {model} holds no config.json: give one that a model was saved to")
    try:
        return transformers.AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"the model {model!r} is no folder here and cannot be read from the Hugging Face hub ({reason_of(error)}): "
            "check its name and the network, or download it elsewhere and give <modality>_hf:/path/to/folder"
            if not Path(model).is_dir()
            else f"the configuration in {model} cannot be read ({reason_of(error)}): give a model that transformers "
            f"{transformers.__version__} knows without code of its own, or update transformers"
        ) from error


def _rebuild(transformers: Any, config: Mapping[str, Any], name: str) -> Any:
    """The configuration that a student kept."""
    try:
        return transformers.AutoConfig.for_model(**config)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(
            f"the kept configuration of {name} cannot be read ({reason_of(error)}): it was written with transformers "
            f"{config.get('transformers_version')}, and {transformers.__version__} is here, so install that version"
        ) from error


def _vision_part(config: Any) -> Any:
    """Of a model of pictures and text: its vision tower."""
    return getattr(config, "vision_config", None) or config


def _require_modality(model: str, config: Any, family: Family, modality: str) -> None:
    if family.stride is not None and modality not in CLIP_MODALITIES:
        raise UserError(
            f"{model} is a network of clips ({config.model_type}), which takes {', '.join(CLIP_MODALITIES)}, not "
            f"{modality}: name it {CLIP_MODALITIES[0]}_hf:{model}"
        )


def _read_preprocessing(model: str) -> dict[str, Any]:
    """What a model says of its input, in whichever of the library's files it says so; empty if nowhere."""
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.video_processing_utils import BaseVideoProcessor

    for read in (BaseImageProcessor.get_image_processor_dict, BaseVideoProcessor.get_video_processor_dict):
        try:
            content: dict[str, Any] = read(model)[0]
        except (OSError, ValueError):  # there is no such file: the next one, or the family's own
            continue
        return content
    return {}


def _own_view(model: str, config: Any, family: Family, modality: str, preprocessing: Mapping[str, Any]) -> ViewSpec:
    statistics = replace(_statistics(family, preprocessing), centre_fraction=_centre_fraction(preprocessing, model))
    configured = _side(getattr(config, _key(config, SIZE_KEYS) or "", None), model)
    prepared = None
    if family.resizing is not None:  # it takes any size, and its preprocessing knows which it was trained for
        prepared = _side(preprocessing.get("crop_size" if preprocessing.get("do_center_crop") else "size"), model)
    size_px = prepared or configured or DEFAULT_SIZE_PX
    if family.stride is None:
        return own_view(modality, size_px=size_px, statistics=statistics)
    num_frames = getattr(config, _key(config, FRAMES_KEYS) or "")
    view = own_view(modality, size_px=size_px, statistics=statistics, num_frames=num_frames, stride=family.stride)
    return replace(view, layout="BTCHW")


def _statistics(family: Family, preprocessing: Mapping[str, Any]) -> Statistics:
    """Mean and deviation of intensities in [0, 1] that do what the preprocessing does to bytes."""
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
    """The share of a picture's shorter side that is left of it after shrinking and cutting out the middle."""
    if not preprocessing.get("do_center_crop"):
        return 1.0
    shrunk, cut = (_side(preprocessing.get(key), model) for key in ("size", "crop_size"))
    return min(1.0, cut / shrunk) if shrunk and cut else 1.0


def _triple(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),) * IMAGE.channels


def _side(size: Any, model: str) -> int | None:
    """Height and width of a size as configurations and preprocessings write it: n, [n, n] or by name."""
    if isinstance(size, Mapping):
        size = [value for key, value in size.items() if key in ("height", "width", "shortest_edge") and value]
    sides = {size} if isinstance(size, int) else set(size or ())
    if len(sides) > 1:
        raise UserError(f"{model} takes pictures of {sorted(sides)} pixels: choose a network of square ones")
    return int(sides.pop()) if sides else None


def _key(config: Any, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if hasattr(config, key)), None)


def _fit(config: Any, family: Family, view: ViewSpec) -> Any:
    """A copy of a configuration whose positions are those of a view, if they belong to one."""
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
    """The library's own model with fresh weights, which maps views to [B, D] by two hooks."""
    model = _from_config(config, family)
    if getattr(model, "main_input_name", "").removesuffix("_videos") != "pixel_values":
        raise UserError(f"a {config.model_type} takes no pictures: choose a network of pictures or clips")
    model.add_module("to_features", Features(family, view.num_frames))
    arguments = dict(family.forward)
    if family.resizing and view.size_px != getattr(config, _key(config, SIZE_KEYS) or "", None):
        arguments.update(family.resizing)
    model.register_forward_pre_hook(partial(_name_input, arguments), with_kwargs=True)
    model.register_forward_hook(_make_features)
    return model


def _from_config(config: Any, family: Family) -> nn.Module:
    from transformers import AutoModel

    # The configuration is copied because the library writes into it.
    model: nn.Module = AutoModel.from_config(
        copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False, **family.build
    )
    return model


def _name_input(
    arguments: Mapping[str, Any], model: Any, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Hand a model its input under the name that it has there."""
    return (), {**arguments, **dict(zip((model.main_input_name,), inputs, strict=False)), **named}


def _make_features(model: Any, inputs: tuple[Any, ...], output: Any) -> Tensor:
    features: Tensor = model.to_features(output)
    return features


def _stem(config: Any, family: Family) -> str:
    """The first convolution, if there is one that takes the channels themselves."""
    channels = getattr(config, _key(config, CHANNELS_KEYS) or "", IMAGE.channels)
    try:
        with torch.device("meta"), SizesOnly():
            model = _from_config(config, family)
    except BUILD_ERRORS as error:
        raise UserError(
            f"transformers builds no network of features from a configuration of {config.model_type!r} "
            f"({reason_of(error)}): choose another model"
        ) from error
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return name if module.in_channels == channels else ""
    return ""


def _to_json(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in content.items() if key not in NOT_OF_THE_BODY}


def _read_pretrained(model: str, family: Family, view: ViewSpec) -> Mapping[str, Tensor]:
    """Published weights by the library's own code, strictly, as they are: the stem takes colour.

    Only safetensors are read, because the library's other format can hold code.
    """
    import transformers

    config = _fit(_vision_part(_read_config(transformers, model)), family, view)
    try:
        network, report = transformers.AutoModel.from_pretrained(
            model,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **family.build,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the published weights of {model!r} cannot be had for {view.num_frames} frames of {view.size_px} pixels "
            f"({reason_of(error)}): leave out the options that change its view, or download it elsewhere (with its "
            "model.safetensors) and give <modality>_hf:/path/to/folder"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{model!r} does not hold the whole network: {len(missing)} of its tensors are missing (first: "
            f"{missing[0]}), so choose one that was saved whole"
        )
    tensors: dict[str, Tensor] = network.state_dict()
    return tensors
