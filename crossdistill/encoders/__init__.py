"""The registry of encoders: ``<modality>_<architecture>``, for example ``flow_r3d18``.

A new architecture is one ``Architecture`` in a file of its source's name, and that file's dictionary
in ``ARCHITECTURES``. A library with more networks than can be listed is one entry of ``LIBRARIES``, and
its networks are called ``<modality>_<library>:<the library's own name>``.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossdistill.encoders.base import Architecture, Encoder, build_encoder, wrap_encoder
from crossdistill.encoders.pytorchvideo import PYTORCHVIDEO
from crossdistill.encoders.small import SMALL
from crossdistill.encoders.torchvision import TORCHVISION
from crossdistill.encoders.tsm import TSM
from crossdistill.errors import UserError, unknown_name
from crossdistill.modalities import MODALITIES

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Encoder",
    "create_encoder",
    "encoder_names",
    "is_from_file",
    "wrap_encoder",
]

ARCHITECTURES: dict[str, Architecture] = {**TORCHVISION, **PYTORCHVIDEO, **TSM, **SMALL}

# Modules with ``create(model, *, name, modality, num_frames, stride, size_px, config) -> Encoder``, imported at use.
LIBRARIES: dict[str, str] = {
    "timm": "crossdistill.encoders.timm",
    "hf": "crossdistill.encoders.huggingface",
}


def encoder_names() -> list[str]:
    """Every ``<modality>_<architecture>`` that the registry can build, sorted."""
    return sorted(f"{modality}_{name}" for name, entry in ARCHITECTURES.items() for modality in entry.modalities)


def is_from_file(name: str) -> bool:
    """Whether a name is ``path/to/file.py:function``, whose building runs that file."""
    return ".py:" in name


def create_encoder(
    name: str,
    *,
    num_frames: int | None = None,
    stride: int | None = None,
    size_px: int | None = None,
    config: dict[str, Any] | None = None,
) -> Encoder:
    """Build an encoder with fresh weights.

    Args:
        name: ``<modality>_<architecture>``; ``<modality>_<library>:<model>``, for example
            ``image_timm:resnet50``; or ``path/to/file.py:function`` for one of your own: the function
            takes no arguments and returns an ``Encoder`` (see ``wrap_encoder``).
        num_frames: Frames of a clip; the architecture's own if None, and so for the next two.
        stride: Frames of the video between frames of the clip.
        size_px: Height and width of the view.
        config: ``Encoder.config`` of an encoder that was built before, where its library keeps it elsewhere.

    Raises:
        UserError: The name is unknown, the architecture does not exist for the modality, or its library is absent.
    """
    if is_from_file(name):
        return _from_file(name, num_frames=num_frames, stride=stride, size_px=size_px)
    modality, _, architecture = name.partition("_")
    if modality not in MODALITIES or not architecture:
        raise unknown_name("encoder", name, encoder_names())
    library, colon, model = architecture.partition(":")
    if colon:
        if library not in LIBRARIES:
            raise unknown_name("library", library, LIBRARIES)
        create = importlib.import_module(LIBRARIES[library]).create
        created: Encoder = create(
            model, name=name, modality=modality, num_frames=num_frames, stride=stride, size_px=size_px, config=config
        )
        return created
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    entry = ARCHITECTURES[architecture]
    if modality not in entry.modalities:
        raise UserError(
            f"the architecture {architecture!r} does not take {modality}: it takes {', '.join(entry.modalities)}; "
            f"for {modality} choose one of {', '.join(n for n in encoder_names() if n.startswith(modality + '_'))}"
        )
    return build_encoder(entry, name=name, modality=modality, num_frames=num_frames, stride=stride, size_px=size_px)


def _from_file(name: str, **view_changes: int | None) -> Encoder:
    """Call the function that ``path/to/file.py:function`` names; it must return an ``Encoder``."""
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"there is no file {path} for the encoder {name!r}: give path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"crossdistill_user_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise UserError(f"{path} has no function {function!r}: define it, or name another")
    encoder = getattr(module, function)()
    if not isinstance(encoder, Encoder):
        raise UserError(
            f"{name} returned {type(encoder).__name__}, not an Encoder: return crossdistill.wrap_encoder(…)"
        )
    encoder.name = name
    changes = {key: value for key, value in view_changes.items() if value is not None}
    encoder.view = replace(encoder.view, **changes)  # type: ignore[arg-type]
    return encoder
