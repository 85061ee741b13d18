"""Fine-tuning: classify by the linear layer with which the whole student learned the labels.

The training itself is a supervised run and so belongs to ``crossdistill.recipes``; the command passes it in.

Shapes: N videos, V views of a video, D features, C classes.
"""

from __future__ import annotations

from typing import Any

import torch

from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.linear_probe import mean_probabilities
from crossdistill.evaluation.results import ProtocolResult, hits_from_scores, result_of


def classify(split: EmbeddedSplit, classifier: Classifier, *, details: dict[str, Any]) -> ProtocolResult:
    """Classify the test set by an encoder's own classifier; probabilities of views are averaged.

    Args:
        split: Embedded by the fine-tuned student.
        classifier: The student's own linear layer.
        details: How it was trained; ``num_train`` and ``classes_without_training_clips`` are added.

    Raises:
        UserError: The classifier has other classes than the dataset.
    """
    num_own, absent = len(classifier.weight), split.absent_classes()
    if num_own != split.num_classes:
        raise UserError(
            f"the student's classifier has {num_own} classes, but the dataset has {split.num_classes}: evaluate on the "
            "dataset that the student was trained on"
        )
    logits_nvc = split.test.views_nvd @ classifier.weight.T + classifier.bias
    logits_nvc[..., absent] = -torch.inf  # never predicted, as in all protocols
    details = {**details, "num_train": split.train.num_clips, "classes_without_training_clips": absent}
    outcome = hits_from_scores(mean_probabilities(logits_nvc.unbind(1)), split.test.labels)
    return result_of("finetune", outcome, details)
