"""The classifier that is applied to perturbed clips: fitted on clean training clips, or the student's own.

Shapes: N videos, V views of a video, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.linear_probe import class_scores, mean_probabilities, train_on


@dataclass(frozen=True)
class FrozenClassifier:
    """A classifier that no test clip changes, and its scores of the clean test clips."""

    scores: Callable[[Tensor], Tensor]
    """Function from the features of all views [N, V, D] to class scores [N, C]."""
    name: str
    """``probe`` or ``own``."""

    @staticmethod
    def of(split: EmbeddedSplit, classifier: Classifier | None, *, seed: int) -> FrozenClassifier:
        """Take the student's own layer, or train a linear probe on the training clips if ``classifier`` is None.

        Classes without training clips are never predicted.

        Raises:
            UserError: The layer has other classes than the dataset.
        """
        split.check()
        if classifier is None:
            probe = train_on(split.train, split.num_classes, seed=seed)
            return FrozenClassifier(lambda views_nvd: class_scores(probe, views_nvd), "probe")
        weight_cd, bias_c, absent = classifier.weight.cpu(), classifier.bias.cpu(), split.absent_classes()
        if len(bias_c) != split.num_classes:
            raise UserError(
                f"the student's own classifier has {len(bias_c)} classes, but the dataset has {split.num_classes}: "
                "choose --classifier probe"
            )

        def scores(views_nvd: Tensor) -> Tensor:
            logits_nvc = views_nvd @ weight_cd.T + bias_c
            logits_nvc[..., absent] = -torch.inf
            return mean_probabilities(logits_nvc.unbind(1))

        return FrozenClassifier(scores, "own")
