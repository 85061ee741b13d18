"""Weights as users name them: a file, a run's folder, or a name that a library publishes them under."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from crossdistill.distillation.student import load_student, locate_student, read_facts, read_view
from crossdistill.encoders import Encoder, create_encoder, is_from_file, list_encoders
from crossdistill.encoders.weights import fits, load_tensors, read_public_weights
from crossdistill.errors import UserError
from crossdistill.quantization.quantize import parse_bit_widths, quantize
from crossdistill.utils.weight_files import read_weights


def preview_encoder(name: str, weights: str | None = None, **view: int | None) -> Encoder:
    """Build an encoder on the meta device to read its names and sizes. This takes no memory and little time.

    A Python file of the user runs on the real device, because its code may read values while it builds the network.
    """
    with contextlib.nullcontext() if is_from_file(name) else torch.device("meta"):
        return create_encoder(name, config=stored_config(name, weights), **view)


def create_encoder_as_stored(name: str, weights: str | None, **view: int | None) -> Encoder:
    """Build an encoder as the weights of a student's folder were trained, with random weights.

    Args:
        name: Name of the encoder.
        weights: What the command line named; anything but a student's folder changes nothing.
        view: ``num_frames``, ``stride`` and ``size_px``. None stands for the stored value, or the encoder's own.
    """
    trained = _stored_view(weights)
    return create_encoder(
        name,
        config=stored_config(name, weights),
        **{field: value or trained.get(field) for field, value in view.items()},
    )


def _stored_view(weights: str | None) -> dict[str, Any]:
    """Return the view that the weights of a student's folder were trained with; empty for other weights."""
    folder = locate_student(weights) if weights is not None else None
    return {} if folder is None else vars(read_view(*read_facts(folder)))


def stored_config(name: str, weights: str | None) -> dict[str, Any] | None:
    """Return ``Encoder.config`` of a student's folder, if the folder holds the encoder ``name``."""
    folder = locate_student(weights) if weights is not None else None
    if folder is None:
        return None
    facts = read_facts(folder)[1]
    config: dict[str, Any] | None = facts.get("config") if facts["encoder"] == name else None
    return config


def require_weights_exist(option: str, weights: str, encoder: Encoder) -> None:
    """Raise a ``UserError`` unless weights are a path that exists or a name that the encoder's library publishes."""
    published = [public.name for public in encoder.public_weights]
    if weights not in published and not Path(weights).exists() and locate_student(weights) is None:
        names = f", or one of the published: {', '.join(published)}" if published else ""
        raise UserError(f"{option} {weights} does not exist: give a weight file or a run's folder{names}")


def load_named_weights(encoder: Encoder, weights: str, *, option: str, adapt_stem: bool = False) -> None:
    """Load weights into an encoder, strictly.

    Args:
        encoder: The network. Its weights are changed in place.
        weights: A file, a run's folder, or the name of published weights.
        option: The option that named them, for errors.
        adapt_stem: Whether weights of another modality may be adapted to the encoder's channels.

    Raises:
        UserError: The weights are absent, damaged, or of another network.
    """
    for public in encoder.public_weights:
        if weights == public.name:
            if not adapt_stem and encoder.view.modality not in public.modalities:
                raise UserError(
                    f"{option} {weights} are weights for {' and '.join(public.modalities)}, and {encoder.name} takes "
                    f"{encoder.view.modality}: give a weight file of {encoder.name}, or train one with --supervised "
                    "--student-weights"
                )
            load_tensors(encoder, read_public_weights(public), source=public.url, adapt_stem=adapt_stem)
            return
    folder = locate_student(weights)
    if folder is not None:
        _load_student_weights(encoder, folder, given=f"{option} {weights}", adapt_stem=adapt_stem)
    elif Path(weights).is_dir():
        raise UserError(
            f"{option} {weights} is a folder without a student: give a weight file, the folder of a finished run, or "
            "pretrained for a network of Hugging Face"
        )
    else:
        _load_file(encoder, Path(weights), option=option, adapt_stem=adapt_stem)


def _load_file(encoder: Encoder, path: Path, *, option: str, adapt_stem: bool) -> None:
    tensors = read_weights(path)
    try:
        load_tensors(encoder, tensors, source=str(path), adapt_stem=adapt_stem)
    except UserError as error:
        names = (name for name in list_encoders() if name.startswith(f"{encoder.view.modality}_"))
        other = next((name for name in names if fits(preview_encoder(name), tensors)), None)
        if other is None:
            raise
        raise UserError(
            f"{error}, or name the network of this file: {option.removesuffix('-weights')} {other}"
        ) from error


def _load_student_weights(encoder: Encoder, folder: Path, *, given: str, adapt_stem: bool) -> None:
    name = read_facts(folder)[1]["encoder"]
    is_same = _architecture(name) == _architecture(encoder.name) if adapt_stem else name == encoder.name
    if not is_same:
        raise UserError(f"{given} holds {name}, not {encoder.name}: name that encoder, or give other weights")
    stored = load_student(folder, allow_code=True)  # it runs no code except the Python file that the command names
    if stored.bits is not None:
        quantize(encoder, parse_bit_widths(stored.bits))
    load_tensors(encoder, stored.body.state_dict(), source=str(folder), adapt_stem=adapt_stem)
    encoder.classifier = stored.classifier


def _architecture(encoder: str) -> str:
    """Return the name of an encoder without its modality."""
    return encoder if is_from_file(encoder) else encoder.partition("_")[2]
