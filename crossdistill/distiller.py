"""A student that is trained, a teacher that is frozen, and the bank between them.

Shapes: B batch, D student features, E teacher features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.adapters import Compares, Sizes, get_adapter, require_trained_by_tokens
from crossdistill.encoders import Encoder
from crossdistill.encoders.weights import weights_hash
from crossdistill.errors import UserError
from crossdistill.memory_bank import MemoryBank
from crossdistill.objectives import Term
from crossdistill.runner import Execution
from crossdistill.types import Anchors, PairedBatch, StepOutput

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


class Head(nn.Module):
    """A module on the student's features or tokens.

    Args:
        module: Maps [B, D], or tokens [B, S, T, H, W], to what a term of the loss compares.
        takes_tokens: Which of the two it is given.
    """

    def __init__(self, module: nn.Module, *, takes_tokens: bool = False) -> None:
        super().__init__()
        self.module = module
        self.takes_tokens = takes_tokens


class Tower(nn.Module):
    """An encoder and the heads on it, in one module, so that exactly what is trained is wrapped."""

    def __init__(self, encoder: Encoder, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(dict(heads))
        self.needs_tokens = any(head.takes_tokens for head in heads.values())

    def forward(self, clip_bcthw: Tensor) -> dict[str, Tensor]:
        """Normalised views [B, C, T, H, W] to every head's output."""
        features, tokens = embed(self.encoder, clip_bcthw, with_tokens=self.needs_tokens)
        outputs: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            given = tokens if head.takes_tokens else features
            assert given is not None
            outputs[name] = head.module(given.float())  # heads are float32 whatever the encoder is
        return outputs


def embed(encoder: Encoder, clip_bcthw: Tensor, *, with_tokens: bool) -> tuple[Tensor, Tensor | None]:
    """[B, D], and the tokens [B, S, T, H, W] where they are wanted."""
    return encoder.embed_with_tokens(clip_bcthw) if with_tokens else (encoder(clip_bcthw), None)


class Teacher(Protocol):
    """What the student is compared with: a network that runs, or embeddings that are kept."""

    encoder: Encoder
    """Name, sizes and classifier; without weights where embeddings are kept."""
    identity: list[str]
    """Its name and the hash of its weights."""

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> dict[Compares, Tensor]:
        """Features [B, E] float32, logits [B, N] if it has a classifier, tokens [B, S, T, H, W] where wanted."""
        ...


def classifier_of(encoder: Encoder, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Weight [N, E] and bias [N] of its linear classifier in float32 on a device, if its weights came with one."""
    if encoder.classes is None:
        return None
    return encoder.classes.weight.float().to(device), encoder.classes.bias.float().to(device)


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
        self.classes = classifier_of(encoder, execution.device)

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> dict[Compares, Tensor]:
        """See ``Teacher.embed``; the batch is on the encoder's device."""
        assert not self.encoder.training, "the teacher stays in eval mode"
        assert batch.teacher is not None
        with torch.inference_mode():
            features, tokens = self.execution.run(partial(embed, self.encoder, with_tokens=with_tokens), batch.teacher)
        # Clones are ordinary tensors, which autograd may read.
        outputs: dict[Compares, Tensor] = {"features": features.float().clone()}
        if tokens is not None:
            outputs["tokens"] = tokens.float().clone()
        if self.classes is not None:
            outputs["logits"] = F.linear(outputs["features"], *self.classes)
        return outputs


class Distiller:
    """Compresses a teacher into a student without labels.

    Args:
        student: Trained.
        teacher: An encoder, which is frozen in place, or whatever else knows its embeddings.
        terms: Weighted objectives, whose sum is the loss.
        bank_size: K.
        bank_dtype: How anchors are stored.
        ema_momentum: How much of the student's EMA copy stays at each step, if an objective uses one.
        student_execution: How the student runs; chosen for where its weights are if None.
        teacher_execution: How a teacher that is an encoder runs, likewise.
        gather: Collects anchors of all processes, so that every process holds the same bank.

    Raises:
        UserError: A term cannot compare the two.
    """

    def __init__(
        self,
        *,
        student: Encoder,
        teacher: Encoder | Teacher,
        terms: Sequence[Term],
        bank_size: int,
        bank_dtype: torch.dtype = torch.float32,
        ema_momentum: float = 0.999,
        student_execution: Execution | None = None,
        teacher_execution: Execution | None = None,
        gather: Gather = lambda tensor: tensor,
    ) -> None:
        self.terms = list(terms)
        of_teacher = teacher if isinstance(teacher, Encoder) else teacher.encoder
        for term in terms:
            term.require_fit(student=student, teacher=of_teacher)
        if all(get_adapter(term.adapter).takes_tokens for term in terms):
            require_trained_by_tokens(student)
        heads, output_dims = _create_heads(terms, student=student, teacher=of_teacher)
        self.teacher: Teacher
        if isinstance(teacher, Encoder):
            self.teacher = FrozenTeacher(teacher, teacher_execution or Execution.choose(teacher))
        else:
            self.teacher = teacher
        self.execution = execution = student_execution or Execution.choose(student)
        self.ema_momentum = ema_momentum
        self.gather = gather
        self.trainable = Tower(student, {name: head.to(execution.device) for name, head in heads.items()})
        self.needs_teacher_tokens = any(term.objective.compares == "tokens" for term in terms)
        # The term that fills the student's side of the bank, if one does.
        self.keyed = next((term for term in terms if term.objective.student_anchors in ("momentum", "live")), None)
        self.ema: Tower | None = None
        if self.keyed is not None and self.keyed.objective.student_anchors == "momentum":
            own = Tower(student, {self.keyed.name: heads[self.keyed.name]})  # the other heads need no copy
            self.ema = copy.deepcopy(own).requires_grad_(False)
        self.bank: MemoryBank | None = None
        if any(term.objective.student_anchors is not None for term in terms):
            self.bank = MemoryBank(
                size=bank_size,
                teacher_dim=of_teacher.embed_dim,
                student_dim=None if self.keyed is None else output_dims[self.keyed.name],
                dtype=bank_dtype,
                device=execution.device,
            )

    def compute(self, model: nn.Module, batch: PairedBatch) -> StepOutput:
        """Loss of one batch, and the anchors that the engine enqueues after the step."""
        teacher = self.teacher.embed(batch, with_tokens=self.needs_teacher_tokens)
        student = self.execution.run(model, batch.student)
        loss = torch.zeros((), device=self.execution.device)
        terms: dict[str, Tensor] = {}
        for term in self.terms:
            objective = term.objective
            output = objective(student=student[term.name], teacher=teacher[objective.compares], bank=self.bank)
            loss = loss + term.weight * output.loss
            # Two variants of CompRess in one sum are told apart; parts of an objective carry its name already.
            terms |= {term.name: next(iter(output.terms.values()))} if len(output.terms) == 1 else output.terms
        if self.bank is None:
            return StepOutput(loss=loss, terms=terms)
        keys = self._student_keys(student, batch)
        anchors = Anchors(
            teacher=self.gather(teacher["features"]),
            student=None if keys is None else self.gather(keys),
            sample_ids=self.gather(batch.sample_ids),
        )
        return StepOutput(loss=loss, terms=terms, anchors=anchors)

    @torch.no_grad()
    def _student_keys(self, student: dict[str, Tensor], batch: PairedBatch) -> Tensor | None:
        """[B, D] anchors of the student: from its EMA copy, from itself, or none."""
        if self.keyed is None:
            return None
        if self.ema is not None:
            # As in the authors' code the copy stays in train mode: it normalises by its own batch.
            student = self.execution.run(self.ema.train(), batch.student)
        return student[self.keyed.name].detach().float()

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the EMA copy a little towards the student."""
        if self.ema is not None:
            trained = dict(self.trainable.named_parameters())
            for name, slow in self.ema.named_parameters():
                slow.lerp_(trained[name], 1 - self.ema_momentum)

    def state_dict(self) -> dict[str, Any]:
        """Bank and EMA copy. Of the teacher, which never changes, just its name and the hash of its weights."""
        state: dict[str, Any] = {"teacher": self.teacher.identity}
        if self.bank is not None:
            state["bank"] = self.bank.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        if state["teacher"] != self.teacher.identity:
            raise UserError(
                f"the run learned from the teacher {' with weights '.join(state['teacher'])}, now it is "
                f"{' with weights '.join(self.teacher.identity)}: resume with the same teacher"
            )
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def _create_heads(
    terms: Sequence[Term], *, student: Encoder, teacher: Encoder
) -> tuple[dict[str, Head], dict[str, int]]:
    """One head for each term, and how many features it gives."""
    adapters = {term.name: get_adapter(term.adapter) for term in terms}
    of_student = Sizes.of(student, with_tokens=any(adapter.takes_tokens for adapter in adapters.values()))
    of_teacher = Sizes.of(teacher, with_tokens=any(adapter.gives == "tokens" for adapter in adapters.values()))
    heads = {
        name: Head(adapter.build(of_student, of_teacher), takes_tokens=adapter.takes_tokens)
        for name, adapter in adapters.items()
    }
    dims = {name: (student if adapter.keeps_dim else teacher).embed_dim for name, adapter in adapters.items()}
    return heads, dims
