"""Exact k-nearest-neighbour search by cosine similarity, in bounded memory.

**Exact similarities.** Features are L2-normalised and rounded to multiples of 2^-26 (1.5e-8, the resolution of float32
near 1/8). Products of two such numbers are multiples of 2^-52, and every partial sum of an inner product stays below 2,
so float64 adds them without rounding. A similarity is therefore one definite number, whatever the chunk, the order of
summation or the device, and ties are real ties.

**Speed.** Float64 products cost twice as much as float32 products. A first pass in float32 (faiss on a CPU where it is
installed, else ``torch.topk``) proposes k + 8 candidates per query, whose similarities are then computed exactly. A
bound on the float32 error proves that no other row belongs to the answer; queries without that proof (many near-equal
neighbours) are searched again in float64. The similarities of classes need every row, so they are computed in float64.

Shapes: B queries, N gallery, D features, K neighbours, C classes.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import check_features, check_labels

QUERY_CHUNK = 512
GALLERY_CHUNK = 32_768
_GRID = 2.0**26
_NUM_SPARE = 8
# Float64 similarities, their ranks and copies take four times the memory of the first pass.
_EXACT_CHUNK_DIVISOR = 4
_NUM_VALUES_AT_ONCE = 2**22
_ROWS_NORMALISED_AT_ONCE = 256

Select = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Values [B, N] and K to the K highest values of each row and their positions."""


@dataclass(frozen=True)
class Neighbours:
    """The k nearest gallery samples of every query, nearest first; equal ones in the order of the gallery."""

    similarities_bk: Tensor
    """[B, K] float64 cosines, exact for the rounded features."""
    indices_bk: Tensor
    """[B, K] int64 positions in the gallery."""
    class_similarities_bc: Tensor | None = None
    """[B, C] float64 similarity of each class's nearest sample, -inf for a class that the gallery lacks; None without
    labels."""


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
    """Find the k gallery samples of highest cosine similarity, exactly; a k above N gives all N.

    Queries [B, D] and gallery [N, D] have any scale; a row of zeros has similarity 0 to everything. With labels [N] of
    the gallery and ``num_classes`` the result holds ``class_similarities_bc``. It does not depend on the chunk sizes,
    which bound the memory: about 10 bytes × query_chunk × gallery_chunk and two float64 copies of a gallery chunk,
    besides one float32 copy of both sets.

    Raises:
        UserError: k or a chunk below 1, an empty set, NaN or infinite features, different feature sizes, bad labels.

    Example:
        >>> found = nearest_neighbours(queries_bd=torch.tensor([[2.0, 0.1]]), gallery_nd=torch.eye(2), k=1)
        >>> found.indices_bk.tolist()
        [[0]]
    """
    for name, value in (("k", k), ("query_chunk", query_chunk), ("gallery_chunk", gallery_chunk)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    check_features("query", queries_bd)
    check_features("gallery", gallery_nd)
    if queries_bd.shape[1] != gallery_nd.shape[1]:
        raise UserError(
            f"queries have {queries_bd.shape[1]} dimensions and the gallery {gallery_nd.shape[1]}: "
            "embed both with the same encoder"
        )
    labels_n = None
    if gallery_labels_n is not None:
        check_labels("gallery", gallery_labels_n, num_clips=len(gallery_nd), num_classes=num_classes)
        labels_n = gallery_labels_n.long()
    search = _Search(unit_rows(gallery_nd), min(k, len(gallery_nd)), gallery_chunk, labels_n, num_classes)
    return search.run(unit_rows(queries_bd), query_chunk)


def unit_rows(features_nd: Tensor) -> Tensor:
    """L2-normalise in float64 and round to multiples of 2^-26: [N, D] float32; rows of zeros stay zero.

    Norms are taken in float64 so that equal rows stay equal. Above 1/8 float32 is itself coarser than the grid.
    Apple's GPUs have no float64: their features are moved to the CPU.
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
    """A search in a gallery of L2-normalised rows."""

    gallery_nd: Tensor
    k: int
    gallery_chunk: int
    labels_n: Tensor | None = None
    num_classes: int = 0

    def run(self, queries_bd: Tensor, query_chunk: int) -> Neighbours:
        """Search in float32, and repeat in float64 for queries whose float32 result may be wrong by rounding."""
        if self.labels_n is not None or not _multiplies_in_float32(queries_bd.device):
            return self.search_exactly(queries_bd, query_chunk)
        propose = self._faiss_proposals() or self._best
        parts = [self._refine(chunk, *propose(chunk)) for chunk in queries_bd.split(query_chunk)]
        sims_bk, indices_bk, is_proven_b = (torch.cat(each) for each in zip(*parts, strict=True))
        unproven = (~is_proven_b).nonzero()[:, 0]
        if len(unproven):
            exact = self.search_exactly(queries_bd[unproven], query_chunk)
            sims_bk[unproven], indices_bk[unproven] = exact.similarities_bk, exact.indices_bk
        return Neighbours(sims_bk, indices_bk)

    def search_exactly(self, queries_bd: Tensor, query_chunk: int) -> Neighbours:
        """Compare all queries with the whole gallery in float64: slower, but exact for any features."""
        chunks = queries_bd.double().split(max(1, query_chunk // _EXACT_CHUNK_DIVISOR))
        classes_bc = [queries_bd.new_full((len(c), self.num_classes), -torch.inf, dtype=torch.float64) for c in chunks]
        best = [self._best(c, self.k, _select_first, of_c) for c, of_c in zip(chunks, classes_bc, strict=True)]
        sims_bk, indices_bk = (torch.cat(each) for each in zip(*best, strict=True))
        return Neighbours(sims_bk, indices_bk, None if self.labels_n is None else torch.cat(classes_bc))

    def _best(
        self, queries_bd: Tensor, k: int | None = None, select: Select = torch.topk, classes_bc: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Walk over the gallery in the queries' precision: [B, K] highest similarities and their positions.

        ``classes_bc`` [B, C] is raised in place to the similarity of each class's nearest row.
        """
        k = k or min(self.k + _NUM_SPARE, len(self.gallery_nd))
        best_bk = queries_bd.new_empty((len(queries_bd), 0))
        indices_bk = torch.empty_like(best_bk, dtype=torch.int64)
        for start in range(0, len(self.gallery_nd), self.gallery_chunk):
            rows = slice(start, start + self.gallery_chunk)
            sims_bn = queries_bd @ self.gallery_nd[rows].to(queries_bd.dtype).T
            if classes_bc is not None and self.labels_n is not None:
                labels_n = self.labels_n[rows].to(sims_bn.device)
                classes_bc.scatter_reduce_(1, labels_n.expand_as(sims_bn), sims_bn, "amax")
            chunk_bk, position_bk = select(sims_bn, min(k, sims_bn.shape[1]))
            merged_bk = torch.cat([best_bk, chunk_bk], 1)
            best_bk, chosen_bk = select(merged_bk, min(k, merged_bk.shape[1]))
            indices_bk = torch.cat([indices_bk, position_bk + start], 1).gather(1, chosen_bk)
        return best_bk, indices_bk

    def _faiss_proposals(self) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        """Search of the gallery by faiss; None on other devices than a CPU and where faiss is not installed."""
        faiss = _find_faiss()
        if faiss is None or self.gallery_nd.device.type != "cpu":
            return None
        index = faiss.IndexFlatIP(self.gallery_nd.shape[1])
        index.add(self.gallery_nd.numpy())
        num = min(self.k + _NUM_SPARE, len(self.gallery_nd))

        def search(queries_bd: Tensor) -> tuple[Tensor, Tensor]:
            coarse_bk, indices_bk = index.search(queries_bd.numpy(), num)
            return torch.from_numpy(coarse_bk), torch.from_numpy(indices_bk)

        return search

    def _refine(self, queries_bd: Tensor, coarse_bk: Tensor, indices_bk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Order the candidates by exact similarity: [B, K] similarities, [B, K] positions, [B] whether they are proven.

        With an error of at most e in every float32 similarity, a row that is no candidate has an exact similarity of
        at most ``floor`` = lowest candidate + e. So the answer is proven where the k-th exact similarity is above it.
        """
        # D roundings of 2^-24, doubled because the norms of rounded rows are not exactly 1.
        floor_b = coarse_bk.amin(1).double() + 2 * queries_bd.shape[1] * 2.0**-24
        if indices_bk.shape[1] == len(self.gallery_nd):
            floor_b.fill_(-torch.inf)
        # In the order of the gallery first, so that the stable sort below leaves equal rows in that order.
        indices_bk = indices_bk.sort(dim=1).values
        num_at_once = max(1, _NUM_VALUES_AT_ONCE // (indices_bk.shape[1] * queries_bd.shape[1]))
        sims_bk = torch.cat(
            [
                torch.bmm(self.gallery_nd[indices].double(), queries.double().unsqueeze(2)).squeeze(2)
                for queries, indices in zip(queries_bd.split(num_at_once), indices_bk.split(num_at_once), strict=True)
            ]
        )
        sims_bk, order_bk = sims_bk.sort(dim=1, descending=True, stable=True)
        sims_bk, indices_bk = sims_bk[:, : self.k], indices_bk.gather(1, order_bk)[:, : self.k]
        return sims_bk, indices_bk, sims_bk[:, -1] > floor_b


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


@functools.cache
def _find_faiss() -> ModuleType | None:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None


def _multiplies_in_float32(device: torch.device) -> bool:
    """Whether float32 matrices are multiplied as such, not as TF32 or bf16, so that the error bound holds."""
    if torch.is_autocast_enabled(device.type):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # torch raises where its old and new precision switches were mixed
        return False
