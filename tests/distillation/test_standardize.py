"""Teachers on one scale."""

import pytest
import torch

from crossdistill.distillation.standardizer import equalising_rotation, fit_standardizer


def correlated(num_clips, num_features):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-3, 2, num_features, dtype=torch.float64)
    return torch.randn(num_clips, num_features, generator=generator, dtype=torch.float64) * scales @ mix + 7


@pytest.mark.parametrize("method", ["mean-variance", "phi-s"])
@pytest.mark.parametrize("num_features", [2, 8, 13])
def test_features__have_mean_zero_and_variance_one(method, num_features):
    features = correlated(200, num_features)
    standardized = fit_standardizer(features, method=method)(features)
    torch.testing.assert_close(standardized.mean(dim=0), torch.zeros(num_features).double(), atol=1e-8, rtol=0)
    variance = standardized.var(dim=0, correction=0)
    torch.testing.assert_close(variance, torch.ones(num_features).double(), atol=1e-6, rtol=0)


def test_phi_s__keeps_the_proportions_of_distances_and_mean_variance_does_not():
    features = correlated(20, 6)

    def ratios(standardizer):
        distances = torch.pdist(standardizer(features)) / torch.pdist(features)
        return distances / distances.mean()

    same = ratios(fit_standardizer(features, method="phi-s"))
    torch.testing.assert_close(same, torch.ones_like(same))
    assert ratios(fit_standardizer(features, method="mean-variance")).std() > 0.01


@pytest.mark.parametrize("size", [1, 4, 16, 3, 7, 30])
def test_rotation__is_orthogonal_and_makes_variances_equal(size):
    variances = torch.logspace(-4, 3, size, dtype=torch.float64)
    matrix = equalising_rotation(variances)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    turned = (matrix * variances) @ matrix.T
    torch.testing.assert_close(turned.diagonal(), variances.mean().expand(size))


@pytest.mark.parametrize("method", ["mean-variance", "phi-s"])
def test_constant_features_and_few_clips__stay_finite(method):
    features = correlated(3, 8)
    features[:, 2] = 5.0
    assert fit_standardizer(features, method=method)(features).isfinite().all()


def test_a_feature_that_never_moved__stays_of_the_others_size_when_it_does():
    features = correlated(200, 8)
    features[:, 2] = 5.0
    standardizer = fit_standardizer(features, method="mean-variance")
    moved = features[:1].clone()
    moved[:, 2] += features[:, [0, 1, 3, 4, 5, 6, 7]].std()
    assert standardizer(moved).abs().max() < 6
