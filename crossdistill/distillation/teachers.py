"""Teachers: everything that a student can learn from, behind one interface.

A teacher is a frozen network, one network for each fold of the clips, a cache of embeddings, the student's own past, or
one of these standardised. Nothing above this module asks which kind it has.

Shapes: B batch, E teacher features, N classes.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.data.dataset import PairedClips
from crossdistill.distillation.alignment import Alignment
from crossdistill.distillation.cache_key import describe_clips
from crossdistill.distillation.standardizer import Standardizer
from crossdistill.distillation.student_with_heads import MomentumCopy, embed
from crossdistill.distillation.teacher_cache import LOGITS, TeacherCache
from crossdistill.distillation.terms import Term
from crossdistill.encoders import Encoder
from crossdistill.encoders.compilation import compiled
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.sharding import shard
from crossdistill.encoders.weights import weights_hash
from crossdistill.errors import UserError
from crossdistill.objectives.objective import Compares
from crossdistill.types import Mix, PairedBatch, View, ViewSpec

Targets = dict[Compares, Tensor]
"""``features`` [B, E] float32; ``logits`` [B, N] with a classifier; ``tokens`` [B, E, T, H, W] if they are needed."""
Embed = Callable[..., tuple[Tensor, Tensor | None]]
"""A network's ``embed``: from clips and ``with_tokens`` to features and tokens."""


class Teacher(abc.ABC):
    """Base class of teachers, whose outputs are the targets of a student."""

    encoder: Encoder
    """Name, view, sizes and classifier. Only a teacher that runs a network has its weights too."""
    identity: list[str]
    """Name, and a hash of the weights for each network, which must not change when a run is resumed."""
    has_own_crops = False
    """Whether the teacher sees random crops of its own. Student and teacher share one crop otherwise."""

    sees_clips = True
    """Whether a network of the teacher sees the clips of a batch, and not only their names."""

    @abc.abstractmethod
    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> Targets:
        """Compute or read the targets of a batch, which is on the teacher's device."""

    @property
    def networks(self) -> list[Encoder]:
        """The teacher's network, or one for each fold, to evaluate next to the student; empty if it has none itself."""
        return []

    @property
    def clip_views(self) -> list[ViewSpec] | None:
        """The views of all teachers of a store, by which its clips were drawn; None for a teacher without a store."""
        return None

    def stored_features(self, positions: Sequence[int]) -> Tensor | None:
        """Return stored features [n, E] of training clips as they look in the first epoch; None without a store.

        Clips that could not be read are left out.
        """
        return None

    def stored_embeddings(self) -> dict[int, Tensor] | None:
        """Return a stored embedding [E] of each training clip by its position; None for a teacher without a store."""
        return None

    def select_clips(self, clips: PairedClips) -> PairedClips:
        """Return the training clips as this teacher needs them."""
        return clips

    def require_fit(self, terms: Sequence[Term], student: Encoder) -> None:
        """Raise a ``UserError`` if the terms cannot compare the student with this teacher."""
        for term in terms:
            term.require_fit(student=student, teacher=self.encoder)

    def compile(self) -> None:
        """Compile the forward pass of the teacher's network, if it has one that runs."""
        return None

    def after_step(self, student: Encoder, *, gather: Callable[[Tensor], Tensor]) -> None:
        """Update the teacher after an optimizer step, if it depends on the student. Most teachers never change."""
        return None

    def resume_state(self) -> dict[str, Tensor] | None:
        """Return the state for resuming a run; None for a teacher that never changes."""
        return None

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Restore what ``resume_state`` returned."""
        return None


def add_logits(features: Tensor, encoder: Encoder) -> Targets:
    """Return the features [B, E], and the logits [B, N] of the encoder's classifier if it has one."""
    if encoder.classifier is None:
        return {"features": features}
    weight, bias = (part.float().to(features.device) for part in (encoder.classifier.weight, encoder.classifier.bias))
    return {"features": features, "logits": F.linear(features, weight, bias)}


class FrozenTeacher(Teacher):
    """A network that never changes: in eval mode, without gradients, outside every wrapper.

    Args:
        encoder: The network. Its parameters are frozen in place.
        execution: Device, precision and memory layout.
        number: Position among the teachers: it sees ``batch.teachers[number]``.
    """

    def __init__(self, encoder: Encoder, execution: Execution, *, number: int = 0) -> None:
        self.encoder = encoder.requires_grad_(False).eval()
        self.execution = execution
        self.number = number
        self._embed: Embed = partial(embed, encoder)
        self.identity = [encoder.name, weights_hash(encoder)]

    def compile(self) -> None:
        """Compile the forward pass of training; evaluation of the network stays as it is."""
        self._embed = compiled(self._embed, name=self.encoder.name)

    @property
    def networks(self) -> list[Encoder]:
        """The frozen network itself."""
        return [self.encoder]

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> Targets:
        """Run the network on its view of the batch."""
        return self.embed_view(batch.teachers[self.number], mix=batch.mix, with_tokens=with_tokens)

    def embed_view(self, view: View | Tensor, *, mix: Mix | None = None, with_tokens: bool = False) -> Targets:
        """Run the network on a view of B clips."""
        assert not self.encoder.training, "the teacher stays in eval mode"
        with torch.inference_mode():
            features, tokens = self.execution.run(partial(self._embed, with_tokens=with_tokens), view, mix=mix)
        # Clones are ordinary tensors, which autograd may read.
        targets = add_logits(features.float().clone(), self.encoder)
        return targets if tokens is None else {**targets, "tokens": tokens.float().clone()}


class CrossFittedTeacher(Teacher):
    """K networks of one architecture, of which each gives the targets of the clips that it alone has not seen.

    Dao, Kamath, Syrgkanis, Mackey: Knowledge Distillation as Semiparametric Inference, ICLR 2021, arXiv 2104.09732: a
    teacher that has seen a clip with its label says little more about it than the label. So the training clips are
    divided into K folds, and each network learns from all folds but its own. Deviation: the paper's targets are class
    probabilities, which have the same meaning in every network; embeddings are mapped onto the first network's space.

    The target of a clip that no network has seen, of a dataset without labels for example, is the mean over all
    networks, of the mapped features and of the logits. Tokens are not mapped.

    Args:
        members: The network of each fold, in order. All see the same view of a batch.
        folds: ``Entry.key`` of each clip of a fold to the number of the fold, from 1 on. Clips without are unseen.
        alignments: The map of each network's features; None for features as they are.
    """

    def __init__(
        self,
        members: Sequence[FrozenTeacher],
        folds: Mapping[str, int],
        alignments: Sequence[Alignment] | None = None,
    ) -> None:
        self.members = list(members)
        self.folds = folds
        self.alignments = alignments
        self.encoder = members[0].encoder
        self.identity = [self.encoder.name, *(member.identity[1] for member in members)]
        self.folds_n = torch.empty(0, dtype=torch.int64)

    @property
    def networks(self) -> list[Encoder]:
        """The network of each fold."""
        return [member.encoder for member in self.members]

    def aligned(self, alignments: Sequence[Alignment]) -> CrossFittedTeacher:
        """Return the teacher with the map of each network's features."""
        teacher = copy.copy(self)
        teacher.alignments = alignments
        return teacher

    def compile(self) -> None:
        """Compile the network of each fold."""
        for member in self.members:
            member.compile()

    def select_clips(self, clips: PairedClips) -> PairedClips:
        """Look up the fold of every training clip; the clips stay as they are."""
        self.folds_n = torch.tensor([self.folds.get(entry.key, 0) for entry in clips.entries])
        return clips

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> Targets:
        """Run on each clip the network that has not seen it.

        Raises:
            UserError: The clips are mixed, so that none of them is of one fold.
        """
        if batch.mix is not None:
            raise UserError("a mixed clip is of no fold: do not mix, or take a teacher without folds")
        assert batch.sample_keys is not None
        folds_b = self.folds_n[batch.sample_keys[:, 0]]
        targets: Targets = {}
        for number, member in enumerate(self.members):
            rows = ((folds_b == number + 1) | (folds_b == 0)).nonzero()[:, 0]
            if not len(rows):
                continue
            view, rows = batch.teachers[member.number], rows.to(batch.sample_ids.device)
            own = member.embed_view(view.take(rows) if isinstance(view, View) else view[rows], with_tokens=with_tokens)
            if self.alignments is not None:
                own["features"] = self.alignments[number](own["features"])
            for name, values in own.items():
                total = targets.setdefault(name, values.new_zeros(len(batch), *values.shape[1:]))
                total.index_add_(0, rows, values)
        is_unseen = (folds_b == 0).to(batch.sample_ids.device)
        for total in targets.values():
            total[is_unseen] /= len(self.members)
        return targets

    def require_fit(self, terms: Sequence[Term], student: Encoder) -> None:
        """Raise a ``UserError`` if a term needs tokens in one space, or does not fit student and networks."""
        require_no_common_tokens_needed(terms)
        for member in self.members:
            member.require_fit(terms, student)


def require_no_common_tokens_needed(terms: Sequence[Term]) -> None:
    """Raise a ``UserError`` if a term compares tokens of different clips, which ``--folds`` does not map."""
    for term in terms:
        if term.objective.compares == "tokens" and term.objective.needs_teacher_dim:
            raise UserError(
                f"the objective {term.name} compares tokens, and those of folds are in spaces of their own: choose an "
                "objective on embeddings, or remove --folds"
            )


class ShardedTeacher(FrozenTeacher):
    """A frozen network whose weights are divided among the processes, which call it equally often.

    It gives no networks to evaluate: processes evaluate different numbers of batches.

    Args:
        encoder: The network, on the CPU.
        execution: Device, precision and memory layout.
        number: Position among the teachers.
    """

    def __init__(self, encoder: Encoder, execution: Execution, *, number: int = 0) -> None:
        super().__init__(encoder, execution, number=number)
        shard(encoder, execution.device)

    @property
    def networks(self) -> list[Encoder]:
        """None."""
        return []


class CachedTeacher(Teacher):
    """A teacher whose outputs are read from a cache: neither its network nor its stream is needed.

    Args:
        cache: A complete cache.
        device: Where the targets are needed.
        split: The split whose training clips are learned from.
        expected: Further fields of the cache's key that the run expects, such as the teacher's name.
    """

    sees_clips = False

    def __init__(
        self, cache: TeacherCache, device: torch.device, *, split: str, expected: Mapping[str, Any] | None = None
    ) -> None:
        cache.require_complete()
        self.cache = cache
        self.device = device
        self.split = split
        self.expected = dict(expected or {})
        self.encoder = cache.encoder()
        self.identity = [self.encoder.name, *cache.weights_hashes]

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> Targets:
        """Read the embeddings of the batch's clips; stored logits, or those of the classifier; and stored tokens."""
        keys = batch.sample_keys
        assert keys is not None
        targets = add_logits(self.cache.read(keys).to(self.device), self.encoder)
        if LOGITS in self.cache.parts:
            targets["logits"] = self.cache.read_logits(keys).to(self.device)
        return {**targets, "tokens": self.cache.read_tokens(keys).to(self.device)} if with_tokens else targets

    @property
    def clip_views(self) -> list[ViewSpec]:
        """The views of all teachers that the cache was made with."""
        return self.cache.clip_views

    def stored_features(self, positions: Sequence[int]) -> Tensor:
        """Read the features of training clips in the first augmentation."""
        unreadable = self.cache.unreadable()
        keys = [(position, 0) for position in positions if (position, 0) not in unreadable]
        return self.cache.read(torch.tensor(keys, dtype=torch.int64).reshape(-1, 2))

    def stored_embeddings(self) -> dict[int, Tensor]:
        """Return for each readable training clip the mean over its cached augmentations."""
        return self.cache.mean_embeddings()

    def select_clips(self, clips: PairedClips) -> PairedClips:
        """Return the clips with the moments and crops that the cache has embeddings of.

        Raises:
            UserError: The cache was made of another teacher, other clips or other options.
        """
        self.cache.require({**self.expected, **describe_clips(clips, split=self.split)})
        replay = self.cache.replay()
        known = {} if clips.replay is None else clips.replay.unreadable  # of the other teachers of the cache
        return clips.replayed(replace(replay, unreadable={**known, **replay.unreadable}))

    def require_fit(self, terms: Sequence[Term], student: Encoder) -> None:
        """Raise a ``UserError`` if the terms need more than the cache holds, or do not fit the student."""
        self.cache.require_fit(terms)
        if len(self.cache.weights_hashes) > 1:
            require_no_common_tokens_needed(terms)
        super().require_fit(terms, student)


class SelfTeacher(Teacher):
    """An EMA copy of the student that sees another augmented view of the same moment (ISD).

    Tejankar, Koohpayegani, Pillai, Favaro, Pirsiavash: ISD: Self-Supervised Learning by Iterative Similarity
    Distillation, ICCV 2021, arXiv 2012.09259.

    Args:
        student: The student. It is copied, not changed.
        execution: Device, precision and memory layout of the student, which the copy uses too.
        momentum: EMA decay: weight of the old values at each update, in [0, 1].
    """

    has_own_crops = True

    def __init__(self, student: Encoder, execution: Execution, *, momentum: float) -> None:
        self._copy = MomentumCopy(student, momentum=momentum)
        assert isinstance(self._copy.module, Encoder)
        self.encoder = self._copy.module
        self.execution = execution
        self._embed: Embed = partial(embed, self.encoder)
        self.identity = ["self"]

    def compile(self) -> None:
        """Compile the forward pass of the copy."""
        self._embed = compiled(self._embed, name=self.encoder.name)

    @torch.no_grad()
    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> Targets:
        """Run the copy on the teacher's view of the batch."""
        run = partial(self._embed, with_tokens=with_tokens)
        features, tokens = self.execution.run(run, batch.teachers[0], mix=batch.mix)
        targets: Targets = {"features": features.float()}
        return targets if tokens is None else {**targets, "tokens": tokens.float()}

    def require_fit(self, terms: Sequence[Term], student: Encoder) -> None:
        """Raise a ``UserError`` if a term needs a classifier, which a student without labels does not have."""
        require_no_classifier_needed(terms)
        super().require_fit(terms, student)

    def after_step(self, student: Encoder, *, gather: Callable[[Tensor], Tensor]) -> None:
        """Move the copy towards the student."""
        self._copy.update(student, gather=gather)

    def resume_state(self) -> dict[str, Tensor]:
        """Return the weights of the copy."""
        return self.encoder.state_dict()

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Restore the weights of the copy."""
        self.encoder.load_state_dict(state)


def require_no_classifier_needed(terms: Sequence[Term]) -> None:
    """Raise a ``UserError`` if a term compares class probabilities, which ``--teacher self`` does not have."""
    for term in terms:
        if term.objective.compares == "logits":
            raise UserError(
                f"the objective {term.name} needs a classifier, but --teacher self has none: choose an objective on "
                "embeddings, for example seed"
            )


class StandardizedTeacher(Teacher):
    """A teacher whose features are standardised; its logits and tokens stay as they are.

    Args:
        teacher: Any teacher.
        standardizer: Applied to its features.
    """

    def __init__(self, teacher: Teacher, standardizer: Standardizer) -> None:
        self.teacher = teacher
        self.standardizer = standardizer
        self.encoder = teacher.encoder
        self.identity = teacher.identity
        self.sees_clips, self.has_own_crops = teacher.sees_clips, teacher.has_own_crops

    @property
    def networks(self) -> list[Encoder]:
        """The networks of the wrapped teacher."""
        return self.teacher.networks

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> Targets:
        """Standardise the features of the wrapped teacher."""
        targets = self.teacher.embed(batch, with_tokens=with_tokens)
        return {**targets, "features": self.standardizer(targets["features"])}

    @property
    def clip_views(self) -> list[ViewSpec] | None:
        """The views of the wrapped teacher's store."""
        return self.teacher.clip_views

    def stored_features(self, positions: Sequence[int]) -> Tensor | None:
        """Return the stored features of the wrapped teacher, as they are."""
        return self.teacher.stored_features(positions)

    def stored_embeddings(self) -> dict[int, Tensor] | None:
        """Return the stored embeddings of the wrapped teacher, as they are."""
        return self.teacher.stored_embeddings()

    def select_clips(self, clips: PairedClips) -> PairedClips:
        """Return the clips that the wrapped teacher needs."""
        return self.teacher.select_clips(clips)

    def require_fit(self, terms: Sequence[Term], student: Encoder) -> None:
        """Check the wrapped teacher."""
        self.teacher.require_fit(terms, student)

    def compile(self) -> None:
        """Compile the wrapped teacher."""
        self.teacher.compile()

    def after_step(self, student: Encoder, *, gather: Callable[[Tensor], Tensor]) -> None:
        """Update the wrapped teacher."""
        self.teacher.after_step(student, gather=gather)

    def resume_state(self) -> dict[str, Any] | None:
        """Return the state of the wrapped teacher."""
        return self.teacher.resume_state()

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Restore the wrapped teacher."""
        self.teacher.load_resume_state(state)
