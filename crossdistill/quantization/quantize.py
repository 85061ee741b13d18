"""Quantisation-aware training: an encoder with weights and activations of 2 to 8 bits.

brevitas' layers replace convolutions, linear layers and multi-head attention. They compute in floating point with
values on a grid of integers, and gradients pass through the rounding, so every objective can train them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.encoders.base import Encoder
from crossdistill.errors import UserError
from crossdistill.quantization.bits import BitWidths, parse_bit_widths
from crossdistill.quantization.layers import (
    CONVOLUTIONS,
    NORMS,
    REPLACED,
    IntegerConvolution,
    keep_range,
    quantise_norm,
    quantised_layer,
    require_brevitas,
    return_scales,
)
from crossdistill.quantization.ranges import RunningRange
from crossdistill.types import ViewSpec
from crossdistill.utils.modules import eval_mode

STEM_BITS = 8
"""Bits of the first convolutions, whatever the widths: they are a small part of the work and take the pictures."""
NUM_NOISE_CLIPS = 2
NOISE_FRAMES, NOISE_PX = 2, 8
"""Distance between independent values of noise."""


def quantize(encoder: Encoder, bits: BitWidths | str) -> Encoder:
    """Quantise an encoder in place; it is then trained, saved and loaded like any other.

    - Convolutions (2D, 3D), linear layers and ``nn.MultiheadAttention`` get weights of ``weight_bits``, symmetric with
      a scale for each output channel, and inputs of ``activation_bits`` with one range for each tensor.
    - The first convolutions have 8 bits for both.
    - The output of a convolution has 8 bits, after the BatchNorm that follows it, which stays a layer of its own.
    - Everything else stays in floating point: other norms, activation functions, sums, pooling, the products of other
      attention modules, and heads and classifiers outside the body. So do layers whose weights the network reads
      instead of calling the layer; ``float_layers`` lists them.

    Weights keep their values and names, and ranges of activations add names. Ranges come from noise until the first
    batch in train mode.

    Raises:
        UserError: brevitas is not installed, the encoder is quantised already, or it has no layer to quantise.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> quantize(create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16), "w4a8").bits
        'w4a8'
    """
    widths = parse_bit_widths(bits) if isinstance(bits, str) else bits
    if encoder.bits is not None:
        raise UserError(f"{encoder.name} is already quantised to {encoder.bits}: start from a float encoder")
    qnn = require_brevitas()
    with torch.random.fork_rng(devices=[]):  # new layers draw weights that are not kept
        called, norms = _survey(encoder)
        if not called:
            layers = "convolution, linear layer or attention"
            raise UserError(f"{encoder.name} has no {layers} that can be quantised: choose another encoder")
        for name in called:
            layer = encoder.body.get_submodule(name)
            own = BitWidths(STEM_BITS, STEM_BITS) if name in encoder.info.stems else widths
            encoder.body.set_submodule(name, quantised_layer(layer, own, qnn, has_norm=name in norms))
        for convolution, norm in norms.items():
            quantise_norm(encoder.body.get_submodule(norm), encoder.body.get_submodule(convolution), qnn)
    for module in encoder.body.modules():
        if hasattr(module, "fused_activation_quant_proxy"):
            setattr(module, "init_tensor_quant", keep_range)  # noqa: B010 - mypy takes it for a tensor
    return_scales(encoder, enabled=False)
    # Without ranges an encoder that is evaluated before its first training batch would clip everything to [0, 1].
    _range_on_noise(encoder)
    encoder.bits = str(widths)
    return encoder


def float_layers(encoder: Encoder) -> list[str]:
    """List the body's layers that stay in floating point although brevitas has a layer of their kind."""
    layers = dict(encoder.body.named_modules())
    quantised = {name for name, layer in layers.items() if hasattr(layer, "input_quant")}
    attention = {name for name, layer in layers.items() if isinstance(layer, nn.MultiheadAttention)}
    parents = tuple(f"{name}." for name in quantised | attention)
    plain = (name for name, layer in layers.items() if isinstance(layer, REPLACED) and name not in quantised)
    return [name for name in plain if not name.startswith(parents)]


def _survey(encoder: Encoder) -> tuple[list[str], dict[str, str]]:
    """Return the layers to replace, in the order in which they are called, and the BatchNorm after each convolution."""
    # Some networks pass a layer's weights to a function instead of calling it: a replacement would have no effect.
    called: list[str] = []
    norms: dict[str, str] = {}
    newest: list[tuple[str, Tensor]] = []

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # A norm follows a convolution if its input is the very tensor that the convolution has just returned.
        follows = newest and inputs[0] is newest[-1][1]
        if follows and type(layer) in NORMS and layer.running_mean is not None and layer.weight is not None:
            norms[newest[-1][0]] = name
        if _can_replace(layer) and name not in called:
            called.append(name)
        newest[:] = [(name, output)] if isinstance(layer, CONVOLUTIONS) else []

    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output, name=name: note(name, layer, inputs, output))
        for name, layer in encoder.body.named_modules()
        if isinstance(layer, (*REPLACED, *NORMS))
    ]
    try:
        _embed_noise(encoder, num_clips=1)
    finally:
        for hook in hooks:
            hook.remove()
    return called, norms


def _can_replace(layer: nn.Module) -> bool:
    """Return whether brevitas has a drop-in layer; it has none for a subclass that computes something else."""
    kind = next((kind for kind in REPLACED if isinstance(layer, kind)), None)
    methods = ("forward", "_conv_forward")
    return kind is not None and all(getattr(type(layer), m, None) is getattr(kind, m, None) for m in methods)


def noise_clips(network: Encoder | ViewSpec, num_clips: int) -> Tensor:
    """Return smooth noise [B, C, T, H, W] on the CPU, the same each time, with mean 0 and deviation 1 in each clip."""
    view = network if isinstance(network, ViewSpec) else network.view
    coarse = (max(1, view.num_frames // NOISE_FRAMES), *[max(1, view.size_px // NOISE_PX)] * 2)
    grid = torch.randn(num_clips, view.kind.channels, *coarse, generator=torch.Generator().manual_seed(0))
    clips = functional.interpolate(grid, (view.num_frames, view.size_px, view.size_px), mode="trilinear")
    deviation, mean = torch.std_mean(clips, dim=(1, 2, 3, 4), keepdim=True)
    return (clips - mean) / deviation


def _embed_noise(encoder: Encoder, *, num_clips: int) -> None:
    """Run the body in eval mode on noise; global random generators do not move."""
    clips = noise_clips(encoder, num_clips).to(next(encoder.body.parameters()).device)
    with torch.no_grad(), eval_mode(encoder.body):
        encoder(clips)


def _range_on_noise(encoder: Encoder) -> None:
    """Set all ranges to those of noise; the first batch of training replaces them, because ``num_batches`` stays 0."""
    ranges = [module for module in encoder.body.modules() if isinstance(module, RunningRange)]
    convolutions = [module for module in encoder.body.modules() if isinstance(module, IntegerConvolution)]
    hooks = [module.register_forward_pre_hook(lambda module, inputs: module.observe(inputs[0])) for module in ranges]
    for convolution in convolutions:
        convolution.is_simulated = True  # sums of integers need the ranges that this pass sets
    _embed_noise(encoder, num_clips=NUM_NOISE_CLIPS)
    for hook in hooks:
        hook.remove()
    for convolution in convolutions:
        convolution.is_simulated = False
    for module in ranges:
        module.num_batches.zero_()
