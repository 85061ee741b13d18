"""Training with labels: how a teacher is made, and the supervised baseline that a distilled student has to beat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from crossdistill.distillation.student_with_heads import Head, StudentWithHeads
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.types import PairedBatch, StepOutput

CLASSIFIER = "classifier"


class SupervisedTask(nn.Module):
    """Cross-entropy of a linear classifier on an encoder.

    Args:
        encoder: Trained.
        execution: Device, precision and layout.
        num_classes: Number of classes of the labels.
    """

    def __init__(self, *, encoder: Encoder, execution: Execution, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"training with labels needs at least 2 classes, and the data has {num_classes}")
        self.execution = execution
        layer = nn.Linear(encoder.embed_dim, num_classes).to(execution.device)
        self.trainable = StudentWithHeads(encoder, {CLASSIFIER: Head(layer)})
        self.wrap(lambda trainable: trainable)

    def wrap(self, wrapper: Callable[[nn.Module], nn.Module]) -> None:
        """Compute through ``wrapper(self.trainable)`` from now on."""
        self._call = wrapper(self.trainable).__call__

    def forward(self, batch: PairedBatch) -> StepOutput:
        """Compute cross-entropy and accuracy of one batch."""
        logits = self.execution.run(self._call, batch.student)[CLASSIFIER].float()
        loss = F.cross_entropy(logits, batch.labels)
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
        return StepOutput(loss=loss, terms={"cross_entropy": loss.detach(), "accuracy": accuracy})

    @property
    def bank_fill(self) -> float | None:
        """None: there is no bank."""
        return None

    @property
    def classifier(self) -> Classifier:
        """The trained linear layer."""
        head = self.trainable.heads[CLASSIFIER]
        assert isinstance(head, Head) and isinstance(head.module, nn.Linear)
        return Classifier(head.module.weight.detach().cpu(), head.module.bias.detach().cpu())

    def after_step(self) -> None:
        """Do nothing: no bank and no EMA copy follow the weights."""

    def resume_state(self) -> dict[str, Any]:
        """Return nothing: the weights are all that there is."""
        return {}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore nothing."""
