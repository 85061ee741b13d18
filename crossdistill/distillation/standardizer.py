"""The maps of ``--standardize``: embeddings of mean 0 and variance 1.

``Standardizer`` is measured before training (``mean-variance``, ``phi-s``), ``RunningStandardizer`` follows the batches
of training (``running``).

The embeddings of different networks differ in scale by orders of magnitude, and in a sum of regressions the largest
dominates the others (Ranzinger et al., PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation, ICLR
2025, arXiv 2410.01680). All terms of a loss and the memory bank get the standardised embeddings. For objectives on
angles, such as CompRess, ``phi-s`` changes only the centre; scaling each feature by itself changes the angles as well.

Shapes: N clips, E teacher features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Method = Literal["mean-variance", "phi-s"]
# A feature whose variance is below this share of the mean variance counts as constant.
MIN_VARIANCE_SHARE = 1e-6
MIN_MOMENTUM = 0.001
"""Smallest weight of a new batch in running statistics, the paper's last one."""


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
        return Standardizer(mean, _scale_of(centred.square().mean(dim=0)))
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    scale = variances.clamp(min=0).mean().clamp(min=1e-12).rsqrt()
    return Standardizer(mean, scale * equalising_rotation(variances.clamp(min=0)) @ axes.T)


def _scale_of(variance: Tensor) -> Tensor:
    """Return the factor [E] that gives features of these variances [E] variance 1."""
    usual = variance.mean().clamp(min=1e-12)
    # A constant feature has no scale of its own. With the usual scale it stays small if it ever changes.
    return torch.where(variance < usual * MIN_VARIANCE_SHARE, usual, variance).rsqrt()


class RunningStandardizer:
    """Gives every feature mean 0 and variance 1 by the mean and the variance of the batches seen so far.

    Sariyildiz et al., UNIC, ECCV 2024, arXiv 2408.05088: an exponential moving average (EMA) whose momentum, the weight
    of a new batch, goes from 1 down to 0.001. Deviations: the momentum of batch n is 1 / n, and no less than 0.001,
    where the paper's follows a cosine over the run, so that the statistics do not depend on the length of the run and
    soon rest on many batches; the variance is that of the mixture of all batches, shifts between their means included,
    where the authors' code averages the batches' deviations; a batch is counted before it is standardised. Thus the
    first 1,000 batches of equal size give exactly the mean and the variance of all their features.

    Before the first batch it changes nothing.

    Args:
        num_features: E.
        device: Device of the statistics.

    Example:
        >>> standardizer = RunningStandardizer(2)
        >>> for batch in ([[0.0, 10.0]], [[2.0, 30.0]]):
        ...     standardizer.update(torch.tensor(batch))
        >>> standardizer(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """

    def __init__(self, num_features: int, device: torch.device | None = None) -> None:
        self.mean = torch.zeros(num_features, device=device)
        self.variance = torch.ones(num_features, device=device)
        self.num_batches = 0

    def __call__(self, features: Tensor) -> Tensor:
        """Map features [B, E] to [B, E]."""
        return (features - self.mean) * _scale_of(self.variance)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Count a batch [B, E]. In distributed training every process passes the batches of all processes."""
        self.num_batches += 1
        momentum = max(1 / self.num_batches, MIN_MOMENTUM)
        shift = features.mean(dim=0) - self.mean
        spread = features.var(dim=0, correction=0) + (1 - momentum) * shift.square()
        self.variance = (1 - momentum) * self.variance + momentum * spread
        self.mean = self.mean + momentum * shift

    def state_dict(self) -> dict[str, Tensor]:
        """Return tensors for a checkpoint."""
        return {"mean": self.mean, "variance": self.variance, "num_batches": torch.tensor(self.num_batches)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self.mean, self.variance = (state[name].to(self.mean.device) for name in ("mean", "variance"))
        self.num_batches = int(state["num_batches"])


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
