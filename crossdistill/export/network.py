"""The network that is exported: the student, and the classifier that it learned labels with, as one module.

Shapes: B batch, C channels, T frames, H height, W width, D features, N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.export.description import EMBEDDINGS, LOGITS

Outputs = dict[str, Tensor]
"""``embeddings`` [B, D], and ``logits`` [B, N] of a student with a classifier."""
Runner = Callable[[Tensor], Outputs]
"""An exported file in its runtime: clips [B, C, T, H, W] to outputs, for any B."""
NUM_EXAMPLES = 2
"""Clips that a network is traced with: one would make some tracers take the batch for a constant."""


class ExportedStudent(nn.Module):
    """Maps normalised clips [B, C, T, H, W] to embeddings [B, D], or to embeddings and logits [B, N].

    Args:
        encoder: On the CPU.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.has_logits = encoder.classifier is not None
        if encoder.classifier is not None:
            self.register_buffer("weight", encoder.classifier.weight.detach().float())
            self.register_buffer("bias", encoder.classifier.bias.detach().float())

    weight: Tensor
    bias: Tensor

    def forward(self, clips_bcthw: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Embeddings, and logits where there is a classifier."""
        embeddings: Tensor = self.encoder(clips_bcthw)
        return (embeddings, F.linear(embeddings, self.weight, self.bias)) if self.has_logits else embeddings

    @property
    def output_names(self) -> tuple[str, ...]:
        """In the order in which ``forward`` gives them."""
        return (EMBEDDINGS, LOGITS) if self.has_logits else (EMBEDDINGS,)


def named_outputs(given: Tensor | tuple[Tensor, ...] | list[Tensor]) -> Outputs:
    """The outputs of an exported network by name."""
    tensors = [given] if isinstance(given, Tensor) else list(given)
    return dict(zip((EMBEDDINGS, LOGITS), tensors, strict=False))


def torch_runner(module: Callable[[Tensor], Tensor | tuple[Tensor, ...]]) -> Runner:
    """Run a module of PyTorch without gradients."""

    def run(clips: Tensor) -> Outputs:
        with torch.no_grad():
            return named_outputs(module(clips))

    return run


def logits_of(embeddings: Tensor, classifier: Mapping[str, Tensor] | None) -> Outputs:
    """Embeddings with the logits of a classifier of ``weight`` and ``bias``, if there is one."""
    if classifier is None:
        return {EMBEDDINGS: embeddings}
    return {EMBEDDINGS: embeddings, LOGITS: F.linear(embeddings, classifier["weight"], classifier["bias"])}


def body_runner(network: Callable[[Tensor], Tensor], classes: Classifier | None) -> Runner:
    """Run a network without gradients, and the classifier that lies beside its weights."""
    layer = None if classes is None else {"weight": classes.weight, "bias": classes.bias}

    def run(clips: Tensor) -> Outputs:
        with torch.no_grad():
            return logits_of(network(clips), layer)

    return run


def cycled(clips: Tensor, num_clips: int) -> Tensor:
    """So many clips [B, ...], beginning again where they end."""
    return clips[torch.arange(num_clips) % len(clips)]


@contextmanager
def explained(encoder: Encoder, what: str, *errors: type[BaseException]) -> Iterator[None]:
    """Say in one sentence what an exporter of PyTorch says in pages.

    Args:
        encoder: What it could not write.
        what: The format, for example ``as ONNX``.
        errors: What the exporter raises, beside ``RuntimeError``.
    """
    expected: tuple[type[BaseException], ...] = (RuntimeError, *errors)
    try:
        yield
    except expected as error:
        reason = " ".join(str(error).partition("Please feel free")[0].strip().split("\n", 1)[0].split())
        raise UserError(
            f"PyTorch cannot write {encoder.name} {what} at {encoder.view.num_frames} frames of "
            f"{encoder.view.size_px} pixels ({reason or type(error).__name__}): choose another format, use the student "
            "in PyTorch, or train one of another view"
        ) from error
