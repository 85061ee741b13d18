"""The linear protocol on few labelled clips of every class, averaged over several draws of those clips."""

from __future__ import annotations

import statistics

import torch

from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.linear_probe import class_scores, train_on
from crossdistill.evaluation.results import Outcome, ProtocolResult, hits_from_scores
from crossdistill.evaluation.settings import ProtocolSettings, Shots


def evaluate_low_shot(split: EmbeddedSplit, settings: ProtocolSettings) -> list[ProtocolResult]:
    """Return one result for each number of labelled clips; see ``low_shot``."""
    return [
        low_shot(split, shots, num_draws=settings.num_low_shot_draws, seed=settings.seed) for shots in settings.shots
    ]


def low_shot(split: EmbeddedSplit, shots: Shots, *, num_draws: int, seed: int) -> ProtocolResult:
    """Train a linear layer on each draw of labelled clips and average the results; draws have seeds from ``seed`` on.

    ``details`` holds ``draws`` (top-1 of each), ``sd`` (sample standard deviation of top-1 over draws) and
    ``num_labelled``. The interval is that of the mean over draws.
    """
    split.check()
    outcomes = []
    with split.progress() as bar:
        for draw in bar.track(range(seed, seed + num_draws), description=f"{split.description}, lowshot-{shots}"):
            labelled = split.train.select(shots.draw(split.train.labels, seed=draw).tolist())
            probe = train_on(labelled, split.num_classes, seed=draw)
            outcomes.append(hits_from_scores(class_scores(probe, split.test.views_nvd), split.test.labels))
    draws = [outcome.accuracies().top1 for outcome in outcomes]
    mean = Outcome(
        hits={name: torch.stack([outcome.hits[name] for outcome in outcomes]).mean(0) for name in outcomes[0].hits},
        labels_b=outcomes[0].labels_b,
    )
    details = {
        "shots": str(shots),
        "seed": seed,
        "num_labelled": labelled.num_clips,
        "draws": draws,
        "sd": statistics.stdev(draws) if num_draws > 1 else 0.0,
    }
    return split.result(f"lowshot-{shots}", mean, details)
