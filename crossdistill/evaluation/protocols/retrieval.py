"""Video retrieval: whether one of the k nearest training videos has the query's class.

The protocol of CoCLR (Han, Xie, Zisserman, "Self-supervised Co-training for Video Representation Learning", NeurIPS
2020): queries are test videos, the gallery is the train part; features are means over a video's clips; each set is
centred by its own mean, rows are L2-normalised, similarity is the cosine. R@k is the share of queries with a video of
their class among the k nearest.

Shapes: B queries, N gallery, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.neighbours import nearest_neighbours
from crossdistill.evaluation.results import TOP1, TOP5, Outcome, ProtocolResult
from crossdistill.evaluation.settings import ProtocolSettings

RECALL_AT = (1, 5, 10, 20, 50)
# R@1 and R@5 are reported as top-1 and top-5 as well.
_MEASURES = {k: {1: TOP1, 5: TOP5}.get(k, f"recall_at_{k}") for k in RECALL_AT}


def centred_unit(features_nd: Tensor) -> Tensor:
    """Subtract the mean of the set and L2-normalise: [N, D] float64; the mean of a single video stays."""
    features_nd = features_nd.double()
    if len(features_nd) > 1:
        features_nd = features_nd - features_nd.mean(0)
    return torch.nn.functional.normalize(features_nd, dim=1)


def evaluate_retrieval(split: EmbeddedSplit, settings: ProtocolSettings) -> list[ProtocolResult]:
    """Search the train part for every test video; see ``retrieve``. It needs no settings."""
    return [retrieve([split])]


def retrieve(members: Sequence[EmbeddedSplit]) -> ProtocolResult:
    """Search the train part for every test video, by the sum of the similarities of one or several students.

    ``members`` is the split as each student embeds it, with the same videos. ``top1`` is R@1, ``top5`` R@5,
    ``mean_class`` R@1 within each class; ``details`` holds ``recall`` (k to R@k) and ``num_students``.
    """
    for member in members:
        member.check()
    # Unit rows side by side: their product is the sum of the students' cosines.
    gallery_nd = torch.cat([centred_unit(member.train.features) for member in members], dim=1)
    queries_bd = torch.cat([centred_unit(member.test.features) for member in members], dim=1)
    train_labels, test_labels = members[0].train.labels.cpu(), members[0].test.labels.cpu()
    near_bk = nearest_neighbours(queries_bd=queries_bd, gallery_nd=gallery_nd, k=max(RECALL_AT)).indices_bk.cpu()
    is_right_bk = train_labels[near_bk] == test_labels[:, None]
    hits = {name: is_right_bk[:, :k].any(1).double() for k, name in _MEASURES.items()}
    recall = {str(k): hits[name].mean().item() for k, name in _MEASURES.items()}
    outcome = Outcome(hits=hits, labels_b=test_labels, predicted_b=train_labels[near_bk[:, 0]])
    return members[0].result("retrieval", outcome, {"recall": recall, "num_students": len(members)})
