"""Classification by attention over frozen tokens; ``attentive_probe`` describes the network and its training.

Shapes: N videos, V views of a video, C classes.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from crossdistill.data.held_out import held_out_part
from crossdistill.evaluation.attentive_probe import AttentiveProbe, Rates, TokenRows, score_rows, train_probes
from crossdistill.evaluation.embedded_split import EmbeddedSplit, EmbeddedTokens
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.linear_probe import batch_size_for, mean_probabilities
from crossdistill.evaluation.protocols.linear_sweep import HELD_OUT_SHARE
from crossdistill.evaluation.results import ProtocolResult, accuracy_from_scores, hits_from_scores
from crossdistill.evaluation.settings import ProtocolSettings


def evaluate_attentive(split: EmbeddedSplit, settings: ProtocolSettings) -> list[ProtocolResult]:
    """Train a grid of probes side by side, choose rates on a held-out part of train, and test one probe.

    The chosen rates then train one probe on all of the train set, and that one classifies the test set; the first of
    equally good pairs is chosen. Every view of a training video is a row of its own, and the class probabilities of a
    test video's views are averaged. ``details`` holds ``depth``, ``num_heads``, ``num_tokens``, ``has_positions``,
    ``token_dim``, ``epochs``, ``seed``, ``batch_size``, ``train_top1``, and what was chosen and how: ``lr``,
    ``weight_decay``, ``held_out_by``, ``num_held_out``, ``held_out_top1``, ``at_edge`` (the best learning rate is the
    lowest or highest one tried), and ``grid``, the top-1 on the held-out part of each pair.
    """
    split.check()
    tokens, probe = split.tokens, settings.probe
    assert tokens is not None, "the tokens were embedded"
    num_heads = probe.heads_of(tokens.token_dim)
    is_held_n, held_out_by = held_out_part(
        split.train.labels,
        split.train.groups,
        share=HELD_OUT_SHARE,
        seed=settings.seed,
        advice="remove attentive from --protocols",
    )
    grid = [Rates(lr, decay) for lr, decay in itertools.product(probe.lrs, probe.weight_decays)]
    num_tokens = tokens.train.views_nvd.shape[2] // tokens.token_dim
    create = partial(
        AttentiveProbe,
        dim=tokens.token_dim,
        num_heads=num_heads,
        depth=probe.depth,
        num_classes=split.num_classes,
        num_positions=num_tokens if probe.has_positions else 0,
    )
    train_all = torch.ones_like(is_held_n)
    with split.progress(unit="epochs") as bar:
        task = bar.add_task(f"{split.description}, attentive, {len(grid)} probes", total=2 * probe.num_epochs)
        train = partial(
            train_probes,
            create,
            num_epochs=probe.num_epochs,
            seed=settings.seed,
            device=tokens.device,
            on_epoch=lambda: bar.advance(task),
        )
        probes = train(_rows(tokens.train, tokens, ~is_held_n), grid)
        held_labels = split.train.labels[is_held_n]
        tried = [
            accuracy_from_scores(scores, held_labels).top1 for scores in _scores(probes, split, tokens.train, is_held_n)
        ]
        best = max(range(len(grid)), key=lambda i: tried[i])
        everything = _rows(tokens.train, tokens, train_all)
        chosen = train(everything, [grid[best]])
    (train_scores,) = _scores(chosen, split, tokens.train, train_all)
    (scores,) = _scores(chosen, split, tokens.test, torch.ones_like(split.test.labels, dtype=torch.bool))
    details = {
        "depth": probe.depth,
        "num_heads": num_heads,
        "num_tokens": num_tokens,
        "has_positions": probe.has_positions,
        "token_dim": tokens.token_dim,
        "epochs": probe.num_epochs,
        "seed": settings.seed,
        "batch_size": batch_size_for(len(everything)),
        "train_top1": accuracy_from_scores(train_scores, split.train.labels).top1,
        **dataclasses.asdict(grid[best]),
        "held_out_by": held_out_by,
        "num_held_out": len(held_labels),
        "held_out_top1": tried[best],
        "at_edge": grid[best].lr in (min(probe.lrs), max(probe.lrs)),
        "grid": [{**dataclasses.asdict(rates), "held_out_top1": top1} for rates, top1 in zip(grid, tried, strict=True)],
    }
    return [split.result("attentive", hits_from_scores(scores, split.test.labels), details)]


def _rows(features: Features, tokens: EmbeddedTokens, is_chosen_n: Tensor) -> TokenRows:
    """Return every view of the chosen videos as a row, without a copy of the tokens."""
    num_views = features.views_nvd.shape[1]
    positions = is_chosen_n.repeat_interleave(num_views).nonzero()[:, 0]
    labels = features.labels.repeat_interleave(num_views)[positions]
    return TokenRows(features.views_nvd.flatten(0, 1), positions, labels, tokens.token_dim)


def _scores(
    probes: Sequence[AttentiveProbe], split: EmbeddedSplit, features: Features, is_chosen_n: Tensor
) -> list[Tensor]:
    """Score classes by the log of the mean over views of class probabilities: [N, C] for each probe."""
    assert split.tokens is not None
    rows, num_views = _rows(features, split.tokens, is_chosen_n), features.views_nvd.shape[1]
    found = []
    for logits in score_rows(probes, rows, device=split.tokens.device):
        logits[:, split.absent_classes()] = -torch.inf  # never predicted, as in all protocols
        found.append(mean_probabilities(logits.unflatten(0, (-1, num_views)).unbind(1)))
    return found
