"""The trained student as files that other people can use.

``student.safetensors`` holds the plain body: it loads strictly into the source library's own class. That of a
quantised student holds brevitas' layers, for which ``load_student`` builds the network.
``classifier.safetensors`` is there if it learned from labels: weight [N, D] and bias [N].
``student.json`` says which encoder it is, what it wants to see, and how it was trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossdistill.encoders import Encoder, create_encoder, is_from_file
from crossdistill.encoders.weights import find_classifier, load_weights
from crossdistill.errors import UserError
from crossdistill.quantization.quantize import float_layers, quantize
from crossdistill.types import ViewSpec
from crossdistill.utils.files import write_text_atomically
from crossdistill.utils.tensor_files import read_weights, write_tensors

FORMAT_VERSION = 1
WEIGHTS_NAME = "student.safetensors"
FACTS_NAME = "student.json"
ADVICE = "free space there and start again; a training goes on with --resume"
CLASSIFIER_NAME = "classifier.safetensors"


def save_student(
    encoder: Encoder, folder: Path, *, facts: dict[str, Any], class_names: Sequence[str] | None = None
) -> None:
    """Write an encoder's weights and what a reader has to know.

    Args:
        encoder: Adapters are not part of it and are not written; the classifier that it learned labels with is, apart.
        folder: Made if absent.
        facts: How it was trained; anything JSON can hold.
        class_names: Of the classifier's outputs, if it has one.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    write_tensors(
        folder / WEIGHTS_NAME,
        encoder.body.state_dict(),
        metadata={"format": "pt"},
        advice=ADVICE,
    )
    if encoder.classifier is not None:
        layer = {"weight": encoder.classifier.weight, "bias": encoder.classifier.bias}
        write_tensors(folder / CLASSIFIER_NAME, layer, metadata={"format": "pt"}, advice=ADVICE)
    else:
        (folder / CLASSIFIER_NAME).unlink(missing_ok=True)  # of a run before in the same folder
    description = {
        "format": "crossdistill-student",
        "version": FORMAT_VERSION,
        "encoder": encoder.name,
        "embed_dim": encoder.embed_dim,
        "num_parameters": encoder.num_parameters,
        "view": dataclasses.asdict(encoder.view),
        "config": encoder.config,
        "training": facts,
    }
    if encoder.classifier is not None and class_names is not None:
        description["classes"] = list(class_names)
    if encoder.bits is not None:
        description |= {
            "quantize": encoder.bits,
            "float_layers": float_layers(encoder),
            "weights_load_into": "brevitas' layers (crossdistill.load_student), not the source library's own class",
        }
    write_text_atomically(folder / FACTS_NAME, json.dumps(description, indent=2) + "\n")


def find_student(path: str | Path) -> Path | None:
    """The folder with a student at or under a path (a run keeps its in ``student/``), if there is one."""
    for folder in (Path(path), Path(path) / "student"):
        if (folder / FACTS_NAME).is_file():
            return folder
    return None


def read_facts(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Find a student and read its ``student.json``.

    Raises:
        UserError: There is none, it is damaged, or a newer version wrote it.
    """
    folder = find_student(path)
    if folder is None:
        raise UserError(f"there is no student in {path} (no {FACTS_NAME}): give a run's folder or its student folder")
    try:
        description: dict[str, Any] = json.loads((folder / FACTS_NAME).read_text(encoding="utf-8"))
        version = int(description["version"])
        if not isinstance(description["encoder"], str):
            raise TypeError("encoder is no name")
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {version}, this crossdistill reads up to {FORMAT_VERSION}: update it"
        )
    return folder, description


def load_student(path: str | Path, *, allow_code: bool = False) -> Encoder:
    """Load a trained student: an ``Encoder`` in eval mode that maps views [B, C, T, H, W] to [B, D].

    Args:
        path: A run's folder, or the folder with ``student.safetensors`` and ``student.json``.
        allow_code: Whether the Python file that a student of one's own network names may be run.

    Raises:
        UserError: There is no student, it is damaged, or it names a Python file and ``allow_code`` is false.
    """
    folder, description = read_facts(path)
    if is_from_file(description["encoder"]) and not allow_code:
        raise UserError(
            f"the student in {folder} is built by the Python file {description['encoder']}, which would be run: look "
            "at it, then pass allow_code=True (--allow-code on the command line)"
        )
    view = read_view(folder, description)
    encoder = create_encoder(
        description["encoder"],
        num_frames=view.num_frames,
        stride=view.stride,
        size_px=view.size_px,
        config=description.get("config"),
    )
    encoder.view = view
    if description.get("quantize") is not None:
        quantize(encoder, description["quantize"])
    load_weights(encoder, folder / WEIGHTS_NAME)
    if (folder / CLASSIFIER_NAME).is_file():
        layer = read_weights(folder / CLASSIFIER_NAME)
        if not {"weight", "bias"} <= layer.keys():
            raise UserError(f"{folder / CLASSIFIER_NAME} holds no classifier (weight, bias): get it again")
        encoder.classifier = find_classifier([layer["weight"], layer["bias"]], embed_dim=encoder.embed_dim)
    return encoder.eval()


def read_view(folder: Path, description: dict[str, Any]) -> ViewSpec:
    """What a student wants to see.

    Args:
        folder: Of the student, and with it its ``student.json``, as ``read_facts`` gives them.
        description: See there.

    Raises:
        UserError: ``student.json`` is damaged.
    """
    try:
        view = description["view"]
        return ViewSpec(**{**view, "mean": tuple(view["mean"]), "std": tuple(view["std"])})
    except (KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder / FACTS_NAME} is damaged ({error}): export the student again")
