"""The linear protocol with the learning rate and weight decay that are best on a held-out part of the train set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from crossdistill.data.held_out import held_out_part
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.linear_probe import class_scores, train_on
from crossdistill.evaluation.protocols.linear import probe_details
from crossdistill.evaluation.results import ProtocolResult, accuracy_from_scores, hits_from_scores
from crossdistill.evaluation.settings import ProtocolSettings

HELD_OUT_SHARE = 0.2
SWEPT_LRS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
SWEPT_WEIGHT_DECAYS = (0.0, 1e-4, 1e-3)


def evaluate_linear_sweep(
    split: EmbeddedSplit,
    settings: ProtocolSettings,
    *,
    lrs: Sequence[float] = SWEPT_LRS,
    weight_decays: Sequence[float] = SWEPT_WEIGHT_DECAYS,
) -> list[ProtocolResult]:
    """Choose a learning rate and a weight decay on a held-out part, then train on all of the train set.

    The test set is classified once, by the chosen layer. The first of equally good pairs is chosen. ``details`` holds
    those of ``evaluate_linear``, and ``lr``, ``weight_decay``, ``held_out_by``, ``num_held_out``, ``held_out_top1``
    and ``at_edge``: whether the best learning rate is the lowest or highest tried.
    """
    split.check()
    seed = settings.seed
    is_held_n, held_out_by = held_out_part(
        split.train.labels,
        split.train.groups,
        share=HELD_OUT_SHARE,
        seed=seed,
        advice="remove linear-sweep from --protocols",
    )
    held, kept = (split.train.select(mask.nonzero()[:, 0].tolist()) for mask in (is_held_n, ~is_held_n))
    pairs, tried = list(itertools.product(lrs, weight_decays)), {}
    with split.progress() as bar:
        for lr, weight_decay in bar.track(pairs, description=f"{split.description}, linear-sweep"):
            probe = train_on(kept, split.num_classes, seed=seed, lr=lr, weight_decay=weight_decay)
            tried[lr, weight_decay] = accuracy_from_scores(class_scores(probe, held.views_nvd), held.labels).top1
    lr, weight_decay = max(tried, key=lambda pair: tried[pair])
    probe = train_on(split.train, split.num_classes, seed=seed, lr=lr, weight_decay=weight_decay)
    details = {
        **probe_details(split, probe, seed=seed),
        "lr": lr,
        "weight_decay": weight_decay,
        "held_out_by": held_out_by,
        "num_held_out": held.num_clips,
        "held_out_top1": tried[lr, weight_decay],
        "at_edge": lr in (min(lrs), max(lrs)),
    }
    outcome = hits_from_scores(class_scores(probe, split.test.views_nvd), split.test.labels)
    return [split.result("linear-sweep", outcome, details)]
