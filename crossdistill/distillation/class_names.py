"""Names of the classes that a student's classifier knows."""

from __future__ import annotations

from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import read_facts
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError


def find_class_names(student: Path, classes: Classifier | None, manifest: Manifest | None) -> tuple[str, ...]:
    """The names, in the order of the classifier's outputs; empty if nothing says them.

    Args:
        student: Its folder: what ``student.json`` says under ``classes`` comes first.
        classes: The classifier; None has no names.
        manifest: The dataset that it was trained on, if given.

    Raises:
        UserError: The dataset has another number of classes.
    """
    if classes is None:
        return ()
    num_classes = len(classes.bias)
    kept = read_facts(student)[1].get("classes")
    if isinstance(kept, list) and len(kept) == num_classes and all(isinstance(name, str) for name in kept):
        return tuple(kept)
    if manifest is None:
        return ()
    if len(manifest.classes) != num_classes:
        raise UserError(
            f"the classifier of {student} has {num_classes} classes and the dataset {manifest.root} has "
            f"{len(manifest.classes)}: give --data with the dataset that the student was trained on"
        )
    return manifest.classes


def name_of(position: int, names: tuple[str, ...]) -> str:
    """A class by its name, or by its number where names are not known."""
    return names[position] if position < len(names) else f"class {position}"
