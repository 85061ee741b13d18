"""Exact k-nearest-neighbour search by cosine similarity, in bounded memory.

**Exact similarities.** Features are L2-normalised and rounded to multiples of 2^-26 (1.5e-8, the resolution of float32
near 1/8). Products of two such numbers are multiples of 2^-52, and every partial sum of an inner product stays below 2,
so float64 adds them without rounding. A similarity is therefore one definite number, whatever the chunk, the order of
summation or the device, and ties are real ties.

Shapes: B queries, N gallery, D features, K neighbours, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import check_features, check_labels

QUERY_CHUNK = 128
GALLERY_CHUNK = 32_768
_GRID = 2.0**26
_ROWS_NORMALISED_AT_ONCE = 256


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
    which bound the memory: about 32 bytes × query_chunk × gallery_chunk and a float64 copy of a gallery chunk, besides
    one float32 copy of both sets.

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
    if gallery_labels_n is not None:
        check_labels("gallery", gallery_labels_n, num_clips=len(gallery_nd), num_classes=num_classes)
    unit_nd, parts = unit_rows(gallery_nd), []
    for chunk_bd in unit_rows(queries_bd).split(query_chunk):
        classes_bc = chunk_bd.new_full((len(chunk_bd), num_classes), -torch.inf, dtype=torch.float64)
        best_bk, indices_bk = classes_bc[:, :0], torch.empty(len(chunk_bd), 0, dtype=torch.int64, device=unit_nd.device)
        for start in range(0, len(unit_nd), gallery_chunk):
            rows = slice(start, start + gallery_chunk)
            sims_bn = chunk_bd.double() @ unit_nd[rows].double().T
            if gallery_labels_n is not None:
                labels_n = gallery_labels_n[rows].to(sims_bn.device).long()
                classes_bc.scatter_reduce_(1, labels_n.expand_as(sims_bn), sims_bn, "amax")
            near_bk, position_bk = _highest(sims_bn, k)
            best_bk, chosen_bk = _highest(torch.cat([best_bk, near_bk], 1), k)
            indices_bk = torch.cat([indices_bk, position_bk + start], 1).gather(1, chosen_bk)
        parts.append((best_bk, indices_bk, classes_bc))
    sims_bk, indices_bk, classes_bc = (torch.cat(each) for each in zip(*parts, strict=True))
    return Neighbours(sims_bk, indices_bk, None if gallery_labels_n is None else classes_bc)


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


def _highest(values_bn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Give the k highest values of each row, or all, and their positions; of equal values the lowest position first."""
    highest, found = values_bn.topk(min(k + 1, values_bn.shape[1]), dim=1)
    found = found[:, :k]
    # topk may choose any of several equal values: where one equals the last of the k, a stable sort chooses.
    is_tied_b = highest[:, -1] == highest[:, found.shape[1] - 1]
    found[is_tied_b] = values_bn[is_tied_b].sort(dim=1, descending=True, stable=True).indices[:, :k]
    # In the order of positions first, so that the stable sort leaves equal values in that order.
    found = found.sort(dim=1).values
    top_bk, order_bk = values_bn.gather(1, found).sort(dim=1, descending=True, stable=True)
    return top_bk, found.gather(1, order_bk)
