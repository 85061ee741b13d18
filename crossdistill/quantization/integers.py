"""Integer arithmetic of a quantised convolution outside of training, equal to that of the exported file.

A floating-point sum close to halfway between two integers may round differently in PyTorch and in a runtime, and one
such step changes the embedding of a deep quantised network. Sums of integers are exact. Sum, factor and rounding follow
ONNX' QLinearConv in its order, so the network that is evaluated is the network that is exported.

Shapes: B batch, C output channels, I input channels of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

STORED_BITS = 8
"""Bits of a weight in a file, whatever its width: the smallest integers that runtimes have."""
MAX_BIAS = 2.0**30
"""Largest bias, in units of input scale times weight scale: sums have 32 bits and need room for the products too."""


def round_through(values: Tensor) -> Tensor:
    """Round to the nearest integer, and halves to the even one; the gradient is that of the identity.

    Example:
        >>> values = torch.tensor([0.5, 1.5, 1.7], requires_grad=True)
        >>> round_through(values).detach()
        tensor([0., 2., 2.])
        >>> torch.autograd.grad(round_through(values).sum(), values)
        (tensor([1., 1., 1.]),)
    """
    return values + (torch.round(values) - values).detach()


@dataclass(frozen=True)
class IntegerWeights:
    """Weights of a layer as a file stores them: multiples of the layer's integers in ``STORED_BITS`` bits.

    A bias is an integer in steps of input scale times weight scale. With four bits for both, rounding to these coarse
    steps moved the embeddings of a ResNet-18 to a cosine of 0.79 (docs/LOG.md). Weights of four bits are stored times
    16 with a scale divided by 16: the values stay the same, and the steps of the bias become finer.
    """

    integers: Tensor
    """[C, I, ...] float32 with integers of the layer's own width."""
    multiple: int
    """Factor between ``integers`` and the stored integers."""
    scale: Tensor
    """[C] scales of the stored integers."""
    bias: Tensor | None
    """[C] float32 with integers, in steps of input scale times ``scale``."""

    @staticmethod
    def of(weight: Tensor, bias: Tensor | None, *, bits: int, input_scale: Tensor) -> IntegerWeights:
        """Quantise weight [C, I, ...] and bias [C]; a channel's scale fits its largest weight and a 32-bit bias."""
        multiple = int(2 ** (STORED_BITS - bits))
        largest = 2 ** (bits - 1) - 1
        scale = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=1e-10) / largest
        if bias is not None:  # matters for a channel whose weights are almost zero
            scale = torch.maximum(scale, bias.detach().abs() * multiple / (input_scale.detach() * MAX_BIAS))
        columns = scale.view(-1, *[1] * (weight.dim() - 1))
        integers = round_through(weight / columns).clamp(-largest, largest)
        stored = scale / multiple  # exact: a power of two
        steps = None if bias is None else round_through(bias / (input_scale * stored))
        return IntegerWeights(integers, multiple, stored, steps)

    @property
    def values(self) -> Tensor:
        """Weights [C, I, ...] in floating point."""
        return self.integers * (self.scale * self.multiple).view(-1, *[1] * (self.integers.dim() - 1))

    def convolve(self, layer: nn.Module, inputs: Tensor, *, input_scale: Tensor, output_scale: Tensor) -> Tensor:
        """Return the sums [B, C, ...] in steps of the output's scale, before rounding.

        The inputs [B, ...] are float32 with integers, where 0 stands for the value 0. ``layer`` is the convolution.
        """
        # Sums are exact in float32 up to 2**24, which products of 8 by 8 bits rarely reach. So are their multiples by a
        # power of two. Adding the bias rounds once, like a runtime that converts 32-bit integers to floating point.
        sums = layer._conv_forward(inputs, self.integers, None) * self.multiple  # type: ignore[operator]
        shape = (1, -1, *[1] * (sums.dim() - 2))
        if self.bias is not None:
            sums = sums + self.bias.view(shape)
        return sums * (input_scale * self.scale / output_scale).view(shape)
