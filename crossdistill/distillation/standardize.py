"""Teachers on one scale: mean 0 and variance 1, found on the training clips before training starts.

Embeddings of different networks differ in scale by orders of magnitude, and in a sum of regressions the largest would
drown the others (Ranzinger et al., PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation, ICLR 2025,
arXiv 2410.01680). Objectives that compare angles do not mind the scale; for them what changes is the centre.

Shapes: N clips, E teacher features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Method = Literal["mean-variance", "phi-s"]
# Share of the mean variance below which a feature is taken for constant.
MIN_VARIANCE_SHARE = 1e-6


@dataclass(frozen=True)
class Standardizer:
    """An affine map of embeddings."""

    mean: Tensor
    """[E]."""
    matrix: Tensor
    """[E, E], or [E] where features are only scaled."""

    def __call__(self, features: Tensor) -> Tensor:
        """[B, E] to [B, E]."""
        centred = features - self.mean
        return centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix.T

    def to(self, device: torch.device) -> Standardizer:
        """On a device, in float32."""
        return replace(self, mean=self.mean.float().to(device), matrix=self.matrix.float().to(device))


def fit_standardizer(features: Tensor, *, method: Method) -> Standardizer:
    """Find the map after which every feature has mean 0 and variance 1.

    ``mean-variance`` divides every feature by its own deviation. ``phi-s`` (Ranzinger et al.) turns the
    principal axes so that all features have the same variance, and divides by one deviation: distances keep their
    proportions.

    Args:
        features: [N, E].
        method: Which.
    """
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    if method == "mean-variance":
        variance = centred.square().mean(dim=0)
        usual = variance.mean().clamp(min=1e-12)
        # A feature that never moved has no scale of its own: with the usual one it stays small if it ever does.
        return Standardizer(mean, torch.where(variance < usual * MIN_VARIANCE_SHARE, usual, variance).rsqrt())
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    scale = variances.clamp(min=0).mean().clamp(min=1e-12).rsqrt()
    return Standardizer(mean, scale * equalising_rotation(variances.clamp(min=0)) @ axes.T)


def equalising_rotation(variances: Tensor) -> Tensor:
    """An orthogonal matrix after which features of these variances all have their mean.

    A Hadamard matrix where Sylvester's construction has one, as in PHI-S; for other sizes rotations of two features at
    a time, each of which gives one of them the mean (Schur and Horn: there always is such a matrix).

    Args:
        variances: [E], of uncorrelated features.

    Returns:
        [E, E] float64.
    """
    size = len(variances)
    if size & (size - 1) == 0:
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while len(matrix) < size:
            matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
        return matrix / math.sqrt(size)
    return _rotate_pairs(variances.double())


def _rotate_pairs(variances: Tensor) -> Tensor:
    matrix = torch.eye(len(variances), dtype=torch.float64)
    covariance = torch.diag(variances)
    mean = float(variances.mean())
    left = list(range(len(variances)))
    while len(left) > 1:
        diagonal = covariance.diagonal()[left]
        low, high = left[int(diagonal.argmin())], left[int(diagonal.argmax())]
        if low == high:  # all that are left are equal
            break
        a, b, c = (float(covariance[i, j]) for i, j in ((low, low), (high, high), (low, high)))
        # (cos, sin) of the angle at which the lower one has the mean: a + 2 c t + b t² = mean (1 + t²), t = tan.
        tangent = (-c + math.sqrt(max(0.0, c * c - (b - mean) * (a - mean)))) / (b - mean) if b > mean else 0.0
        cosine = 1 / math.sqrt(1 + tangent * tangent)
        turn = torch.tensor([[cosine, tangent * cosine], [-tangent * cosine, cosine]], dtype=torch.float64)
        pair = [low, high]
        matrix[pair] = turn @ matrix[pair]
        covariance[pair] = turn @ covariance[pair]
        covariance[:, pair] = covariance[:, pair] @ turn.T
        left.remove(low)
    return matrix
