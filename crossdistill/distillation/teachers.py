"""What a student is compared with: a network that runs, embeddings that are kept, or the student's own past.

Shapes: B batch, E teacher features, N classes.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.distillation.heads import embed
from crossdistill.distillation.standardize import Standardizer
from crossdistill.distillation.teacher_cache import TeacherCache
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.weights import weights_hash
from crossdistill.objectives.objective import Compares
from crossdistill.types import PairedBatch


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
    if encoder.classifier is None:
        return None
    return encoder.classifier.weight.float().to(device), encoder.classifier.bias.float().to(device)


class FrozenTeacher:
    """An encoder that never changes: in eval mode, without gradients, outside every wrapper.

    Args:
        encoder: Its weights are frozen in place.
        execution: How it runs.
        number: Which of the teachers it is, and so which of a batch's views it sees.
    """

    def __init__(self, encoder: Encoder, execution: Execution, *, number: int = 0) -> None:
        self.encoder = encoder.requires_grad_(False).eval()
        self.execution = execution
        self.number = number
        self.identity = [encoder.name, weights_hash(encoder)]
        self.classes = classifier_of(encoder, execution.device)

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> dict[Compares, Tensor]:
        """See ``Teacher.embed``; the batch is on the encoder's device."""
        assert not self.encoder.training, "the teacher stays in eval mode"
        view = batch.teachers[self.number]
        with torch.inference_mode():
            features, tokens = self.execution.run(partial(embed, self.encoder, with_tokens=with_tokens), view)
        # Clones are ordinary tensors, which autograd may read.
        outputs: dict[Compares, Tensor] = {"features": features.float().clone()}
        if tokens is not None:
            outputs["tokens"] = tokens.float().clone()
        if self.classes is not None:
            outputs["logits"] = F.linear(outputs["features"], *self.classes)
        return outputs


class CachedTeacher:
    """A teacher whose embeddings are read instead of computed; what ``distiller.FrozenTeacher`` is without one.

    Args:
        cache: Complete.
        device: Where embeddings are wanted.
    """

    def __init__(self, cache: TeacherCache, device: torch.device) -> None:
        cache.require_complete()
        self.cache = cache
        self.device = device
        self.encoder = cache.encoder()
        self.identity = [self.encoder.name, str(cache.key["teacher_weights_sha256"])]
        self.classes = classifier_of(self.encoder, device)

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> dict[Compares, Tensor]:
        """Features [B, E] float32, and logits [B, N] if the teacher has a classifier."""
        assert not with_tokens, "TeacherCache.require_fit has refused this"
        assert batch.sample_keys is not None
        features = self.cache.read(batch.sample_keys).to(self.device)
        outputs: dict[Compares, Tensor] = {"features": features}
        if self.classes is not None:
            outputs["logits"] = F.linear(features, *self.classes)
        return outputs


class StandardizedTeacher:
    """A teacher whose embeddings are standardised; its logits and tokens stay as they are.

    Args:
        teacher: Of any kind.
        standardizer: For its features.
    """

    def __init__(self, teacher: Teacher, standardizer: Standardizer) -> None:
        self.teacher = teacher
        self.standardizer = standardizer
        self.encoder: Encoder = teacher.encoder
        self.identity = teacher.identity

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> dict[Compares, Tensor]:
        """See ``distiller.Teacher.embed``."""
        outputs = self.teacher.embed(batch, with_tokens=with_tokens)
        return {**outputs, "features": self.standardizer(outputs["features"])}


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, *, momentum: float) -> None:
    """Move an EMA copy a little towards what it is a copy of, or a part of it; its buffers are its own."""
    trained = dict(fast.named_parameters())
    for name, value in slow.named_parameters():
        value.lerp_(trained[name], 1 - momentum)


class SelfTeacher:
    """The student's own past: an EMA copy of it that sees another view of the moment (ISD).

    Tejankar, Koohpayegani, Pillai, Favaro, Pirsiavash: ISD: Self-Supervised Learning by Iterative Similarity
    Distillation, ICCV 2021, arXiv 2012.09259. The copy normalises by its own batch, as theirs does.

    Args:
        student: Copied.
        execution: How both run.
        momentum: How much of the copy stays at each step.
    """

    def __init__(self, student: Encoder, execution: Execution, *, momentum: float) -> None:
        self.encoder = copy.deepcopy(student).requires_grad_(False).train()
        self.execution = execution
        self.momentum = momentum
        self.identity = ["self"]

    @torch.no_grad()
    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> dict[Compares, Tensor]:
        """See ``Teacher.embed``."""
        run = partial(embed, self.encoder, with_tokens=with_tokens)
        features, tokens = self.execution.run(run, batch.teachers[0])
        outputs: dict[Compares, Tensor] = {"features": features.float()}
        return outputs if tokens is None else {**outputs, "tokens": tokens.float()}

    def follow(self, student: Encoder) -> None:
        """Move towards the student."""
        follow(self.encoder, student, momentum=self.momentum)
