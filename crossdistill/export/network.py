"""The exported network: the student and its classifier as one module, and functions that run it.

Shapes: B batch, C channels, T frames, H height, W width, D features, N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.encoders import Encoder, create_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.export.metadata import EMBEDDINGS, LOGITS
from crossdistill.quantization.quantize import quantize
from crossdistill.types import ViewSpec

Outputs = dict[str, Tensor]
"""``embeddings`` [B, D], and with a classifier ``logits`` [B, N]."""
Forward = Callable[[Tensor], Outputs]
"""Forward pass of an exported file in its runtime: clips [B, C, T, H, W] to outputs, for any B."""
NUM_EXAMPLES = 2  # clips to trace with; some tracers take a batch of 1 for a constant


class ExportedStudent(nn.Module):
    """Maps normalised clips [B, C, T, H, W] to embeddings [B, D], or to embeddings and logits [B, N], on the CPU."""

    weight: Tensor
    bias: Tensor

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.output_names = (EMBEDDINGS,) if encoder.classifier is None else (EMBEDDINGS, LOGITS)
        # Buffers, so that the exporters store the classifier in the file.
        if encoder.classifier is not None:
            self.register_buffer("weight", encoder.classifier.weight.detach().float())
            self.register_buffer("bias", encoder.classifier.bias.detach().float())

    def forward(self, clips_bcthw: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the embeddings, and the logits if there is a classifier."""
        embeddings: Tensor = self.encoder(clips_bcthw)
        return (embeddings, F.linear(embeddings, self.weight, self.bias)) if LOGITS in self.output_names else embeddings


def module_forward(module: Callable[[Tensor], Tensor | tuple[Tensor, ...]]) -> Forward:
    """Return the forward pass, without gradients, of an exported network that is a PyTorch module."""

    @torch.no_grad()
    def forward(clips: Tensor) -> Outputs:
        given = module(clips)
        # Without a classifier there is one tensor, and zip stops after EMBEDDINGS.
        return dict(zip((EMBEDDINGS, LOGITS), [given] if isinstance(given, Tensor) else given, strict=False))

    return forward


def with_logits(embeddings_bd: Tensor, classifier: Classifier | None) -> Outputs:
    """Return embeddings, and their logits if there is a classifier."""
    if classifier is None:
        return {EMBEDDINGS: embeddings_bd}
    return {EMBEDDINGS: embeddings_bd, LOGITS: F.linear(embeddings_bd, classifier.weight, classifier.bias)}


def build_encoder(name: str, view: ViewSpec, *, config: dict[str, Any] | None, bits: str | None) -> Encoder:
    """Build a student's network with new weights from its name, view, configuration and bits."""
    encoder = create_encoder(name, num_frames=view.num_frames, stride=view.stride, size_px=view.size_px, config=config)
    encoder.view = view  # the student's mean and standard deviation may differ from the registry's
    if bits is not None:
        quantize(encoder, bits)
    return encoder


def repeat_clips(clips: Tensor, num_clips: int) -> Tensor:
    """Return exactly ``num_clips`` clips: the first ones, and again from the start if there are too few.

    Example:
        >>> repeat_clips(torch.tensor([5, 6]), 3)
        tensor([5, 6, 5])
    """
    return clips[torch.arange(num_clips) % len(clips)]


@contextmanager
def exporter_errors(encoder: Encoder, target: str, *errors: type[BaseException]) -> Iterator[None]:
    """Convert an exporter's ``RuntimeError``, or one of ``errors``, to a ``UserError`` of one sentence.

    ``target`` is the format, for example ``as ONNX``.
    """
    expected: tuple[type[BaseException], ...] = (RuntimeError, *errors)
    try:
        yield
    except expected as error:
        reason = " ".join(str(error).partition("Please feel free")[0].strip().split("\n", 1)[0].split())
        raise UserError(
            f"PyTorch cannot export {encoder.name} {target} for {encoder.view.num_frames} frames of "
            f"{encoder.view.size_px}x{encoder.view.size_px} pixels ({reason or type(error).__name__}): choose another "
            "format with --to, use the student in PyTorch, or train a student with another number or size of frames"
        ) from error
