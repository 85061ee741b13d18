"""Post-training quantisation: the ranges of a quantised encoder from a few clips, without training.

Shapes: B clips of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from crossdistill.encoders.base import Encoder
from crossdistill.errors import UserError
from crossdistill.quantization.layers import IntegerConvolution
from crossdistill.quantization.ranges import RunningRange
from crossdistill.utils.modules import eval_mode


@torch.no_grad()
def calibrate(encoder: Encoder, batches: Iterable[Tensor]) -> int:
    """Set the ranges of a quantised encoder's activations, in place, and return the number of clips.

    The activations are not rounded while they are measured, so that the ranges do not depend on those of earlier
    layers; weights are. A range holds the smallest and the largest value of all clips: with means over clips, as in
    training, single clips came down to a cosine of 0.96, and to 0.996 with the extremes (docs/explanation/speed.md).

    Args:
        encoder: An encoder that ``quantize`` has changed.
        batches: Normalised clips [B, C, T, H, W] on the encoder's device.

    Raises:
        UserError: There is no clip.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> from crossdistill.quantization.quantize import noise_clips, quantize
        >>> encoder = quantize(create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16), "w8a8")
        >>> calibrate(encoder, noise_clips(encoder, 4).split(2))
        4
    """
    ranges = [module for module in encoder.body.modules() if isinstance(module, RunningRange)]
    convolutions = [module for module in encoder.body.modules() if isinstance(module, IntegerConvolution)]
    bounds: dict[RunningRange, Tensor] = {}

    def observe(module: RunningRange, inputs: tuple[Tensor, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        (values,) = inputs
        low, high = bounds.get(module, torch.zeros(2, device=values.device))  # a range includes zero
        bounds[module] = torch.stack([values.amin().float().minimum(low), values.amax().float().maximum(high)])
        return (values, *output[1:])

    hooks = [module.register_forward_hook(observe) for module in ranges]
    for convolution in convolutions:
        convolution.is_simulated = True  # sums of integers would round with the ranges that are being measured
    num_clips = 0
    try:
        with eval_mode(encoder.body):
            for clips in batches:
                encoder(clips)
                num_clips += len(clips)
    finally:
        for hook in hooks:
            hook.remove()
        for convolution in convolutions:
            convolution.is_simulated = False
    if not num_clips:
        raise UserError("there is no clip to calibrate with: give a dataset with readable training clips")
    for module, found in bounds.items():
        module.bounds.copy_(found)
        module.num_batches.fill_(1)
    return num_clips
