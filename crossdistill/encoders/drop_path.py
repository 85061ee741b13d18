"""Stochastic depth (drop path): in training, each block adds nothing for a random part of the clips.

Huang, Sun, Liu, Sedra, Weinberger: Deep Networks with Stochastic Depth, ECCV 2016, arXiv 1603.09382. The rate rises
linearly from 0 in the first block to the highest in the last one, as in timm's and torchvision's networks.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from crossdistill.encoders.base import Encoder
from crossdistill.errors import UserError

ATTRIBUTE = "drop_path"
"""Beginning of the name of the attribute that holds a block's drop path in timm's and transformers' networks. Where the
rate was 0 when the network was built, it is an identity or None."""


def set_drop_path(encoder: Encoder, rate: float) -> int:
    """Set the highest rate of an encoder's drop path, in place, and return the number of its blocks.

    Args:
        encoder: The encoder.
        rate: Share of the clips for which the last block adds nothing, in [0, 1); 0 turns it off.

    Raises:
        UserError: The network has no drop path.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> set_drop_path(create_encoder("image_swin_t"), 0.1)
        12
    """
    blocks = require_drop_path(encoder)
    for (block, names), share in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for name in names:
            setattr(block, name, StochasticDepth(share, mode="row"))
    return len(blocks)


def require_drop_path(encoder: Encoder) -> list[tuple[nn.Module, list[str]]]:
    """Return the blocks that have drop path and the names of it in each, or raise a ``UserError`` if there are none."""
    slots = [(module, _slots(module)) for module in encoder.body.modules()]
    blocks = [(module, names) for module, names in slots if names]
    if not blocks:
        raise UserError(
            f"{encoder.name} has no drop path (stochastic depth): remove --drop-path, or choose a network that has it, "
            "for example rgb_mvit_v2_s, image_swin_t or a ViT of timm"
        )
    return blocks


def _slots(module: nn.Module) -> list[str]:
    """Return the names of a block's own drop paths."""
    named = {**module._modules, **{name: value for name, value in vars(module).items() if value is None}}
    return [
        name
        for name, value in named.items()
        if isinstance(value, StochasticDepth)
        or (name.startswith(ATTRIBUTE) and (value is None or isinstance(value, nn.Identity) or _drops(value)))
    ]


def _drops(module: nn.Module) -> bool:
    """Return whether a module is a library's drop path: timm's ``DropPath``, transformers' ``VJEPA2DropPath``."""
    return type(module).__name__.endswith("DropPath")
