"""The maps that bring the embeddings of several networks into one space, for cross-fitted teachers (``--folds``).

Networks that were trained apart give the same clip embeddings that differ by a rotation, and by more. The rotation is
the orthogonal Procrustes solution (Schönemann, A generalized solution of the orthogonal Procrustes problem,
Psychometrika 31, 1966). It keeps all distances between the embeddings of one network.

Shapes: N clips, B batch, E teacher features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Weight of "change nothing" beside the clips. It decides only in directions in which the clips hardly differ, where the
# rotation would otherwise be arbitrary: another number of processes, or another machine, would find another one.
IDENTITY_SHARE = 1e-4


@dataclass(frozen=True)
class Alignment:
    """A rotation about the mean, and a shift: ``(features - mean) @ rotation + target_mean``."""

    mean: Tensor
    """[E], mean of the embeddings that are mapped."""
    rotation: Tensor
    """[E, E], orthogonal."""
    target_mean: Tensor
    """[E], mean of the embeddings that they are mapped onto."""

    def __call__(self, features: Tensor) -> Tensor:
        """Map features [B, E] to [B, E]."""
        return (features - self.mean) @ self.rotation + self.target_mean

    def to(self, device: torch.device) -> Alignment:
        """Return the map on a device, in float32."""
        return Alignment(*(part.float().to(device) for part in (self.mean, self.rotation, self.target_mean)))


def fit_alignment(features: Tensor, target: Tensor) -> Alignment:
    """Fit the rotation and the shift that bring embeddings nearest to others of the same clips, in the sum of squares.

    The rotation R maximises tr(Rᵀ(M + w ‖M‖ I)), with M the products of the centred features and ``IDENTITY_SHARE`` w.

    Args:
        features: [N, E], row i of both belongs to the same clip.
        target: [N, E].

    Returns:
        The map in float64.

    Example:
        >>> square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
        >>> turned = square @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 5
        >>> torch.allclose(fit_alignment(square, turned).to(torch.device("cpu"))(square), turned, atol=1e-3)
        True
    """
    features, target = features.double(), target.double()
    mean, target_mean = features.mean(dim=0), target.mean(dim=0)
    products = (features - mean).T @ (target - target_mean)
    left, _, right = torch.linalg.svd(products + IDENTITY_SHARE * products.norm() * torch.eye(len(products)).double())
    return Alignment(mean, left @ right, target_mean)


def fit_alignments(features: Sequence[Tensor], folds_n: Tensor) -> list[Alignment]:
    """Fit the maps of all folds' networks onto the space of the first one.

    The map of fold k is fitted without the clips of fold k. The first network has seen them with their labels, and a
    rotation that fits them to its embeddings would bring back what the network of fold k must not know.

    Args:
        features: [N, E] for each fold's network, of the same clips.
        folds_n: [N] int64, the fold of each clip, from 1 on; 0 for a clip that no network has seen.

    Returns:
        One map for each network, in float64; that of the first changes nothing.
    """
    first = features[0].double()
    zeros, unit = torch.zeros(first.shape[1]).double(), torch.eye(first.shape[1]).double()
    others = enumerate(features[1:], start=2)
    return [
        Alignment(zeros, unit, zeros),
        *(fit_alignment(own[folds_n != fold], features[0][folds_n != fold]) for fold, own in others),
    ]
