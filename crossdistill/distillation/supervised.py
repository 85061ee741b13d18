"""Training with labels: how a teacher is made, and the baseline that a distilled student has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import nn

from crossdistill.distillation.heads import Head, Tower
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.types import PairedBatch, StepOutput

CLASSIFIER = "classifier"


class SupervisedTask:
    """Cross-entropy of a linear classifier on an encoder.

    Args:
        encoder: Trained.
        execution: How it runs.
        num_classes: Classes of the labels.
    """

    def __init__(self, *, encoder: Encoder, execution: Execution, num_classes: int) -> None:
        if num_classes < 2:
            raise UserError(f"training with labels needs at least 2 classes, the data has {num_classes}")
        self.execution = execution
        self.layer = nn.Linear(encoder.embed_dim, num_classes).to(execution.device)
        self.trainable = Tower(encoder, {CLASSIFIER: Head(self.layer)})

    def compute(self, model: nn.Module, batch: PairedBatch) -> StepOutput:
        """Cross-entropy and accuracy of one batch."""
        logits = self.execution.run(model, batch.student)[CLASSIFIER].float()
        loss = F.cross_entropy(logits, batch.labels)
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
        return StepOutput(loss=loss, terms={"cross_entropy": loss.detach(), "accuracy": accuracy})

    @property
    def bank_fill(self) -> float | None:
        """There is no bank."""
        return None

    @property
    def classifier(self) -> Classifier:
        """What has been learned of the labels."""
        return Classifier(self.layer.weight.detach().cpu(), self.layer.bias.detach().cpu())

    def after_step(self, outputs: Sequence[StepOutput]) -> None:
        """Nothing follows a step."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing besides the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing besides the weights."""
