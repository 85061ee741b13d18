"""Embed batches of clips by one or several networks. Shapes: B clips of a batch, D features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from crossdistill.data.dataset import PairedClips, make_loader
from crossdistill.data.sampling import SampleKey
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.evaluation.defaults import CLIPS_AT_ONCE
from crossdistill.types import PairedBatch, View, ViewSpec
from crossdistill.utils.console import progress_bar
from crossdistill.utils.modules import eval_mode


class BatchEmbedder(Protocol):
    """A network that embeds its view of a batch: an ``Embedder``, or an exported file in another runtime."""

    @property
    def embed_dim(self) -> int:
        """Number of features, D."""
        ...

    def embed_batch(self, batch: PairedBatch) -> Tensor:
        """Embed a batch of one or more clips: float32 [B, D] on the CPU."""
        ...


class ExportedNetwork(BatchEmbedder, Protocol):
    """An exported file that a runtime has opened."""

    @property
    def path(self) -> Path:
        """The file."""
        ...

    @property
    def runtime(self) -> str:
        """Name of the runtime; two runtimes give features that differ in the last bits."""
        ...

    @property
    def name(self) -> str:
        """Name of the encoder."""
        ...

    @property
    def view(self) -> ViewSpec:
        """What the network sees."""
        ...


@dataclass(frozen=True)
class Embedder:
    """An encoder that embeds stored views, without gradients and in eval mode.

    Every call restores the training flag that the encoder had before.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> encoder = create_encoder("rgb_tiny3d_8")
        >>> embedder = Embedder(encoder, Execution.choose(encoder, precision="fp32"))
        >>> clips = torch.zeros(2, 3, 4, 32, 32, dtype=torch.uint8)
        >>> embedder(View(clips, channel_scale=torch.ones(2, 3))).shape
        torch.Size([2, 256])
    """

    encoder: Encoder
    execution: Execution
    teacher: int | None = None
    """Position of the teacher whose view of a batch the encoder sees; None for the student's view."""

    @property
    def embed_dim(self) -> int:
        """Number of features, D."""
        return self.encoder.embed_dim

    @torch.inference_mode()
    def __call__(self, view: View | Tensor) -> Tensor:
        """Embed a stored view of B clips: float32 [B, D] on the CPU."""
        with eval_mode(self.encoder):
            return self.execution.embed(self.encoder, view.to(self.execution.device)).cpu()

    def embed_batch(self, batch: PairedBatch) -> Tensor:
        """Embed the view of a batch that belongs to this encoder: float32 [B, D] on the CPU."""
        return self(batch.student if self.teacher is None else batch.teachers[self.teacher])


@dataclass(frozen=True)
class TokenEmbedder(Embedder):
    """An encoder whose tokens are its features: every row is the features of one token after the other.

    The rows are float16, half the memory and disk of float32; the protocols that use them compute in float32.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> encoder = create_encoder("rgb_tiny3d_8", num_frames=8, size_px=32)
        >>> embedder = TokenEmbedder(encoder, Execution.choose(encoder, precision="fp32"))
        >>> embedder.grid, embedder.embed_dim
        ((64, 2, 2, 2), 512)
    """

    @cached_property
    def grid(self) -> tuple[int, int, int, int]:
        """Features of a token, and numbers of times, rows and columns; a ``UserError`` if there are no tokens."""
        with eval_mode(self.encoder), torch.inference_mode():
            _, tokens = self.execution.run(self.encoder.embed_with_tokens, self.encoder.blank_clip())
        size, times, rows, columns = tokens.shape[1:]
        return size, times, rows, columns

    @property
    def embed_dim(self) -> int:
        """Number of features of all tokens of a clip."""
        return math.prod(self.grid)

    @torch.inference_mode()
    def __call__(self, view: View | Tensor) -> Tensor:
        """Embed a stored view of B clips: float16 [B, T' * H' * W' * E] on the CPU."""
        with eval_mode(self.encoder):
            _, tokens = self.execution.run(self.encoder.embed_with_tokens, view.to(self.execution.device))
        return rearrange(tokens.half(), "b e t h w -> b (t h w e)").cpu()


def batches_of(keys: Sequence[SampleKey], batch_size: int = CLIPS_AT_ONCE) -> list[list[SampleKey]]:
    """Cut keys into batches, in order; the last batch may be smaller.

    Example:
        >>> [[key.index for key in batch] for batch in batches_of([SampleKey(i, epoch=0) for i in range(5)], 2)]
        [[0, 1], [2, 3], [4]]
    """
    return [list(keys[start : start + batch_size]) for start in range(0, len(keys), batch_size)]


@dataclass
class EmbeddedBatches:
    """Iterate over batches of clips together with the features of one or several networks.

    Each item is ``(batch, features)``: the batch as the loader gives it, on the CPU, and one float32 [B, D] on the CPU
    for each embedder. Unreadable clips are missing from the batch; a batch without any readable clip has B = 0.
    """

    clips: PairedClips
    batches: Sequence[list[SampleKey]]
    """The clips of every batch. The features depend on them, in the last bits."""
    embedders: Sequence[BatchEmbedder]
    num_workers: int = 2
    pin_memory: bool = False
    description: str | None = None
    """Text of the progress bar; None for no bar."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Reason for each dataset/video that could not be read so far."""

    def __iter__(self) -> Iterator[tuple[PairedBatch, list[Tensor]]]:
        """Read and embed batch after batch."""
        loader = make_loader(self.clips, self.batches, num_workers=self.num_workers, pin_memory=self.pin_memory)
        with progress_bar(unit="batches", is_shown=self.description is not None) as bar:
            for batch in bar.track(loader, total=len(self.batches), description=self.description or ""):
                self.unreadable |= dict(batch.unreadable)
                yield (
                    batch,
                    [e.embed_batch(batch) if len(batch) else torch.empty(0, e.embed_dim) for e in self.embedders],
                )
