"""Ranges of activations: running bounds that a learned gain stretches.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from crossdistill.quantization.integers import round_through

RANGE_MOMENTUM = 0.1


class RunningRange(nn.Module):
    """Quantises a tensor of activations to unsigned integers between two running bounds.

    The bounds of a batch are the means over its samples of the smallest and the largest value. They always include
    zero, and zero is an integer itself, so that padding stays exact. The running bounds start with those of the first
    batch in train mode and then move towards those of every batch, like BatchNorm's statistics. A learned gain decides
    how much to clip (Bai et al., BatchQuant, NeurIPS 2021, learn a factor of running statistics in the same way).

    brevitas builds this module and calls it as its ``tensor_quant``: ``int_quant`` rounds to integers and back, and
    ``int_scaling_impl`` maps bits to the number of steps between the bounds.
    """

    def __init__(self, int_quant: nn.Module, int_scaling_impl: nn.Module, bit_width_impl: nn.Module) -> None:
        super().__init__()
        self.int_quant = int_quant
        self.int_scaling_impl = int_scaling_impl
        self.bit_width_impl = bit_width_impl
        self.gain = nn.Parameter(torch.ones(()))
        self.register_buffer("bounds", torch.tensor([0.0, 1.0]))
        self.register_buffer("num_batches", torch.zeros(()))

    bounds: Tensor
    num_batches: Tensor

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return values on the grid of integers, their scale, zero point and bits."""
        if self.training:
            self.observe(values)
        scale, zero_point, bits = self.grid()
        if self.training:
            return self.int_quant(scale, zero_point, bits, values), scale, zero_point, bits
        return self.round(values / scale) * scale, scale, zero_point, bits

    def grid(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return scale, zero point and bits."""
        bits = self.bit_width_impl()
        num_steps = self.int_scaling_impl(bits)
        low, high = self.bounds[0], self.bounds[1]
        span = (high - low).clamp(min=1e-10)
        scale = span * self.gain.abs().clamp(min=1e-3) / num_steps
        return scale, torch.round(-low / span * num_steps), bits

    def round(self, steps: Tensor) -> Tensor:
        """Round values in units of the scale to integers within the bounds, where 0 stands for the value 0.

        ONNX' QuantizeLinear rounds before it adds the zero point, and so does this. brevitas adds it first, which moves
        a value halfway between two integers to the other one if the zero point is odd.
        """
        _, zero_point, bits = self.grid()
        return torch.clamp(round_through(steps.float()), -zero_point, 2**bits - 1 - zero_point)

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Move the running bounds towards those of a batch [B, ...]."""
        self.num_batches += 1  # the weight of batch n is 1/n at first, as in a mean, then RANGE_MOMENTUM
        self.bounds.lerp_(bounds_of(values), (1 / self.num_batches).clamp(min=RANGE_MOMENTUM))


def bounds_of(values: Tensor) -> Tensor:
    """Return the means over samples [B, ...] of the smallest and the largest value, at most and at least zero: [2]."""
    samples = values.detach().float()
    inner = tuple(range(1, samples.dim()))
    low, high = samples.amin(dim=inner), samples.amax(dim=inner)
    return torch.stack([low.mean().clamp(max=0), high.mean().clamp(min=0)])


@torch.no_grad()
def share_ranges(module: nn.Module, gather: Callable[[Tensor], Tensor]) -> None:
    """Replace the running bounds on every process by their mean over all processes; nothing if it is not quantised.

    DDP shares the buffers of the module that it wraps. Others, for example an EMA copy, need this.
    ``gather`` concatenates the tensors of all processes along their first axis.
    """
    ranges = [layer for layer in module.modules() if isinstance(layer, RunningRange)]
    if not ranges:
        return
    shared = gather(torch.stack([layer.bounds for layer in ranges])[None]).mean(dim=0)
    for layer, bounds in zip(ranges, shared, strict=True):
        layer.bounds.copy_(bounds)


def is_range(parameter_name: str) -> bool:
    """Return whether a parameter, by its full name, is the learned gain of a range."""
    return parameter_name.endswith("tensor_quant.gain")
