"""Exact k-nearest-neighbour classification on cached features, in bounded memory.

The protocol is that of CompRess (Koohpayegani, Tejankar, Pirsiavash, "CompRess: Self-Supervised Learning by
Compressing Representations", NeurIPS 2020, section 4, "Nearest Neighbor"): L2-normalised features of the centre view,
cosine similarity, k = 1. For k > 1 the neighbours vote.

**Similarity.** Features are L2-normalised and rounded to multiples of 2^-26 (1.5e-8, what float32 keeps of a number
near 1/8). Products of two such numbers are multiples of 2^-52 and every partial sum of an inner product stays below
2, so float64 adds them without any rounding: a similarity is one definite number, whatever the chunk, the order of
summation or the device. Equal rows have equal similarities wherever they stand, and ties are real ties.

**Speed.** float64 products cost twice as much as float32. So a first pass in float32 proposes k + 8 candidates per
query, their similarities are computed exactly, and a bound on the float32 error proves that no other row can belong
to the answer. The few queries that lack the proof (many near-equal neighbours) are scanned again in float64.

On a CPU faiss proposes the candidates where it is installed and where no class similarities are asked for, which need
every row; what is proven is the same, so the answer is, to the bit.

**Order of classes.** By votes among the k neighbours; equal votes, and all classes without a vote, by the similarity
of the class's nearest gallery sample; equal similarities by the lower class index. For k = 1 this is the order of
classes by nearest neighbour. Classes that the gallery lacks come last and cannot be hit.

Shapes: B queries, N gallery, D features, K neighbours, C classes, G members of a group.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import check_features, check_labels, check_split, classes_without_training_clips
from crossdistill.evaluation.results import NUM_RANKED, ProtocolResult, hits_from_scores, result_of

QUERY_CHUNK = 512
GALLERY_CHUNK = 32_768
_GRID = 2.0**26
_GROUP = 32
_NUM_SPARE = 8
_EXACT_CHUNK_DIVISOR = 4
_NUM_REFINED_AT_ONCE = 2**18
_ROWS_NORMALISED_AT_ONCE = 256

_Select = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Neighbours:
    """The k nearest gallery samples of every query, nearest first; of equal ones the lower index first."""

    similarities_bk: Tensor
    """[B, K] float64 cosines, exact for the rounded features."""
    indices_bk: Tensor
    """[B, K] int64 positions in the gallery."""
    class_similarities_bc: Tensor | None
    """[B, C] float64, similarity of each class's nearest sample, -inf for a class that the gallery lacks; None without
    labels. Exact for neighbours' classes; all others are right to float32 and the best five are in the right order."""

    def replace_rows(self, rows_r: Tensor, other: Neighbours) -> None:
        """Put another result in the place of some queries."""
        self.similarities_bk[rows_r] = other.similarities_bk
        self.indices_bk[rows_r] = other.indices_bk
        if self.class_similarities_bc is not None and other.class_similarities_bc is not None:
            self.class_similarities_bc[rows_r] = other.class_similarities_bc


@torch.no_grad()
def nearest_neighbours(
    *,
    queries_bd: Tensor,
    gallery_nd: Tensor,
    k: int,
    gallery_labels_n: Tensor | None = None,
    num_classes: int = 0,
    query_chunk: int = QUERY_CHUNK,
    gallery_chunk: int = GALLERY_CHUNK,
) -> Neighbours:
    """Find the k gallery samples of highest cosine similarity, exactly.

    The result does not depend on the chunk sizes, which bound the memory: about 10 bytes × query_chunk × gallery_chunk
    and two float64 copies of a gallery chunk, beside one float32 copy of both sets.

    Args:
        queries_bd: [B, D] floating point, any scale; a row of zeros has similarity 0 to everything.
        gallery_nd: [N, D].
        k: Number of neighbours; a k above N gives all N.
        gallery_labels_n: [N] int64, needed for ``class_similarities_bc``.
        num_classes: C, with labels.
        query_chunk: Queries compared at once.
        gallery_chunk: Gallery samples compared at once.

    Raises:
        UserError: k or a chunk below 1, an empty set, NaN or infinite features, different feature sizes, bad labels.
    """
    _check_search(queries_bd, gallery_nd, k, query_chunk, gallery_chunk)
    if gallery_labels_n is not None:
        check_labels("gallery", gallery_labels_n, num_clips=len(gallery_nd), num_classes=num_classes)
    unit_gallery_nd = unit_rows(gallery_nd)
    search = _Search(
        gallery_nd=unit_gallery_nd,
        labels_n=None if gallery_labels_n is None else gallery_labels_n.long().to(unit_gallery_nd.device),
        num_classes=num_classes,
        k=min(k, len(gallery_nd)),
        gallery_chunk=gallery_chunk,
    )
    return search.run(unit_rows(queries_bd), query_chunk)


def knn_class_scores(
    *,
    queries_bd: Tensor,
    gallery_nd: Tensor,
    gallery_labels_n: Tensor,
    num_classes: int,
    k: int,
    query_chunk: int = QUERY_CHUNK,
    gallery_chunk: int = GALLERY_CHUNK,
) -> Tensor:
    """Score classes so that sorting by score gives the order of classes that the head of this file defines.

    Returns:
        [B, C] float64: C for the first class, C - 1 for the second, and so on, all different; -inf for classes that
        the gallery lacks. The first five are exact; later classes that differ by less than float32 resolves may be
        interchanged.

    Raises:
        UserError: As ``nearest_neighbours``.
    """
    neighbours = nearest_neighbours(
        queries_bd=queries_bd,
        gallery_nd=gallery_nd,
        k=k,
        gallery_labels_n=gallery_labels_n,
        num_classes=num_classes,
        query_chunk=query_chunk,
        gallery_chunk=gallery_chunk,
    )
    return _scores_of(neighbours, gallery_labels_n, k)


def knn_predict(
    *, queries_bd: Tensor, gallery_nd: Tensor, gallery_labels_n: Tensor, num_classes: int, k: int
) -> Tensor:
    """Predict the first class in the order that the head of this file defines.

    Returns:
        [B] int64.

    Raises:
        UserError: As ``nearest_neighbours``.
    """
    scores_bc = knn_class_scores(
        queries_bd=queries_bd,
        gallery_nd=gallery_nd,
        gallery_labels_n=gallery_labels_n,
        num_classes=num_classes,
        k=k,
    )
    return scores_bc.argmax(1)


def evaluate_knn(
    *,
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    num_classes: int,
    ks: Iterable[int] = (1, 5, 20),
) -> dict[int, ProtocolResult]:
    """Classify the test set by its nearest training samples; one search serves every k.

    Runs on the device of ``train_features``. ``details`` of a result holds ``k``, ``effective_k`` (the whole
    gallery where it is smaller than k), ``num_train`` and ``classes_without_training_clips``.

    Args:
        train_features: [N, D] the gallery; need not be normalised.
        train_labels: [N] int64.
        test_features: [B, D] the queries.
        test_labels: [B] int64.
        num_classes: C.
        ks: Numbers of neighbours; 1 is the paper's.

    Returns:
        A result for each k, in the order given.

    Raises:
        UserError: Features or labels that ``check_split`` rejects, no k, or one below 1.
    """
    ks = list(ks)
    if not ks:
        raise UserError("give at least one number of neighbours, for example ks=(1, 5, 20)")
    _check_positive("k", min(ks))
    check_split(
        train_features=train_features,
        train_labels=train_labels,
        test_features=test_features,
        test_labels=test_labels,
        num_classes=num_classes,
    )
    train_labels = train_labels.to(train_features.device)
    neighbours = nearest_neighbours(
        queries_bd=test_features.to(train_features.device),
        gallery_nd=train_features,
        k=max(ks),
        gallery_labels_n=train_labels,
        num_classes=num_classes,
    )
    missing = classes_without_training_clips(train_labels=train_labels, test_labels=test_labels)
    results = {}
    for k in ks:
        details = {
            "k": k,
            "effective_k": min(k, len(train_features)),
            "num_train": len(train_features),
            "classes_without_training_clips": missing,
        }
        results[k] = result_of(
            f"{k}-nn", hits_from_scores(_scores_of(neighbours, train_labels, k), test_labels), details
        )
    return results


def unit_rows(features_nd: Tensor) -> Tensor:
    """L2-normalise in float64 and round to multiples of 2^-26.

    Norms are taken in float64 so that equal rows stay equal. Above 1/8 float32 is itself coarser than the grid.
    float64 does not exist on Apple's GPUs: their features are moved to the CPU.

    Returns:
        [N, D] float32; rows of zeros stay zero.
    """
    if features_nd.device.type == "mps":
        features_nd = features_nd.cpu()
    unit_nd = torch.empty(features_nd.shape, dtype=torch.float32, device=features_nd.device)
    for source, target in zip(
        features_nd.split(_ROWS_NORMALISED_AT_ONCE), unit_nd.split(_ROWS_NORMALISED_AT_ONCE), strict=True
    ):
        norm = torch.linalg.vector_norm(source, dim=1, keepdim=True, dtype=torch.float64).clamp_min(1e-300)
        target.copy_((source * (_GRID / norm)).round_().div_(_GRID))
    return unit_nd


@dataclass(frozen=True)
class _Search:
    """A gallery of unit rows and what is asked of it."""

    gallery_nd: Tensor
    labels_n: Tensor | None
    num_classes: int
    k: int
    gallery_chunk: int

    @functools.cached_property
    def _faiss_index(self) -> Any:
        """The gallery as faiss holds it; None on other devices than a CPU and where faiss is not installed."""
        faiss = _find_faiss()
        if faiss is None or self.gallery_nd.device.type != "cpu":
            return None
        index = faiss.IndexFlatIP(self.gallery_nd.shape[1])
        index.add(self.gallery_nd.numpy())
        return index

    def run(self, queries_bd: Tensor, query_chunk: int) -> Neighbours:
        """Propose in float32, prove, and scan in float64 the queries without proof."""
        if not _multiplies_in_float32(queries_bd.device):
            return self.scan_exactly(queries_bd, query_chunk)
        buffer = self._buffer(len(queries_bd), query_chunk, torch.float32)
        proposals = [self.propose(chunk, buffer) for chunk in queries_bd.split(query_chunk)]
        result = _concatenate([neighbours for neighbours, _ in proposals])
        unproven = (~torch.cat([is_proven_b for _, is_proven_b in proposals])).nonzero()[:, 0]
        if len(unproven):
            result.replace_rows(unproven, self.scan_exactly(queries_bd[unproven], query_chunk))
        return result

    def scan_exactly(self, queries_bd: Tensor, query_chunk: int) -> Neighbours:
        """Compare everything with everything in float64; slower, and for any features."""
        query_chunk = max(1, query_chunk // _EXACT_CHUNK_DIVISOR)
        buffer = self._buffer(len(queries_bd), query_chunk, torch.float64)
        chunks = queries_bd.double().split(query_chunk)
        return _concatenate([Neighbours(*self._scan(chunk, self.k, _select_first, buffer)) for chunk in chunks])

    def _buffer(self, num_queries: int, query_chunk: int, dtype: torch.dtype) -> Tensor:
        """Memory for the products of all chunks: fresh memory of this size costs as much as computing in it."""
        num_products = min(query_chunk, num_queries) * min(self.gallery_chunk, len(self.gallery_nd))
        return self.gallery_nd.new_empty(num_products, dtype=dtype)

    def _scan(
        self, queries_bd: Tensor, k: int, select: _Select, buffer: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Walk over the gallery in the queries' precision and keep the k best and each class's best."""
        best_bk = queries_bd.new_empty((len(queries_bd), 0))
        indices_bk = torch.empty_like(best_bk, dtype=torch.int64)
        class_bc = queries_bd.new_full((len(queries_bd), self.num_classes), -torch.inf)
        for start in range(0, len(self.gallery_nd), self.gallery_chunk):
            stop = min(start + self.gallery_chunk, len(self.gallery_nd))
            sims_bn = buffer[: len(queries_bd) * (stop - start)].view(len(queries_bd), stop - start)
            torch.mm(queries_bd, self.gallery_nd[start:stop].to(queries_bd.dtype).T, out=sims_bn)
            if self.labels_n is not None:
                class_bc.scatter_reduce_(1, self.labels_n[start:stop].expand_as(sims_bn), sims_bn, "amax")
            chunk_bk, position_bk = select(sims_bn, min(k, sims_bn.shape[1]))
            merged_bk = torch.cat([best_bk, chunk_bk], 1)
            merged_indices_bk = torch.cat([indices_bk, position_bk + start], 1)
            best_bk, chosen_bk = select(merged_bk, min(k, merged_bk.shape[1]))
            indices_bk = merged_indices_bk.gather(1, chosen_bk)
        return best_bk, indices_bk, class_bc if self.labels_n is not None else None

    def propose(self, queries_bd: Tensor, buffer: Tensor) -> tuple[Neighbours, Tensor]:
        """Take candidates from float32, order them exactly, and say for which queries the answer is proven.

        With an error of at most e in every float32 similarity, a row that is no candidate has an exact similarity of
        at most ``floor`` = lowest candidate + e. So the answer is proven where the k-th exact similarity is above it.
        """
        num_candidates = min(self.k + _NUM_SPARE, len(self.gallery_nd))
        class_bc: Tensor | None = None
        if self.labels_n is None and self._faiss_index is not None:
            coarse, indices = self._faiss_index.search(queries_bd.numpy(), num_candidates)
            coarse_bk, indices_bk = torch.from_numpy(coarse), torch.from_numpy(indices)
        else:
            coarse_bk, indices_bk, class_bc = self._scan(queries_bd, num_candidates, _select_any, buffer)
        error = _float32_error(queries_bd.shape[1])
        floor_b1 = coarse_bk.amin(1, keepdim=True).double() + error
        if num_candidates == len(self.gallery_nd):
            floor_b1.fill_(-torch.inf)
        sims_bk, indices_bk = self._order_exactly(queries_bd, indices_bk)
        is_proven_b = sims_bk[:, self.k - 1] > floor_b1[:, 0]
        if self.labels_n is not None and class_bc is not None:
            labels_bk = self.labels_n[indices_bk]
            class_bc, is_ordered_b = _prove_class_order(sims_bk, labels_bk, class_bc.double(), floor_b1, error)
            is_proven_b &= is_ordered_b
        return Neighbours(sims_bk[:, : self.k], indices_bk[:, : self.k], class_bc), is_proven_b

    def _order_exactly(self, queries_bd: Tensor, indices_bk: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the candidates' similarities in float64; highest first, then lowest index."""
        indices_bk = indices_bk.sort(dim=1).values
        num_at_once = max(1, _NUM_REFINED_AT_ONCE // (indices_bk.shape[1] * queries_bd.shape[1]))
        sims_bk = torch.cat(
            [
                torch.bmm(self.gallery_nd[indices].double(), queries.double().unsqueeze(2)).squeeze(2)
                for queries, indices in zip(queries_bd.split(num_at_once), indices_bk.split(num_at_once), strict=True)
            ]
        )
        sims_bk, order_bk = sims_bk.sort(dim=1, descending=True, stable=True)
        return sims_bk, indices_bk.gather(1, order_bk)


def _select_any(values_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give the k highest values of each row and their positions; which of equal values is left open.

    The k highest lie in the k groups of highest maximum, so only those are searched.
    """
    num_groups = values_bn.shape[1] // _GROUP
    if num_groups <= 2 * k:
        return values_bn.topk(k, dim=1)
    grouped_bng = values_bn[:, : num_groups * _GROUP].unflatten(1, (num_groups, _GROUP))
    best_bk = grouped_bng.amax(2).topk(k, dim=1).indices
    member_g = torch.arange(_GROUP, device=values_bn.device)
    position_bn = (best_bk.unsqueeze(2) * _GROUP + member_g).flatten(1)
    rest_n = torch.arange(num_groups * _GROUP, values_bn.shape[1], device=values_bn.device)
    position_bn = torch.cat([position_bn, rest_n.expand(len(values_bn), -1)], 1)
    top_bk, chosen_bk = values_bn.gather(1, position_bn).topk(k, dim=1)
    return top_bk, position_bn.gather(1, chosen_bk)


def _select_first(values_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give the k highest values of each row and their positions; of equal values the lowest position first."""
    num = values_bn.shape[1]
    kth_b1 = values_bn.topk(k, dim=1).values[:, -1:]
    # Distinct keys: all values above the k-th, then those equal to it from the left, then the others.
    key_bn = torch.arange(num - 1, -1, -1, device=values_bn.device) + num * (values_bn == kth_b1)
    key_bn += 2 * num * (values_bn > kth_b1)
    position_bk = key_bn.topk(k, dim=1).indices.sort(dim=1).values
    top_bk, order_bk = values_bn.gather(1, position_bk).sort(dim=1, descending=True, stable=True)
    return top_bk, position_bk.gather(1, order_bk)


def _prove_class_order(
    sims_bk: Tensor, labels_bk: Tensor, coarse_bc: Tensor, floor_b1: Tensor, error: float
) -> tuple[Tensor, Tensor]:
    """Put exact similarities where candidates give them, and say where the best five classes are in proven order.

    A candidate above ``floor`` is above all rows that are no candidates, so the class of such a candidate has its
    exact similarity among the candidates. The other classes lie below; they are in order where neighbours in the
    order differ by more than twice the float32 error.

    Returns:
        [B, C] float64 similarity of each class's nearest sample, and [B] bool.
    """
    above_bk = sims_bk.masked_fill(sims_bk <= floor_b1, -torch.inf)
    exact_bc = torch.full_like(coarse_bc, -torch.inf).scatter_reduce_(1, labels_bk, above_bk, "amax")
    is_exact_bc = exact_bc > -torch.inf
    others_bc = coarse_bc.masked_fill(is_exact_bc, -torch.inf)
    best_others = others_bc.topk(min(NUM_RANKED + 1, coarse_bc.shape[1]), dim=1).values
    gaps = best_others[:, :-1] - best_others[:, 1:]  # NaN between two absent classes: nothing to prove
    rank = is_exact_bc.sum(1, keepdim=True) + torch.arange(gaps.shape[1], device=gaps.device)
    is_ordered_b = ~((gaps <= 2 * error) & (rank < NUM_RANKED)).any(1)
    return torch.where(is_exact_bc, exact_bc, torch.minimum(coarse_bc, floor_b1)), is_ordered_b


def _scores_of(neighbours: Neighbours, labels_n: Tensor, k: int) -> Tensor:
    """Rank classes by votes of the first k neighbours, then similarity, then index: [B, C], C for the first."""
    assert neighbours.class_similarities_bc is not None
    class_bc = neighbours.class_similarities_bc
    labels_bk = labels_n.to(class_bc.device).long()[neighbours.indices_bk[:, :k]]
    votes_bc = torch.zeros_like(class_bc).scatter_add_(1, labels_bk, torch.ones_like(labels_bk, dtype=class_bc.dtype))
    by_similarity_bc = class_bc.sort(dim=1, descending=True, stable=True).indices
    by_votes_bc = votes_bc.gather(1, by_similarity_bc).sort(dim=1, descending=True, stable=True).indices
    order_bc = by_similarity_bc.gather(1, by_votes_bc)
    num_classes = class_bc.shape[1]
    score_c = torch.arange(num_classes, 0, -1, device=class_bc.device, dtype=class_bc.dtype)
    scores_bc = torch.empty_like(class_bc).scatter_(1, order_bc, score_c.expand_as(order_bc))
    return scores_bc.masked_fill_(class_bc == -torch.inf, -torch.inf)


@functools.cache
def _find_faiss() -> ModuleType | None:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None


def _float32_error(dim: int) -> float:
    """Bound the error of a float32 inner product of unit rows: D roundings of 2^-24, doubled for the norms' slack."""
    return 2 * dim * 2.0**-24


def _multiplies_in_float32(device: torch.device) -> bool:
    """Say whether float32 matrices are multiplied as such, not as TF32 or bf16, so that the error bound holds."""
    if torch.is_autocast_enabled(device.type):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch does not tell when its old and new precision switches were mixed
        return False


def _concatenate(parts: list[Neighbours]) -> Neighbours:
    class_parts = [part.class_similarities_bc for part in parts if part.class_similarities_bc is not None]
    return Neighbours(
        similarities_bk=torch.cat([part.similarities_bk for part in parts]),
        indices_bk=torch.cat([part.indices_bk for part in parts]),
        class_similarities_bc=torch.cat(class_parts) if class_parts else None,
    )


def _check_search(queries_bd: Tensor, gallery_nd: Tensor, k: int, query_chunk: int, gallery_chunk: int) -> None:
    for name, value in (("k", k), ("query_chunk", query_chunk), ("gallery_chunk", gallery_chunk)):
        _check_positive(name, value)
    check_features("query", queries_bd)
    check_features("gallery", gallery_nd)
    if queries_bd.shape[1] != gallery_nd.shape[1]:
        raise UserError(
            f"queries have {queries_bd.shape[1]} dimensions and the gallery {gallery_nd.shape[1]}: "
            "embed both with the same encoder"
        )


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} must be at least 1, not {value}")
