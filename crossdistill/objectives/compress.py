"""CompRess: the student gives every sample the teacher's similarities to a bank of anchors.

Koohpayegani, Tejankar, Pirsiavash: CompRess: Self-Supervised Learning by Compressing
Representations, NeurIPS 2020, arXiv 2010.14713, equations 1 and 2.

ImageNet, MoCo-v2 ResNet-50 to AlexNet, linear / 1-NN (paper, table 1): 2q 56.4 / 48.4, 1q 57.5 / 48.0.

Shapes: B batch, K anchors, D student features, E teacher features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from crossdistill.objectives.directions import hold_short
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import AnchorSource, Compares
from crossdistill.types import StepOutput

# Elements of one chunk of similarities [B, chunk]: two such buffers stay inside a CPU core's cache
# share while the matrix products are large enough to run at full speed (scripts/bench_distill.py).
CHUNK_ELEMENTS = 2**20


def compress_loss(
    *,
    student: Tensor,
    teacher: Tensor,
    student_anchors: Tensor,
    teacher_anchors: Tensor,
    temperature: float,
    teacher_temperature: float | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """KL divergence between teacher's and student's similarity distributions over the anchors.

    ``mean_b KL(softmax(t A_tᵀ / τ) ‖ softmax(s A_sᵀ / τ))`` with ``t`` and ``s`` L2-normalised. The
    bank is walked through once in chunks; memory does not grow with K.

    Args:
        student: [B, D], any length; gradients flow into it alone.
        teacher: [B, E], any length.
        student_anchors: [K, D], L2-normalised, the same samples in the same order as the teacher's.
        teacher_anchors: [K, E], L2-normalised.
        temperature: τ.
        teacher_temperature: The teacher's, where it has its own (ISD); τ if None.
        chunk_size: Anchors per chunk; chosen by the batch size if None.

    Returns:
        Scalar. Zero, with zero gradients, if there is no anchor yet.
    """
    assert len(student_anchors) == len(teacher_anchors), "anchors of both sides must be the same samples"
    student_unit = F.normalize(hold_short(student), dim=1)
    if len(teacher_anchors) == 0:
        return student_unit.sum() * 0.0
    teacher_unit = F.normalize(teacher.detach(), dim=1).to(student_unit.dtype)
    if chunk_size is None:
        chunk_size = max(256, CHUNK_ELEMENTS // len(student))
    loss: Tensor = _StreamedKL.apply(
        student_unit,
        teacher_unit,
        student_anchors,
        teacher_anchors,
        temperature,
        temperature if teacher_temperature is None else teacher_temperature,
        chunk_size,
    )
    return loss


@dataclass
class _Side:
    """Running softmax of one side: all sums are relative to exp(maximum)."""

    query_bd: Tensor
    """Already divided by the temperature."""
    maximum_b: Tensor
    total_b: Tensor
    """Σ exp(l - maximum)."""
    pull_bd: Tensor | None
    """Σ exp(l - maximum) · student anchor: this side's share of the student's gradient."""

    @staticmethod
    def start(query_bd: Tensor, pull_dim: int | None) -> _Side:
        batch = len(query_bd)
        return _Side(
            query_bd,
            maximum_b=query_bd.new_full((batch,), -torch.inf),
            total_b=query_bd.new_zeros(batch),
            pull_bd=query_bd.new_zeros(batch, pull_dim) if pull_dim is not None else None,
        )

    def add(self, logits_bk: Tensor, student_anchors_kd: Tensor) -> Tensor:
        """Take in one chunk of logits; turns them into exp(l - maximum) in place.

        Returns:
            [B], the factor by which sums made before this chunk have to shrink.
        """
        maximum_b = torch.maximum(self.maximum_b, logits_bk.amax(dim=1))
        shrink_b = torch.exp(self.maximum_b - maximum_b)
        weights_bk = logits_bk.sub_(maximum_b[:, None]).exp_()
        self.total_b.mul_(shrink_b).add_(weights_bk.sum(dim=1))
        if self.pull_bd is not None:
            self.pull_bd.mul_(shrink_b[:, None]).addmm_(weights_bk, student_anchors_kd)
        self.maximum_b = maximum_b
        return shrink_b

    def log_partition_b(self) -> Tensor:
        return self.maximum_b + self.total_b.log()

    def mean_anchor_bd(self) -> Tensor:
        """Σ softmax(l) · student anchor."""
        assert self.pull_bd is not None
        return self.pull_bd / self.total_b[:, None]


class _StreamedKL(torch.autograd.Function):
    """Value and gradient in one pass, four matrix products per chunk and nothing of size B x K.

    With ``l`` the logits, ``Z`` the partition sums and ``p`` the softmaxes of teacher (t) and student (s):

        KL = Σ_j p_t,j (l_t,j - l_s,j) - log Z_t + log Z_s
        ∂KL/∂s = (Σ_j p_s,j A_s,j - Σ_j p_t,j A_s,j) / τ_s

    Every sum over j is kept relative to a running maximum, so chunks can come in any number.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_bd: Tensor,
        teacher_be: Tensor,
        student_anchors_kd: Tensor,
        teacher_anchors_ke: Tensor,
        temperature: float,
        teacher_temperature: float,
        chunk_size: int,
    ) -> Tensor:
        batch, num_anchors = len(student_bd), len(student_anchors_kd)
        pull_dim = student_bd.shape[1] if ctx.needs_input_grad[0] else None
        student = _Side.start(student_bd / temperature, pull_dim)
        teacher = _Side.start(teacher_be / teacher_temperature, pull_dim)
        gap_b = student_bd.new_zeros(batch)  # Σ exp(l_t - maximum) (l_t - l_s)
        for start in range(0, num_anchors, chunk_size):
            anchors_s = student_anchors_kd[start : start + chunk_size].to(student_bd.dtype)
            anchors_t = teacher_anchors_ke[start : start + chunk_size].to(student_bd.dtype)
            logits_t = teacher.query_bd @ anchors_t.T
            logits_s = student.query_bd @ anchors_s.T
            difference_bk = logits_t - logits_s
            gap_b.mul_(teacher.add(logits_t, anchors_s)).add_(difference_bk.mul_(logits_t).sum(dim=1))
            student.add(logits_s, anchors_s)
        loss_b = gap_b / teacher.total_b - teacher.log_partition_b() + student.log_partition_b()
        if pull_dim is not None:
            gradient = (student.mean_anchor_bd() - teacher.mean_anchor_bd()) / (temperature * batch)
            ctx.save_for_backward(gradient)
        return loss_b.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None, None, None, None, None, None


class CompRess(nn.Module):
    """CompRess as an objective; the variants differ in where the student's anchors come from.

    Args:
        student_anchors: ``momentum`` (2q: the student's anchors come from its EMA copy), ``live`` (2q
            without momentum: from the student itself) or ``teacher`` (1q: the student is compared with
            the teacher's anchors, through a linear layer to the teacher's dimension).
        temperature: τ; the paper's 0.04.
        teacher_temperature: The teacher's, where it has its own; τ if None.
    """

    def __init__(
        self, *, student_anchors: AnchorSource, temperature: float = 0.04, teacher_temperature: float | None = None
    ) -> None:
        super().__init__()
        self.student_anchors: AnchorSource | None = student_anchors
        self.adapter = "linear" if student_anchors == "teacher" else "identity"
        self.compares: Compares = "features"
        self.needs_teacher_dim = student_anchors == "teacher"
        self.temperature = temperature
        self.teacher_temperature = teacher_temperature

    def forward(self, *, student: Tensor, teacher: Tensor, bank: MemoryBank | None) -> StepOutput:
        """Compare embeddings [B, D] and [B, E] through the bank's valid anchors."""
        assert bank is not None
        with torch.autocast(student.device.type, enabled=False):
            loss = compress_loss(
                student=student.float(),
                teacher=teacher.float(),
                student_anchors=bank.teacher_anchors if self.student_anchors == "teacher" else bank.student_anchors,
                teacher_anchors=bank.teacher_anchors,
                temperature=self.temperature,
                teacher_temperature=self.teacher_temperature,
            )
        return StepOutput(loss=loss, terms={"compress": loss.detach()})
