"""How well an embedding spreads clips: two measures that need no labels. Shapes: N clips, D features."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import check_features

_CLIPS_AT_ONCE = 512
SPREAD_TITLES = ("effective rank", "uniformity")
# Temperature t of uniformity, as in the paper's experiments.
_TEMPERATURE = 2.0
# Share of the squared norm that the variance must exceed: rounding errors of float64 means stay below it.
_CONSTANT_SHARE = 1e-24


@dataclass(frozen=True)
class FeatureSpread:
    """Both measures of one network on one set of clips."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    effective_rank: float
    """Effective number of dimensions in which the clips differ, from 1 (all on one line) to ``highest_rank``; 0 if all
    clips have the same embedding."""
    highest_rank: int
    """The largest possible effective rank: the smaller of the number of features and the number of clips minus 1."""
    uniformity: float
    """0 if all clips have the same embedding, lower for clips that are spread over the sphere; about -4 at best."""


def spread_texts(spread: FeatureSpread) -> tuple[str, str]:
    """Format both measures for a table, under ``SPREAD_TITLES``."""
    return f"{spread.effective_rank:.1f} of {spread.highest_rank}", f"{spread.uniformity:.2f}"


def feature_spread(features_nd: Tensor) -> FeatureSpread:
    """Compute both measures of the features [N, D] of two or more clips."""
    highest = min(features_nd.shape[1], len(features_nd) - 1)
    return FeatureSpread(effective_rank(features_nd), highest, uniformity(features_nd))


def effective_rank(features_nd: Tensor) -> float:
    """Compute the exponential of the entropy of the singular values, divided by their sum.

    Roy, Vetterli, "The Effective Rank: A Measure of Effective Dimensionality", EUSIPCO 2007, definition 1. Here the
    rows of the matrix are L2-normalised, as all objectives see them, and centred, because a direction that all clips
    share tells none of them apart.

    The features are [N, D]. The rank is 0 if all clips have the same embedding. Fewer than 2 clips, and NaN or infinite
    features are a ``UserError``.

    Example:
        >>> corners = torch.cat([torch.eye(3), -torch.eye(3)])  # three directions, equally far
        >>> round(effective_rank(corners), 6)
        3.0
    """
    unit_nd = _unit(features_nd)
    centred_nd = unit_nd - unit_nd.mean(0)
    if float(centred_nd.square().sum()) <= _CONSTANT_SHARE * len(unit_nd):
        return 0.0
    values = torch.linalg.svdvals(centred_nd)
    return math.exp(float(torch.special.entr(values / values.sum()).sum()))


def uniformity(features_nd: Tensor) -> float:
    """Compute the logarithm of the mean Gaussian potential of all pairs of different clips.

    Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020: log E exp(-t ‖x - y‖²) of L2-normalised features x and y, with t = 2.

    The features are [N, D]. Fewer than 2 clips, and NaN or infinite features are a ``UserError``.

    Example:
        >>> round(uniformity(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])), 6)  # squared distance of opposites: 4
        -8.0
    """
    unit_nd = _unit(features_nd)
    num_clips, total = len(unit_nd), 0.0
    square_n = unit_nd.square().sum(1)  # 1, but 0 for features that are all 0
    for rows, square_b in zip(unit_nd.split(_CLIPS_AT_ONCE), square_n.split(_CLIPS_AT_ONCE), strict=True):
        squared_distance_bn = (square_b[:, None] + square_n - 2 * rows @ unit_nd.T).clamp(min=0)
        total += float(torch.exp(-_TEMPERATURE * squared_distance_bn).sum())
    # Each clip's pair with itself has the potential 1.
    return math.log((total - num_clips) / (num_clips * (num_clips - 1)))


def _unit(features_nd: Tensor) -> Tensor:
    check_features("given", features_nd)
    if len(features_nd) < 2:
        raise UserError("the spread of features needs at least 2 clips, not 1: give more")
    return F.normalize(features_nd.cpu().double(), dim=1)
