"""The trained student as files that other people can use.

``student.safetensors`` holds the weights of the body alone: they load strictly into the source library's own class.
A quantised student holds brevitas' layers; ``load_student`` builds the network for them. ``classifier.safetensors``
holds weight [N, D] and bias [N] of a student that learned from labels. ``student.json`` names the encoder, describes
what it sees, and says how it was trained.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossdistill.data.manifest import Manifest
from crossdistill.encoders import Encoder, create_encoder, require_code_allowed
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.weights import find_classifier, load_weights
from crossdistill.errors import UserError
from crossdistill.quantization.quantize import float_layers, quantize
from crossdistill.types import ViewSpec
from crossdistill.utils import hub
from crossdistill.utils.files import write_text_atomically
from crossdistill.utils.records import read_versioned_json
from crossdistill.utils.tensor_files import write_tensors
from crossdistill.utils.weight_files import read_weights

FORMAT_VERSION = 1
WEIGHTS_NAME = "student.safetensors"
FACTS_NAME = "student.json"
CLASSIFIER_NAME = "classifier.safetensors"
ADVICE = "free space there and start again; a training continues with --resume"


def save_student(
    encoder: Encoder, folder: Path, *, facts: dict[str, Any], class_names: Sequence[str] | None = None
) -> None:
    """Write a student's weights, its classifier if it has one, and ``student.json``.

    Distillation heads are not saved.

    Args:
        encoder: The trained student.
        folder: Output folder; created if absent.
        facts: Description of the training, as JSON-serialisable values.
        class_names: Class name of each output of the classifier; None if unknown.

    Raises:
        UserError: The disk is full or cannot be written.
    """
    write_tensors(folder / WEIGHTS_NAME, encoder.body.state_dict(), metadata={"format": "pt"}, advice=ADVICE)
    if encoder.classifier is not None:
        layer = {"weight": encoder.classifier.weight, "bias": encoder.classifier.bias}
        write_tensors(folder / CLASSIFIER_NAME, layer, metadata={"format": "pt"}, advice=ADVICE)
    else:
        (folder / CLASSIFIER_NAME).unlink(missing_ok=True)  # of an earlier student in the same folder
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
    """Return the student folder at a path or, as in a run's folder, in its subfolder ``student``; None without one."""
    for folder in (Path(path), Path(path) / "student"):
        if (folder / FACTS_NAME).is_file():
            return folder
    return None


def locate_student(name: str | Path) -> Path | None:
    """Return the student folder that a user named: a path, or a repository of the hub, which is fetched.

    Returns:
        The folder; None if the name is that of a file, of a folder without a student, or of neither.

    Raises:
        UserError: It can only be a repository of the hub, and that cannot be read or holds no student.
    """
    folder = find_student(name)
    if folder is not None or not hub.names_repository(name):
        return folder
    folder = find_student(hub.fetch(str(name)))
    if folder is None:
        raise UserError(f"{name} is a repository of the hub without a student (no {FACTS_NAME}): give another one")
    return folder


def read_facts(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Find a student and read its ``student.json``.

    Raises:
        UserError: There is no student, the file is damaged, or a newer version wrote it.
    """
    folder = locate_student(path)
    absent = f"there is no student in {path} (no {FACTS_NAME}): give a run's folder or its student folder"
    if folder is None:
        raise UserError(absent)
    description = read_versioned_json(
        folder / FACTS_NAME, absent=absent, version=FORMAT_VERSION, remedy="export the student again"
    )
    if not isinstance(description.get("encoder"), str):
        raise _damaged(folder, "encoder is not a name")
    return folder, description


def load_student(path: str | Path, *, allow_code: bool = False) -> Encoder:
    """Load a trained student in eval mode.

    Args:
        path: A run's folder, the folder with ``student.safetensors`` and ``student.json``, or a repository of the
            Hugging Face hub that ``crossdistill push`` made, ``organisation/name`` or ``organisation/name@revision``.
        allow_code: Whether the student may run the Python file that it names.

    Returns:
        An encoder that maps normalised views [B, C, T, H, W] to features [B, D].

    Raises:
        UserError: There is no student, it is damaged, the hub cannot be reached, or the student names a Python file
            and ``allow_code`` is false.
    """
    folder, description = read_facts(path)
    require_code_allowed(description["encoder"], named_by=f"the student in {folder}", allow_code=allow_code)
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
            raise UserError(f"{folder / CLASSIFIER_NAME} holds no classifier (weight, bias): get the file again")
        encoder.classifier = find_classifier([layer["weight"], layer["bias"]], embed_dim=encoder.embed_dim)
    return encoder.eval()


def read_view(folder: Path, description: dict[str, Any]) -> ViewSpec:
    """Return the view of a stored student.

    Args:
        folder: The student's folder, as ``read_facts`` returns it.
        description: The content of its ``student.json``.

    Raises:
        UserError: ``student.json`` is damaged.
    """
    try:
        view = description["view"]
        return ViewSpec(**{**view, "mean": tuple(view["mean"]), "std": tuple(view["std"])})
    except (KeyError, TypeError) as error:
        raise _damaged(folder, str(error)) from error


def _damaged(folder: Path, reason: str) -> UserError:
    return UserError(f"{folder / FACTS_NAME} is damaged ({reason}): export the student again")


def find_class_names(student: Path, classifier: Classifier | None, manifest: Manifest | None) -> tuple[str, ...]:
    """Return the names of the classifier's outputs; empty if they are unknown.

    Args:
        student: The student's folder; the names in its ``student.json`` come first.
        classifier: The student's classifier, if it has one.
        manifest: The dataset that the student was trained on, if the user named it.

    Raises:
        UserError: The dataset has another number of classes than the classifier.
    """
    if classifier is None:
        return ()
    num_classes = len(classifier.bias)
    stored = read_facts(student)[1].get("classes")
    if isinstance(stored, list) and len(stored) == num_classes and all(isinstance(name, str) for name in stored):
        return tuple(stored)
    if manifest is None:
        return ()
    if len(manifest.classes) != num_classes:
        raise UserError(
            f"the classifier of {student} has {num_classes} classes and the dataset {manifest.root} has "
            f"{len(manifest.classes)}: give --data with the dataset that the student was trained on"
        )
    return manifest.classes


def class_name(position: int, names: tuple[str, ...]) -> str:
    """Return the name of a class, or its number if the names are unknown."""
    return names[position] if position < len(names) else f"class {position}"
