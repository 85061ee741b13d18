"""Video retrieval: does one of the k nearest training videos show the query's class?

The protocol of CoCLR (Han, Xie, Zisserman, "Self-supervised Co-training for Video Representation Learning", NeurIPS
2020): the query is a test video, the gallery the train part; features are
means over a video's clips; each set is centred by its own mean, rows are L2-normalised, similarity is the cosine.
R@k is the share of queries with a video of their class among the k nearest.

Shapes: B queries, N gallery, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossdistill.evaluation.checks import check_split, classes_without_training_clips
from crossdistill.evaluation.knn import nearest_neighbours
from crossdistill.evaluation.results import TOP1, TOP5, Outcome, ProtocolResult, result_of

RECALL_AT = (1, 5, 10, 20, 50)


def centred_unit(features_nd: Tensor) -> Tensor:
    """[N, D] float64: minus the set's mean, then of length 1; a set of one video is left where it is."""
    features_nd = features_nd.double()
    if len(features_nd) > 1:
        features_nd = features_nd - features_nd.mean(0)
    return torch.nn.functional.normalize(features_nd, dim=1)


def evaluate_retrieval(
    *,
    train_features: Sequence[Tensor],
    train_labels: Tensor,
    test_features: Sequence[Tensor],
    test_labels: Tensor,
    num_classes: int,
    recall_at: Sequence[int] = RECALL_AT,
) -> ProtocolResult:
    """Search the train part for every test video.

    ``top1`` is R@1, ``top5`` R@5, ``mean_class`` R@1 within each class; ``details`` holds ``recall`` (k to R@k),
    ``num_train`` and ``classes_without_training_clips``.

    Args:
        train_features: [N, D] of each student; of several students their similarities are summed.
        train_labels: [N] int64.
        test_features: [B, D] of each student.
        test_labels: [B] int64.
        num_classes: C.
        recall_at: Numbers of neighbours; 1 and 5 are always among them.

    Raises:
        UserError: Features or labels that ``check_split`` rejects.
    """
    for train, test in zip(train_features, test_features, strict=True):
        check_split(
            train_features=train,
            train_labels=train_labels,
            test_features=test,
            test_labels=test_labels,
            num_classes=num_classes,
        )
    # Unit rows side by side: their product is the sum of the students' cosines.
    gallery_nd = torch.cat([centred_unit(features) for features in train_features], dim=1)
    queries_bd = torch.cat([centred_unit(features) for features in test_features], dim=1)
    ks = sorted({1, 5, *recall_at})
    near_bk = nearest_neighbours(queries_bd=queries_bd, gallery_nd=gallery_nd, k=max(ks)).indices_bk.cpu()
    is_right_bk = train_labels.cpu()[near_bk] == test_labels.cpu()[:, None]
    names = {1: TOP1, 5: TOP5}
    hits = {names.get(k, f"recall_at_{k}"): is_right_bk[:, :k].any(1).double() for k in ks}
    outcome = Outcome(hits=hits, labels_b=test_labels.cpu(), predicted_b=train_labels.cpu()[near_bk[:, 0]])
    details = {
        "recall": {str(k): hits[names.get(k, f"recall_at_{k}")].mean().item() for k in ks},
        "num_train": len(train_labels),
        "num_students": len(train_features),
        "classes_without_training_clips": classes_without_training_clips(
            train_labels=train_labels, test_labels=test_labels
        ),
    }
    return result_of("retrieval", outcome, details)
