"""Fusion of several students, as in two-stream networks.

Class probabilities of the linear layers are averaged (Simonyan and Zisserman, NeurIPS 2014); similarities of k-NN and
retrieval are summed, as in CoCLR's two-stream retrieval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from crossdistill.errors import UserError
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.linear_probe import class_scores, mean_probabilities, train_on
from crossdistill.evaluation.neighbours import unit_rows
from crossdistill.evaluation.protocols.knn import evaluate_knn
from crossdistill.evaluation.protocols.retrieval import retrieve
from crossdistill.evaluation.results import ProtocolResult, hits_from_scores
from crossdistill.evaluation.settings import ProtocolSettings


def common_videos(members: Sequence[EmbeddedSplit]) -> list[EmbeddedSplit]:
    """Keep the videos that every student could read, in the same order; a ``UserError`` if their labels differ."""
    trains, tests = (common_features([getattr(split, part) for split in members]) for part in ("train", "test"))
    return [replace(split, train=train, test=test) for split, train, test in zip(members, trains, tests, strict=True)]


def common_features(parts: Sequence[Features]) -> list[Features]:
    """Keep the videos that are in all parts, in the same order; a ``UserError`` if their labels differ."""
    shared = set.intersection(*(set(part.videos) for part in parts))
    unreadable = {video: reason for part in parts for video, reason in part.unreadable.items()}
    chosen = [part.select([i for i, video in enumerate(part.videos) if video in shared]) for part in parts]
    if not all(torch.equal(part.labels, chosen[0].labels) for part in chosen):
        raise UserError("the students were embedded on videos of different labels: fuse students of one dataset")
    return [replace(part, unreadable=unreadable) for part in chosen]


def fuse(members: Sequence[EmbeddedSplit], settings: ProtocolSettings) -> list[ProtocolResult]:
    """Apply all fused protocols to one split as each student embeds it, with the videos of ``common_videos``."""
    retrieval = replace(retrieve(members), protocol="fusion-retrieval")
    return [*_fused_knn(members, settings), _fused_linear(members, settings), retrieval]


def _fused_knn(members: Sequence[EmbeddedSplit], settings: ProtocolSettings) -> list[ProtocolResult]:
    """k-NN by the sum of the students' cosines: with unit rows side by side, the product is that sum."""

    def side_by_side(parts: Sequence[Features]) -> Features:
        rows_nd = torch.cat([unit_rows(part.features).double() for part in parts], dim=1)
        return replace(parts[0], views_nvd=rows_nd.unsqueeze(1))

    fused = replace(
        members[0],
        train=side_by_side([member.train for member in members]),
        test=side_by_side([member.test for member in members]),
    )
    return [
        replace(result, protocol=f"fusion-{result.protocol}", details={**result.details, "num_students": len(members)})
        for result in evaluate_knn(fused, settings)
    ]


def _fused_linear(members: Sequence[EmbeddedSplit], settings: ProtocolSettings) -> ProtocolResult:
    """One linear layer for each student, and the mean of their class probabilities."""
    scores = []
    for member in members:
        member.check()
        probe = train_on(member.train, member.num_classes, seed=settings.seed)
        scores.append(class_scores(probe, member.test.views_nvd))
    outcome = hits_from_scores(mean_probabilities(scores), members[0].test.labels)
    return members[0].result("fusion-linear", outcome, {"seed": settings.seed, "num_students": len(members)})
