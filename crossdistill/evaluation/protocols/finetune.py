"""Fine-tuning: classify by the linear layer with which the whole student learned the labels.

The training is a supervised run and belongs to ``crossdistill.recipes``; the command passes it in.
"""

from __future__ import annotations

from typing import Any

import torch

from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.linear_probe import mean_probabilities
from crossdistill.evaluation.results import ProtocolResult, hits_from_scores


def classify(split: EmbeddedSplit, classifier: Classifier, *, details: dict[str, Any]) -> ProtocolResult:
    """Classify the test set by the fine-tuned student's own classifier; probabilities of views are averaged.

    Raise a ``UserError`` if the classifier has other classes than the dataset.
    """
    num_own = len(classifier.weight)
    if num_own != split.num_classes:
        raise UserError(
            f"the student's classifier has {num_own} classes, but the dataset has {split.num_classes}: evaluate on the "
            "dataset that the student was trained on"
        )
    # N videos, V views of a video, C classes.
    logits_nvc = split.test.views_nvd @ classifier.weight.T + classifier.bias
    logits_nvc[..., split.absent_classes()] = -torch.inf  # never predicted, as in all protocols
    outcome = hits_from_scores(mean_probabilities(logits_nvc.unbind(1)), split.test.labels)
    return split.result("finetune", outcome, details)
