"""A student that is trained, its teachers, and the banks between them.

Shapes: B batch, D student features, E teacher features, N classes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.distillation.heads import Head, Sizes, Tower, get_adapter, require_trained_by_tokens
from crossdistill.distillation.teachers import FrozenTeacher, SelfTeacher, Teacher, follow
from crossdistill.distillation.terms import Term
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import Compares
from crossdistill.quantization.ranges import share_ranges
from crossdistill.types import Anchors, PairedBatch, StepOutput

Gather = Callable[[Tensor], Tensor]
"""Concatenate a tensor [B, ...] of every process, in the order of the processes."""


@dataclass(frozen=True)
class Lesson:
    """What a student learns from one teacher, or from labels."""

    teacher: Teacher | None
    """None for labels."""
    terms: dict[str, Term]
    """Head to term; with several teachers heads carry the teacher's number: ``simreg@2``."""
    bank: MemoryBank | None
    keyed: str | None
    """The head that fills the student's side of the bank, if one does."""

    @property
    def needs_tokens(self) -> bool:
        """Whether the teacher is to give tokens."""
        return any(term.objective.compares == "tokens" for term in self.terms.values())

    def given(self, batch: PairedBatch) -> dict[Compares, Tensor]:
        """What the terms compare the student with."""
        if self.teacher is None:
            return {"labels": batch.labels}
        return self.teacher.embed(batch, with_tokens=self.needs_tokens)

    def loss(
        self,
        student: dict[str, Tensor],
        given: dict[Compares, Tensor],
        sample_ids: Tensor,
        log: dict[str, Tensor],
    ) -> Tensor:
        """The weighted sum of the terms; each one's own value goes into ``log``."""
        losses = []
        for name, term in self.terms.items():
            more: dict[str, Any] = {}
            if term.needs_own_anchors and self.bank is not None:
                more["is_own"] = self.bank.is_own(sample_ids)
            compared = given[term.objective.compares]
            output = term.objective(student=student[name], teacher=compared, bank=self.bank, **more)
            losses.append(term.weight * output.loss)
            # Two variants of CompRess in one sum are told apart; parts of an objective carry its name already.
            number = name.removeprefix(term.name)
            parts = {f"{part}{number}": value for part, value in output.terms.items()}
            log |= {name: next(iter(parts.values()))} if len(parts) == 1 else parts
        return torch.stack(losses).sum()


class Distiller:
    """Compresses teachers into a student, without labels unless a term asks for them.

    Args:
        student: Trained.
        teachers: Encoders, which are frozen in place, or whatever else knows its embeddings.
        terms: Weighted objectives, whose sum is the loss; with several teachers every one of them for each teacher,
            and the loss is the mean over teachers.
        bank_size: K; every teacher has its own bank.
        bank_dtype: How anchors are stored.
        ema_momentum: How much of the student's EMA copy stays at each step, if an objective uses one.
        teacher_drop: Probability with which a teacher is left out of a batch; the one with the largest loss never is
            (Sariyildiz et al., UNIC, ECCV 2024, arXiv 2408.05088; there for each sample).
        num_classes: N of the labels, for terms that compare with them.
        distort: Changes normalised views [B, C, T, H, W] before the student sees them; nothing does if None.
        student_execution: How the student runs; chosen for where its weights are if None.
        gather: Collects anchors of all processes, so that every process holds the same banks.

    Raises:
        UserError: A term cannot compare the two.
    """

    def __init__(
        self,
        *,
        student: Encoder,
        teachers: Sequence[Encoder | Teacher],
        terms: Sequence[Term],
        bank_size: int,
        bank_dtype: torch.dtype = torch.float32,
        ema_momentum: float = 0.999,
        teacher_drop: float = 0.0,
        num_classes: int | None = None,
        distort: Callable[[Tensor], Tensor] | None = None,
        student_execution: Execution | None = None,
        gather: Gather = lambda tensor: tensor,
    ) -> None:
        of_teachers = [teacher if isinstance(teacher, Encoder) else teacher.encoder for teacher in teachers]
        for term, of_teacher in itertools.product(terms, of_teachers):
            term.require_fit(student=student, teacher=of_teacher)
        if all(get_adapter(term.adapter).takes_tokens for term in terms):
            require_trained_by_tokens(student)
        self.execution = execution = student_execution or Execution.choose(student)
        self.ema_momentum, self.teacher_drop, self.gather, self.distort = ema_momentum, teacher_drop, gather, distort
        heads: dict[str, Head] = {}
        self.lessons: list[Lesson] = []
        of_labels = [term for term in terms if term.objective.compares == "labels"]
        if of_labels:
            if num_classes is None:
                raise UserError(f"the objective {of_labels[0].name} needs labels, and the data has none: leave it out")
            heads |= _create_heads({term.name: term for term in of_labels}, student, Sizes(0, num_classes=num_classes))
            self.lessons.append(Lesson(None, {term.name: term for term in of_labels}, None, None))
        for number, (teacher, of_teacher) in enumerate(zip(teachers, of_teachers, strict=True)):
            suffix = f"@{number + 1}" if len(teachers) > 1 else ""
            own = {f"{term.name}{suffix}": term for term in terms if term not in of_labels}
            heads |= _create_heads(own, student, _sizes_of_teacher(own.values(), of_teacher))
            if isinstance(teacher, Encoder):
                teacher = FrozenTeacher(teacher, Execution.choose(teacher), number=number)
            keyed = next((name for name, term in own.items() if term.fills_student_side), None)
            dims = None if keyed is None else _output_dim(own[keyed], student, of_teacher)
            bank = _create_bank(
                own.values(), bank_size, of_teacher.embed_dim, dims, dtype=bank_dtype, device=execution.device
            )
            self.lessons.append(Lesson(teacher, own, bank, keyed))
        self.trainable = Tower(student, {name: head.to(execution.device) for name, head in heads.items()})
        self.ema: Tower | None = None
        keyed_heads = {
            lesson.keyed: heads[lesson.keyed]
            for lesson in self.lessons
            if lesson.keyed is not None and lesson.terms[lesson.keyed].objective.student_anchors == "momentum"
        }
        if keyed_heads:  # the other heads need no copy
            self.ema = copy.deepcopy(Tower(student, keyed_heads)).requires_grad_(False)

    @property
    def teachers(self) -> list[Teacher]:
        """In the order in which they were given."""
        return [lesson.teacher for lesson in self.lessons if lesson.teacher is not None]

    @property
    def _self_teacher(self) -> SelfTeacher | None:
        """The one teacher that changes, if there is one."""
        return next((teacher for teacher in self.teachers if isinstance(teacher, SelfTeacher)), None)

    @property
    def bank_fill(self) -> float | None:
        """Share of the banks that is filled; None without one."""
        return next((lesson.bank.fill for lesson in self.lessons if lesson.bank is not None), None)

    @property
    def classifier(self) -> Classifier | None:
        """What a term with labels has trained."""
        for lesson in self.lessons:
            if lesson.teacher is None:
                (head,) = (self.trainable.heads[name] for name in lesson.terms)
                assert isinstance(head, Head) and isinstance(head.module, nn.Linear)
                return Classifier(head.module.weight.detach().cpu(), head.module.bias.detach().cpu())
        return None

    def compute(self, model: nn.Module, batch: PairedBatch) -> StepOutput:
        """Loss of one batch, and the anchors that are enqueued after the step."""
        given = [lesson.given(batch) for lesson in self.lessons]
        student = self.execution.run(self._distorted(model), batch.student)
        log: dict[str, Tensor] = {}
        losses = [
            lesson.loss(student, own, batch.sample_ids, log) for lesson, own in zip(self.lessons, given, strict=True)
        ]
        of_labels = [loss for lesson, loss in zip(self.lessons, losses, strict=True) if lesson.teacher is None]
        of_teachers = torch.stack(losses[len(of_labels) :])
        loss = (self._teacher_weights(of_teachers) * of_teachers).sum() + sum(of_labels)
        anchors: list[Anchors | None] = [None] * len(self.lessons)
        if self.bank_fill is not None:
            keys, sample_ids = self._student_keys(student, batch), self.gather(batch.sample_ids)
            anchors = [
                self._anchors(lesson, own, keys, sample_ids) for lesson, own in zip(self.lessons, given, strict=True)
            ]
        return StepOutput(loss=loss, terms=log, anchors=tuple(anchors))

    def _distorted(self, model: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
        """The student on views that it sees distorted while it learns."""
        distort = self.distort
        return model if distort is None else lambda clip: model(distort(clip))

    def _teacher_weights(self, losses: Tensor) -> Tensor:
        """[teachers] whose sum is 1: equal, but for those that are left out of this batch."""
        if not self.teacher_drop or len(losses) == 1:
            return torch.full_like(losses, 1 / len(losses))
        # Drawn on the CPU, from the generator whose state checkpoints keep.
        is_kept = torch.rand(len(losses)).to(losses.device) >= self.teacher_drop
        is_kept[losses.detach().argmax()] = True
        return is_kept / is_kept.sum()

    def _anchors(
        self, lesson: Lesson, given: dict[Compares, Tensor], keys: dict[str, Tensor], sample_ids: Tensor
    ) -> Anchors | None:
        if lesson.bank is None:
            return None
        student = None if lesson.keyed is None else self.gather(keys[lesson.keyed].detach().float())
        return Anchors(teacher=self.gather(given["features"]), student=student, sample_ids=sample_ids)

    @torch.no_grad()
    def _student_keys(self, student: dict[str, Tensor], batch: PairedBatch) -> dict[str, Tensor]:
        """The student's outputs, and those of its EMA copy in their place where an objective wants them."""
        if self.ema is None:
            return student
        # As in the authors' code the copy stays in train mode: it normalises by its own batch.
        return {**student, **self.execution.run(self.ema.train(), batch.student)}

    @torch.no_grad()
    def after_step(self, outputs: Sequence[StepOutput]) -> None:
        """Enqueue the anchors of a step, so that no sample of it was one; move the EMA copies towards the student."""
        for output in outputs:
            for lesson, anchors in zip(self.lessons, output.anchors, strict=True):
                if lesson.bank is not None:
                    assert anchors is not None
                    lesson.bank.enqueue(anchors)
        if self.ema is not None:
            follow(self.ema, self.trainable, momentum=self.ema_momentum)
            share_ranges(self.ema, self.gather)
        if self._self_teacher is not None:
            self._self_teacher.follow(self.trainable.encoder)
            share_ranges(self._self_teacher.encoder, self.gather)

    def state_dict(self) -> dict[str, Any]:
        """Banks, EMA copies. Of a teacher that never changes, just its name and the hash of its weights."""
        state: dict[str, Any] = {"teachers": [teacher.identity for teacher in self.teachers]}
        state["banks"] = [None if lesson.bank is None else lesson.bank.state_dict() for lesson in self.lessons]
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        if self._self_teacher is not None:
            state["self"] = self._self_teacher.encoder.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""
        now = [teacher.identity for teacher in self.teachers]
        if state["teachers"] != now:
            raise UserError(
                f"the run learned from {_named(state['teachers'])}, now it is {_named(now)}: resume with the same "
                "teachers"
            )
        for lesson, bank in zip(self.lessons, state["banks"], strict=True):
            if lesson.bank is not None:
                lesson.bank.load_state_dict(bank)
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self._self_teacher is not None:
            self._self_teacher.encoder.load_state_dict(state["self"])


def _named(identities: Sequence[Sequence[str]]) -> str:
    return " and ".join(f"the teacher {' with weights '.join(identity)}" for identity in identities)


def _create_bank(
    terms: Iterable[Term],
    size: int,
    teacher_dim: int,
    student_dim: int | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> MemoryBank | None:
    if all(term.objective.student_anchors is None for term in terms):
        return None
    return MemoryBank(size=size, teacher_dim=teacher_dim, student_dim=student_dim, dtype=dtype, device=device)


def _sizes_of_teacher(terms: Iterable[Term], teacher: Encoder) -> Sizes:
    return Sizes.of(teacher, with_tokens=any(get_adapter(term.adapter).gives == "tokens" for term in terms))


def _output_dim(term: Term, student: Encoder, teacher: Encoder) -> int:
    """How many features a term's head gives."""
    return (student if get_adapter(term.adapter).keeps_dim else teacher).embed_dim


def _create_heads(terms: Mapping[str, Term], student: Encoder, of_teacher: Sizes) -> dict[str, Head]:
    """One head for each term."""
    adapters = {name: get_adapter(term.adapter) for name, term in terms.items()}
    of_student = Sizes.of(student, with_tokens=any(adapter.takes_tokens for adapter in adapters.values()))
    return {
        name: Head(adapter.build(of_student, of_teacher), takes_tokens=adapter.takes_tokens)
        for name, adapter in adapters.items()
    }
