"""Choices that depend on the machine: precision and memory layout."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError


def cpu_has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in tiles (Intel's AMX).

    AVX-512's bf16 extension does not count: on a CPU that has it alone, the gradient of a 3D convolution
    in bf16 with channels last came out as NaN now and then, for inputs that are harmless (docs/LOG.md).
    """
    return bool(torch.cpu._is_amx_tile_supported())


def uses_bf16(encoder: Encoder, *, setting: str, device: torch.device) -> bool:
    """Decide the precision of an encoder's forward and backward pass.

    Args:
        encoder: Knows whether bf16 was measured to be faster on a CPU.
        setting: ``fp32``, ``bf16`` or ``auto``. ``auto`` follows ``accelerate launch
            --mixed_precision`` where that is given.
        device: Where the encoder runs.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if setting == "auto" and launched not in ("no", "bf16"):
        raise UserError(f"mixed precision {launched!r} is not supported: launch with --mixed_precision bf16 or no")
    if setting != "auto":
        return setting == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return launched == "bf16" or (device.type == "cpu" and encoder.bf16_pays_on_cpu and cpu_has_amx())


def autocast(device: torch.device, *, is_bf16: bool) -> AbstractContextManager[object]:
    """Compute in bf16 where it is safe, or leave everything as it is."""
    if not is_bf16:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def to_channels_last(module: nn.Module) -> None:
    """Lay the weights of 2D and 3D convolutions out with channels last, in place."""
    for parameter in module.parameters():
        if parameter.dim() in (4, 5):
            parameter.data = channels_last(parameter.data)


def channels_last(tensor: Tensor) -> Tensor:
    """The same values with channels last in memory; other than 4D and 5D tensors stay as they are."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if tensor.dim() not in formats:
        return tensor
    return tensor.contiguous(memory_format=formats[tensor.dim()])
