"""The terms of a loss: weighted objectives, each with the adapter that builds its head on the student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crossdistill.distillation.heads import get_adapter, require_fit, require_trained_by_tokens
from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.objectives import create_objective
from crossdistill.objectives.objective import Objective


@dataclass(frozen=True)
class Term:
    """One weighted objective of a loss."""

    name: str
    weight: float
    objective: Objective
    adapter: str
    """Name of the adapter: the objective's own, or the one that the user chose."""

    @property
    def fills_student_side(self) -> bool:
        """Whether the bank keeps anchors of the student for this term."""
        return self.objective.student_anchors in ("momentum", "live")

    def require_fit(self, *, student: Encoder, teacher: Encoder, is_loaded: bool = True) -> None:
        """Raise a ``UserError`` if the term cannot compare two encoders.

        Args:
            student: The student; only its sizes are read.
            teacher: The teacher; only its sizes and its classifier are read.
            is_loaded: Whether the teacher's weights are loaded; before that nobody knows if it has a classifier.
        """
        require_fit(
            self.adapter,
            student=student,
            teacher=teacher,
            compares=self.objective.compares,
            needs_teacher_dim=self.objective.needs_teacher_dim,
            is_loaded=is_loaded,
        )


def create_terms(
    objectives: Sequence[str],
    *,
    temperature: float | None = None,
    teacher_temperature: float | None = None,
    adapter: str | None = None,
) -> list[Term]:
    """Build the terms of a loss.

    Args:
        objectives: Each ``name`` or ``name:weight``.
        temperature: Softmax temperature of the similarities; each objective's own if None.
        teacher_temperature: The teacher's, for objectives that have two; each objective's own if None.
        adapter: Replaces the adapter of every objective that compares pooled features; None keeps their own.

    Raises:
        UserError: A name is unknown or repeated, a weight is not a positive number, an option has no effect, or two
            objectives would fill the student's side of the bank.

    Example:
        >>> [(term.name, term.weight, term.adapter) for term in create_terms(["compress-1q", "simreg:0.5"])]
        [('compress-1q', 1.0, 'linear'), ('simreg', 0.5, 'mlp4')]
    """
    terms: list[Term] = []
    given = " ".join(objectives)
    temperatures = {"temperature": temperature, "teacher_temperature": teacher_temperature}
    for text in objectives:
        name, _, weight = text.partition(":")
        objective = create_objective(name, **temperatures)
        uses_own = adapter is None or objective.compares != "features"
        terms.append(Term(name, _weight(text, weight), objective, objective.adapter if uses_own else str(adapter)))
    if not terms or len({term.name for term in terms}) < len(terms):
        raise UserError(f"--objective {given} needs one or more objectives, each once: name or name:weight")
    if adapter is not None and not any(term.objective.compares == "features" for term in terms):
        raise UserError(
            f"--adapter {adapter} has no effect with --objective {given}, which brings its own head: remove --adapter"
        )
    for name, value in temperatures.items():
        if value is not None and all(name not in term.objective.settings for term in terms):
            raise UserError(f"--{name.replace('_', '-')} has no effect with --objective {given}: remove it")
    if all(term.objective.compares == "labels" for term in terms):
        raise UserError(
            f"--objective {given} uses labels alone: add one that learns from the teacher, for example mse:50, or "
            "train with --supervised"
        )
    with_student_anchors = [term.name for term in terms if term.fills_student_side]
    if len(with_student_anchors) > 1:
        raise UserError(
            f"--objective {given}: {' and '.join(with_student_anchors)} store student anchors in the memory bank, "
            "which has room for one kind: keep one of them"
        )
    return terms


def expects_standardized(terms: Sequence[Term]) -> bool:
    """Whether a term expects features of mean 0 and variance 1 of the teacher."""
    return any(term.objective.standardizes for term in terms)


def _weight(text: str, weight: str) -> float:
    try:
        value = float(weight or 1)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"--objective {text}: the weight is {weight!r}; give a number above 0, for example simreg:0.5")
    return value


def require_all_trained(student: Encoder, terms: Sequence[Term]) -> None:
    """Raise a ``UserError`` if all terms use the student's tokens, so that weights after the tokens get no gradient."""
    if all(get_adapter(term.adapter).takes == "tokens" for term in terms):
        require_trained_by_tokens(student)
