"""Protocols that train linear layers on cached features of several views: linear, its sweep, low-shot.

A layer is trained on every view of a video as a clip of its own, and a test video is classified by the mean of its
views' class probabilities. With one view that is ``crossdistill.evaluation.linear``.

Shapes: N videos, V views of a video, D features, C classes.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from crossdistill.evaluation.checks import check_split, classes_without_training_clips
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.held_out import Shots, held_out_part
from crossdistill.evaluation.linear import LinearProbe, batch_size_for, train_linear_probe
from crossdistill.evaluation.results import Outcome, ProtocolResult, accuracy_from_scores, hits_from_scores, result_of
from crossdistill.utils.console import progress_bar

SWEPT_LRS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SWEPT_WEIGHT_DECAYS = (0.0, 1e-4, 1e-3)


@dataclass(frozen=True)
class Sets:
    """The two parts of a split, embedded by one encoder."""

    train: Features
    test: Features
    num_classes: int
    description: str | None = None
    """Starts the text of the progress bars of protocols that train many layers; no bars if None."""

    def check(self) -> None:
        """Raise a ``UserError`` for what no protocol can use."""
        check_split(
            train_features=self.train.features,
            train_labels=self.train.labels,
            test_features=self.test.features,
            test_labels=self.test.labels,
            num_classes=self.num_classes,
        )

    def progress(self) -> Progress:
        """A progress bar of layers, silent where there is no description."""
        return progress_bar(unit="layers", is_shown=self.description is not None)

    def absent_classes(self) -> list[int]:
        """Classes of the test set that no training clip shows."""
        return classes_without_training_clips(train_labels=self.train.labels, test_labels=self.test.labels)

    def probe(self, train: Features | None = None, **options: Any) -> LinearProbe:
        """Train a layer on the views of the train part, or of some of it.

        Args:
            train: Some of the train part; all of it if None.
            options: Of ``train_linear_probe``.
        """
        train = train or self.train
        num_views = train.views_nvd.shape[1]
        return train_linear_probe(
            features_nd=train.views_nvd.flatten(0, 1),
            labels_n=train.labels.repeat_interleave(num_views),
            num_classes=self.num_classes,
            **options,
        )


def class_scores(probe: LinearProbe, views_nvd: Tensor) -> Tensor:
    """[N, C]: log of the mean over views of class probabilities; of one view its logits, which rank alike.

    Logits, because probabilities near 1 are equal in floating point where logits are not.
    """
    num_views = views_nvd.shape[1]
    logits_nvc = probe.scores(views_nvd.flatten(0, 1)).unflatten(0, (-1, num_views))
    if num_views == 1:
        return logits_nvc[:, 0]
    return mean_probabilities(logits_nvc.unbind(1))


def mean_probabilities(logits_nc: Sequence[Tensor]) -> Tensor:
    """[N, C]: log of the mean of several models' (or views') class probabilities."""
    return torch.stack([logits.double().log_softmax(1) for logits in logits_nc]).logsumexp(0)


def linear(sets: Sets, *, seed: int) -> ProtocolResult:
    """The linear protocol of the paper; see ``crossdistill.evaluation.linear``."""
    sets.check()
    probe = sets.probe(seed=seed)
    details = _details(sets, probe, seed=seed)
    return result_of("linear", hits_from_scores(class_scores(probe, sets.test.views_nvd), sets.test.labels), details)


def linear_sweep(
    sets: Sets,
    *,
    seed: int,
    lrs: Sequence[float] = SWEPT_LRS,
    weight_decays: Sequence[float] = SWEPT_WEIGHT_DECAYS,
) -> ProtocolResult:
    """The linear protocol with the learning rate and weight decay that are best on a held-out part of train.

    The layer is then trained again on all of train. The test set is looked at once, by the chosen layer. Of equally
    good pairs the first counts. ``details`` also holds ``lr``, ``weight_decay``, ``held_out_by``, ``num_held_out``,
    ``held_out_top1`` and ``at_edge``: whether the best learning rate is the lowest or highest tried.

    Args:
        sets: Both parts.
        seed: Of the held-out part and the order of clips.
        lrs: Learning rates to try.
        weight_decays: Weight decays to try.
    """
    sets.check()
    is_held_n, held_out_by = held_out_part(sets.train.labels, sets.train.groups, seed=seed)
    held, kept = (sets.train.select(mask.nonzero()[:, 0].tolist()) for mask in (is_held_n, ~is_held_n))
    pairs, tried = list(itertools.product(lrs, weight_decays)), {}
    with sets.progress() as bar:
        for lr, weight_decay in bar.track(pairs, description=f"{sets.description}, linear-sweep"):
            probe = sets.probe(kept, seed=seed, lr=lr, weight_decay=weight_decay)
            scores = class_scores(probe, held.views_nvd)
            tried[lr, weight_decay] = accuracy_from_scores(scores, held.labels).top1
    lr, weight_decay = max(tried, key=lambda pair: tried[pair])
    probe = sets.probe(seed=seed, lr=lr, weight_decay=weight_decay)
    details = {
        **_details(sets, probe, seed=seed),
        "lr": lr,
        "weight_decay": weight_decay,
        "held_out_by": held_out_by,
        "num_held_out": held.num_clips,
        "held_out_top1": tried[lr, weight_decay],
        "at_edge": lr in (min(lrs), max(lrs)),
    }
    outcome = hits_from_scores(class_scores(probe, sets.test.views_nvd), sets.test.labels)
    return result_of("linear-sweep", outcome, details)


def low_shot(sets: Sets, shots: Shots, *, num_draws: int, seed: int) -> ProtocolResult:
    """The linear protocol on few labelled clips of every class: the mean over several draws of them.

    ``details`` also holds ``draws`` (top-1 of each), ``sd`` (sample standard deviation of top-1 over draws) and
    ``num_labelled``. The interval is that of the mean over draws.

    Args:
        sets: Both parts.
        shots: How many clips are labelled.
        num_draws: Draws, with seeds ``seed``, ``seed`` + 1 …
        seed: Of the first draw.
    """
    sets.check()
    outcomes = []
    with sets.progress() as bar:
        for draw in bar.track(range(seed, seed + num_draws), description=f"{sets.description}, lowshot-{shots}"):
            labelled = sets.train.select(shots.draw(sets.train.labels, seed=draw).tolist())
            probe = sets.probe(labelled, seed=draw)
            outcomes.append(hits_from_scores(class_scores(probe, sets.test.views_nvd), sets.test.labels))
    draws = [outcome.accuracies().top1 for outcome in outcomes]
    mean = Outcome(
        hits={name: torch.stack([outcome.hits[name] for outcome in outcomes]).mean(0) for name in outcomes[0].hits},
        labels_b=outcomes[0].labels_b,
    )
    details = {
        "shots": str(shots),
        "seed": seed,
        "num_train": sets.train.num_clips,
        "num_labelled": labelled.num_clips,
        "draws": draws,
        "sd": statistics.stdev(draws) if num_draws > 1 else 0.0,
        "classes_without_training_clips": sets.absent_classes(),
    }
    return result_of(f"lowshot-{shots}", mean, details)


def _details(sets: Sets, probe: LinearProbe, *, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "batch_size": batch_size_for(sets.train.num_clips * sets.train.views_nvd.shape[1]),
        "num_train": sets.train.num_clips,
        "train_top1": accuracy_from_scores(class_scores(probe, sets.train.views_nvd), sets.train.labels).top1,
        "classes_without_training_clips": sets.absent_classes(),
    }
