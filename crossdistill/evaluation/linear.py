"""Linear classification on cached features: how much of a class can be read off an encoder by one linear layer.

The protocol is that of CompRess (Koohpayegani, Tejankar, Pirsiavash, "CompRess: Self-Supervised Learning by
Compressing Representations", NeurIPS 2020, section 4, "Linear Evaluation"; the authors' ``eval_linear.py``): features
are L2-normalised, then standardised with the train set's mean and variance; one linear layer; cross-entropy; SGD with
learning rate 0.01, momentum 0.9 and weight decay 1e-4 on weight and bias; 40 epochs, learning rate × 0.1 after 15 and
30. The accuracy is that of the last epoch.

Deviations: the layer starts at zero instead of at random values. The loss is convex, so the start decides nothing
but how far there is to go, and at zero no seed enters except that of the order of clips. Features are cached, so
training clips are not augmented. The batch is smaller on small sets (``batch_size_for``).

Shapes: N clips, B batch, D features, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.evaluation.checks import (
    check_features,
    check_labels,
    check_split,
    classes_without_training_clips,
)
from crossdistill.evaluation.results import ProtocolResult, accuracy_from_scores, hits_from_scores, result_of

LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
NUM_EPOCHS = 40
MILESTONES = (15, 30)
PAPER_BATCH_SIZE = 256
SMALLEST_BATCH_SIZE = 8
STEPS_PER_EPOCH = 32
SMALLEST_SHARED_PRODUCT = 2**21
"""Multiply-adds of a step that are worth more than one thread of a CPU: below, threads wait for each other."""
VARIANCE_OFFSET = 1e-5
"""Added to each feature's variance before the root, as the authors do: a constant feature becomes 0, not NaN."""


@dataclass(frozen=True)
class LinearProbe:
    """A trained linear layer and the statistics that its input needs."""

    mean_d: Tensor
    """[D] mean of the L2-normalised train features."""
    inverse_std_d: Tensor
    """[D] 1 / sqrt(variance + ``VARIANCE_OFFSET``)."""
    weight_dc: Tensor
    """[D, C]."""
    bias_c: Tensor
    """[C]; -inf of a class without training clips, which is then never predicted and never a hit."""

    def scores(self, features_nd: Tensor) -> Tensor:
        """Give [N, C] logits of raw features, on the probe's device."""
        features_nd = _unit(features_nd.to(self.mean_d))
        return torch.addmm(self.bias_c, (features_nd - self.mean_d) * self.inverse_std_d, self.weight_dc)


def batch_size_for(num_clips: int) -> int:
    """Choose the batch: the paper's 256 from 8,192 clips on, N // 32 below, never under 8.

    The paper's 256 on ImageNet means thousands of steps per epoch; on 400 clips it would mean 80 steps in all, most
    of them at a lowered learning rate, and a layer that is not trained to the end. Measured on Gaussian classes, test
    accuracy of batch N // 2, N // 8, N // 32: with correlated features of decaying variance, which is what encoders
    give, 0.56, 0.74, 0.83 (400 clips, 128 dimensions, 8 classes), 0.72, 0.84, 0.88 (512 dimensions) and 0.25, 0.35,
    0.54 (1,000 clips, 512 dimensions, 50 classes). With independent features, which need no long training, the
    smaller batch costs at most 0.03.
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
    """Train a linear layer by the protocol that the head of this file describes.

    Runs on the features' device and in their precision, float32 at least. Same inputs and seed give the same
    layer, to the bit, on the same machine.

    Args:
        features_nd: [N, D], need not be normalised.
        labels_n: [N] int64 in [0, num_classes).
        num_classes: C.
        seed: Of the order of clips.
        batch_size: None for ``batch_size_for(N)``.
        lr: Before its two drops; the paper's, unless a sweep has found another.
        weight_decay: Likewise.

    Raises:
        UserError: Features or labels that ``check_features`` and ``check_labels`` reject, or a batch below 1.
    """
    check_features("train", features_nd)
    check_labels("train", labels_n, num_clips=len(features_nd), num_classes=num_classes)
    batch_size = batch_size_for(len(features_nd)) if batch_size is None else batch_size
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    unit_nd = _unit(features_nd.to(torch.promote_types(features_nd.dtype, torch.float32)))
    variance_d, mean_d = torch.var_mean(unit_nd, dim=0, correction=min(1, len(unit_nd) - 1))
    inverse_std_d = (variance_d + VARIANCE_OFFSET).rsqrt()
    inputs_nd = unit_nd.sub_(mean_d).mul_(inverse_std_d)
    descent = _Descent(num_classes, seed, batch_size, lr, weight_decay)
    labels_n = labels_n.to(inputs_nd.device).long()
    weight_dc, bias_c = descent.run(inputs_nd, labels_n)
    bias_c[torch.bincount(labels_n, minlength=num_classes) == 0] = -torch.inf
    return LinearProbe(mean_d=mean_d, inverse_std_d=inverse_std_d, weight_dc=weight_dc, bias_c=bias_c)


def evaluate_linear(
    *,
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    num_classes: int,
    seed: int = 0,
) -> ProtocolResult:
    """Train a linear layer on the train set and classify the test set.

    Runs on the device of ``train_features``. ``details`` holds ``seed``, ``batch_size``, ``num_train``,
    ``train_top1`` and ``classes_without_training_clips``.

    Args:
        train_features: [N, D].
        train_labels: [N] int64.
        test_features: [B, D].
        test_labels: [B] int64.
        num_classes: C.
        seed: Of the order of clips.

    Raises:
        UserError: Features or labels that ``check_split`` rejects.
    """
    check_split(
        train_features=train_features,
        train_labels=train_labels,
        test_features=test_features,
        test_labels=test_labels,
        num_classes=num_classes,
    )
    probe = train_linear_probe(features_nd=train_features, labels_n=train_labels, num_classes=num_classes, seed=seed)
    details = {
        "seed": seed,
        "batch_size": batch_size_for(len(train_features)),
        "num_train": len(train_features),
        "train_top1": accuracy_from_scores(probe.scores(train_features), train_labels).top1,
        "classes_without_training_clips": classes_without_training_clips(
            train_labels=train_labels, test_labels=test_labels
        ),
    }
    return result_of("linear", hits_from_scores(probe.scores(test_features), test_labels), details)


def _unit(features_nd: Tensor) -> Tensor:
    """L2-normalise rows; rows of zeros stay zero."""
    return torch.nn.functional.normalize(features_nd, dim=1)


@dataclass(frozen=True)
class _Descent:
    """SGD with momentum, ``torch.optim.SGD``'s formula, with the gradient of cross-entropy written out.

    The gradient by the logits is (softmax - one-hot) / B; without autograd a step is a handful of small operations.
    """

    num_classes: int
    seed: int
    batch_size: int
    lr: float
    weight_decay: float

    def run(self, inputs_nd: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
        """From zero to the end of the last epoch: weight [D, C] and bias [C]."""
        num_threads = torch.get_num_threads()
        if self.batch_size * inputs_nd.shape[1] * self.num_classes < SMALLEST_SHARED_PRODUCT:
            torch.set_num_threads(1)
        try:
            return self._run(inputs_nd, labels_n)
        finally:
            torch.set_num_threads(num_threads)

    def _run(self, inputs_nd: Tensor, labels_n: Tensor) -> tuple[Tensor, Tensor]:
        num_clips, dim = inputs_nd.shape
        weight_dc, bias_c = inputs_nd.new_zeros(dim, self.num_classes), inputs_nd.new_zeros(self.num_classes)
        weight_velocity_dc, bias_velocity_c = torch.zeros_like(weight_dc), torch.zeros_like(bias_c)
        generator = torch.Generator().manual_seed(self.seed)
        for epoch in range(NUM_EPOCHS):
            lr = self.lr * 0.1 ** sum(epoch >= milestone for milestone in MILESTONES)
            order_n = torch.randperm(num_clips, generator=generator).to(inputs_nd.device)
            for batch in order_n.split(self.batch_size):
                batch_bd, labels_b1 = inputs_nd[batch], labels_n[batch, None]
                slope_bc = torch.addmm(bias_c, batch_bd, weight_dc).softmax(1)
                slope_bc.scatter_add_(1, labels_b1, slope_bc.new_full(labels_b1.shape, -1.0)).div_(len(batch))
                weight_velocity_dc.mul_(MOMENTUM).addmm_(batch_bd.T, slope_bc).add_(weight_dc, alpha=self.weight_decay)
                bias_velocity_c.mul_(MOMENTUM).add_(slope_bc.sum(0)).add_(bias_c, alpha=self.weight_decay)
                weight_dc.sub_(weight_velocity_dc, alpha=lr)
                bias_c.sub_(bias_velocity_c, alpha=lr)
        return weight_dc, bias_c
