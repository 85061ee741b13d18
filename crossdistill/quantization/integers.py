"""What a quantised convolution computes outside of training: sums of integers, as the exported file does.

In floating point a sum that ends almost between two integers goes to one in PyTorch and to the other elsewhere, and in
a deep network of few bits one such step moves the embedding. Integers leave no choice: the sum, its factor and its
rounding are those of ONNX' QLinearConv, in its order: the network that is evaluated is the network that is exported.

Shapes: B batch, C output channels, I input channels of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

STORED_BITS = 8
"""Of weights in a file, whatever their width: the smallest integers that runtimes have."""
MAX_BIAS = 2.0**30
"""A bias is an integer of 32 bits in units of input scale times weight scale, and the sum needs room beside it."""


def round_through(values: Tensor) -> Tensor:
    """Rounded to the nearest integer, of two to the even one; gradients pass as if nothing had happened."""
    return values + (torch.round(values) - values).detach()


def fold(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Weight [C, I, ...] and bias [C] of a convolution with the BatchNorm after it, by its running statistics."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    if norm is None:
        return weight, bias  # type: ignore[return-value]
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # type: ignore[operator]
    shift = norm.bias - norm.running_mean * factor  # type: ignore[operator]
    folded: Tensor = weight * factor.view(-1, *[1] * (weight.dim() - 1))
    return folded, shift if bias is None else shift + bias * factor  # type: ignore[operator]


@dataclass(frozen=True)
class IntegerWeights:
    """A layer as a file keeps it: weights of few bits as multiples in ``STORED_BITS``, and so a finer bias.

    A bias counts in steps of input scale times weight scale. Of four bits for both these are so coarse that rounding to
    them moved the embeddings of a ResNet-18 to a cosine of 0.79 (docs/LOG.md). Weights of four bits are stored 16 times
    as large with a scale 16 times as small: the values are the same, and the steps of the bias 16 times as fine.
    """

    integers: Tensor
    """[C, I, ...] float32 that holds integers of the layer's own width."""
    multiple: int
    """Of what is stored: that many times the integers."""
    scale: Tensor
    """[C] of what is stored."""
    bias: Tensor | None
    """[C] float32 that holds integers, in steps of input scale times ``scale``."""

    @staticmethod
    def of(weight: Tensor, bias: Tensor | None, *, bits: int, input_scale: Tensor) -> IntegerWeights:
        """Symmetric, the scale of each channel its largest weight's, or what its bias needs to fit into 32 bits.

        Args:
            weight: [C, I, ...].
            bias: [C].
            bits: Of the weights.
            input_scale: Of what the layer is given.
        """
        multiple = int(2 ** (STORED_BITS - bits))
        largest = 2 ** (bits - 1) - 1
        scale = weight.detach().abs().flatten(1).amax(dim=1).clamp(min=1e-10) / largest
        if bias is not None:  # of a channel whose weights are almost zero
            scale = torch.maximum(scale, bias.detach().abs() * multiple / (input_scale.detach() * MAX_BIAS))
        columns = scale.view(-1, *[1] * (weight.dim() - 1))
        integers = round_through(weight / columns).clamp(-largest, largest)
        stored = scale / multiple  # exact: a power of two
        return IntegerWeights(
            integers, multiple, stored, None if bias is None else round_through(bias / (input_scale * stored))
        )

    @property
    def values(self) -> Tensor:
        """[C, I, ...] in floating point."""
        return self.integers * (self.scale * self.multiple).view(-1, *[1] * (self.integers.dim() - 1))

    def convolve(self, layer: nn.Module, inputs: Tensor, *, input_scale: Tensor, output_scale: Tensor) -> Tensor:
        """Sums [B, C, ...] in steps of the output's scale, not yet rounded.

        Args:
            layer: The convolution, for its stride, padding, dilation and groups.
            inputs: [B, ...] float32 that holds integers; zero is the value zero.
            input_scale: Of the inputs.
            output_scale: Of the outputs.
        """
        # Exact in float32 up to 2**24, which sums of 8 bits by 8 bits rarely reach, and so is their multiple by a power
        # of two. The one rounding, when the bias is added, is that of a runtime that turns 32 bits to floating point.
        sums = layer._conv_forward(inputs, self.integers, None) * self.multiple  # type: ignore[operator]
        shape = (1, -1, *[1] * (sums.dim() - 2))
        if self.bias is not None:
            sums = sums + self.bias.view(shape)
        convolved: Tensor = sums * (input_scale * self.scale / output_scale).view(shape)
        return convolved
