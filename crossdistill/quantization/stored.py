"""A quantised network as files store it: norms folded, weights and biases as integers."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from crossdistill.quantization.integers import STORED_BITS, IntegerWeights
from crossdistill.quantization.layers import CONVOLUTIONS, NORMS, IntegerConvolution


class StoredWeights(nn.Module):
    """A ``tensor_quant`` of brevitas that returns weights unchanged: they are multiples of the given scales already."""

    def __init__(self, int_quant: nn.Module, bit_width_impl: nn.Module, stored_scale: Tensor) -> None:
        super().__init__()
        self.int_quant = int_quant
        self.bit_width_impl = bit_width_impl
        self.register_buffer("scale", stored_scale)

    scale: Tensor

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the weights, their scales, zero points and bits."""
        return weight, self.scale, torch.zeros_like(self.scale), self.bit_width_impl()


def prepare_for_export(body: nn.Module) -> None:
    """Fold norms and turn weights and biases into integers, in place and for inference.

    Biases of linear layers and convolutions have 32 bits, because a runtime's integer layers take no other bias. Their
    scale is that of the products to which they are added.
    """
    layers: list[tuple[str, Any]] = list(body.named_modules())
    for name, layer in layers:
        if isinstance(layer, IntegerConvolution):
            stored, (_, bias) = layer.integer_weights(), layer.folded()
            # The norm is removed below, so the convolution takes over its shift as a bias.
            layer.bias = None if bias is None else nn.Parameter(bias.detach())
            _store_weights(layer, stored)
            layer.is_simulated = True
        elif hasattr(layer, "weight_quant"):
            bits = int(layer.weight_quant.bit_width())
            # Without the bias, on which the scale of a linear layer does not depend.
            weights = IntegerWeights.of(layer.weight.detach(), None, bits=bits, input_scale=torch.ones(()))
            _store_weights(layer, weights)
        elif isinstance(layer, NORMS) and hasattr(layer, "output_quant"):
            quantiser: Any = layer.output_quant  # what is left of a folded norm is the rounding of its output
            body.set_submodule(name, quantiser)
    described = importlib.import_module("brevitas.quant").Int32Bias
    for layer in body.modules():
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and hasattr(layer, "bias_quant") and layer.bias is not None:
            layer.bias_quant = described.proxy_class(layer, described).eval()


def _store_weights(layer: Any, stored: IntegerWeights) -> None:
    base = importlib.import_module("brevitas.quant.base").NarrowIntQuant
    solver = importlib.import_module("brevitas.quant.solver").WeightQuantSolver
    with torch.no_grad():
        layer.weight.copy_(stored.values)
    scale = stored.scale.detach().view(-1, *[1] * (layer.weight.dim() - 1))
    constant = importlib.import_module("brevitas.inject.enum").ScalingImplType.CONST
    settings = {"bit_width": STORED_BITS, "stored_scale": scale, "scaling_impl_type": constant}
    described: Any = type("Stored", (base, solver), {"tensor_quant": StoredWeights, **settings})
    layer.weight_quant = described.proxy_class(layer, described).eval()
