"""The comparison of a student with one teacher or with labels: heads, terms of the loss and memory bank.

Shapes: B batch, E teacher features, N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crossdistill.distillation.heads import Sizes, get_adapter
from crossdistill.distillation.standardizer import RunningStandardizer
from crossdistill.distillation.student_with_heads import Head
from crossdistill.distillation.teachers import Targets, Teacher
from crossdistill.distillation.terms import Term
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.objectives.objective import Reduction
from crossdistill.types import PairedBatch


@dataclass(frozen=True)
class Comparison:
    """The comparison of the student with one teacher or with the labels: heads, terms of the loss and memory bank."""

    heads: dict[str, Head]
    """One head on the student for each term; with several teachers a name ends with the teacher's number: ``simreg@2``.
    Where a term has a head on the teacher as well, its name ends with ``_of_teacher``."""
    terms: dict[str, Term]
    """Name of the head to its term."""
    teacher: Teacher | None = None
    """The teacher; None for a comparison with labels."""
    bank: MemoryBank | None = None
    key_head: str | None = None
    """The head whose outputs become the student's anchors; None if no objective needs student anchors."""
    standardizer: RunningStandardizer | None = None
    """Standardises the teacher's features by running statistics; None to leave them as the teacher gives them."""

    def targets(self, batch: PairedBatch, *, gather: Callable[[Tensor], Tensor] | None = None) -> Targets:
        """Compute the targets of the terms: the teacher's outputs, or the labels.

        Args:
            batch: The batch of this process.
            gather: Concatenates a tensor of all processes. It is given in training, where running statistics count the
                batch, and None elsewhere.
        """
        if self.teacher is None:
            return {"labels": batch.labels}
        needs_tokens = any(term.objective.compares == "tokens" for term in self.terms.values())
        targets = self.teacher.embed(batch, with_tokens=needs_tokens)
        if self.standardizer is None:
            return targets
        if gather is not None:
            self.standardizer.update(gather(targets["features"]))
        return {**targets, "features": self.standardizer(targets["features"])}

    def reduced_features(self, targets: Targets) -> dict[str, Tensor]:
        """Return the input of each head that takes the teacher's features."""
        return {name: targets["features"] for name, head in self.heads.items() if head.takes == "teacher"}

    @property
    def is_per_sample(self) -> bool:
        """Whether all terms can give the loss of each sample."""
        return all(term.objective.is_per_sample for term in self.terms.values())

    def loss(
        self, outputs: Mapping[str, Tensor], targets: Targets, sample_ids: Tensor, *, reduction: Reduction = "mean"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the weighted terms, see ``Reduction``; also return the value of each term for the curves."""
        losses: list[Tensor] = []
        log: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            more = {}
            if term.objective.needs_own_anchors and self.bank is not None:
                more["is_own"] = self.bank.is_own(sample_ids)
            if term.objective.reduces_teacher:
                more["reduced"] = outputs[_of_teacher(name)]
            target = targets[term.objective.compares]
            output = term.objective(student=outputs[name], teacher=target, bank=self.bank, reduction=reduction, **more)
            losses.append(term.weight * output.loss)
            # An objective of one part is logged under its term's name, which is unique; parts keep their own names.
            suffix = name.removeprefix(term.name)
            parts = {f"{part}{suffix}": value for part, value in output.terms.items()}
            log |= {name: next(iter(parts.values()))} if len(parts) == 1 else parts
        return torch.stack(losses).sum(dim=0), log

    @property
    def needs_momentum_keys(self) -> bool:
        """Whether the student's anchors come from its EMA copy (CompRess-2q)."""
        return self.key_head is not None and self.terms[self.key_head].objective.student_anchors == "momentum"

    @property
    def classifier(self) -> Classifier | None:
        """The linear layer that is trained with labels; None for a comparison with a teacher."""
        if self.teacher is not None:
            return None
        (head,) = self.heads.values()
        assert isinstance(head.module, nn.Linear)
        return Classifier(head.module.weight.detach().cpu(), head.module.bias.detach().cpu())


def compare_with_labels(student: Encoder, terms: Sequence[Term], num_classes: int | None) -> list[Comparison]:
    """Create the comparison with labels; none if no term uses labels."""
    own = {term.name: term for term in terms if term.objective.compares == "labels"}
    if not own:
        return []
    if num_classes is None:
        raise UserError(f"the objective {next(iter(own))} needs labels, but the data has none: remove this objective")
    return [Comparison(_create_heads(own, student, Sizes(0, num_classes=num_classes)), own)]


def compare_with_teacher(
    student: Encoder,
    teacher: Teacher,
    terms: Sequence[Term],
    *,
    suffix: str,
    bank_size: int,
    bank_dtype: torch.dtype,
    standardizes: bool,
    device: torch.device,
) -> Comparison:
    """Create heads and bank for one teacher.

    Args:
        student: The student; only its sizes are read.
        teacher: The teacher; only its sizes are read.
        terms: All terms of the loss; those on labels are left out.
        suffix: Ends the names of the heads.
        bank_size: K.
        bank_dtype: Type in which anchors are stored.
        standardizes: Whether the teacher's features are standardised by running statistics.
        device: Device of the bank and of the statistics.
    """
    own = {f"{term.name}{suffix}": term for term in terms if term.objective.compares != "labels"}
    with_tokens = any(get_adapter(term.adapter).gives == "tokens" for term in own.values())
    sizes = Sizes.of(teacher.encoder, with_tokens=with_tokens)
    for term in own.values():
        _require_relations(term, sizes, teacher.encoder, "teacher")
        if term.objective.relates is not None:
            _require_relations(term, Sizes.of(student, with_tokens=with_tokens), student, "student")
    heads = _create_heads(own, student, sizes)
    for name, term in own.items():
        if term.objective.reduces_teacher:
            dims = teacher.encoder.embed_dim, _output_dim(term, student, teacher.encoder)
            heads[_of_teacher(name)] = Head(nn.Sequential(nn.LayerNorm(dims[0]), nn.Linear(*dims)), takes="teacher")
    standardizer = RunningStandardizer(teacher.encoder.embed_dim, device) if standardizes else None
    if all(term.objective.student_anchors is None for term in own.values()):
        return Comparison(heads, own, teacher, standardizer=standardizer)
    key_head = next((name for name, term in own.items() if term.fills_student_side), None)
    bank = MemoryBank(
        size=bank_size,
        teacher_dim=teacher.encoder.embed_dim,
        student_dim=None if key_head is None else _output_dim(own[key_head], student, teacher.encoder),
        dtype=bank_dtype,
        device=device,
    )
    return Comparison(heads, own, teacher, bank, key_head, standardizer)


def _create_heads(terms: Mapping[str, Term], student: Encoder, teacher_sizes: Sizes) -> dict[str, Head]:
    adapters = {name: get_adapter(term.adapter) for name, term in terms.items()}
    taken = {adapter.takes for adapter in adapters.values()}
    student_sizes = Sizes.of(student, with_tokens="tokens" in taken, with_blocks="blocks" in taken)
    return {
        name: Head(adapter.build(student_sizes, teacher_sizes), takes=adapter.takes)
        for name, adapter in adapters.items()
    }


def _require_relations(term: Term, sizes: Sizes, encoder: Encoder, role: str) -> None:
    """Raise a ``UserError`` if a clip of an encoder has only one of what the objective compares with each other.

    Of a student with one time, all times would be copies of it, from which nothing is learned.
    """
    if term.objective.relates is None or sizes.tokens is None:
        return
    _, num_times, height, width = sizes.tokens
    what = term.objective.relates
    if (num_times if what == "times" else num_times * height * width) < 2:
        raise UserError(
            f"{term.name} compares the {what} of a clip with each other, and a clip of {encoder.name} "
            f"({encoder.view.size_text}) has only one: raise --{role}-frames, or choose another objective"
        )


def _of_teacher(name: str) -> str:
    return f"{name}_of_teacher"


def _output_dim(term: Term, student: Encoder, teacher: Encoder) -> int:
    return (student if get_adapter(term.adapter).keeps_dim else teacher).embed_dim
