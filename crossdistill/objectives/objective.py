"""What every objective looks like to the distiller."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.types import StepOutput

Compares = Literal["features", "tokens", "logits", "labels"]
"""What an objective is given: embeddings [B, D], tokens [B, E, T, H, W] on the teacher's grid, logits [B, N], or of the
student logits [B, N] and instead of a teacher labels [B]."""
AnchorSource = Literal["momentum", "live", "teacher"]
"""Where the student's anchors come from: an EMA copy of it, itself, or the teacher's bank."""


class Objective(Protocol):
    """A pure function of embeddings and bank, with the facts that the distiller needs to serve it."""

    adapter: str
    """Which of ``crossdistill.distillation.heads.ADAPTERS`` stands between the student and the loss."""
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
