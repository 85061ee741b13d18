"""Quantised layers: brevitas' layers in place of plain ones.

Shapes: B batch, C output channels, I input channels of a group.
"""

from __future__ import annotations

import importlib
import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.errors import require_package
from crossdistill.quantization.bits import BitWidths
from crossdistill.quantization.integers import IntegerWeights
from crossdistill.quantization.ranges import RunningRange
from crossdistill.utils.modules import without_autocast

OUTPUT_BITS = 8
"""Bits of a convolution's output after its normalisation, so that a runtime can stay with integers between layers."""
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
CONVOLUTION_ARGUMENTS = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
REPLACED = (*CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)


def require_brevitas() -> Any:
    """Return the module of brevitas' layers, or raise a ``UserError`` that says how to install them."""
    # brevitas imports PyTorch's compiler of CUDA extensions, which warns if there is no GPU. None is compiled here.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    return require_package("brevitas.nn", target="--bits", extra="precision")


def quantised_layer(layer: nn.Module, widths: BitWidths, qnn: ModuleType, *, has_norm: bool) -> nn.Module:
    """Return brevitas' layer with the weights of a convolution, a linear layer or ``nn.MultiheadAttention``.

    If a BatchNorm follows (``has_norm``), it is quantised instead of the layer's output. ``qnn`` is brevitas' module of
    layers.
    """
    weights, inputs = _weights(widths.weight_bits), _ranged(widths.activation_bits)
    new: Any
    if isinstance(layer, nn.MultiheadAttention):
        new = _quantised_attention(layer, qnn, weights=weights, activations=inputs)
    elif isinstance(layer, nn.Linear):
        sizes = (layer.in_features, layer.out_features, layer.bias is not None)
        new = qnn.QuantLinear(*sizes, weight_quant=weights, input_quant=inputs)
    else:
        assert isinstance(layer, CONVOLUTIONS)
        kind = qnn.QuantConv2d if isinstance(layer, nn.Conv2d) else qnn.QuantConv3d
        new = type(kind.__name__, (IntegerConvolution, kind), {})(  # printed under brevitas' name
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
            weight_quant=weights,
            input_quant=inputs,
            output_quant=None if has_norm else _ranged(OUTPUT_BITS),
            **{name: getattr(layer, name) for name in CONVOLUTION_ARGUMENTS},
        )
        new.weight_bits, new.norms, new.is_simulated = widths.weight_bits, [], False
    new.load_state_dict(layer.state_dict(), strict=False)  # a plain layer has no ranges
    return new.to(next(layer.parameters()).device).train(layer.training)


def _quantised_attention(
    layer: nn.MultiheadAttention, qnn: ModuleType, *, weights: type, activations: type
) -> nn.Module:
    """Return attention whose projections and both products between tokens take integers."""
    activation_names = ("in_proj_input", "attn_output_weights", "q_scaled", "k_transposed", "v", "out_proj_input")
    return qnn.QuantMultiheadAttention(
        layer.embed_dim,
        layer.num_heads,
        dropout=layer.dropout,
        bias=layer.in_proj_bias is not None,
        batch_first=layer.batch_first,
        in_proj_weight_quant=weights,
        in_proj_bias_quant=None,
        out_proj_weight_quant=weights,
        out_proj_bias_quant=None,
        **{f"{name}_quant": activations for name in activation_names},
    )


def _weights(bits: int) -> type:
    """Return brevitas' description of signed symmetric weights, whose scale fits the largest of an output channel."""
    base = importlib.import_module("brevitas.quant").Int8WeightPerChannelFloat
    return type("Weights", (base,), {"bit_width": bits})


def _ranged(bits: int) -> type:
    """Return brevitas' description of activations that a ``RunningRange`` quantises."""
    base = importlib.import_module("brevitas.quant.base").UintQuant
    solver = importlib.import_module("brevitas.quant.solver").ActQuantSolver
    per_tensor = importlib.import_module("brevitas.inject.enum").ScalingPerOutputType.TENSOR
    scaling = {"scaling_per_output_type": per_tensor, "restrict_scaling_type": "fp"}
    return type("Activations", (base, solver), {"tensor_quant": RunningRange, "bit_width": bits, **scaling})


def keep_range() -> None:
    """Do nothing, where brevitas makes a new ``RunningRange`` per loaded state: optimizers keep the old parameters."""


def quantise_norm(norm: nn.Module, convolution: nn.Module, qnn: ModuleType) -> None:
    """Quantise the output of a BatchNorm to 8 bits, and record the convolution that it is folded into."""
    norm.output_quant = qnn.QuantIdentity(act_quant=_ranged(OUTPUT_BITS)).train(norm.training)
    norm.register_forward_hook(_quantise_output)
    assert isinstance(convolution, IntegerConvolution)
    convolution.norms.append(norm)
    norm.convolutions = [convolution]  # type: ignore[assignment]  # a list, so that it is no child


def _quantise_output(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Quantise a BatchNorm's output, unless the convolution summed integers: it has then normalised and rounded too."""
    return inputs[0] if norm.convolutions[0].sums_integers else norm.output_quant(output)


class IntegerConvolution(nn.Module):
    """Mixed into brevitas' convolutions: outside of training they sum integers (see ``integers.py``)."""

    weight_bits: int
    norms: list[Any]
    """The BatchNorm to fold, or none. It is in a list so that it is no child of the convolution."""
    is_simulated: bool
    """Whether the layer simulates integers in floating point in eval mode too, for export and the first ranges."""
    input_quant: Any
    output_quant: Any
    weight: nn.Parameter
    bias: nn.Parameter | None

    @property
    def sums_integers(self) -> bool:
        """Whether ``forward`` currently sums integers."""
        return not (self.training or self.is_simulated)

    def forward(self, values: Tensor) -> Tensor:
        """Map [B, I, ...] to [B, C, ...]."""
        if not self.sums_integers:
            return super().forward(values)
        # Sums of integers need float32: bf16 holds integers only up to 256.
        with without_autocast(values.device):
            given, gives = _range_of(self.input_quant), self.output_range
            input_scale, output_scale = given.grid()[0], gives.grid()[0]
            integers = given.round(values.float() / input_scale)
            steps = self.integer_weights().convolve(self, integers, input_scale=input_scale, output_scale=output_scale)
            return gives.round(steps) * output_scale

    @property
    def output_range(self) -> RunningRange:
        """Range of the output, after the BatchNorm if one follows."""
        return _range_of(self.norms[0].output_quant.act_quant if self.norms else self.output_quant)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight [C, I, ...] and bias [C], with the running statistics of the BatchNorm folded in."""
        if not self.norms:
            return self.weight, self.bias
        (norm,) = self.norms
        factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * factor
        weight = self.weight * factor.view(-1, *[1] * (self.weight.dim() - 1))
        return weight, shift if self.bias is None else shift + self.bias * factor

    def integer_weights(self) -> IntegerWeights:
        """Return the weights as a file stores them, with the BatchNorm folded."""
        weight, bias = self.folded()
        return IntegerWeights.of(weight, bias, bits=self.weight_bits, input_scale=_range_of(self.input_quant).grid()[0])


def _range_of(proxy: Any) -> RunningRange:
    """Return the range in brevitas' proxy of activations."""
    return proxy.fused_activation_quant_proxy.tensor_quant


def return_scales(module: nn.Module, *, enabled: bool) -> None:
    """Let brevitas' layers return scales with their values: an export needs them, training is faster without."""
    for layer in module.modules():
        if hasattr(layer, "skip_create_quant_tensor"):
            setattr(layer, "skip_create_quant_tensor", not enabled)  # noqa: B010 - mypy takes it for a tensor
