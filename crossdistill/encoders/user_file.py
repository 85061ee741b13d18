"""Encoders of the user's own: ``path/to/file.py:function``."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path

import torch

from crossdistill.encoders.architecture import change_view
from crossdistill.encoders.base import Encoder
from crossdistill.errors import UserError, first_line
from crossdistill.utils.modules import eval_mode


def is_from_file(name: str) -> bool:
    """Return whether a name is ``path/to/file.py:function``; building such an encoder runs that file."""
    return ".py:" in name


def require_code_allowed(name: str, *, named_by: str, allow_code: bool) -> None:
    """Raise a ``UserError`` if data names an encoder whose Python file would run, and the user has not allowed it.

    Call it wherever a name comes from data (a student's folder, a cache, a run's configuration) and not from the user.

    Args:
        name: Name of the encoder.
        named_by: What names it, for the error.
        allow_code: Whether the user allowed it.
    """
    if is_from_file(name) and not allow_code:
        raise UserError(
            f"{named_by} is built by the Python file {name}: read that file, then allow it to run with allow_code=True "
            "(--allow-code on the command line)"
        )


def create_from_file(name: str, **view_changes: int | None) -> Encoder:
    """Call the function that ``path/to/file.py:function`` names; it takes no arguments and returns an ``Encoder``.

    ``view_changes`` are ``num_frames``, ``stride`` and ``size_px``; the encoder's own where None.

    Raises:
        UserError: The file or function does not exist, raises, or returns no ``Encoder`` of the stated ``embed_dim``.
    """
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"there is no file {path} for the encoder {name!r}: give path/to/file.py:function")
    encoder = _call(Path(path), function, name)
    if not isinstance(encoder, Encoder):
        given = type(encoder).__name__
        raise UserError(f"{name} returned {given}, not an Encoder: return crossdistill.wrap_encoder(…)")
    encoder.name = name
    encoder.view = change_view(encoder.view, **view_changes)
    _require_features(encoder)
    return encoder


def _call(path: Path, function: str, name: str) -> object:
    """Import the user's file, which may import its neighbours, and call the function."""
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
    except Exception as error:  # the user's code may raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        place = f"line {lines[-1]}, " if lines else ""
        raise UserError(f"{name} failed to build ({place}{type(error).__name__}: {error}): fix the file") from error
    finally:
        sys.path.remove(str(path.resolve().parent))


def _require_features(encoder: Encoder) -> None:
    """Raise a ``UserError`` unless the encoder returns [1, embed_dim] for one clip of its view."""
    view = encoder.view
    clip = torch.zeros(1, view.kind.channels, view.num_frames, view.size_px, view.size_px)
    try:
        with torch.no_grad(), eval_mode(encoder):
            shape = list(encoder(clip).shape)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"{encoder.name} cannot take {view.num_frames} frames of {view.size_px} pixels ({first_line(error)}): fix "
            "the file, or remove the options that change its view"
        ) from error
    if shape != [1, encoder.embed_dim]:
        raise UserError(
            f"{encoder.name} gives features of shape {shape} for one clip, and its embed_dim says {encoder.embed_dim}: "
            "return [B, embed_dim] from the network"
        )
