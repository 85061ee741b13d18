"""The registry of encoders: ``<modality>_<architecture>``, for example ``flow_r3d18``.

A new architecture is one ``Architecture`` in a file of its source's name, and that file's dictionary
in ``ARCHITECTURES``. A library with more networks than can be listed is one entry of ``LIBRARIES``, and
its networks are called ``<modality>_<library>:<the library's own name>``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crossdistill.encoders.base import Architecture, Encoder, build_encoder, wrap_encoder, wrap_module
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
    "wrap_module",
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
        raise unknown_name("encoder", name, encoder_names(), listed_by="crossdistill encoders")
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
        names = (known for known in encoder_names() if known.startswith(modality + "_"))
        raise unknown_name("encoder", name, names, listed_by="crossdistill encoders")
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
    encoder = _call(Path(path), function, name)
    if not isinstance(encoder, Encoder):
        raise UserError(
            f"{name} returned {type(encoder).__name__}, not an Encoder: return crossdistill.wrap_encoder(…)"
        )
    encoder.name = name
    changes = {key: value for key, value in view_changes.items() if value is not None}
    encoder.view = replace(encoder.view, **changes)  # type: ignore[arg-type]
    _require_features(encoder)
    return encoder


def _call(path: Path, function: str, name: str) -> object:
    """Run a person's own file, which may import what lies beside it, and the function in it."""
    spec = importlib.util.spec_from_file_location(f"crossdistill_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise UserError(f"{path} has no function {function!r}: define it, or name another")
        return getattr(module, function)()
    except UserError:
        raise
    except Exception as error:  # anything may go wrong in a stranger's code
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f"line {lines[-1]}, " if lines else ""
        raise UserError(f"{name} could not be built ({place}{type(error).__name__}: {error}): mend the file") from error
    finally:
        sys.path.remove(str(path.resolve().parent))


def _require_features(encoder: Encoder) -> None:
    """Raise a ``UserError`` unless a stranger's network gives what it says for the view that is asked for."""
    view = encoder.view
    clip = torch.zeros(1, view.kind.channels, view.num_frames, view.size_px, view.size_px)
    was_training = encoder.training
    try:
        with torch.no_grad():
            shape = list(encoder.eval()(clip).shape)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = " ".join(str(error).split("\n", 1)[0].split())
        raise UserError(
            f"{encoder.name} cannot take {view.num_frames} frames of {view.size_px} pixels ({reason}): mend the file, "
            "or leave out the options that change its view"
        ) from error
    finally:
        encoder.train(was_training)
    if shape != [1, encoder.embed_dim]:
        raise UserError(
            f"{encoder.name} gives features of shape {shape} for one clip, and its embed_dim says {encoder.embed_dim}: "
            "return [B, embed_dim] from the network"
        )
