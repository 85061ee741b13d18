"""The distillation task: a student that trains, its teachers, the objectives, and the memory banks between them.

``forward`` computes the loss. ``after_step`` fills the banks and moves the EMA copies, once per optimizer step.

Shapes: B batch, D student features, E teacher features, K anchors, N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.data.mix import draw_mix
from crossdistill.distillation.comparison import compare_with_labels, compare_with_teacher
from crossdistill.distillation.student_with_heads import MomentumCopy, StudentWithHeads
from crossdistill.distillation.task import Task
from crossdistill.distillation.teachers import FrozenTeacher, Targets, Teacher
from crossdistill.distillation.terms import Term, create_terms, expects_standardized, require_all_trained
from crossdistill.encoders import Encoder, wrap_module
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.objectives.objective import Reduction
from crossdistill.types import Anchors, PairedBatch, StepOutput

DEFAULT_OBJECTIVE = ("compress-1q", "smooth-l1:5")


class Distiller(Task):
    """Trains a student to agree with its teachers, without labels unless an objective uses them.

    Its ``parameters()`` are those of the student and of the heads on it; teachers and EMA copies are not among them. It
    fits into any training loop: call it on a batch, run backward on ``output.loss``, let the optimizer step, then call
    ``after_step``. A batch is a ``PairedBatch``, or a plain tensor that both networks take as it is.

    Args:
        student: Trained: an ``Encoder``, or any module that maps a tensor [B, ...] to [B, D].
        teachers: One or several: a ``Teacher``, an ``Encoder``, or any module that maps a tensor [B, ...] to [B, E].
            Networks are frozen in place.
        objective: Names such as ``compress-1q`` or ``simreg:0.5``, or terms that ``create_terms`` built. With
            several teachers every term applies to each of them, and the loss is the mean over the teachers.
        bank_size: K; every teacher has a bank of its own.
        bank_dtype: Type in which anchors are stored.
        ema_momentum: Decay of the student's EMA copy, in [0, 1]; used only by objectives that need the copy.
        teacher_drop: Probability of leaving a teacher out of a sample's loss in training; the one with the largest loss
            always stays (Sariyildiz et al., UNIC, ECCV 2024, arXiv 2408.05088). The weights of those that stay sum to 1
            for every sample; the authors' code divides by their sum over the batch. If a term compares the samples of a
            batch with each other (``Objective.is_per_sample`` is false), teachers are left out of whole batches.
        standardizes: Whether the features of each teacher are standardised by the running mean and variance of the
            batches of training, see ``RunningStandardizer``; if None, they are where an objective expects it.
        mixes: Whether each batch of training is mixed with itself, in the same way for student and teachers; see
            ``draw_mix``. Then no teacher may be a cache, and no objective may use labels.
        num_classes: N, for objectives that use labels.
        student_dim: D of a student that is not an ``Encoder``; its ``embed_dim`` or ``num_features`` if None.
        teacher_dim: E, likewise.
        distort: Changes normalised clips [B, C, T, H, W] before the student sees them; None for no change.
        student_execution: Device, precision and layout of the student; chosen for its device if None.
        gather: Concatenates a tensor [B, ...] of all processes, so that every process holds the same banks.

    Raises:
        UserError: An objective cannot compare the student with a teacher.

    Example:
        >>> student, teacher = nn.Linear(8, 4), nn.Linear(8, 6)
        >>> distiller = Distiller(student=student, teachers=teacher, student_dim=4, teacher_dim=6, bank_size=20)
        >>> optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
        >>> for _ in range(3):
        ...     output = distiller(torch.randn(5, 8))
        ...     output.loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     distiller.after_step()
        >>> distiller.bank_fill
        0.75
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        teachers: nn.Module | Teacher | Sequence[nn.Module | Teacher],
        objective: str | Sequence[str | Term] = DEFAULT_OBJECTIVE,
        bank_size: int = 4096,
        bank_dtype: torch.dtype = torch.float32,
        ema_momentum: float = 0.999,
        teacher_drop: float = 0.0,
        standardizes: bool | None = None,
        mixes: bool = False,
        num_classes: int | None = None,
        student_dim: int | None = None,
        teacher_dim: int | None = None,
        distort: Callable[[Tensor], Tensor] | None = None,
        student_execution: Execution | None = None,
        gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    ) -> None:
        encoder = student if isinstance(student, Encoder) else wrap_module(student, student_dim)
        all_teachers = _as_teachers(teachers, teacher_dim)
        terms = _as_terms(objective)
        for teacher in all_teachers:
            teacher.require_fit(terms, encoder)
        require_all_trained(encoder, terms)
        if mixes:
            _require_mixable(all_teachers, terms)
        execution = student_execution or Execution.choose(encoder)
        comparisons = compare_with_labels(encoder, terms, num_classes)
        for number, teacher in enumerate(all_teachers, start=1):
            comparisons.append(
                compare_with_teacher(
                    encoder,
                    teacher,
                    terms,
                    suffix=f"@{number}" if len(all_teachers) > 1 else "",
                    bank_size=bank_size,
                    bank_dtype=bank_dtype,
                    standardizes=expects_standardized(terms) if standardizes is None else standardizes,
                    device=execution.device,
                )
            )
        heads = {name: head.to(execution.device) for each in comparisons for name, head in each.heads.items()}
        super().__init__(StudentWithHeads(encoder, heads), execution)
        self.teachers, self.comparisons = all_teachers, comparisons
        self.teacher_drop, self.mixes, self.gather = teacher_drop, mixes, gather
        self.distort = distort or (lambda clip: clip)
        key_heads = {
            each.key_head: heads[each.key_head]
            for each in comparisons
            if each.key_head is not None and each.needs_momentum_keys
        }
        self.momentum_copy = (
            MomentumCopy(StudentWithHeads(encoder, key_heads), momentum=ema_momentum) if key_heads else None
        )
        self._pending: list[list[Anchors | None]] = []
        self._num_samples = 0  # that came without ids

    def forward(
        self,
        batch: PairedBatch | Tensor,
        teacher_input: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> StepOutput:
        """Compute the loss of one batch.

        Args:
            batch: A batch of clips, or the student's input as a plain tensor [B, ...], normalised.
            teacher_input: Only for a plain tensor: the teachers' input [B, ...]; the student's input if None.
            labels: Only for a plain tensor: [B] int64 for objectives that use labels.
            sample_ids: Only for a plain tensor: [B] int64 positions in the dataset, for objectives that must not
                compare a sample with its own anchor of an earlier epoch; every sample counts as new if None.
        """
        if isinstance(batch, Tensor):
            batch = self._pair(batch, teacher_input, labels, sample_ids)
        if self.mixes and self.training:
            batch = replace(batch, mix=draw_mix(len(batch)))
        gather = self.gather if self.training else None
        targets = [each.targets(batch, gather=gather) for each in self.comparisons]
        reduced = {
            name: features
            for each, target in zip(self.comparisons, targets, strict=True)
            for name, features in each.reduced_features(target).items()
        }
        outputs = self.execution.run(
            lambda clip: self._call(self.distort(clip), reduced or None), batch.student, mix=batch.mix
        )
        reduction: Reduction = "none" if self._drops_per_sample else "mean"
        log: dict[str, Tensor] = {}
        label_losses: list[Tensor] = []
        teacher_losses: list[Tensor] = []
        for each, target in zip(self.comparisons, targets, strict=True):
            kept = "mean" if each.teacher is None else reduction
            loss, parts = each.loss(outputs, target, batch.sample_ids, reduction=kept)
            log |= parts
            (label_losses if each.teacher is None else teacher_losses).append(loss)
        stacked = torch.stack(teacher_losses)
        loss = (self._teacher_weights(stacked) * stacked).sum(dim=0).mean() + sum(label_losses)
        if self.training:
            self._remember_anchors(batch, outputs, targets)
        return StepOutput(loss=loss, terms=log)

    def _pair(
        self, batch: Tensor, teacher_input: Tensor | None, labels: Tensor | None, sample_ids: Tensor | None
    ) -> PairedBatch:
        """Make a ``PairedBatch`` of plain tensors; without ids every sample gets a new one."""
        if sample_ids is None:
            sample_ids = torch.arange(self._num_samples, self._num_samples + len(batch), device=batch.device)
            self._num_samples += len(batch)
        return PairedBatch(
            student=batch,
            teachers=(batch if teacher_input is None else teacher_input,) * len(self.teachers),
            sample_ids=sample_ids,
            labels=torch.full_like(sample_ids, -1) if labels is None else labels,
        )

    def _teacher_weights(self, losses: Tensor) -> Tensor:
        """[teachers] or [teachers, B], sums over teachers are 1: equal, and 0 for teachers that are left out."""
        if not self._drops:
            return torch.full_like(losses, 1 / len(losses))
        # Drawn on the CPU, from the generator whose state checkpoints keep.
        is_kept = torch.rand(losses.shape).to(losses.device) >= self.teacher_drop
        is_kept.scatter_(0, losses.detach().argmax(dim=0, keepdim=True), True)
        return is_kept / is_kept.sum(dim=0)

    @property
    def _drops(self) -> bool:
        return self.training and self.teacher_drop > 0 and len(self.teachers) > 1

    @property
    def _drops_per_sample(self) -> bool:
        return self._drops and all(each.is_per_sample for each in self.comparisons if each.teacher is not None)

    @torch.no_grad()
    def _remember_anchors(self, batch: PairedBatch, outputs: dict[str, Tensor], targets: Sequence[Targets]) -> None:
        """Collect anchors, which ``after_step`` enqueues: in this step no sample must be compared with itself."""
        if all(each.bank is None for each in self.comparisons):
            return
        keys, sample_ids = outputs, self.gather(batch.sample_ids)
        if self.momentum_copy is not None:
            keys = {**keys, **self.execution.run(self.momentum_copy.module, batch.student, mix=batch.mix)}
        anchors: list[Anchors | None] = []
        for each, target in zip(self.comparisons, targets, strict=True):
            student = None if each.key_head is None else self.gather(keys[each.key_head].detach().float())
            teacher = None if each.bank is None else self.gather(target["features"])
            anchors.append(None if teacher is None else Anchors(teacher, student, sample_ids))
        self._pending.append(anchors)

    @torch.no_grad()
    def after_step(self, *, has_moved: bool = True) -> None:
        """Enqueue the anchors of the batches since the last step; move EMA copies towards the student if it moved."""
        for anchors_of_batch in self._pending:
            for each, anchors in zip(self.comparisons, anchors_of_batch, strict=True):
                if each.bank is not None and anchors is not None:
                    each.bank.enqueue(anchors)
        self._pending.clear()
        if not has_moved:
            return
        if self.momentum_copy is not None:
            self.momentum_copy.update(self.trainable, gather=self.gather)
        for teacher in self.teachers:
            teacher.after_step(self.trainable.encoder, gather=self.gather)

    @property
    def bank_fill(self) -> float | None:
        """Filled share of the memory banks, in [0, 1]; None without a memory bank."""
        return next((each.bank.fill for each in self.comparisons if each.bank is not None), None)

    @property
    def classifier(self) -> Classifier | None:
        """The linear classifier on the student's features if labels are used in training, otherwise None."""
        return next((each.classifier for each in self.comparisons if each.teacher is None), None)

    def resume_state(self) -> dict[str, Any]:
        """Return the state for resuming besides ``trainable``: banks, statistics, EMA copies, teachers' identities."""
        state: dict[str, Any] = {
            "teachers": [teacher.identity for teacher in self.teachers],
            "banks": [None if each.bank is None else each.bank.state_dict() for each in self.comparisons],
        }
        if any(each.standardizer is not None for each in self.comparisons):
            state["standardizers"] = [
                None if each.standardizer is None else each.standardizer.state_dict() for each in self.comparisons
            ]
        if self._num_samples:
            state["num_samples"] = self._num_samples
        if self.momentum_copy is not None:
            state["ema"] = self.momentum_copy.module.state_dict()
        for teacher in self.teachers:
            if (own := teacher.resume_state()) is not None:
                state["self"] = own  # only one teacher can change: the student's EMA copy
        return state

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Restore what ``resume_state`` returned.

        Raises:
            UserError: The teachers are not those of the state.
        """
        now = [teacher.identity for teacher in self.teachers]
        if state["teachers"] != now:
            raise UserError(
                f"the run learned from {_named(state['teachers'])}, now it is {_named(now)}: resume with the same "
                "teachers"
            )
        for each, bank in zip(self.comparisons, state["banks"], strict=True):
            if each.bank is not None:
                each.bank.load_state_dict(bank)
        for each, statistics in zip(self.comparisons, state.get("standardizers", []), strict=False):
            if each.standardizer is not None:
                each.standardizer.load_state_dict(statistics)
        if self.momentum_copy is not None:
            self.momentum_copy.module.load_state_dict(state["ema"])
        self._num_samples = state.get("num_samples", 0)
        for teacher in self.teachers:
            if "self" in state:
                teacher.load_resume_state(state["self"])

    get_extra_state = resume_state
    set_extra_state = load_resume_state


def _as_teachers(given: nn.Module | Teacher | Sequence[nn.Module | Teacher], teacher_dim: int | None) -> list[Teacher]:
    teachers: list[Teacher] = []
    for number, each in enumerate([given] if isinstance(given, nn.Module | Teacher) else given):
        if not isinstance(each, Teacher):
            encoder = each if isinstance(each, Encoder) else wrap_module(each, teacher_dim)
            each = FrozenTeacher(encoder, Execution.choose(encoder), number=number)
        teachers.append(each)
    return teachers


def _require_mixable(teachers: Sequence[Teacher], terms: Sequence[Term]) -> None:
    if not all(teacher.sees_clips for teacher in teachers):
        raise UserError("a mixed clip is no mix of cached embeddings: let the teacher run, or do not mix")
    labelled = next((term.name for term in terms if term.objective.compares == "labels"), None)
    if labelled is not None:
        raise UserError(f"a mixed clip has no label of its own, and {labelled} needs one: remove it, or do not mix")


def _as_terms(objective: str | Sequence[str | Term]) -> list[Term]:
    parts = [objective] if isinstance(objective, str) else list(objective)
    terms = [part for part in parts if isinstance(part, Term)]
    names = [part for part in parts if isinstance(part, str)]
    if terms and names:
        raise UserError(f"objective mixes terms with the names {', '.join(names)}: give names alone, or terms alone")
    return terms or create_terms(names)


def _named(identities: Sequence[Sequence[str]]) -> str:
    return " and ".join(f"the teacher {' with weights '.join(identity)}" for identity in identities)
