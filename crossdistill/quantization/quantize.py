"""Students of few bits: weights and activations as integers while they train (quantisation-aware training).

brevitas' layers take the place of convolutions, linear layers and multi-head attention. They compute in floating point
with values that integers can hold, and gradients pass through the rounding, so that every objective trains them.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossdistill.encoders.base import Encoder
from crossdistill.errors import UserError
from crossdistill.quantization.integers import STORED_BITS, IntegerWeights, fold, round_through

MIN_BITS, MAX_BITS = 2, 8
MAX_SIGNED_8_BIT = 127
STEM_BITS = 8
"""Of the first convolutions, whatever is asked for: they are a small part of the work and see the very pictures."""
OUTPUT_BITS = 8
"""Of what a convolution gives, after its normalisation: that is what lets a runtime stay with integers."""
RANGE_MOMENTUM = 0.1
NUM_NOISE_CLIPS = 2
NOISE_FRAMES, NOISE_PX = 2, 8
"""Between independent values of noise."""
CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
REPLACED = (*CONVOLUTIONS, nn.Linear, nn.MultiheadAttention)
_SPEC = re.compile(r"w([1-9]\d*)a([1-9]\d*)")


def is_range(parameter_name: str) -> bool:
    """Whether a parameter of a quantised network, by its full name, is the learned range of a quantiser."""
    return parameter_name.endswith("tensor_quant.gain")


@dataclass(frozen=True)
class BitWidths:
    """How many bits weights and activations have."""

    weight_bits: int
    activation_bits: int

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"


def parse_bit_widths(text: str) -> BitWidths:
    """Read ``w4a8``.

    Raises:
        UserError: It is not of that form, or a width is not in 2..8.
    """
    match = _SPEC.fullmatch(text)
    widths = [int(digits) for digits in match.groups()] if match else []
    if not match or not all(MIN_BITS <= width <= MAX_BITS for width in widths):
        raise UserError(
            f"--precision {text!r} is no supported bit width: give wXaY with X bits for weights and Y for activations, "
            f"each {MIN_BITS} to {MAX_BITS}, for example w4a8"
        )
    return BitWidths(*widths)


def require_brevitas() -> ModuleType:
    """Brevitas' layers, or a ``UserError`` that says how to get them."""
    try:
        return importlib.import_module("brevitas.nn")
    except ModuleNotFoundError as error:
        raise UserError(
            f"quantised networks need brevitas, which cannot be imported ({error}): "
            "pip install 'crossdistill[precision]'"
        ) from error


class RunningRange(nn.Module):
    """Quantises activations of a tensor to unsigned integers between two running bounds, stretched by a learned gain.

    A batch's bounds are the means over its samples of each one's smallest and largest value; zero is always within, and
    is an integer itself, so that padding stays exact. The running bounds are those of the first batch, then move
    towards those of every batch in train mode, like BatchNorm's statistics. The gain learns how much to clip
    (Bai et al., BatchQuant, NeurIPS 2021, learn a factor of running statistics in the same way).

    brevitas builds it and calls it as its ``tensor_quant``.

    Args:
        int_quant: brevitas' rounding to integers and back.
        int_scaling_impl: Bits to the number of steps between the bounds.
        bit_width_impl: Gives the bits.
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
        """Give values that integers can hold, their scale, zero point and bits."""
        if self.training:
            self.observe(values)
        scale, zero_point, bits = self.grid()
        if self.training:
            return self.int_quant(scale, zero_point, bits, values), scale, zero_point, bits
        return self.round(values / scale) * scale, scale, zero_point, bits

    def grid(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, zero point and bits."""
        bits = self.bit_width_impl()
        num_steps = self.int_scaling_impl(bits)
        low, high = self.bounds[0], self.bounds[1]
        span = (high - low).clamp(min=1e-10)
        scale = span * self.gain.abs().clamp(min=1e-3) / num_steps
        return scale, torch.round(-low / span * num_steps), bits

    def round(self, steps: Tensor) -> Tensor:
        """To integers within the bounds, zero for the value zero, as ONNX' QuantizeLinear: the zero point comes later.

        brevitas' rounding adds it first, which moves what lies between two integers to the other one if it is odd.

        Args:
            steps: Values in units of the scale.
        """
        _, zero_point, bits = self.grid()
        return torch.clamp(round_through(steps.float()), -zero_point, 2**bits - 1 - zero_point)

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Move the running bounds towards those of a batch [B, ...]."""
        self.num_batches += 1
        self.bounds.lerp_(bounds_of(values), (1 / self.num_batches).clamp(min=RANGE_MOMENTUM))


@torch.no_grad()
def share_ranges(module: nn.Module, gather: Callable[[Tensor], Tensor]) -> None:
    """Give every process the mean of all processes' running bounds; DDP does as much for what it wraps, and no other.

    Args:
        module: Not wrapped by DDP, and in train mode, for example an EMA copy; nothing changes where none is quantised.
        gather: Concatenates all processes' tensors along their first axis.
    """
    ranges = [layer for layer in module.modules() if isinstance(layer, RunningRange)]
    if not ranges:
        return
    shared = gather(torch.stack([layer.bounds for layer in ranges])[None]).mean(dim=0)
    for layer, bounds in zip(ranges, shared, strict=True):
        layer.bounds.copy_(bounds)


def bounds_of(values: Tensor) -> Tensor:
    """[2]: the means over samples [B, ...] of the smallest and of the largest value, with zero between them."""
    samples = values.detach().float()
    inner = tuple(range(1, samples.dim()))
    low, high = samples.amin(dim=inner), samples.amax(dim=inner)
    return torch.stack([low.mean().clamp(max=0), high.mean().clamp(min=0)])


def quantize(encoder: Encoder, widths: BitWidths) -> Encoder:
    """Make an encoder one of few bits, in place; it is then trained, saved and loaded like any other.

    Convolutions (2D, 3D), linear layers and ``nn.MultiheadAttention`` get weights of ``weight_bits``, symmetric with a
    scale for each output channel, and inputs of ``activation_bits`` with one range for each tensor. The first
    convolutions have 8 bits for both. What a convolution gives has 8 bits (after the BatchNorm that follows it, which
    stays a layer of its own). Everything else stays in floating point: other norms, activations, sums, pooling,
    attention that is not ``nn.MultiheadAttention`` between its linear layers, and heads and classifiers outside the
    body. So do layers whose weights the network reads instead of calling them; ``float_layers`` names those.

    Weights keep their values and names; activations' ranges come with names of their own. Until the first batch in
    train mode the ranges are those of noise.

    Args:
        encoder: With the weights to start from.
        widths: How many bits.

    Raises:
        UserError: brevitas is absent, the encoder is quantised already, or it has no layer that can be.
    """
    if encoder.bits is not None:
        raise UserError(f"{encoder.name} is quantised to {encoder.bits} already: start from one that is not")
    qnn = require_brevitas()
    with torch.random.fork_rng(devices=[]):  # new layers draw weights, which the old ones' replace
        called, norms = _survey(encoder)
        if not called:
            raise UserError(f"{encoder.name} has no convolution, linear layer or attention that can be quantised")
        for name in called:
            layer = encoder.body.get_submodule(name)
            is_stem = name in encoder.info.stems
            own = BitWidths(STEM_BITS, STEM_BITS) if is_stem else widths
            _put(encoder.body, name, _quantised(layer, own, qnn, has_norm=name in norms))
        for convolution, norm in norms.items():
            _quantise_norm(encoder.body.get_submodule(norm), encoder.body.get_submodule(convolution), qnn)
    for module in encoder.body.modules():
        if hasattr(module, "fused_activation_quant_proxy"):
            setattr(module, "init_tensor_quant", _keep_range)  # noqa: B010 - mypy takes it for a tensor
    hand_on_scales(encoder, are_handed_on=False)
    _range_on_noise(encoder)
    encoder.bits = str(widths)
    return encoder


def float_layers(encoder: Encoder) -> list[str]:
    """Names of the body's layers with weights that stay in floating point although their kind can be quantised."""
    inside = [name for name, layer in encoder.body.named_modules() if hasattr(layer, "input_quant")]
    inside += [name for name, layer in encoder.body.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    return [
        name
        for name, layer in encoder.body.named_modules()
        if isinstance(layer, REPLACED)
        and not hasattr(layer, "input_quant")
        and not any(name.startswith(f"{other}.") for other in inside)
    ]


def _survey(encoder: Encoder) -> tuple[list[str], dict[str, str]]:
    """Names of the layers to replace, in the order in which they are called, and the BatchNorm after each convolution.

    Only what is called counts: some networks hand a layer's weights to a function, past whatever takes its place.
    """
    called: list[str] = []
    norms: dict[str, str] = {}
    newest: list[tuple[str, Tensor]] = []

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if newest and inputs[0] is newest[-1][1] and _can_fold(layer):
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
    """Whether it is of a kind that brevitas has, and computes as that kind does: subclasses may not."""
    kind = next((kind for kind in REPLACED if isinstance(layer, kind)), None)
    methods = ("forward", "_conv_forward")
    return kind is not None and all(getattr(type(layer), m, None) is getattr(kind, m, None) for m in methods)


def _can_fold(norm: nn.Module) -> bool:
    return type(norm) in NORMS and norm.running_mean is not None and norm.weight is not None


def noise_clips(encoder: Encoder, num_clips: int) -> Tensor:
    """[B, C, T, H, W] of mean 0 and deviation 1 on the CPU: smooth, as pictures are, and the same each time."""
    view = encoder.view
    coarse = (max(1, view.num_frames // NOISE_FRAMES), *[max(1, view.size_px // NOISE_PX)] * 2)
    grid = torch.randn(num_clips, view.kind.channels, *coarse, generator=torch.Generator().manual_seed(0))
    clips = functional.interpolate(grid, (view.num_frames, view.size_px, view.size_px), mode="trilinear")
    deviation, mean = torch.std_mean(clips, dim=(1, 2, 3, 4), keepdim=True)
    return (clips - mean) / deviation


def _embed_noise(encoder: Encoder, *, num_clips: int) -> None:
    """Run the body in eval mode; no generator moves."""
    weight = next(encoder.body.parameters())
    with _mode_of(encoder.body, is_training=False), torch.no_grad():
        encoder(noise_clips(encoder, num_clips).to(weight.device))


@contextlib.contextmanager
def _mode_of(module: nn.Module, *, is_training: bool) -> Iterator[None]:
    was_training = module.training
    module.train(is_training)
    try:
        yield
    finally:
        module.train(was_training)


def _put(body: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(body.get_submodule(parent), leaf, layer)


def _quantised(layer: nn.Module, widths: BitWidths, qnn: ModuleType, *, has_norm: bool) -> nn.Module:
    """Brevitas' layer in the place of a plain one, with the same weights."""
    weights, inputs, outputs = _weights(widths.weight_bits), _ranged(widths.activation_bits), _ranged(OUTPUT_BITS)
    bias = layer.in_proj_bias is not None if isinstance(layer, nn.MultiheadAttention) else layer.bias is not None
    new: Any
    if isinstance(layer, nn.MultiheadAttention):
        new = _quantised_attention(layer, qnn, weights=weights, activations=inputs)
    elif isinstance(layer, nn.Linear):
        new = qnn.QuantLinear(layer.in_features, layer.out_features, bias, weight_quant=weights, input_quant=inputs)
    else:
        assert isinstance(layer, CONVOLUTIONS)
        kind = qnn.QuantConv2d if isinstance(layer, nn.Conv2d) else qnn.QuantConv3d
        new = type(kind.__name__, (IntegerConvolution, kind), {})(  # named as brevitas' in what is printed
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            padding_mode=layer.padding_mode,
            bias=bias,
            weight_quant=weights,
            input_quant=inputs,
            output_quant=None if has_norm else outputs,
        )
        new.weight_bits, new.norms, new.is_simulated = widths.weight_bits, [], False
    new.load_state_dict(layer.state_dict(), strict=False)  # what is missing are the ranges
    quantised: nn.Module = new.to(next(layer.parameters()).device).train(layer.training)
    return quantised


def _quantised_attention(
    layer: nn.MultiheadAttention, qnn: ModuleType, *, weights: type, activations: type
) -> nn.Module:
    """Attention whose projections and both products between tokens take integers."""
    new: nn.Module = qnn.QuantMultiheadAttention(
        layer.embed_dim,
        layer.num_heads,
        dropout=layer.dropout,
        bias=layer.in_proj_bias is not None,
        batch_first=layer.batch_first,
        in_proj_input_quant=activations,
        in_proj_weight_quant=weights,
        in_proj_bias_quant=None,
        attn_output_weights_quant=activations,
        q_scaled_quant=activations,
        k_transposed_quant=activations,
        v_quant=activations,
        out_proj_input_quant=activations,
        out_proj_weight_quant=weights,
        out_proj_bias_quant=None,
    )
    return new


def _weights(bits: int) -> type:
    """Brevitas' description of weights: signed, symmetric, the scale of each output channel its largest weight's."""
    base = importlib.import_module("brevitas.quant").Int8WeightPerChannelFloat
    return type("Weights", (base,), {"bit_width": bits})


def _ranged(bits: int) -> type:
    """Brevitas' description of activations: ``RunningRange``."""
    base = importlib.import_module("brevitas.quant.base").UintQuant
    solver = importlib.import_module("brevitas.quant.solver").ActQuantSolver
    per_tensor = importlib.import_module("brevitas.inject.enum").ScalingPerOutputType.TENSOR
    described = {
        "tensor_quant": RunningRange,
        "bit_width": bits,
        "scaling_per_output_type": per_tensor,
        "restrict_scaling_type": "fp",
    }
    return type("Activations", (base, solver), described)


def _keep_range() -> None:
    """Takes the place of what brevitas calls whenever a state is loaded.

    That would make a new ``RunningRange``, and an optimizer would go on with the parameters of the old one.
    """


def _quantise_norm(norm: nn.Module, convolution: nn.Module, qnn: ModuleType) -> None:
    """Let a BatchNorm give 8 bits, and remember which convolution it can be folded into."""
    norm.output_quant = qnn.QuantIdentity(act_quant=_ranged(OUTPUT_BITS)).train(norm.training)
    norm.register_forward_hook(_quantise_output)
    assert isinstance(convolution, IntegerConvolution)
    convolution.norms.append(norm)
    norm.convolutions = [convolution]  # type: ignore[assignment]  # in a list for the same reason


def _quantise_output(norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Where the convolution has summed integers it has normalised and rounded as well, and nothing is left to do."""
    quantised: Tensor = inputs[0] if norm.convolutions[0].sums_integers else norm.output_quant(output)
    return quantised


class IntegerConvolution(nn.Module):
    """What brevitas' convolutions get beside their own: outside of training they sum integers (``integers.py``)."""

    weight_bits: int
    norms: list[Any]
    """The BatchNorm that is folded, or none. A list, so that it belongs to the network and not to the convolution."""
    is_simulated: bool
    """Computes in floating point outside of training as well: for exporters, and to find the first ranges."""
    input_quant: Any
    output_quant: Any
    weight: nn.Parameter
    bias: nn.Parameter | None

    @property
    def sums_integers(self) -> bool:
        """What ``forward`` does at the moment."""
        return not (self.training or self.is_simulated)

    def forward(self, values: Tensor) -> Tensor:
        """[B, I, ...] to [B, C, ...]."""
        if not self.sums_integers:
            convolved: Tensor = super().forward(values)
            return convolved
        kind = values.device.type
        with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext():
            given, gives = _range_of(self.input_quant), self.output_range
            input_scale, output_scale = given.grid()[0], gives.grid()[0]
            steps = self.integer_weights().convolve(
                self,
                given.round(values.float() / input_scale),
                input_scale=input_scale,
                output_scale=output_scale,
            )
            return gives.round(steps) * output_scale

    @property
    def output_range(self) -> RunningRange:
        """Of what it gives, after the BatchNorm if one follows."""
        return _range_of(self.norms[0].output_quant.act_quant if self.norms else self.output_quant)

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the BatchNorm after it."""
        return fold(self, self.norms[0] if self.norms else None)

    def integer_weights(self) -> IntegerWeights:
        """As a file keeps them, with the BatchNorm folded."""
        weight, bias = self.folded()
        return IntegerWeights.of(weight, bias, bits=self.weight_bits, input_scale=_range_of(self.input_quant).grid()[0])


def _range_of(proxy: Any) -> RunningRange:
    """The range in brevitas' proxy of activations."""
    found: RunningRange = proxy.fused_activation_quant_proxy.tensor_quant
    return found


def hand_on_scales(encoder: nn.Module, *, are_handed_on: bool) -> None:
    """Whether brevitas' layers hand on scales with values: exports want that, training is faster without."""
    for module in encoder.modules():
        if hasattr(module, "skip_create_quant_tensor"):
            setattr(module, "skip_create_quant_tensor", not are_handed_on)  # noqa: B010 - mypy takes it for a tensor


def _range_on_noise(encoder: Encoder) -> None:
    """Set all ranges to those of noise; the first batch of training replaces them."""
    ranges = [module for module in encoder.body.modules() if isinstance(module, RunningRange)]
    convolutions = [module for module in encoder.body.modules() if isinstance(module, IntegerConvolution)]
    hooks = [module.register_forward_pre_hook(lambda module, inputs: module.observe(inputs[0])) for module in ranges]
    for convolution in convolutions:
        convolution.is_simulated = True
    _embed_noise(encoder, num_clips=NUM_NOISE_CLIPS)
    for hook in hooks:
        hook.remove()
    for convolution in convolutions:
        convolution.is_simulated = False
    for module in ranges:
        module.num_batches.zero_()


class StoredWeights(nn.Module):
    """Takes weights for what they are: integers of ``STORED_BITS`` with given scales. brevitas' ``tensor_quant``."""

    def __init__(self, int_quant: nn.Module, bit_width_impl: nn.Module, stored_scale: Tensor) -> None:
        super().__init__()
        self.int_quant = int_quant
        self.bit_width_impl = bit_width_impl
        self.register_buffer("scale", stored_scale)

    scale: Tensor

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give the weights, their scales, zero points and bits."""
        return weight, self.scale, torch.zeros_like(self.scale), self.bit_width_impl()


def prepare_for_export(body: nn.Module) -> None:
    """Make layers what files keep of them, in place and for inference: norms folded, weights and biases as integers.

    Biases of linear layers and convolutions have 32 bits: without, no runtime's integer layer fits them. Their scale is
    that of the products that they are added to.
    """
    layers: list[tuple[str, Any]] = list(body.named_modules())
    for name, layer in layers:
        if isinstance(layer, IntegerConvolution):
            stored, (_, bias) = layer.integer_weights(), layer.folded()
            layer.bias = None if bias is None else nn.Parameter(bias.detach())
            _store_weights(layer, stored)
            layer.is_simulated = True
        elif hasattr(layer, "weight_quant"):
            _store_weights(layer, _integer_products(layer))
        elif isinstance(layer, NORMS) and hasattr(layer, "output_quant"):
            quantiser: Any = layer.output_quant
            _put(body, name, quantiser)
    _quantise_biases(body)


def _integer_products(layer: Any) -> IntegerWeights:
    """The weights of a linear layer, whose scale does not depend on its bias."""
    bits = int(layer.weight_quant.bit_width())
    return IntegerWeights.of(layer.weight.detach(), None, bits=bits, input_scale=torch.ones(()))


def _store_weights(layer: Any, stored: IntegerWeights) -> None:
    base = importlib.import_module("brevitas.quant.base").NarrowIntQuant
    solver = importlib.import_module("brevitas.quant.solver").WeightQuantSolver
    with torch.no_grad():
        layer.weight.copy_(stored.values)
    scale = stored.scale.detach().view(-1, *[1] * (layer.weight.dim() - 1))
    described: Any = type(
        "Stored",
        (base, solver),
        {
            "tensor_quant": StoredWeights,
            "bit_width": STORED_BITS,
            "stored_scale": scale,
            "scaling_impl_type": importlib.import_module("brevitas.inject.enum").ScalingImplType.CONST,
        },
    )
    layer.weight_quant = described.proxy_class(layer, described).eval()


def _quantise_biases(body: nn.Module) -> None:
    described = importlib.import_module("brevitas.quant").Int32Bias
    for layer in body.modules():
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and hasattr(layer, "bias_quant") and layer.bias is not None:
            layer.bias_quant = described.proxy_class(layer, described).eval()
