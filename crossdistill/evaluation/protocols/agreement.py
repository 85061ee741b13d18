"""Agreement of two encoders on the same clips: shared neighbours, linear CKA, and classes among neighbours.

All measures are functions of features alone, invariant to rotations and to the scale of either space. No memory grows
with N²: neighbours are searched in chunks, and CKA is computed from products of features instead of clips.

Shapes: N clips, D and E features of two encoders, K neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import check_features
from crossdistill.evaluation.defaults import MIN_CLIPS_FOR_CKA
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.intervals import bootstrap_intervals, units_of
from crossdistill.evaluation.neighbours import nearest_neighbours
from crossdistill.evaluation.results import TOP1, TOP5, AgreementResult, Outcome
from crossdistill.evaluation.settings import ProtocolSettings

NUM_NEIGHBOURS = 10
_CLIPS_AT_ONCE = 512
_COLUMNS_AT_ONCE = 1024
# Share of the squared norm that the variance of a space must exceed: rounding errors of float64 means stay below it.
_CONSTANT_SHARE = 1e-24
# Share of its largest possible value that HSIC of a space with itself must exceed: rounding errors stay below it.
_NO_STRUCTURE_SHARE = 1e-12


def nearest_others(features_nd: Tensor, k: int) -> Tensor:
    """Find the k nearest other clips of every clip [N, D] by cosine: [N, K] int64, of equal ones the lower index first.

    A k below 1, fewer than k + 1 clips, and NaN or infinite features are a ``UserError``.
    """
    if len(features_nd) <= k:
        raise UserError(
            f"{len(features_nd)} clips have no {k} neighbours each: give at least {k + 1} clips, or a lower k"
        )
    indices = nearest_neighbours(queries_bd=features_nd, gallery_nd=features_nd, k=k + 1).indices_bk
    is_self = indices == torch.arange(len(indices), device=indices.device)[:, None]
    # Among many equal rows a clip may not be one of its own first k + 1: then the last one is dropped instead.
    is_self[:, -1] |= ~is_self.any(1)
    return indices[~is_self].view(len(indices), k)


def share_of_common(neighbours_a_nk: Tensor, neighbours_b_nk: Tensor) -> Tensor:
    """Compute [N] float64 in [0, 1]: which share of a clip's neighbours in A [N, K] are also neighbours in B [N, K]."""
    is_common_nkk = neighbours_a_nk[:, :, None] == neighbours_b_nk[:, None, :]
    return is_common_nkk.any(2).double().mean(1)


def neighbour_overlap(a_nd: Tensor, b_ne: Tensor, k: int) -> Tensor:
    """Compute ``share_of_common`` of the k nearest neighbours in two spaces, [N, D] and [N, E], of the same clips."""
    _check_paired(a_nd, b_ne)
    return share_of_common(nearest_others(a_nd, k), nearest_others(b_ne, k))


def chance_overlap(num_clips: int, k: int) -> float:
    """The expected overlap of neighbours drawn at random: k of the other ``num_clips`` - 1."""
    return k / (num_clips - 1)


def shuffled_overlaps(neighbours_a_nk: Tensor, neighbours_b_nk: Tensor, *, num_shuffles: int, seed: int = 0) -> Tensor:
    """Compute [num_shuffles] float64 mean overlaps after pairing the clips of A with those of B at random.

    Each space keeps its own shape, including clips that are neighbours of many others: ``chance_overlap`` ignores them.
    """
    generator = torch.Generator().manual_seed(seed)
    overlaps = []
    for _ in range(num_shuffles):
        new_position_n = torch.randperm(len(neighbours_b_nk), generator=generator).to(neighbours_b_nk.device)
        shuffled_nk = torch.empty_like(neighbours_b_nk)
        shuffled_nk[new_position_n] = new_position_n[neighbours_b_nk]
        overlaps.append(share_of_common(neighbours_a_nk, shuffled_nk).mean())
    return torch.stack(overlaps)


def linear_cka(a_nd: Tensor, b_ne: Tensor) -> float:
    """Linear centred kernel alignment, with the unbiased estimate of HSIC.

    Kornblith, Norouzi, Lee, Hinton, "Similarity of Neural Network Representations Revisited", ICML 2019, equation 4:
    CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the linear kernels K = AAᵀ and L = BBᵀ of centred features.
    The paper's HSIC (equation 3) keeps the diagonals of K and L, and is far above 0 for unrelated features where there
    are fewer clips than features, as in a sample. So this deviates from it: HSIC is the estimate HSIC_1 of Song, Smola,
    Gretton, Bedo, Borgwardt, "Feature Selection via Dependence Maximization", JMLR 2012, without diagonals, whose
    expectation for unrelated features is 0. For centred features, with a_i and b_i the squared norms of clip i, it is
    (‖AᵀB‖² - N/(N-2) Σ a_i b_i + Σ a_i Σ b_i / ((N-1)(N-2))) / (N(N-3)).

    The features are [N, D] and [N, E] of the same clips in the same order. CKA is at most 1, which equal spaces have up
    to rotation and scale; about 0, also a little below, for unrelated ones; 0 if all clips of a space are at one point,
    or all equally far from each other. Fewer than 4 clips, different numbers of clips, and NaN or infinite features are
    a ``UserError``.
    """
    _check_paired(a_nd, b_ne)
    if len(a_nd) < MIN_CLIPS_FOR_CKA:
        raise UserError(f"linear CKA needs at least {MIN_CLIPS_FOR_CKA} clips, not {len(a_nd)}: give more")
    a_nd, b_ne = _centred(a_nd), _centred(b_ne)
    own_a, own_b = _hsic(a_nd, a_nd), _hsic(b_ne, b_ne)
    if min(own_a, own_b) <= _NO_STRUCTURE_SHARE * len(a_nd) ** 2:
        return 0.0
    return _hsic(a_nd, b_ne) / (own_a * own_b) ** 0.5


def _centred(features_nd: Tensor) -> Tensor:
    """In float64, with mean 0 and mean squared norm 1; zeros if all clips are at one point."""
    features_nd = features_nd.cpu().double()
    centred_nd = features_nd - features_nd.mean(0)
    mean_square = centred_nd.square().sum(1).mean()
    if mean_square <= _CONSTANT_SHARE * features_nd.square().sum(1).mean():
        return torch.zeros_like(centred_nd)
    return centred_nd / mean_square.sqrt()


def _hsic(a_nd: Tensor, b_ne: Tensor) -> float:
    """HSIC_1 of centred features, times N(N-3), which a ratio does not need; for A = B not below 0."""
    num_clips = len(a_nd)
    squares_a_n, squares_b_n = a_nd.square().sum(1), b_ne.square().sum(1)
    cross = sum(float((a_nd.T @ part).square().sum()) for part in b_ne.split(_COLUMNS_AT_ONCE, dim=1))
    diagonal = num_clips / (num_clips - 2) * float(squares_a_n @ squares_b_n)
    sums = float(squares_a_n.sum() * squares_b_n.sum()) / ((num_clips - 1) * (num_clips - 2))
    return cross - diagonal + sums


@dataclass(frozen=True)
class NeighbourClasses:
    """How often the nearest clip of another group has the class of a clip; fractions in [0, 1]."""

    accuracy: float
    chance: float
    """Accuracy of a clip of another group that is drawn at random."""
    num_clips: int
    """Number of clips that count: those whose class other groups show too."""


def neighbour_classes(features_nd: Tensor, labels_n: Tensor, groups_n: Tensor) -> NeighbourClasses | None:
    """Classify every clip by its nearest clip (cosine similarity) of another group; None if no class has two groups.

    Features are [N, D], labels and groups [N] int64, not negative. Near-duplicates, all of one class, share a group's
    number; with different numbers for all clips only the clip itself is excluded.
    """
    if len(features_nd) < 2:
        return None
    num_of_group_n = groups_n.bincount()[groups_n]
    num_right_n = labels_n.bincount()[labels_n] - num_of_group_n
    num_others_n = len(groups_n) - num_of_group_n
    counts_n = num_right_n > 0
    if not counts_n.any():
        return None
    k = int(num_of_group_n.max()) + 1  # all clips of the group may be nearest
    hits = []
    for clips in counts_n.nonzero()[:, 0].split(_CLIPS_AT_ONCE):
        near_bk = nearest_neighbours(queries_bd=features_nd[clips], gallery_nd=features_nd, k=k).indices_bk.cpu()
        first_b1 = (groups_n[near_bk] != groups_n[clips, None]).int().argmax(1, keepdim=True)
        hits.append(labels_n[near_bk.gather(1, first_b1)[:, 0]] == labels_n[clips])
    return NeighbourClasses(
        accuracy=torch.cat(hits).double().mean().item(),
        chance=(num_right_n[counts_n] / num_others_n[counts_n]).double().mean().item(),
        num_clips=int(counts_n.sum()),
    )


def _check_paired(a_nd: Tensor, b_ne: Tensor) -> None:
    check_features("first", a_nd)
    check_features("second", b_ne)
    if len(a_nd) != len(b_ne):
        raise UserError(
            f"{len(a_nd)} and {len(b_ne)} clips cannot be compared: embed the same clips with both encoders"
        )


def compare_students(
    names: tuple[str, str], a: Features, b: Features, *, classes: Sequence[str], settings: ProtocolSettings
) -> AgreementResult:
    """Compare how two students arrange the same test clips, of which ``a`` and ``b`` are their features."""
    k = min(NUM_NEIGHBOURS, a.num_clips - 1)
    overlap_n = neighbour_overlap(a.features, b.features, k).cpu()
    (units,) = units_of((a.videos, a.groups))
    outcome = Outcome({TOP1: overlap_n, TOP5: overlap_n}, a.labels, units=units)
    intervals = bootstrap_intervals([outcome], num_draws=settings.num_bootstrap_draws, seed=settings.seed)
    return AgreementResult(
        students=names,
        num_test=a.num_clips,
        coverage=a.coverage,
        views=str(a.views),
        k=k,
        overlap=overlap_n.mean().item(),
        overlap_interval=intervals.get(TOP1),
        chance_overlap=chance_overlap(a.num_clips, k),
        cka=linear_cka(a.features, b.features),
        overlap_by_class={
            classes[label]: overlap_n[a.labels == label].mean().item()
            for label in sorted(set(a.labels.tolist()))
            if label >= 0
        },
    )
