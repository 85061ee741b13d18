"""Robustness: the accuracy of a frozen student on perturbed test clips, by family and severity.

The absolute and relative robustness are those of Schiappa et al., "A Large-Scale Robustness Analysis of Video Action
Recognition Models", CVPR 2023, section 3: 1 - (A_clean - A_perturbed) for accuracies in [0, 1], and
1 - (A_clean - A_perturbed) / A_clean. The classifier saw clean training clips alone, and nothing is chosen on test
clips.

Shapes: B test clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.perturbations import FAMILIES, Perturbation
from crossdistill.evaluation.protocols.frozen_classifier import FrozenClassifier
from crossdistill.evaluation.results import TOP1, TOP5, Outcome, ProtocolResult, hits_from_scores


def absolute_robustness(clean: float, perturbed: float) -> float:
    """Return 1 - (A_clean - A_perturbed) for accuracies in [0, 1].

    Example:
        >>> absolute_robustness(0.75, 0.5), relative_robustness(0.75, 0.375)
        (0.75, 0.5)
    """
    return 1 - (clean - perturbed)


def relative_robustness(clean: float, perturbed: float) -> float | None:
    """Return 1 - (A_clean - A_perturbed) / A_clean; None for a clean accuracy of 0."""
    return 1 - (clean - perturbed) / clean if clean else None


def measure_robustness(
    split: EmbeddedSplit,
    perturbed: Mapping[Perturbation, Features],
    classifier: FrozenClassifier,
    *,
    left_out: Mapping[str, str],
) -> ProtocolResult:
    """Classify the perturbed test clips.

    Args:
        split: The clean clips of both parts.
        perturbed: Perturbation to the features of the test clips.
        classifier: Applied to clean and to perturbed clips.
        left_out: Families that make no sense for the student's view, with the reason.

    Returns:
        A result whose ``top1`` is the mean over perturbations. ``details`` holds ``classifier``, ``clean_top1``,
        ``absolute_robustness`` and ``relative_robustness`` of the mean, ``left_out``, and ``families``: for each its
        ``top1`` by severity, ``mean_top1`` and both robustnesses of it. ``intervals`` holds those of ``jpeg`` (its
        mean over severities), ``jpeg-1`` and so on.
    """
    test, positions_b = in_common(split.test, list(perturbed.values()))
    labels_b = test.labels
    clean = hits_from_scores(classifier.scores(test.views_nvd), labels_b).hits[TOP1].mean().item()
    found = {
        change: hits_from_scores(classifier.scores(_same_videos(features, test).views_nvd), labels_b)
        for change, features in perturbed.items()
    }
    hits = {str(change): outcome.hits[TOP1] for change, outcome in found.items()}
    families: dict[str, Any] = {}
    for family in dict.fromkeys(change.family for change in perturbed):
        by_severity = {str(c.severity): hits[str(c)] for c in perturbed if c.family == family}
        hits[family] = _mean(list(by_severity.values()))
        mean = hits[family].mean().item()
        families[family] = {
            "top1": {severity: hit_b.mean().item() for severity, hit_b in by_severity.items()},
            "mean_top1": mean,
            "absolute_robustness": absolute_robustness(clean, mean),
            "relative_robustness": relative_robustness(clean, mean),
        }
    overall = {name: _mean([outcome.hits[name] for outcome in found.values()]) for name in (TOP1, TOP5)}
    outcome = Outcome({**overall, **hits}, labels_b, positions_b=positions_b)
    mean = overall[TOP1].mean().item()
    details = {
        "classifier": classifier.name,
        "clean_top1": clean,
        "absolute_robustness": absolute_robustness(clean, mean),
        "relative_robustness": relative_robustness(clean, mean),
        "families": families,
        "left_out": dict(left_out),
    }
    return split.result("robustness", outcome, details)


def in_common(test: Features, others: Sequence[Features]) -> tuple[Features, Tensor | None]:
    """Keep the test videos that all others could read too, and return their positions; None for all of them."""
    readable = set(test.videos).intersection(*(part.videos for part in others))
    positions = [i for i, video in enumerate(test.videos) if video in readable]
    if len(positions) == test.num_clips:
        return test, None
    return test.select(positions), torch.tensor(positions)


def _same_videos(features: Features, test: Features) -> Features:
    place = {video: i for i, video in enumerate(features.videos)}
    return features.select([place[video] for video in test.videos])


def _mean(hits: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(hits)).mean(0)


def group_of(family: str) -> str:
    """Return the group of a family, for tables and charts; a family of another version is its own group."""
    return FAMILIES[family].group if family in FAMILIES else family
