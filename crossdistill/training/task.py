"""What the training loop trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from crossdistill.distillation.heads import Tower
from crossdistill.encoders.base import Classifier
from crossdistill.types import PairedBatch, StepOutput


class Task(Protocol):
    """What the engine trains: something with weights that turns batches into losses."""

    trainable: Tower
    """Wrapped for several processes by the engine, and nothing else is."""

    @property
    def bank_fill(self) -> float | None:
        """Share of the memory bank that is filled; None without one."""
        ...

    @property
    def classifier(self) -> Classifier | None:
        """A linear classifier on the student's features, if labels have trained one."""
        ...

    def compute(self, model: nn.Module, batch: PairedBatch) -> StepOutput:
        """Loss of one batch; ``model`` is ``trainable``, wrapped."""
        ...

    def after_step(self, outputs: Sequence[StepOutput]) -> None:
        """Called when the optimizer has moved the weights, with the outputs of the step's batches."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything besides ``trainable`` that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        ...
