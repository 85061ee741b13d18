"""Several students together: fused predictions, and how alike their spaces are.

Fusion is that of two-stream networks (Simonyan and Zisserman, NeurIPS 2014): class probabilities of the linear layers
are averaged, similarities of k-NN and retrieval are summed, as CoCLR's two-stream retrieval does.

Shapes: N clips, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from crossdistill.errors import UserError
from crossdistill.evaluation.agreement import chance_overlap, linear_cka, nearest_others, share_of_common
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.intervals import bootstrap_intervals, units_of
from crossdistill.evaluation.knn import evaluate_knn, unit_rows
from crossdistill.evaluation.probes import Sets, class_scores, mean_probabilities
from crossdistill.evaluation.results import (
    TOP1,
    TOP5,
    AgreementResult,
    Outcome,
    ProtocolResult,
    hits_from_scores,
    result_of,
)
from crossdistill.evaluation.retrieval import evaluate_retrieval

NUM_NEIGHBOURS = 10


def common_videos(members: Sequence[Sets]) -> list[Sets]:
    """The videos that every student could read, in the same order.

    Raises:
        UserError: The students were evaluated on videos of other classes.
    """
    return [
        replace(sets, train=train, test=test)
        for sets, train, test in zip(
            members, _common([sets.train for sets in members]), _common([sets.test for sets in members]), strict=True
        )
    ]


def _common(parts: Sequence[Features]) -> list[Features]:
    shared = set.intersection(*(set(part.videos) for part in parts))
    unreadable = {video: reason for part in parts for video, reason in part.unreadable.items()}
    chosen = [part.select([i for i, video in enumerate(part.videos) if video in shared]) for part in parts]
    if not all(torch.equal(part.labels, chosen[0].labels) for part in chosen):
        raise UserError("the students were embedded on videos of different labels: fuse students of one dataset")
    return [replace(part, unreadable=unreadable) for part in chosen]


def fused_linear(members: Sequence[Sets], *, seed: int) -> ProtocolResult:
    """One linear layer for each student, and the mean of their class probabilities."""
    scores = []
    for sets in members:
        sets.check()
        scores.append(class_scores(sets.probe(seed=seed), sets.test.views_nvd))
    test = members[0].test
    details = {
        "seed": seed,
        "num_students": len(members),
        "num_train": members[0].train.num_clips,
        "classes_without_training_clips": members[0].absent_classes(),
    }
    return result_of("fusion-linear", hits_from_scores(mean_probabilities(scores), test.labels), details)


def fused_knn(members: Sequence[Sets], ks: Sequence[int]) -> list[ProtocolResult]:
    """k-NN by the sum of the students' cosines: of unit rows side by side, the product is that sum."""
    train, test = (
        torch.cat([unit_rows(features).double() for features in side], dim=1)
        for side in ([s.train.features for s in members], [s.test.features for s in members])
    )
    results = evaluate_knn(
        train_features=train,
        train_labels=members[0].train.labels,
        test_features=test,
        test_labels=members[0].test.labels,
        num_classes=members[0].num_classes,
        ks=ks,
    )
    return [
        replace(result, protocol=f"fusion-{k}-nn", details={**result.details, "num_students": len(members)})
        for k, result in results.items()
    ]


def fused_retrieval(members: Sequence[Sets]) -> ProtocolResult:
    """Retrieval by the sum of the students' cosines."""
    result = evaluate_retrieval(
        train_features=[sets.train.features for sets in members],
        train_labels=members[0].train.labels,
        test_features=[sets.test.features for sets in members],
        test_labels=members[0].test.labels,
        num_classes=members[0].num_classes,
    )
    return replace(result, protocol="fusion-retrieval")


def fuse(members: Sequence[Sets], *, ks: Sequence[int], seed: int) -> list[ProtocolResult]:
    """All fused protocols on videos that all students have, as ``common_videos`` gives them."""
    return [*fused_knn(members, ks), fused_linear(members, seed=seed), fused_retrieval(members)]


def agree(
    names: tuple[str, str], a: Features, b: Features, *, classes: Sequence[str], num_draws: int, seed: int
) -> AgreementResult:
    """Compare how two students arrange the same test clips.

    Args:
        names: Of the students.
        a: Features of the first.
        b: Features of the second, of the same videos.
        classes: Names of the classes.
        num_draws: Of the bootstrap; 0 for none.
        seed: Of its draws.

    Raises:
        UserError: Too few clips.
    """
    k = min(NUM_NEIGHBOURS, a.num_clips - 1)
    overlap_n = share_of_common(nearest_others(a.features, k), nearest_others(b.features, k)).cpu()
    outcome = Outcome({TOP1: overlap_n, TOP5: overlap_n}, a.labels, units=units_of(a.videos, a.groups))
    ends = bootstrap_intervals([outcome], num_draws=num_draws, seed=seed)[TOP1] if num_draws else None
    return AgreementResult(
        students=names,
        num_test=a.num_clips,
        coverage=a.coverage,
        views=str(a.views),
        k=k,
        overlap=overlap_n.mean().item(),
        overlap_interval=ends,
        chance_overlap=chance_overlap(a.num_clips, k),
        cka=linear_cka(a.features, b.features),
        overlap_by_class={
            classes[label]: overlap_n[a.labels == label].mean().item() for label in sorted(set(a.labels.tolist()))
        },
    )
