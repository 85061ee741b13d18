"""``--gradient-checkpointing``: activations inside a network's blocks are computed again in the backward pass.

Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174. Only the inputs of the
blocks are kept. Each block runs its forward pass twice, with the same dropout; statistics of BatchNorm move once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from crossdistill.encoders.base import Encoder
from crossdistill.errors import UserError

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
MIN_LAYERS = 2
"""Layers with weights that a block has at least. Recomputing a single one would save no more than its output."""


def recompute_activations(encoder: Encoder) -> int:
    """Let the blocks of an encoder recompute their activations in training, in place, and return their number.

    Values, gradients, names and hooks stay as they are.

    Raises:
        UserError: The network has no such blocks, or is quantised.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> recompute_activations(create_encoder("image_resnet18"))
        8
    """
    blocks = require_recomputable(encoder, bits=encoder.bits)
    for block in blocks:
        # A method, because a copy of the network must call its own block.
        block.forward = MethodType(_forward_with_recomputation, block)
    return len(blocks)


def require_recomputable(encoder: Encoder, *, bits: str | None) -> list[nn.Module]:
    """Return the blocks of an encoder, or raise a ``UserError`` if it has none or is to be quantised to ``bits``."""
    if bits is not None:
        raise UserError(
            f"--gradient-checkpointing would move the ranges of a student of {bits} twice a step: remove it, or --bits"
        )
    blocks = innermost_blocks(encoder.body)
    if not blocks:
        raise UserError(f"{encoder.name} has no repeated blocks to recompute: remove --gradient-checkpointing")
    return blocks


def innermost_blocks(body: nn.Module) -> list[nn.Module]:
    """Find the blocks that a network repeats: the innermost parts of lists that hold two or more such parts.

    A part counts if it has two layers with weights: a residual block or a transformer's layer, and no convolution with
    its norm.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> [type(block).__name__ for block in innermost_blocks(create_encoder("rgb_r3d10").body)]
        ['BasicBlock', 'BasicBlock', 'BasicBlock', 'BasicBlock']
    """
    if not isinstance(body, CONTAINERS):
        return [block for child in body.children() for block in innermost_blocks(child)]
    parts = [child for child in body.children() if _num_layers(child) >= MIN_LAYERS]
    if len(parts) < 2:
        return [block for child in body.children() for block in innermost_blocks(child)]
    return [block for part in parts for block in innermost_blocks(part) or [part]]


def _num_layers(module: nn.Module) -> int:
    return sum(isinstance(part, WEIGHTED) for part in module.modules())


def _forward_with_recomputation(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(block).forward
    if not (block.training and torch.is_grad_enabled()):
        return forward(block, *args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        return forward(block, *map(_copy_of_list, args), **kwargs)

    # Some blocks take a list that they, or later blocks, change (SlowFast, DenseNet).
    if not torch.compiler.is_compiling():
        kwargs["context_fn"] = partial(_contexts, block)
    return checkpoint(run, *map(_copy_of_list, args), use_reentrant=False, **kwargs)


def _copy_of_list(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts of the first and of the second forward pass."""
    return contextlib.nullcontext(), _with_copied_buffers(block)


@contextlib.contextmanager
def _with_copied_buffers(block: nn.Module) -> Iterator[None]:
    """Let a forward pass write to copies of the buffers, such as BatchNorm's statistics."""
    owners = [(part, name, value) for part in block.modules() for name, value in part._buffers.items()]
    try:
        for part, name, value in owners:
            part._buffers[name] = None if value is None else value.clone()
        yield
    finally:
        for part, name, value in owners:
            part._buffers[name] = value
