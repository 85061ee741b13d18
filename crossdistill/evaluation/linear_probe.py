"""Train the linear layer that several protocols share, on frozen features.

The training is that of CompRess (Koohpayegani, Tejankar, Pirsiavash, "CompRess: Self-Supervised Learning by
Compressing Representations", NeurIPS 2020, section 4, "Linear Evaluation"; the authors' ``eval_linear.py``): features
are L2-normalised, then standardised with the train set's mean and variance; one linear layer; cross-entropy; SGD with
learning rate 0.01, momentum 0.9 and weight decay 1e-4 on weight and bias; 40 epochs, learning rate × 0.1 after 15 and
30. The accuracy is that of the last epoch.

Deviations: the layer starts at zero instead of at random values. The loss is convex, so the start only decides how far
the optimum is, and the seed then decides the order of clips alone. Features are cached, so training clips are not
augmented. The batch is smaller on small sets (``batch_size_for``).

A video with several views gives one training clip for each view, and a test video is classified by the mean of its
views' class probabilities.

Shapes: N clips (or videos), V views of a video, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import check_features, check_labels
from crossdistill.evaluation.features import Features

LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
NUM_EPOCHS = 40
MILESTONES = (15, 30)
PAPER_BATCH_SIZE = 256
SMALLEST_BATCH_SIZE = 8
STEPS_PER_EPOCH = 32
SMALLEST_SHARED_PRODUCT = 2**21
"""Multiply-adds of a step from which on several threads of a CPU pay; below, threads wait for each other."""
VARIANCE_OFFSET = 1e-5
"""Added to the variance of each feature before the root, as the authors do: a constant feature becomes 0, not NaN."""


@dataclass(frozen=True)
class LinearProbe:
    """A trained linear layer and the statistics that standardise its input."""

    mean_d: Tensor
    """[D] mean of the L2-normalised train features."""
    inverse_std_d: Tensor
    """[D] 1 / sqrt(variance + ``VARIANCE_OFFSET``)."""
    weight_dc: Tensor
    """[D, C]."""
    bias_c: Tensor
    """[C]; -inf for a class without training clips, which is then never predicted and never a hit."""

    def scores(self, features_nd: Tensor) -> Tensor:
        """Compute the logits [N, C] of raw features [N, D], on the device of the probe."""
        features_nd = normalize(features_nd.to(self.mean_d))
        return torch.addmm(self.bias_c, (features_nd - self.mean_d) * self.inverse_std_d, self.weight_dc)


def batch_size_for(num_clips: int) -> int:
    """Choose the batch: the paper's 256 from 8,192 clips on, N // 32 below, never under 8.

    On 400 clips the paper's 256 would mean 80 steps in all, most of them at a lowered learning rate: no convergence.
    Measured on Gaussian classes, test accuracy of batch N // 2, N // 8, N // 32: with correlated features of decaying
    variance, as encoders give them, 0.56, 0.74, 0.83 (400 clips, 128 dimensions, 8 classes), 0.72, 0.84, 0.88 (512
    dimensions) and 0.25, 0.35, 0.54 (1,000 clips, 512 dimensions, 50 classes). With independent features, which
    converge fast, the smaller batch costs at most 0.03.
    """
    return min(PAPER_BATCH_SIZE, max(SMALLEST_BATCH_SIZE, num_clips // STEPS_PER_EPOCH))


@torch.no_grad()
def train_linear_probe(
    *,
    features_nd: Tensor,
    labels_n: Tensor,
    num_classes: int,
    seed: int = 0,
    batch_size: int | None = None,
    lr: float = LEARNING_RATE,
    weight_decay: float = WEIGHT_DECAY,
) -> LinearProbe:
    """Train a linear layer, as the head of this file describes, on features [N, D] of any scale and int64 labels [N].

    Runs on the device of the features and in their precision, in float32 at least. The same inputs and seed give the
    same layer to the bit on the same machine. The seed decides the order of clips, ``batch_size`` None stands for
    ``batch_size_for(N)``, ``lr`` is the learning rate before its two drops. Features or labels that ``check_features``
    and ``check_labels`` reject, or a batch below 1, are a ``UserError``.
    """
    check_features("train", features_nd)
    check_labels("train", labels_n, num_clips=len(features_nd), num_classes=num_classes)
    batch_size = batch_size_for(len(features_nd)) if batch_size is None else batch_size
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    unit_nd = normalize(features_nd.to(torch.promote_types(features_nd.dtype, torch.float32)))
    variance_d, mean_d = torch.var_mean(unit_nd, dim=0, correction=min(1, len(unit_nd) - 1))
    inverse_std_d = (variance_d + VARIANCE_OFFSET).rsqrt()
    inputs_nd = unit_nd.sub_(mean_d).mul_(inverse_std_d)
    labels_n = labels_n.to(inputs_nd.device).long()
    num_threads = torch.get_num_threads()
    if batch_size * inputs_nd.shape[1] * num_classes < SMALLEST_SHARED_PRODUCT:
        torch.set_num_threads(1)
    try:
        weight_dc, bias_c = _descend(inputs_nd, labels_n, num_classes, seed, batch_size, lr, weight_decay)
    finally:
        torch.set_num_threads(num_threads)
    bias_c[torch.bincount(labels_n, minlength=num_classes) == 0] = -torch.inf
    return LinearProbe(mean_d=mean_d, inverse_std_d=inverse_std_d, weight_dc=weight_dc, bias_c=bias_c)


def train_on(features: Features, num_classes: int, **options: Any) -> LinearProbe:
    """Train a layer on every view of every video; ``options`` go to ``train_linear_probe``."""
    num_views = features.views_nvd.shape[1]
    return train_linear_probe(
        features_nd=features.views_nvd.flatten(0, 1),
        labels_n=features.labels.repeat_interleave(num_views),
        num_classes=num_classes,
        **options,
    )


def class_scores(probe: LinearProbe, views_nvd: Tensor) -> Tensor:
    """Score classes by the log of the mean over views of class probabilities: [N, C].

    A single view is scored by its logits, which give the same order: probabilities near 1 are equal in floating point
    where logits are not.
    """
    num_views = views_nvd.shape[1]
    logits_nvc = probe.scores(views_nvd.flatten(0, 1)).unflatten(0, (-1, num_views))
    if num_views == 1:
        return logits_nvc[:, 0]
    return mean_probabilities(logits_nvc.unbind(1))


def mean_probabilities(logits_nc: Sequence[Tensor]) -> Tensor:
    """Combine the logits [N, C] of several models (or views): the log of the sum of their class probabilities."""
    return torch.stack([logits.double().log_softmax(1) for logits in logits_nc]).logsumexp(0)


def _descend(
    inputs_nd: Tensor, labels_n: Tensor, num_classes: int, seed: int, batch_size: int, first_lr: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Train from zero by SGD with momentum as in ``torch.optim.SGD``: weight [D, C] and bias [C] of the last epoch.

    The gradient of cross-entropy by the logits is (softmax - one-hot) / B. It is written out: without autograd a step
    is a handful of small operations.
    """
    num_clips, dim = inputs_nd.shape
    weight_dc, bias_c = inputs_nd.new_zeros(dim, num_classes), inputs_nd.new_zeros(num_classes)
    weight_velocity_dc, bias_velocity_c = torch.zeros_like(weight_dc), torch.zeros_like(bias_c)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(NUM_EPOCHS):
        lr = first_lr * 0.1 ** sum(epoch >= milestone for milestone in MILESTONES)
        order_n = torch.randperm(num_clips, generator=generator).to(inputs_nd.device)
        for batch in order_n.split(batch_size):
            batch_bd, labels_b1 = inputs_nd[batch], labels_n[batch, None]
            slope_bc = torch.addmm(bias_c, batch_bd, weight_dc).softmax(1)
            slope_bc.scatter_add_(1, labels_b1, slope_bc.new_full(labels_b1.shape, -1.0)).div_(len(batch))
            weight_velocity_dc.mul_(MOMENTUM).addmm_(batch_bd.T, slope_bc).add_(weight_dc, alpha=decay)
            bias_velocity_c.mul_(MOMENTUM).add_(slope_bc.sum(0)).add_(bias_c, alpha=decay)
            weight_dc.sub_(weight_velocity_dc, alpha=lr)
            bias_c.sub_(bias_velocity_c, alpha=lr)
    return weight_dc, bias_c
