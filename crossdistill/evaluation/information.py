"""Mutual information of two embeddings, and of an embedding and the classes, from a few hundred clips.

Both are estimated in one way: by how much a linear model fitted on other clips predicts the target better than it is
predicted without the embedding, the mean over clips of log q(target | embedding) - log q(target) in nats. This is the
variational lower bound of Barber and Agakov ("The IM Algorithm", NIPS 2003) with the models of Xu et al. ("A Theory of
Usable Information Under Computational Constraints", ICLR 2020): linear regression with Gaussian noise for embeddings,
linear discriminant analysis for classes. Clips that were not fitted cannot be overfitted, so that without a dependence
the figure is about 0 or a little below; a dependence that is not linear is missed. The bound needs targets that are
Gaussian, which components of embeddings are only about.

Shapes: N clips, D and E features of two networks, P components, F folds, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

# Principal components of each embedding. Each costs about P / (2 N) nats of bias below the true value.
MAX_COMPONENTS = 8
CLIPS_PER_COMPONENT = 25
NUM_FOLDS = 10
# With fewer labelled clips of each class on average, the classes are not estimated.
MIN_CLIPS_PER_CLASS = 4
# Half of a 95 % interval, in standard errors.
NUM_STANDARD_ERRORS_95 = 1.96
# Share of the largest variance below which a component is no direction of the data.
_LEAST_VARIANCE_SHARE = 1e-10


@dataclass(frozen=True)
class Information:
    """An estimate in nats. It may be a little below 0, which stands for 0."""

    nats: float
    standard_error: float
    """Over videos; clips of one group (a source film, a person) count as one."""
    highest_shuffled: float
    """The highest estimate of random pairings of the clips."""

    @property
    def half_interval(self) -> float:
        """Half of the 95 % interval."""
        return NUM_STANDARD_ERRORS_95 * self.standard_error

    @property
    def is_above_chance(self) -> bool:
        """Whether no random pairing has as much."""
        return self.nats > self.highest_shuffled


@dataclass(frozen=True)
class SharedInformation:
    """What a student's embedding shares with the teacher's, and with the classes."""

    num_components: int
    """Leading principal components of each embedding that are compared."""
    with_teacher: Information
    with_labels: Information | None
    """None without labels, or with too few of them."""
    difference: tuple[float, float] | None
    """Mean over labelled clips of the first minus the second, and its standard error; None without the second."""


def shared_information(
    teacher_ne: Tensor, student_nd: Tensor, labels_n: Tensor, groups_n: Tensor, *, num_shuffles: int
) -> SharedInformation | None:
    """Estimate both figures for embeddings of the same clips.

    Args:
        teacher_ne: Features [N, E].
        student_nd: Features [N, D].
        labels_n: Classes [N] int64; negative for a clip without a label.
        groups_n: Number of the group of each clip [N] int64. Clips of a group are fitted or predicted together.
        num_shuffles: Number of random pairings.

    Returns:
        None if there are fewer than ``CLIPS_PER_COMPONENT`` clips, or one group, or an embedding is a single point.
    """
    num_components = min(MAX_COMPONENTS, len(groups_n) // CLIPS_PER_COMPONENT)
    folds_n = folds_of(groups_n)
    if num_components == 0 or int(folds_n.max()) == 0:
        return None
    teacher_np, student_np = (leading_components(features, num_components) for features in (teacher_ne, student_nd))
    if min(teacher_np.shape[1], student_np.shape[1]) == 0:
        return None
    shuffles = _shuffles(len(groups_n), num_shuffles)
    taught_n = predicted_embedding(student_np, teacher_np, folds_n)
    shuffled = [predicted_embedding(student_np, teacher_np[order], folds_n).mean() for order in shuffles]
    found = _estimate(taught_n, groups_n, shuffled)
    is_labelled = labels_n >= 0
    num_classes = len(labels_n[is_labelled].unique())
    if num_classes < 2 or int(is_labelled.sum()) < MIN_CLIPS_PER_CLASS * num_classes:
        return SharedInformation(num_components, found, None, None)
    classes_n = labels_n[is_labelled].unique(return_inverse=True)[1]
    own_np, own_folds_n, own_groups_n = student_np[is_labelled], folds_n[is_labelled], groups_n[is_labelled]
    said_n = predicted_classes(own_np, classes_n, own_folds_n)
    shuffled = [
        predicted_classes(own_np, classes_n[order], own_folds_n).mean()
        for order in _shuffles(len(classes_n), num_shuffles)
    ]
    difference_n = taught_n[is_labelled] - said_n
    return SharedInformation(
        num_components,
        found,
        _estimate(said_n, own_groups_n, shuffled),
        (difference_n.mean().item(), _standard_error(difference_n, own_groups_n)),
    )


def leading_components(features_nd: Tensor, num_components: int) -> Tensor:
    """Return the leading principal components [N, P] of unit embeddings, each with variance 1, in float64.

    There are fewer than asked for if the features differ in fewer directions. Labels and the other embedding play no
    part, so that all clips may be used.
    """
    unit_nd = normalize(features_nd.cpu().double(), dim=1)
    centred_nd = unit_nd - unit_nd.mean(0)
    left_nr, scale_r, _ = torch.linalg.svd(centred_nd, full_matrices=False)
    is_direction_r = scale_r.square() > _LEAST_VARIANCE_SHARE * max(float(unit_nd.square().sum()), 1.0)
    return left_nr[:, is_direction_r][:, :num_components] * math.sqrt(len(features_nd))


def folds_of(groups_n: Tensor, *, seed: int = 0) -> Tensor:
    """Assign every group to one of ``NUM_FOLDS`` folds of about equal numbers of groups: [N] int64."""
    groups, group_n = groups_n.unique(return_inverse=True)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))
    fold_of_group = torch.empty(len(groups), dtype=torch.int64)
    fold_of_group[order] = torch.arange(len(groups)) % NUM_FOLDS
    return fold_of_group[group_n]


def predicted_embedding(source_np: Tensor, target_nq: Tensor, folds_n: Tensor) -> Tensor:
    """Compute log q(target | source) - log q(target) [N] in nats, by linear regression with Gaussian noise.

    The covariances are those of predictions, which are wider than those of the fitted clips.
    """

    def predict(train: Tensor, test: Tensor) -> Tensor:
        num_train = len(train)
        ones = torch.ones(len(source_np), 1, dtype=source_np.dtype)
        gains = []
        for inputs in (torch.cat([ones, source_np], 1), ones):
            num_inputs = inputs.shape[1]
            weights = torch.linalg.lstsq(inputs[train], target_nq[train]).solution
            residuals = target_nq - inputs @ weights
            scatter = residuals[train].T @ residuals[train] / max(num_train - num_inputs, 1)
            gains.append(_log_density(residuals[test], scatter * (1 + num_inputs / num_train)))
        return gains[0] - gains[1]

    return _by_fold(predict, folds_n)


def predicted_classes(source_np: Tensor, classes_n: Tensor, folds_n: Tensor) -> Tensor:
    """Compute log q(class | source) - log q(class) [N] in nats, by linear discriminant analysis.

    ``classes_n`` counts from 0. A class without a fitted clip has the mean of all.
    """
    num_classes = int(classes_n.max()) + 1

    def predict(train: Tensor, test: Tensor) -> Tensor:
        is_class_nc = one_hot(classes_n[train], num_classes).to(source_np.dtype)
        count_c = is_class_nc.sum(0)
        mean_cp = is_class_nc.T @ source_np[train] / count_c.clamp(min=1)[:, None]
        mean_cp[count_c == 0] = source_np[train].mean(0)
        residuals = source_np[train] - mean_cp[classes_n[train]]
        scatter = residuals.T @ residuals / max(len(train) - num_classes, 1)
        log_prior_c = ((count_c + 1) / (len(train) + num_classes)).log()
        log_joint = torch.stack(
            [
                _log_density(source_np[test] - mean_cp[c], scatter * (1 + 1 / max(float(count_c[c]), 1.0)))
                + log_prior_c[c]
                for c in range(num_classes)
            ],
            dim=1,
        )
        right = classes_n[test]
        return log_joint.log_softmax(1).gather(1, right[:, None])[:, 0] - log_prior_c[right]

    return _by_fold(predict, folds_n)


def _by_fold(predict: Callable[[Tensor, Tensor], Tensor], folds_n: Tensor) -> Tensor:
    """Predict the clips of each fold from those of all others."""
    gains_n = torch.empty(len(folds_n), dtype=torch.float64)
    for fold in folds_n.unique():
        is_test = folds_n == fold
        gains_n[is_test] = predict((~is_test).nonzero()[:, 0], is_test.nonzero()[:, 0])
    return gains_n


def _log_density(residuals_np: Tensor, covariance_pp: Tensor) -> Tensor:
    """Compute the logarithm [N] of a Gaussian density, without the constant that every model shares."""
    # Of a covariance that is singular only the part that the clips span counts.
    floor = 1e-9 * covariance_pp.diagonal().mean() + 1e-30
    factor = torch.linalg.cholesky(covariance_pp + floor * torch.eye(len(covariance_pp), dtype=covariance_pp.dtype))
    scaled_pn = torch.linalg.solve_triangular(factor, residuals_np.T, upper=False)
    return -0.5 * scaled_pn.square().sum(0) - factor.diagonal().log().sum()


def _shuffles(num_clips: int, num_shuffles: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randperm(num_clips, generator=generator) for _ in range(num_shuffles)]


def _estimate(gains_n: Tensor, groups_n: Tensor, shuffled: Sequence[Tensor]) -> Information:
    return Information(gains_n.mean().item(), _standard_error(gains_n, groups_n), max(map(float, shuffled)))


def _standard_error(gains_n: Tensor, groups_n: Tensor) -> float:
    """Return the standard error of a mean over clips whose groups are independent."""
    groups, group_n = groups_n.unique(return_inverse=True)
    deviations = torch.zeros(len(groups), dtype=gains_n.dtype).index_add(0, group_n, gains_n - gains_n.mean())
    return float(deviations.square().sum().sqrt()) / len(gains_n)
