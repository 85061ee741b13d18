"""A student that is trained, a teacher that is frozen, and the bank between them.

Shapes: B batch, D student features, E teacher features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from crossdistill.adapters import create_adapter
from crossdistill.encoders import Encoder
from crossdistill.encoders.weights import weights_hash
from crossdistill.errors import UserError
from crossdistill.memory_bank import MemoryBank
from crossdistill.objectives import Objective
from crossdistill.runner import Execution
from crossdistill.types import Anchors, PairedBatch, StepOutput, View

Gather = Callable[[Tensor], Tensor]
"""Concatenate a tensor [B, ...] of every process, in the order of the processes."""


class Task(Protocol):
    """What the engine trains: something with weights that turns batches into losses."""

    trainable: Tower
    """Wrapped for several processes by the engine, and nothing else is."""
    bank: MemoryBank | None

    def compute(self, model: nn.Module, batch: PairedBatch) -> StepOutput:
        """Loss of one batch; ``model`` is ``trainable``, wrapped."""
        ...

    def after_step(self) -> None:
        """Called when the optimizer has moved the weights."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything besides ``trainable`` that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        ...


class Tower(nn.Module):
    """An encoder and the head on it, in one module, so that exactly what is trained is wrapped."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, clip_bcthw: Tensor) -> Tensor:
        """Normalised views [B, C, T, H, W] to the head's output."""
        output: Tensor = self.head(self.encoder(clip_bcthw))
        return output


class FrozenTeacher:
    """An encoder that never changes: in eval mode, without gradients, outside every wrapper.

    Args:
        encoder: Its weights are frozen in place.
        execution: How it runs.
    """

    def __init__(self, encoder: Encoder, execution: Execution) -> None:
        self.encoder = encoder.requires_grad_(False).eval()
        self.execution = execution
        self.identity = [encoder.name, weights_hash(encoder)]

    @property
    def embed_dim(self) -> int:
        """E."""
        return self.encoder.embed_dim

    def embed(self, view: View) -> Tensor:
        """[B, E] float32, without gradients."""
        assert not self.encoder.training, "the teacher stays in eval mode"
        with torch.inference_mode():
            features = self.execution.embed(self.encoder, view)
        return features.clone()  # an ordinary tensor, which autograd may read


class Distiller:
    """Compresses a teacher into a student without labels.

    Args:
        student: Trained.
        teacher: Frozen in place.
        objective: Compares their embeddings through the bank.
        bank_size: K.
        bank_dtype: How anchors are stored.
        ema_momentum: How much of the student's EMA copy stays at each step, if the objective uses one.
        student_execution: How the student runs; chosen for where its weights are if None.
        teacher_execution: How the teacher runs, likewise.
        gather: Collects anchors of all processes, so that every process holds the same bank.
    """

    def __init__(
        self,
        *,
        student: Encoder,
        teacher: Encoder,
        objective: Objective,
        bank_size: int,
        bank_dtype: torch.dtype = torch.float32,
        ema_momentum: float = 0.999,
        student_execution: Execution | None = None,
        teacher_execution: Execution | None = None,
        gather: Gather = lambda tensor: tensor,
    ) -> None:
        adapter, student_dim = create_adapter(
            objective.adapter, student_dim=student.embed_dim, teacher_dim=teacher.embed_dim
        )
        self.teacher = FrozenTeacher(teacher, teacher_execution or Execution.choose(teacher))
        self.execution = execution = student_execution or Execution.choose(student)
        self.objective = objective
        self.ema_momentum = ema_momentum
        self.gather = gather
        self.trainable = Tower(student, adapter.to(execution.device))
        self.ema: nn.Module | None = None
        if objective.student_anchors == "momentum":
            self.ema = copy.deepcopy(self.trainable).requires_grad_(False)
        self.bank: MemoryBank | None = MemoryBank(
            size=bank_size,
            teacher_dim=teacher.embed_dim,
            student_dim=None if objective.student_anchors == "teacher" else student_dim,
            dtype=bank_dtype,
            device=execution.device,
        )

    def compute(self, model: nn.Module, batch: PairedBatch) -> StepOutput:
        """Loss of one batch, and the anchors that the engine enqueues after the step."""
        assert batch.teacher is not None and self.bank is not None
        teacher = self.teacher.embed(batch.teacher)
        student = self.execution.embed(model, batch.student)
        output = self.objective(student=student, teacher=teacher, bank=self.bank)
        keys = self._student_keys(student, batch)
        anchors = Anchors(
            teacher=self.gather(teacher),
            student=None if keys is None else self.gather(keys),
            sample_ids=self.gather(batch.sample_ids),
        )
        return StepOutput(loss=output.loss, terms=output.terms, anchors=anchors)

    @torch.no_grad()
    def _student_keys(self, student: Tensor, batch: PairedBatch) -> Tensor | None:
        """[B, D] anchors of the student: from its EMA copy, from itself, or none."""
        if self.objective.student_anchors == "teacher":
            return None
        if self.ema is None:
            return student.detach()
        # As in the authors' code the copy stays in train mode: it normalises by its own batch.
        return self.execution.embed(self.ema.train(), batch.student)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the EMA copy a little towards the student."""
        if self.ema is not None:
            for slow, fast in zip(self.ema.parameters(), self.trainable.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.ema_momentum)

    def state_dict(self) -> dict[str, Any]:
        """Bank and EMA copy. Of the teacher, which never changes, just its name and the hash of its weights."""
        assert self.bank is not None
        state: dict[str, Any] = {"bank": self.bank.state_dict(), "teacher": self.teacher.identity}
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        assert self.bank is not None
        if state["teacher"] != self.teacher.identity:
            raise UserError(
                f"the run learned from the teacher {' with weights '.join(state['teacher'])}, now it is "
                f"{' with weights '.join(self.teacher.identity)}: resume with the same teacher"
            )
        self.bank.load_state_dict(state["bank"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
