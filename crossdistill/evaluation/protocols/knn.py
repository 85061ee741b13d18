"""k-nearest-neighbour classification.

The protocol is that of CompRess (Koohpayegani, Tejankar, Pirsiavash, "CompRess: Self-Supervised Learning by
Compressing Representations", NeurIPS 2020, section 4, "Nearest Neighbor"): L2-normalised features of the centre view,
cosine similarity, k = 1. For k > 1 the neighbours vote.

**Order of classes.** By votes among the k neighbours; equal votes, and all classes without a vote, by the similarity
of the class's nearest gallery sample; equal similarities by the lower class index. For k = 1 this is the order of
classes by nearest neighbour. Classes that the gallery lacks come last and cannot be hit.

Shapes: B queries, N gallery, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.neighbours import Neighbours, nearest_neighbours
from crossdistill.evaluation.results import ProtocolResult, hits_from_scores
from crossdistill.evaluation.settings import ProtocolSettings


def evaluate_knn(split: EmbeddedSplit, settings: ProtocolSettings) -> list[ProtocolResult]:
    """Classify the test set by its nearest training samples, once for each k; one search serves every k.

    Runs on the device of the train features. ``details`` of a result holds ``k`` and ``effective_k`` (the size of the
    gallery where that is below k).
    """
    split.check()
    gallery_nd = split.train.features
    neighbours = nearest_neighbours(
        queries_bd=split.test.features.to(gallery_nd.device),
        gallery_nd=gallery_nd,
        k=max(settings.ks),
        gallery_labels_n=split.train.labels,
        num_classes=split.num_classes,
    )
    results = []
    for k in settings.ks:
        outcome = hits_from_scores(class_scores_of(neighbours, split.train.labels, k), split.test.labels)
        results.append(split.result(f"{k}-nn", outcome, {"k": k, "effective_k": min(k, len(gallery_nd))}))
    return results


def class_scores_of(neighbours: Neighbours, labels_n: Tensor, k: int) -> Tensor:
    """Score classes so that sorting by score gives the order of classes that the head of this file defines.

    The neighbours, at least k of each query, hold class similarities. The scores are [B, C] float64: C for the first
    class, C - 1 for the second …; -inf for classes that the gallery lacks.
    """
    class_bc = neighbours.class_similarities_bc
    assert class_bc is not None
    labels_bk = labels_n.to(class_bc.device).long()[neighbours.indices_bk[:, :k]]
    votes_bc = torch.zeros_like(class_bc).scatter_add_(1, labels_bk, torch.ones_like(labels_bk, dtype=class_bc.dtype))
    by_similarity_bc = class_bc.sort(dim=1, descending=True, stable=True).indices
    by_votes_bc = votes_bc.gather(1, by_similarity_bc).sort(dim=1, descending=True, stable=True).indices
    order_bc = by_similarity_bc.gather(1, by_votes_bc)
    num_classes = class_bc.shape[1]
    score_c = torch.arange(num_classes, 0, -1, device=class_bc.device, dtype=class_bc.dtype)
    scores_bc = torch.empty_like(class_bc).scatter_(1, order_bc, score_c.expand_as(order_bc))
    return scores_bc.masked_fill_(class_bc == -torch.inf, -torch.inf)
