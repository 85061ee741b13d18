"""The weighted objectives of a run, each with the head that stands between the student and it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crossdistill.distillation.heads import require_fit
from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.objectives import create_objective
from crossdistill.objectives.objective import Objective


@dataclass(frozen=True)
class Term:
    """One summand of the loss of a run."""

    name: str
    weight: float
    objective: Objective
    adapter: str
    """The objective's own, or the one that was asked for."""

    @property
    def needs_own_anchors(self) -> bool:
        """Whether the objective has to know which anchors are of the samples themselves."""
        return self.objective.needs_own_anchors

    @property
    def fills_student_side(self) -> bool:
        """Whether the bank keeps anchors of the student for it."""
        return self.objective.student_anchors in ("momentum", "live")

    def require_fit(self, *, student: Encoder, teacher: Encoder, is_loaded: bool = True) -> None:
        """Raise a ``UserError`` if the term cannot compare two encoders.

        Args:
            student: Trained.
            teacher: Frozen.
            is_loaded: Whether the teacher has its weights, and so its classifier, if it is to have one.
        """
        objective = self.objective
        require_fit(
            self.adapter,
            student=student,
            teacher=teacher,
            compares=objective.compares,
            needs_teacher_dim=objective.needs_teacher_dim,
            is_loaded=is_loaded,
        )


def create_terms(
    terms: Sequence[str],
    *,
    temperature: float | None = None,
    teacher_temperature: float | None = None,
    adapter: str | None = None,
) -> list[Term]:
    """Build the weighted objectives of a run.

    Args:
        terms: Each ``name`` or ``name:weight``, for example ``("compress-1q:1.0", "simreg:1.0")``.
        temperature: Of the softmax over similarities; the objectives' own if None, and so for the next.
        teacher_temperature: Of the teacher, where it has its own.
        adapter: In place of the objectives' own, for those that compare pooled embeddings; None for their own.

    Raises:
        UserError: A name is unknown or given twice, a weight is no positive number, or two of them fill the
            student's side of the bank.
    """
    built: list[Term] = []
    temperatures = {"temperature": temperature, "teacher_temperature": teacher_temperature}
    for text in terms:
        name, _, weight = text.partition(":")
        objective = create_objective(name, **temperatures)
        own = adapter is None or objective.compares != "features"
        built.append(Term(name, _weight(text, weight), objective, objective.adapter if own else str(adapter)))
    if not built or len({term.name for term in built}) < len(built):
        raise UserError(f"--objective {' '.join(terms)} needs one or more objectives, each once: name or name:weight")
    if adapter is not None and not any(term.objective.compares == "features" for term in built):
        raise UserError(
            f"--adapter {adapter} has nothing to adapt: {', '.join(term.name for term in built)} brings its own head, "
            "so leave --adapter out"
        )
    for name, value in temperatures.items():
        if value is not None and all(name not in term.objective.settings for term in built):
            raise UserError(f"--{name.replace('_', '-')} is of no use to --objective {' '.join(terms)}: leave it out")
    if all(term.objective.compares == "labels" for term in built):
        raise UserError(
            f"--objective {' '.join(terms)} learns from labels alone: add one that learns from the teacher, for "
            "example mse:50, or train with --supervised"
        )
    of_student = [term.name for term in built if term.fills_student_side]
    if len(of_student) > 1:
        raise UserError(
            f"--objective {' '.join(terms)} fills the student's side of the bank twice ({' and '.join(of_student)}): "
            "leave all but one out"
        )
    return built


def _weight(text: str, weight: str) -> float:
    try:
        value = float(weight or 1)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"--objective {text}: the weight is {weight!r}, give a number above 0, for example simreg:0.5")
    return value
