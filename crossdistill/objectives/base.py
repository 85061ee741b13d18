"""What every objective looks like to the distiller."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from crossdistill.memory_bank import MemoryBank
from crossdistill.types import StepOutput

AnchorSource = Literal["momentum", "live", "teacher"]
"""Where the student's anchors come from: an EMA copy of it, itself, or the teacher's bank."""


class Objective(Protocol):
    """A pure function of embeddings and bank, with the facts that the distiller needs to serve it."""

    student_anchors: AnchorSource
    adapter: str
    """Which of ``crossdistill.adapters.ADAPTERS`` stands between the student and the loss."""

    def __call__(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank) -> StepOutput:
        """Compare embeddings [B, student dim] and [B, teacher dim]; the bank is read, never changed."""
        ...
