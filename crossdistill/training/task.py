"""What the training loop trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from crossdistill.encoders.base import Classifier
from crossdistill.types import PairedBatch, StepOutput


class Task(Protocol):
    """A module that turns batches into losses. ``Distiller`` and ``SupervisedTask`` are tasks."""

    trainable: nn.Module
    """Everything that the optimizer moves, and nothing else."""

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Compute through ``wrapper(trainable)`` from now on, for example through DistributedDataParallel."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Put what trains into train mode."""
        ...

    def __call__(self, batch: PairedBatch) -> StepOutput:
        """Compute the loss of one batch."""
        ...

    def after_step(self) -> None:
        """Update what follows the weights; called after each optimizer step."""
        ...

    @property
    def bank_fill(self) -> float | None:
        """Filled share of the memory bank; None without a bank."""
        ...

    @property
    def classifier(self) -> Classifier | None:
        """The linear classifier on the student's features, if labels have trained one."""
        ...

    def resume_state(self) -> dict[str, Any]:
        """Everything besides ``trainable`` that a resumed run needs."""
        ...

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore what ``resume_state`` returned."""
        ...
