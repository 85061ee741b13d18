"""Training with labels: how a teacher is made, and the supervised baseline that a distilled student has to beat."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from crossdistill.distillation.student_with_heads import Head, StudentWithHeads
from crossdistill.distillation.task import Task
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.types import PairedBatch, StepOutput

CLASSIFIER = "classifier"


class SupervisedTask(Task):
    """Cross-entropy of a linear classifier on an encoder.

    Args:
        encoder: Trained.
        execution: Device, precision and layout.
        num_classes: Number of classes of the labels.
    """

    def __init__(self, *, encoder: Encoder, execution: Execution, num_classes: int) -> None:
        if num_classes < 2:
            raise UserError(
                f"training with labels needs at least 2 classes, but the data has {num_classes}: choose another --data"
            )
        layer = nn.Linear(encoder.embed_dim, num_classes).to(execution.device)
        super().__init__(StudentWithHeads(encoder, {CLASSIFIER: Head(layer)}), execution)

    def forward(self, batch: PairedBatch) -> StepOutput:
        """Compute cross-entropy and accuracy of one batch."""
        logits = self.execution.run(self._call, batch.student)[CLASSIFIER].float()
        loss = F.cross_entropy(logits, batch.labels)
        accuracy = (logits.argmax(dim=1) == batch.labels).float().mean()
        return StepOutput(loss=loss, terms={"cross_entropy": loss.detach(), "accuracy": accuracy})

    @property
    def classifier(self) -> Classifier:
        """The trained linear layer."""
        head = self.trainable.heads[CLASSIFIER]
        assert isinstance(head, Head) and isinstance(head.module, nn.Linear)
        return Classifier(head.module.weight.detach().cpu(), head.module.bias.detach().cpu())
