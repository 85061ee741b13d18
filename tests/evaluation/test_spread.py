"""Effective rank and uniformity against naive implementations and closed forms."""

import math

import numpy as np
import pytest
import torch

from crossdistill.errors import UserError
from crossdistill.evaluation import spread
from crossdistill.evaluation.spread import effective_rank, feature_spread, uniformity


def features(num_clips=23, dim=5):
    return torch.randn(num_clips, dim, generator=torch.Generator().manual_seed(0)) + 1


def test_effective_rank__equals_the_definition():
    rows = features().double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    values = np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(rows.T, bias=True)), 0, None))  # another way to them
    shares = values / values.sum()
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert effective_rank(features()) == pytest.approx(expected, rel=1e-6) and 2 < expected < 5


def test_uniformity__equals_the_mean_over_pairs(monkeypatch):
    monkeypatch.setattr(spread, "_CLIPS_AT_ONCE", 4)
    rows = torch.nn.functional.normalize(features().double(), dim=1)
    pairs = [(x - y).square().sum() for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
    expected = math.log(sum(math.exp(-2 * float(distance)) for distance in pairs) / len(pairs))
    assert uniformity(features()) == pytest.approx(expected)


def test_spread__of_collapsed_and_of_random_features():
    one_point, line = torch.full((50, 8), 0.3), torch.tensor([[1.0, 0.0], [-2.0, 0.0]]).repeat(10, 1)
    assert feature_spread(one_point) == spread.FeatureSpread(0.0, 8, pytest.approx(0, abs=1e-12))
    assert effective_rank(line) == pytest.approx(1)
    assert feature_spread(torch.zeros(9, 4)) == spread.FeatureSpread(0.0, 4, 0.0)
    wide = torch.randn(400, 128, generator=torch.Generator().manual_seed(1))
    found = feature_spread(wide)
    assert 100 < found.effective_rank < found.highest_rank == 128 and found.uniformity == pytest.approx(-4, abs=0.1)


def test_spread__refuses_what_has_none():
    with pytest.raises(UserError, match="at least 2 clips"):
        feature_spread(torch.ones(1, 3))
    with pytest.raises(UserError, match="NaN"):
        effective_rank(torch.full((4, 3), math.nan))
