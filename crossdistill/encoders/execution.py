"""Run an encoder on a device: apply normalisation, and the memory layout and precision that were decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from crossdistill.data.transforms import normalise
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import NO_VIEW
from crossdistill.encoders.hardware import autocast, channels_last, choose_precision, to_channels_last
from crossdistill.errors import UserError
from crossdistill.types import Mix, View, ViewSpec

Output = TypeVar("Output")


@dataclass(frozen=True)
class Execution:
    """The decisions for one encoder on one device.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> encoder = create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16)
        >>> execution = Execution.choose(encoder, precision="fp32")
        >>> view = View(torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8), channel_scale=torch.ones(2, 3))
        >>> execution.embed(encoder, view).shape
        torch.Size([2, 256])
    """

    view: ViewSpec
    """The encoder's view, which stored views are normalised for."""
    device: torch.device
    precision: str
    """``fp32``, ``bf16`` or ``fp16``. Gradients of fp16 need scaling (``training/gradient_scaling.py``)."""
    is_channels_last: bool

    @staticmethod
    def choose(
        encoder: Encoder,
        *,
        device: torch.device | None = None,
        precision: str = "auto",
        layout: str = "auto",
        training_batch_size: int | None = None,
        is_placed: bool = True,
    ) -> Execution:
        """Decide precision and layout for an encoder; if ``is_placed``, move it to the device and lay out its weights.

        The device is by default that of the weights, the CPU without weights. ``choose_precision`` describes
        ``precision`` and ``training_batch_size``. ``layout`` is ``yes`` for channels last, ``no``, or ``auto`` (yes on
        a GPU, and on a CPU where it is faster).
        """
        # A module without weights, such as nn.Identity for embeddings that were stored, works on any device.
        device = device or next(encoder.parameters(), torch.empty(0)).device
        precision = choose_precision(encoder, setting=precision, device=device, training_batch_size=training_batch_size)
        pays = device.type == "cuda" or encoder.info.channels_last_pays_on_cpu
        is_channels_last = pays if layout == "auto" else layout == "yes"
        execution = Execution(encoder.view, device, precision, is_channels_last)
        if is_placed:
            execution.place(encoder)
        return execution

    def place(self, encoder: Encoder) -> None:
        """Move an encoder to the device and lay out its weights, in place."""
        encoder.to(self.device)
        if self.is_channels_last:
            to_channels_last(encoder)

    def run(self, function: Callable[[Tensor], Output], view: View | Tensor, *, mix: Mix | None = None) -> Output:
        """Call a module, or one of its methods, on a batch in this execution's memory layout and precision.

        The batch is a stored view, which is normalised, or a normalised tensor [B, C, T, H, W] or [B, C, H, W]. A
        stored view for an encoder of plain tensors (``wrap_module``) is a ``UserError``. ``mix`` mixes the clips after
        they were normalised.
        """
        if isinstance(view, View) and self.view == NO_VIEW:
            raise UserError("an encoder made by wrap_module takes tensors, not stored views: use wrap_encoder instead")
        clip = normalise(view, self.view) if isinstance(view, View) else view
        clip = clip if mix is None else mix(clip)
        clip = channels_last(clip) if self.is_channels_last else clip.contiguous()
        with autocast(self.device, self.precision):
            return function(clip)

    def embed(self, module: Callable[[Tensor], Tensor], view: View | Tensor) -> Tensor:
        """Embed a batch, given as for ``run``: float32 [B, D]."""
        return self.run(module, view).float()
