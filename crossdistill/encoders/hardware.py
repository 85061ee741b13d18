"""Decide what depends on the machine: precision of an encoder (``choose_precision``), and memory layout."""

from __future__ import annotations

import contextlib
import copy
import os
from contextlib import AbstractContextManager

import psutil
import torch
from torch import Tensor, nn

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError

# Number of backward passes that must agree. Each takes about as long as a training step.
NUM_GRADIENT_CHECKS = 5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Values of ``--precision`` besides ``auto``."""
FIRST_WITH_FP16_UNITS = (7, 0)
"""Compute capability of Volta."""


def cpu_has_amx() -> bool:
    """Return whether this CPU multiplies bf16 matrices in tiles (Intel's AMX).

    AVX-512's bf16 extension alone does not count: on a CPU with nothing else, weight gradients of 3D convolutions were
    NaN at times, even for a network that had passed ``bf16_gradients_repeat`` (docs/LOG.md).
    """
    return bool(torch.cpu._is_amx_tile_supported())


def choose_precision(encoder: Encoder, *, setting: str, device: torch.device, training_batch_size: int | None) -> str:
    """Decide whether an encoder's forward and backward pass run in ``fp32``, ``bf16`` or ``fp16``.

    ``setting`` is one of the three, or ``auto``, which follows ``accelerate launch --mixed_precision`` if given.
    Otherwise ``auto`` chooses what ``gpu_precision`` says on a GPU. On a CPU it chooses bf16 where it is fast, as
    ``encoder.info`` says, and repeatable. ``training_batch_size`` is the number of clips of a batch if the encoder is
    trained, and None if it only embeds.

    Raises:
        UserError: The GPU has no bf16, or the precision that was launched is unknown.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if setting == "auto" and launched not in ("no", *DTYPES):
        raise UserError(
            f"mixed precision {launched!r} is not supported: launch with --mixed_precision bf16, fp16 or no"
        )
    if setting == "auto" and launched in ("bf16", "fp16"):
        setting = launched
    if setting == "bf16" and device.type == "cuda" and not _has_bf16():
        name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        raise UserError(
            f"bf16 was asked for, and {name} (compute capability {major}.{minor}) computes it only by emulation, which "
            "is slow: give --precision fp16, or auto"
        )
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return gpu_precision(device)
    if training_batch_size is None or device.type != "cpu" or not encoder.info.bf16_pays_on_cpu:
        return "fp32"
    return "bf16" if cpu_has_amx() and bf16_gradients_repeat(encoder, batch_size=training_batch_size) else "fp32"


def gpu_precision(device: torch.device) -> str:
    """Return the precision that ``auto`` takes on a GPU.

    It is bf16 if the GPU has it (compute capability 8.0), because it needs no gradient scaling. Volta and Turing have
    matrix units for fp16 alone, and no TF32 that would make fp32 fast. Before Volta, fp16 arithmetic is not faster than
    fp32 on most GPUs.
    """
    if _has_bf16():
        return "bf16"
    return "fp16" if torch.cuda.get_device_capability(device) >= FIRST_WITH_FP16_UNITS else "fp32"


def _has_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)


def bf16_gradients_repeat(encoder: Encoder, *, batch_size: int) -> bool:
    """Return whether an encoder's bf16 gradients are finite and equal to the bit in every pass.

    On some CPUs the weight gradients of 3D convolutions are neither: values differed between passes, and one pass in 6
    to 70 had NaN (docs/LOG.md). An exact resume needs gradients that repeat.
    """
    # A copy, because passes in train mode move BatchNorm's statistics.
    probe = copy.deepcopy(encoder).cpu().train()
    view = encoder.view
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = torch.randn(batch_size, view.kind.channels, view.num_frames, view.size_px, view.size_px)
    first: list[Tensor] = []
    for _ in range(NUM_GRADIENT_CHECKS):
        probe.zero_grad()
        with torch.random.fork_rng(devices=[]), torch.autocast("cpu", dtype=torch.bfloat16):
            torch.manual_seed(0)  # the same dropout in every pass
            features = probe(clip).float()
        (features * torch.linspace(-1, 1, features.shape[1])).sum().backward()
        gradients = [parameter.grad for parameter in probe.parameters() if parameter.grad is not None]
        first = first or [gradient.clone() for gradient in gradients]
        if not all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(first, gradients, strict=True)):
            return False
    return True


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return autocast to bf16 or fp16, or a context that does nothing."""
    return contextlib.nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=DTYPES[precision])


def to_channels_last(module: nn.Module) -> None:
    """Lay out the weights of 2D and 3D convolutions with channels last, in place."""
    for parameter in module.parameters():
        if parameter.dim() in (4, 5):
            parameter.data = channels_last(parameter.data)


def channels_last(tensor: Tensor) -> Tensor:
    """Lay out a 4D or 5D tensor with channels last in memory; return other tensors unchanged."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.dim()]) if tensor.dim() in formats else tensor


def free_memory_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device; None if it is unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None
