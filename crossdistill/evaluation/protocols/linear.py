"""Linear classification on frozen features, by the paper's SGD; ``linear_probe`` describes the training."""

from __future__ import annotations

from typing import Any

from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.linear_probe import LinearProbe, batch_size_for, class_scores, train_on
from crossdistill.evaluation.results import ProtocolResult, accuracy_from_scores, hits_from_scores
from crossdistill.evaluation.settings import ProtocolSettings


def evaluate_linear(split: EmbeddedSplit, settings: ProtocolSettings) -> list[ProtocolResult]:
    """Train a linear layer on the train set and classify the test set; runs on the device of the train features.

    ``details`` holds ``seed``, ``batch_size`` and ``train_top1``.
    """
    split.check()
    probe = train_on(split.train, split.num_classes, seed=settings.seed)
    outcome = hits_from_scores(class_scores(probe, split.test.views_nvd), split.test.labels)
    return [split.result("linear", outcome, probe_details(split, probe, seed=settings.seed))]


def probe_details(split: EmbeddedSplit, probe: LinearProbe, *, seed: int) -> dict[str, Any]:
    """Collect the details of a layer that was trained on all of the train set."""
    return {
        "seed": seed,
        "batch_size": batch_size_for(split.train.views_nvd.shape[:2].numel()),
        "train_top1": accuracy_from_scores(class_scores(probe, split.train.views_nvd), split.train.labels).top1,
    }
