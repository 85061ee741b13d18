"""What every objective looks like to the distiller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from crossdistill.adapters import Compares, require_fit
from crossdistill.encoders import Encoder
from crossdistill.memory_bank import MemoryBank
from crossdistill.types import StepOutput

AnchorSource = Literal["momentum", "live", "teacher"]
"""Where the student's anchors come from: an EMA copy of it, itself, or the teacher's bank."""


class Objective(Protocol):
    """A pure function of embeddings and bank, with the facts that the distiller needs to serve it."""

    adapter: str
    """Which of ``crossdistill.adapters.ADAPTERS`` stands between the student and the loss."""
    compares: Compares
    needs_teacher_dim: bool
    """Whether both sides must have the same number of features."""
    student_anchors: AnchorSource | None
    """None if it needs no bank."""

    def __call__(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare both sides, see ``compares``; the bank is read, never changed.

        An objective with ``needs_own_anchors = True`` also takes ``is_own``, see ``MemoryBank.is_own``.
        """
        ...


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
        return bool(getattr(self.objective, "needs_own_anchors", False))

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
