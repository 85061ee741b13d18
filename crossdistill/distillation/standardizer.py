"""The maps of ``--standardize mean-variance`` and ``phi-s``: embeddings of mean 0 and variance 1.

The embeddings of different networks differ in scale by orders of magnitude, and in a sum of regressions the largest
dominates the others (Ranzinger et al., PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation, ICLR
2025, arXiv 2410.01680). Objectives on angles do not depend on the scale; for them only the centre changes.

Shapes: N clips, E teacher features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Method = Literal["mean-variance", "phi-s"]
# A feature whose variance is below this share of the mean variance counts as constant.
MIN_VARIANCE_SHARE = 1e-6


@dataclass(frozen=True)
class Standardizer:
    """An affine map of embeddings: ``(features - mean) @ matrix.T``."""

    mean: Tensor
    """[E]."""
    matrix: Tensor
    """[E, E], or [E] for a map that only scales each feature."""

    def __call__(self, features: Tensor) -> Tensor:
        """Map features [B, E] to [B, E]."""
        centred = features - self.mean
        return centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix.T

    def to(self, device: torch.device) -> Standardizer:
        """Return the map on a device, in float32."""
        return replace(self, mean=self.mean.float().to(device), matrix=self.matrix.float().to(device))


def fit_standardizer(features: Tensor, *, method: Method) -> Standardizer:
    """Fit the map that gives every feature mean 0 and variance 1.

    ``mean-variance`` divides every feature by its own standard deviation. ``phi-s`` (Ranzinger et al.) rotates the
    principal axes so that all features have the same variance, and divides by one standard deviation: distances keep
    their proportions.

    Args:
        features: [N, E].
        method: One of the two methods.

    Example:
        >>> features = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
        >>> fit_standardizer(features, method="mean-variance").to(torch.device("cpu"))(features)
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    if method == "mean-variance":
        variance = centred.square().mean(dim=0)
        usual = variance.mean().clamp(min=1e-12)
        # A constant feature has no scale of its own. With the usual scale it stays small if it ever changes.
        return Standardizer(mean, torch.where(variance < usual * MIN_VARIANCE_SHARE, usual, variance).rsqrt())
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    scale = variances.clamp(min=0).mean().clamp(min=1e-12).rsqrt()
    return Standardizer(mean, scale * equalising_rotation(variances.clamp(min=0)) @ axes.T)


def equalising_rotation(variances: Tensor) -> Tensor:
    """Build a rotation that gives uncorrelated features the same variance: the mean of their variances.

    For powers of two this is a Hadamard matrix (Sylvester's construction), as in PHI-S. For other sizes, rotations of
    two features at a time each give one of them the mean; by the Schur-Horn theorem such a matrix always exists.

    Args:
        variances: [E], variances of the features.

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
        if low == high:  # the remaining variances are equal
            break
        a, b, c = (float(covariance[i, j]) for i, j in ((low, low), (high, high), (low, high)))
        # The tangent t of the angle at which `low` gets the mean solves a + 2 c t + b t² = mean (1 + t²).
        tangent = (-c + math.sqrt(max(0.0, c * c - (b - mean) * (a - mean)))) / (b - mean) if b > mean else 0.0
        cosine = 1 / math.sqrt(1 + tangent * tangent)
        turn = torch.tensor([[cosine, tangent * cosine], [-tangent * cosine, cosine]], dtype=torch.float64)
        pair = [low, high]
        matrix[pair] = turn @ matrix[pair]
        covariance[pair] = turn @ covariance[pair]
        covariance[:, pair] = covariance[:, pair] @ turn.T
        left.remove(low)
    return matrix
