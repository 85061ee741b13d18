"""CompRess: match the teacher's similarity distribution over a memory bank of anchors.

Koohpayegani, Tejankar, Pirsiavash: CompRess: Self-Supervised Learning by Compressing Representations, NeurIPS 2020,
arXiv 2010.14713, equations 1 and 2. The temperature of the teacher is a setting of its own, as in ISD (Tejankar et al.,
ICCV 2021, arXiv 2012.09259).

ImageNet, MoCo-v2 ResNet-50 to AlexNet, linear / 1-NN (paper, table 1): 2q 56.4 / 48.4, 1q 57.5 / 48.0.

Shape suffixes: b batch, k anchors of one chunk, d student features, e teacher features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from crossdistill.objectives.objective import Reduction, detach_short_rows, reduce_samples

CHUNK_ELEMENTS = 2**20
"""Elements of one chunk of similarities [B, chunk]. Two such buffers fit the cache share of a CPU core, and the matrix
products are still large enough to run at full speed (scripts/bench_distill.py)."""
GPU_CHUNK_ELEMENTS = 2**25
"""The same on a GPU, where every kernel has a price and no cache holds a chunk: the paper's 128,000 anchors are one
chunk of a batch of 256. Three such buffers of float32 are 384 MiB."""


def compress_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    student_anchors: Tensor,
    teacher_anchors: Tensor,
    temperature: float,
    teacher_temperature: float | None = None,
    chunk_size: int | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute ``mean_b KL(softmax(t A_tᵀ / τ) ‖ softmax(s A_sᵀ / τ))`` with L2-normalised ``t`` and ``s`` (2q).

    Value and gradient are computed in one pass over chunks of anchors, so memory does not grow with K. Both are zero
    without anchors.

    Args:
        student: [B, D], any length.
        teacher: [B, E], any length; gets no gradient.
        student_anchors: [K, D], L2-normalised, of the same samples in the same order as ``teacher_anchors``.
        teacher_anchors: [K, E], L2-normalised.
        temperature: τ, 0.04 in the paper.
        teacher_temperature: τ of the teacher's softmax, as in ISD; None for ``temperature``.
        chunk_size: Anchors per chunk; None to choose it by the batch size and the device.
        reduction: See ``Reduction``.

    Example:
        >>> anchors_s, anchors_t = (F.normalize(torch.randn(1024, dim), dim=1) for dim in (64, 128))
        >>> student, teacher = torch.randn(8, 64, requires_grad=True), torch.randn(8, 128)
        >>> anchors = {"student_anchors": anchors_s, "teacher_anchors": anchors_t}
        >>> loss = compress_loss(student=student, teacher=teacher, **anchors, temperature=0.04)
        >>> loss.backward()
        >>> loss.shape, student.grad.shape
        (torch.Size([]), torch.Size([8, 64]))
    """
    assert len(student_anchors) == len(teacher_anchors), "the anchors of both sides must be the same samples"
    student_unit = F.normalize(detach_short_rows(student), dim=1)
    if len(teacher_anchors) == 0:
        return reduce_samples(student_unit.sum(dim=1) * 0.0, reduction)
    teacher_unit = F.normalize(teacher.detach(), dim=1).to(student_unit.dtype)
    if chunk_size is None:
        chunk_size = choose_chunk_size(len(student), student.device)
    if teacher_temperature is None:
        teacher_temperature = temperature
    loss_b: Tensor = _StreamedKL.apply(
        student_unit, teacher_unit, student_anchors, teacher_anchors, temperature, teacher_temperature, chunk_size
    )
    return reduce_samples(loss_b, reduction)


def choose_chunk_size(batch_size: int, device: torch.device) -> int:
    """Return the number of anchors of a chunk: few large chunks on a GPU, chunks that fit the cache on a CPU.

    Example:
        >>> [choose_chunk_size(256, torch.device(name)) for name in ("cpu", "cuda")]
        [4096, 131072]
    """
    return max(256, (CHUNK_ELEMENTS if device.type == "cpu" else GPU_CHUNK_ELEMENTS) // batch_size)


def compress_1q_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    anchors: Tensor,
    temperature: float,
    teacher_temperature: float | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Compute ``compress_loss`` with the teacher's anchors [K, E] on both sides (1q).

    The student [B, E] needs a head that gives the teacher's number of features.
    """
    return compress_loss(
        student=student,
        teacher=teacher,
        student_anchors=anchors,
        teacher_anchors=anchors,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        reduction=reduction,
    )


class _OnlineSoftmax:
    """Sums over the softmax of one side, updated chunk by chunk; every sum is relative to exp(maximum)."""

    def __init__(self, query: Tensor, *, num_features: int | None) -> None:
        """Take the query [B, D or E], unit vectors divided by the temperature. D is None without a gradient."""
        self.query = query
        self.maximum_b = query.new_full((len(query),), -torch.inf)
        self.total_b = query.new_zeros(len(query))  # Σ exp(l - maximum)
        # Σ exp(l - maximum) · student anchor: this side's share of the student's gradient.
        self.weighted_anchors_bd = None if num_features is None else query.new_zeros(len(query), num_features)

    def add(self, logits_bk: Tensor, student_anchors_kd: Tensor) -> Tensor:
        """Add a chunk, overwrite its logits with exp(l - maximum), and return [B], the factor for earlier sums."""
        maximum_b = torch.maximum(self.maximum_b, logits_bk.amax(dim=1))
        rescale_b = torch.exp(self.maximum_b - maximum_b)
        weights_bk = logits_bk.sub_(maximum_b[:, None]).exp_()
        self.total_b.mul_(rescale_b).add_(weights_bk.sum(dim=1))
        if self.weighted_anchors_bd is not None:
            self.weighted_anchors_bd.mul_(rescale_b[:, None]).addmm_(weights_bk, student_anchors_kd)
        self.maximum_b = maximum_b
        return rescale_b

    def log_partition_b(self) -> Tensor:
        return self.maximum_b + self.total_b.log()

    def mean_anchor_bd(self) -> Tensor:
        """Σ softmax(l) · student anchor."""
        assert self.weighted_anchors_bd is not None
        return self.weighted_anchors_bd / self.total_b[:, None]


class _StreamedKL(torch.autograd.Function):
    """Value and gradient of each sample in one pass, with four matrix products per chunk and no buffer of size B x K.

    With logits ``l``, partition sums ``Z`` and softmaxes ``p`` of teacher (t) and student (s), and anchors j:

        KL = Σ_j p_t,j (l_t,j - l_s,j) - log Z_t + log Z_s
        ∂KL/∂s = (Σ_j p_s,j A_s,j - Σ_j p_t,j A_s,j) / τ_s
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_bd: Tensor,
        teacher_be: Tensor,
        student_anchors: Tensor,
        teacher_anchors: Tensor,
        temperature: float,
        teacher_temperature: float,
        chunk_size: int,
    ) -> Tensor:
        num_samples, num_features = student_bd.shape
        needs_gradient = ctx.needs_input_grad[0]
        width = num_features if needs_gradient else None
        student = _OnlineSoftmax(student_bd / temperature, num_features=width)
        teacher = _OnlineSoftmax(teacher_be / teacher_temperature, num_features=width)
        gap_b = student_bd.new_zeros(num_samples)  # Σ exp(l_t - maximum) (l_t - l_s)
        for start in range(0, len(student_anchors), chunk_size):
            anchors_kd = student_anchors[start : start + chunk_size].to(student_bd.dtype)
            anchors_ke = teacher_anchors[start : start + chunk_size].to(student_bd.dtype)
            logits_t_bk = teacher.query @ anchors_ke.T
            logits_s_bk = student.query @ anchors_kd.T
            difference_bk = logits_t_bk - logits_s_bk
            # `add` has turned the teacher's logits into weights when they are multiplied.
            gap_b.mul_(teacher.add(logits_t_bk, anchors_kd)).add_(difference_bk.mul_(logits_t_bk).sum(dim=1))
            student.add(logits_s_bk, anchors_kd)
        loss_b: Tensor = gap_b / teacher.total_b - teacher.log_partition_b() + student.log_partition_b()
        if needs_gradient:
            ctx.save_for_backward((student.mean_anchor_bd() - teacher.mean_anchor_bd()) / temperature)
        return loss_b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss_b: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        (gradient_bd,) = ctx.saved_tensors
        return gradient_bd * grad_loss_b[:, None], None, None, None, None, None, None
