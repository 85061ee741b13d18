"""Teachers on one scale."""

import pytest
import torch
from torch import nn

import crossdistill
from crossdistill.distillation.standardizer import RunningStandardizer, equalising_rotation, fit_standardizer
from crossdistill.distillation.teachers import StandardizedTeacher, Teacher
from crossdistill.encoders import create_encoder
from crossdistill.recipes.config import parse
from crossdistill.recipes.identity import identity


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


def test_running__of_few_batches_is_the_map_of_all_their_features():
    features = correlated(120, 6)
    running = RunningStandardizer(6)
    torch.testing.assert_close(running(features), features)  # nothing before the first batch
    for batch in features.split(8):
        running.update(batch)
    measured = fit_standardizer(features, method="mean-variance")
    torch.testing.assert_close(running.mean, measured.mean)
    torch.testing.assert_close(running(features), measured(features))


def test_running__equals_a_naive_mixture_of_batches_whose_weights_end_at_a_thousandth():
    """Sums of weighted first and second moments, feature by feature."""
    torch.manual_seed(0)
    running = RunningStandardizer(2)
    first, second = [0.0, 0.0], [0.0, 0.0]
    for number in range(1, 1501):
        batch = torch.randn(4, 2, dtype=torch.float64) * number**0.5 + 0.01 * number
        running.update(batch)
        momentum = max(1 / number, 0.001)
        for i in range(2):
            values = [float(value) for value in batch[:, i]]
            first[i] += momentum * (sum(values) / 4 - first[i])
            second[i] += momentum * (sum(value * value for value in values) / 4 - second[i])
    for i in range(2):
        assert float(running.mean[i]) == pytest.approx(first[i], rel=1e-6)
        assert float(running.variance[i]) == pytest.approx(second[i] - first[i] ** 2, rel=1e-6)


def test_running__constant_features_stay_finite_and_the_state_comes_back():
    features = correlated(6, 8)
    features[:, 2] = 5.0
    running, other = RunningStandardizer(8), RunningStandardizer(8)
    running.update(features[:1])  # of one sample nothing has a variance
    assert running(features[:1]).isfinite().all()
    running.update(features)
    other.load_state_dict(running.state_dict())
    for each in (running, other):
        each.update(features.flip(1))
    assert torch.equal(running(features), other(features)) and running(features).isfinite().all()


def test_running__counts_the_batches_of_all_processes_in_training_alone():
    student, teacher = (create_encoder(f"{name}_tiny3d_8", num_frames=4, size_px=16) for name in ("rgb", "rgb"))
    clips, others = torch.randn(2, 4, 3, 4, 16, 16).unbind()
    embedded = [teacher.eval()(each).detach() for each in (clips, others)]
    distiller = crossdistill.Distiller(
        student=student,
        teachers=teacher,
        objective="unic",
        gather=lambda tensor: torch.cat([tensor, embedded[1]]),
    )
    (comparison,) = distiller.comparisons
    distiller.eval()(clips)
    assert comparison.standardizer.num_batches == 0
    output = distiller.train()(clips)
    expected = fit_standardizer(torch.cat(embedded), method="mean-variance")
    torch.testing.assert_close(comparison.standardizer.mean, expected.mean.float())
    targets = expected(embedded[0].double()).float()
    torch.testing.assert_close(comparison.standardizer(embedded[0]), targets, atol=1e-4, rtol=1e-4)
    predicted = distiller._call(clips)["unic"]
    naive = (1 - torch.cosine_similarity(predicted, targets).mean()) / 2
    naive = naive + torch.nn.functional.smooth_l1_loss(predicted, targets) / 2
    torch.testing.assert_close(output.loss, naive, atol=1e-4, rtol=1e-4)
    state = distiller.resume_state()
    distiller(clips)
    distiller.load_resume_state(state)
    assert comparison.standardizer.num_batches == 1


@pytest.mark.parametrize(
    ("objective", "chosen", "is_standardized"),
    [
        ("smooth-l1", None, True),
        (["compress-1q", "unic"], None, True),
        (["compress-1q", "simreg"], None, False),
        ("mse", None, False),
        ("smooth-l1", False, False),
        ("mse", True, True),
    ],
)
def test_distiller__standardizes_where_an_objective_expects_it_unless_told(objective, chosen, is_standardized):
    sizes = {"student_dim": 4, "teacher_dim": 6, "bank_size": 10}
    networks = {"student": nn.Linear(8, 4), "teachers": nn.Linear(8, 6)}
    distiller = crossdistill.Distiller(**networks, **sizes, objective=objective, standardizes=chosen)
    assert all((each.standardizer is not None) == is_standardized for each in distiller.comparisons)


def test_standardize_auto__is_for_a_resumed_run_what_it_was_decided_to_be():
    options = ["--teacher", "rgb_r3d10", "--student", "flow_r3d10", "--data", "x", "--objective"]
    for objective, decided, other in [("smooth-l1", "running", "none"), ("simreg", "none", "running")]:
        auto = identity(parse([*options, objective]))
        assert auto == identity(parse([*options, objective, "--standardize", decided]))
        assert auto != identity(parse([*options, objective, "--standardize", other]))


def test_standardized_teacher__forwards_every_member():
    """A member that falls back to the base would silently draw other clips or crops for a cached teacher."""
    members = {name for name in vars(Teacher) if not name.startswith("_")}
    here = StandardizedTeacher(StubTeacher(), fit_standardizer(torch.randn(9, 4), method="mean-variance"))
    assert members <= {*vars(StandardizedTeacher), *vars(here)} and here.has_own_crops and not here.sees_clips


class StubTeacher(Teacher):
    encoder, identity, has_own_crops, sees_clips = None, ["x"], True, False

    def embed(self, batch, *, with_tokens=False):
        return {}


def test_distiller__an_own_loop_without_ids_resumes_to_the_same_losses():
    """Samples without ids count as new: after a resume too, though their ids are counted by the distiller."""
    torch.manual_seed(0)
    clips = torch.randn(6, 5, 8)

    def losses(distiller, positions):
        found = []
        for i in positions:
            found.append(distiller(clips[i]).loss.item())
            distiller.after_step()
        return found

    def create():
        torch.manual_seed(1)
        networks = {"student": nn.Linear(8, 4), "teachers": nn.Linear(8, 6), "student_dim": 4, "teacher_dim": 6}
        return crossdistill.Distiller(**networks, bank_size=40, objective="infonce")

    whole, first, second = create(), create(), create()
    expected = losses(whole, range(6))
    before = losses(first, range(3))
    second.load_state_dict(first.state_dict())
    assert before + losses(second, range(3, 6)) == pytest.approx(expected, abs=1e-6)
