"""The trained module, a student with the heads of the objectives, and the EMA copy of it (``MomentumCopy``).

Shapes: B batch, D student features, C channels, T frames, H height, W width, S token channels.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from crossdistill.encoders import Encoder
from crossdistill.quantization.layers import IntegerConvolution
from crossdistill.quantization.ranges import RunningRange, share_ranges
from crossdistill.utils.modules import without_autocast

MOVING_STATISTICS = (nn.modules.batchnorm._NormBase, RunningRange, IntegerConvolution)
"""Layers whose statistics follow their input in train mode: BatchNorm and its kin, ranges of quantised layers, and the
quantised convolutions, which in eval mode fold the BatchNorm that follows them."""


HeadInput = Literal["features", "tokens", "blocks", "teacher"]
"""Input of a head: the student's features [B, D], its tokens [B, S, T, H, W], the pooled outputs of its blocks and its
features in one row [B, C_1 + ... + C_n + D], or the teacher's features [B, E]."""


class Head(nn.Module):
    """A module on the student's features, tokens or blocks, or on the teacher's features.

    Args:
        module: Maps its input to what one objective compares.
        takes: Its input.
    """

    def __init__(self, module: nn.Module, *, takes: HeadInput = "features") -> None:
        super().__init__()
        self.module = module
        self.takes = takes

    def forward(self, given: Tensor) -> Tensor:
        """Compute in float32 also under autocast: bf16 logits have ties, and a head is cheap beside its encoder."""
        with without_autocast(given.device):
            output: Tensor = self.module(given.float())
        return output


class StudentWithHeads(nn.Module):
    """An encoder and its heads in one module, so that DistributedDataParallel wraps exactly what trains.

    Args:
        encoder: The student.
        heads: Name to head.
    """

    def __init__(self, encoder: Encoder, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(dict(heads))
        self.needs_tokens, self.needs_blocks = (
            any(head.takes == kind for head in heads.values()) for kind in ("tokens", "blocks")
        )

    def forward(self, clip_bcthw: Tensor, teacher_features: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Map normalised clips [B, C, T, H, W] to the output of every head.

        ``teacher_features`` has the input [B, E] of each head that takes the teacher's features.
        """
        with contextlib.ExitStack() as watching:
            blocks = watching.enter_context(self.encoder.watching_blocks()) if self.needs_blocks else []
            features, tokens = embed(self.encoder, clip_bcthw, with_tokens=self.needs_tokens)
        given: dict[str, Tensor | None] = {"features": features, "tokens": tokens}
        if self.needs_blocks:
            # Of a network of single frames, the mean over the frames of a clip.
            means = [block.unflatten(0, (len(features), -1)).mean(dim=1) for block in blocks]
            given["blocks"] = torch.cat([*means, features], dim=1)
        of_teacher = dict(teacher_features or {})
        return {
            name: head(of_teacher[name] if head.takes == "teacher" else given[str(head.takes)])
            for name, head in self.heads.items()
        }


def embed(encoder: Encoder, clip_bcthw: Tensor, *, with_tokens: bool) -> tuple[Tensor, Tensor | None]:
    """Compute features [B, D], and tokens [B, S, T, H, W] if they are needed."""
    return encoder.embed_with_tokens(clip_bcthw) if with_tokens else (encoder(clip_bcthw), None)


class MomentumCopy:
    """An exponential moving average (EMA) of a module's weights, with buffers of its own.

    It is in eval mode, because dropout and stochastic depth would make its embeddings noise. Only layers whose
    statistics follow their input (``MOVING_STATISTICS``) are in train mode: BatchNorm normalises by the copy's own
    batch, as in the authors' code of CompRess. (That of ISD has the whole copy in train mode, and no dropout.)

    The copy is no ``nn.Module``, so that a task which holds one does not list its weights among those that train.

    Args:
        module: Copied.
        momentum: EMA decay: weight of the old values at each update, in [0, 1].
    """

    def __init__(self, module: nn.Module, *, momentum: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.momentum = momentum
        self._set_modes()

    def _set_modes(self) -> None:
        # train() comes first: some modules forget there what they keep in eval mode, such as the biases of LeViT.
        for part in self.module.train().eval().modules():
            if isinstance(part, MOVING_STATISTICS):
                part.train()

    @torch.no_grad()
    def update(self, source: nn.Module, *, gather: Callable[[Tensor], Tensor]) -> None:
        """Move the copy a little towards its source.

        Args:
            source: The module that was copied, or a module that contains the copied part under the same names.
            gather: Collects the ranges of quantised layers, so that they are equal on all processes.
        """
        trained = dict(source.named_parameters())
        for name, value in self.module.named_parameters():
            value.lerp_(trained[name], 1 - self.momentum)
        share_ranges(self.module, gather)
        self._set_modes()
