"""Training with labels: how a teacher is made, and the supervised baseline that a distilled student has to beat.

Shapes: B batch, N classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.data.mix import draw_labelled_mix
from crossdistill.distillation.student_with_heads import Head, StudentWithHeads
from crossdistill.distillation.task import Task
from crossdistill.distillation.weight_average import WeightAverage
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.types import PairedBatch, StepOutput

CLASSIFIER = "classifier"


@dataclass(frozen=True)
class Regularization:
    """What keeps a network from overfitting the labels; the defaults do nothing."""

    label_smoothing: float = 0.0
    """Share of a clip's label that is spread over all classes, in [0, 1)."""
    mixup: float = 0.0
    """Clips and labels of each batch are mixed by a share from Beta(a, a); 0: not."""
    cutmix: float = 0.0
    """A box of each clip of a batch, and its share of the label, comes from another clip; 0: not."""
    ema_decay: float = 0.0
    """Decay of the average of the weights that is evaluated and saved; 0: the weights themselves."""


class SupervisedTask(Task):
    """Cross-entropy of a linear classifier on an encoder.

    Args:
        encoder: Trained.
        execution: Device, precision and layout.
        num_classes: Number of classes of the labels.
        regularization: Smoothed and mixed labels, and the average of the weights; None for nothing of it.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        execution: Execution,
        num_classes: int,
        regularization: Regularization | None = None,
    ) -> None:
        if num_classes < 2:
            raise UserError(
                f"training with labels needs at least 2 classes, but the data has {num_classes}: choose another --data"
            )
        layer = nn.Linear(encoder.embed_dim, num_classes).to(execution.device)
        super().__init__(StudentWithHeads(encoder, {CLASSIFIER: Head(layer)}), execution)
        self.num_classes = num_classes
        self.regularization = regularization or Regularization()
        decay = self.regularization.ema_decay
        self._average = WeightAverage(self.trainable, decay=decay) if decay else None

    def forward(self, batch: PairedBatch) -> StepOutput:
        """Compute cross-entropy and accuracy of one batch; the accuracy of a mixed clip is the share of its class."""
        targets_bn = F.one_hot(batch.labels, self.num_classes).float()
        mix = None
        if self.training and (self.regularization.mixup or self.regularization.cutmix):
            view = batch.student if isinstance(batch.student, Tensor) else batch.student.values
            height, width = view.shape[-2:]
            options = {"mixup": self.regularization.mixup, "cutmix": self.regularization.cutmix}
            mix = draw_labelled_mix(len(batch), height=height, width=width, **options)
            targets_bn = mix.interpolate(targets_bn)
        logits_bn = self.execution.run(self._call, batch.student, mix=mix)[CLASSIFIER].float()
        # Indices of classes where there is no mix: then the numbers are those of earlier versions to the bit.
        targets = batch.labels if mix is None else targets_bn
        loss = F.cross_entropy(logits_bn, targets, label_smoothing=self.regularization.label_smoothing)
        accuracy = targets_bn.gather(1, logits_bn.argmax(dim=1, keepdim=True)).mean()
        return StepOutput(loss=loss, terms={"cross_entropy": loss.detach(), "accuracy": accuracy})

    def after_step(self, *, has_moved: bool = True) -> None:
        """Move the average of the weights, if they moved."""
        if self._average is not None and has_moved:
            self._average.update(self.trainable)

    @property
    def evaluated(self) -> Encoder:
        """The encoder with the averaged weights, if there is an average."""
        return self.trainable.encoder if self._average is None else self._average.module.encoder

    def finish(self) -> None:
        """Replace the weights by their average, if there is one."""
        if self._average is not None:
            self.trainable.load_state_dict(self._average.module.state_dict())

    def result_state(self) -> dict[str, Any]:
        """Return the average of the weights, if there is one."""
        return {} if self._average is None else {"average": self._average.state_dict()}

    def load_result_state(self, state: dict[str, Any]) -> None:
        """Restore what ``result_state`` returned."""
        if self._average is not None:
            self._average.load_state_dict(state["average"])

    @property
    def classifier(self) -> Classifier:
        """The trained linear layer."""
        head = self.trainable.heads[CLASSIFIER]
        assert isinstance(head, Head) and isinstance(head.module, nn.Linear)
        return Classifier(head.module.weight.detach().cpu(), head.module.bias.detach().cpu())
