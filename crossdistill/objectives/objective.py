"""The record that describes one objective to the distiller: its loss function and what that function needs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.types import StepOutput
from crossdistill.utils.modules import without_autocast

Compares = Literal["features", "tokens", "logits", "labels"]
"""What a loss compares: embeddings [B, D], tokens [B, E, T, H, W] on the teacher's grid, logits [B, N], or the
student's logits [B, N] with labels [B]."""
AnchorSource = Literal["momentum", "live", "teacher"]
"""Encoder that the student's anchors come from: the student's EMA copy, the student itself, or the teacher."""
Reduction = Literal["mean", "none"]
"""What a loss returns: ``mean``, a scalar, the mean over the batch; ``none``, the loss of each sample [B]."""
MIN_LENGTH = 1e-6
"""Features have lengths of order 1; a shorter row than this is float32 rounding noise."""


@dataclass(frozen=True)
class Objective:
    """One loss function and the facts that the distiller needs in order to call it.

    Example:
        >>> from crossdistill.objectives import create_objective
        >>> objective = create_objective("cosine")
        >>> output = objective(student=torch.tensor([[2.0, 0.0]]), teacher=torch.tensor([[0.0, 1.0]]))
        >>> output.loss, output.terms
        (tensor(1.), {'cosine': tensor(1.)})
    """

    name: str
    loss: Callable[..., Tensor | tuple[Tensor, ...]]
    """Pure function of ``student``, ``teacher``, the anchors and the ``settings``, all by keyword.

    The anchors come as ``student_anchors`` and ``teacher_anchors`` if the bank stores both sides, and as ``anchors`` if
    ``student_anchors`` of this record is ``teacher``. A loss that is a mean over samples takes ``reduction`` too.
    """
    adapter: str
    """Default head between student and loss, one of ``crossdistill.distillation.heads.ADAPTERS``."""
    compares: Compares = "features"
    needs_teacher_dim: bool = True
    """Whether both sides must have the same number of features."""
    student_anchors: AnchorSource | None = None
    """Source of the student's anchors; None if the loss uses no memory bank."""
    relates: Literal["times", "tokens"] | None = None
    """What of a clip is compared with each other, of which there must be two or more."""
    reduces_teacher: bool = False
    """Whether the loss takes ``reduced``: the output of a head on the teacher's features, which the loss trains."""
    standardizes: bool = False
    """Whether the loss expects features of mean 0 and variance 1, unless the user says otherwise."""
    needs_own_anchors: bool = False
    """Whether the loss takes ``is_own``, see ``MemoryBank.is_own``."""
    settings: Mapping[str, float | None] = field(default_factory=dict)
    """Further arguments of the loss, with the values of its paper."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Name and weight of each value that the loss returns; empty if it returns one scalar."""

    @property
    def is_per_sample(self) -> bool:
        """Whether the loss can be given for each sample: its function takes ``reduction``."""
        return "reduction" in inspect.signature(self.loss).parameters

    def __call__(
        self,
        *,
        student: Tensor,
        teacher: Tensor,
        bank: MemoryBank | None = None,
        is_own: Tensor | None = None,
        reduced: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> StepOutput:
        """Compute the loss, and its parts before they are weighted, in float32 also under autocast.

        Args:
            student: Output of the student's head, see ``compares``.
            teacher: Output of the teacher, or labels [B] int64; gets no gradient.
            bank: Anchors; read and never changed. Required if ``student_anchors`` is not None.
            is_own: [B, K] bool, which anchors belong to the samples themselves.
            reduced: Output of the head on the teacher's features, see ``reduces_teacher``.
            reduction: ``none`` gives the loss of each sample, if ``is_per_sample``; logged values stay scalars.
        """
        inputs: dict[str, Tensor | float | str | None] = {**self.settings}
        if self.student_anchors == "teacher":
            assert bank is not None
            inputs["anchors"] = bank.teacher_anchors
        elif self.student_anchors is not None:
            assert bank is not None
            inputs |= {"student_anchors": bank.student_anchors, "teacher_anchors": bank.teacher_anchors}
        if self.needs_own_anchors:
            inputs["is_own"] = is_own
        if self.reduces_teacher:
            assert reduced is not None
            inputs["reduced"] = reduced.float()
        if reduction != "mean":
            inputs["reduction"] = reduction
        if teacher.is_floating_point():  # labels stay integers
            teacher = teacher.float()
        with without_autocast(student.device):
            values = self.loss(student=student.float(), teacher=teacher, **inputs)
            if isinstance(values, Tensor):
                return StepOutput(loss=values, terms={self.name: values.detach().mean()})
            parts = dict(zip(self.parts, values, strict=True))
            loss = functools.reduce(torch.add, [weight * parts[name] for name, weight in self.parts.items()])
        return StepOutput(loss=loss, terms={name: value.detach().mean() for name, value in parts.items()})


def reduce_samples(loss_b: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean over the losses [B] of the samples, or these losses themselves; see ``Reduction``."""
    return loss_b.mean() if reduction == "mean" else loss_b


def detach_short_rows(rows: Tensor, *, dim: int = 1) -> Tensor:
    """Return the same values, and stop the gradient of rows shorter than ``MIN_LENGTH``.

    The gradient of ``x / ‖x‖`` grows with ``1 / ‖x‖``. A row of zeros (a dead head) would receive a finite gradient of
    up to 1e12, because ``F.normalize`` clamps the length to 1e-12, and that gradient would swamp all others. A larger
    clamp would change the values of short rows and still give them a gradient without a meaningful direction.

    Args:
        rows: [..., D, ...] features of the student before normalisation.
        dim: Dimension of D.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
        >>> torch.nn.functional.normalize(detach_short_rows(rows), dim=1)[:, 0].sum().backward()
        >>> rows.grad
        tensor([[ 0.1280, -0.0960],
                [ 0.0000,  0.0000]])
    """
    is_short = torch.linalg.vector_norm(rows.detach(), dim=dim, keepdim=True) < MIN_LENGTH
    return torch.where(is_short, rows.detach(), rows)
