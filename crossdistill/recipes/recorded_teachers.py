"""The teachers that a student learned from, as its ``student.json`` records them, and their networks loaded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crossdistill.distillation.teachers import Teacher
from crossdistill.encoders import Encoder
from crossdistill.encoders.weights import weights_hash
from crossdistill.errors import UserError
from crossdistill.recipes.teachers import TeacherOptions, create_teacher
from crossdistill.types import ViewSpec


@dataclass(frozen=True)
class RecordedTeacher:
    """One teacher of a finished run."""

    name: str
    weights: str
    """As named at training: a path, or published weights. ``auto`` if a cache of version 0.1 does not say it."""
    weights_sha256: str
    """See ``weights_hash``."""
    num_frames: int
    stride: int
    size_px: int

    @staticmethod
    def all_of(teacher: Teacher, weights: Sequence[str]) -> list[RecordedTeacher]:
        """Describe a teacher that has weights of its own, or with folds its networks; ``weights`` has one name each."""
        name, *hashes = teacher.identity
        view = teacher.encoder.view
        return [
            RecordedTeacher(name, own, sha256, view.num_frames, view.stride, view.size_px)
            for own, sha256 in zip(weights, hashes, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the fields for ``student.json``."""
        return asdict(self)

    @property
    def options(self) -> TeacherOptions:
        """The teacher as a configuration names it."""
        return TeacherOptions(self.name, self.weights, self.num_frames, self.stride, self.size_px)


def recorded_teachers(training: Mapping[str, Any]) -> list[RecordedTeacher]:
    """Read the teachers from the field ``training`` of ``student.json``; version 0.1 did not record them."""
    return [RecordedTeacher(**values) for values in training.get("teachers", ())]


def load_again(options: TeacherOptions, student_view: ViewSpec, recorded: Sequence[str]) -> Encoder:
    """Load a teacher of a finished run, and check that it has the weights that the student learned from.

    Args:
        options: The teacher.
        student_view: View of the student.
        recorded: Hash of the weights, or no hash if it is unknown.

    Raises:
        UserError: The weights cannot be loaded, or they are others.
    """
    teacher = create_teacher(options, student_view).eval()
    found = weights_hash(teacher)
    if recorded and found not in recorded:
        raise UserError(
            f"the weights {options.weights} of the teacher {options.name} are not those that the student learned from "
            f"(hash {found}, recorded {' or '.join(recorded)}): put the teacher's weights back there"
        )
    return teacher
