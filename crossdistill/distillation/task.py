"""``Task``: the base class of the modules that the training loop trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from crossdistill.distillation.student_with_heads import StudentWithHeads
from crossdistill.encoders.base import Classifier, Encoder
from crossdistill.encoders.execution import Execution


class Task(nn.Module):
    """A module that turns batches into losses: call it on a batch to get a ``StepOutput``.

    ``Distiller`` and ``SupervisedTask`` are tasks.

    Args:
        trainable: The module that holds all trained parameters, and no others.
        execution: Device, precision and layout of the student.
    """

    def __init__(self, trainable: StudentWithHeads, execution: Execution) -> None:
        super().__init__()
        self.trainable = trainable
        self.execution = execution
        self.wrap(lambda module: module)

    def wrap(self, wrapper: Callable[[nn.Module], Callable[..., Any]]) -> None:
        """Compute through ``wrapper(self.trainable)`` from now on: ``task.wrap(DistributedDataParallel)``."""
        self._call = partial(wrapper(self.trainable))  # a function, which nn.Module does not register as a second copy

    def after_step(self, *, has_moved: bool = True) -> None:
        """Update memory banks and EMA copies. Called after each optimizer step.

        ``has_moved`` is false after a step that gradient scaling skipped: then the weights are those of before.
        """

    @property
    def bank_fill(self) -> float | None:
        """Filled share of the memory banks, in [0, 1]; None without a memory bank."""
        return None

    @property
    def classifier(self) -> Classifier | None:
        """The linear classifier on the student's features if labels are used in training, otherwise None."""
        return None

    @property
    def evaluated(self) -> Encoder:
        """The encoder that is evaluated during training: the one that trains, or an average of it."""
        return self.trainable.encoder

    def finish(self) -> None:
        """Leave the weights of the result in ``trainable``. Called when training ends."""

    def result_state(self) -> dict[str, Any]:
        """Return what ``finish`` needs besides ``trainable``; a finished run keeps it."""
        return {}

    def load_result_state(self, state: dict[str, Any]) -> None:
        """Restore what ``result_state`` returned."""

    def resume_state(self) -> dict[str, Any]:
        """Return the state for resuming a run besides ``trainable``."""
        return {}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore what ``resume_state`` returned."""
