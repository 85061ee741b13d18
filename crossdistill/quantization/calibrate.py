"""Post-training quantisation: the ranges of a quantised encoder from a few clips, without training.

Shapes: B clips of a batch, N bins of a histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from crossdistill.encoders.base import Encoder
from crossdistill.errors import UserError
from crossdistill.quantization.layers import IntegerConvolution
from crossdistill.quantization.ranges import RunningRange
from crossdistill.utils.modules import eval_mode

NUM_BINS = 4096
"""Bins of a histogram of activations, sixteen for each of 256 integers."""
EVERYTHING = (-float("inf"), float("inf"))
RELUS = {F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
LOW_FACTORS = torch.linspace(0.1, 1.0, 19, dtype=torch.float64)
HIGH_FACTORS = torch.linspace(0.05, 1.0, 39, dtype=torch.float64)
"""Shares of the extremes that are tried as bounds."""


@torch.no_grad()
def calibrate(encoder: Encoder, batches: Sequence[Tensor]) -> int:
    """Set the ranges of a quantised encoder's activations, in place, and return the number of clips.

    Each range is the one with the smallest mean squared error of its rounded and clipped activations, over all clips.
    The extremes would keep rare large values exact at the cost of all others (docs/explanation/speed.md has both). The
    activations are not rounded while they are measured, so that the ranges do not depend on those of earlier layers;
    weights are.

    Args:
        encoder: An encoder that ``quantize`` has changed.
        batches: Normalised clips [B, C, T, H, W] on the encoder's device. They are seen twice.

    Raises:
        UserError: There is no clip.

    Example:
        >>> from crossdistill.encoders import create_encoder
        >>> from crossdistill.quantization.quantize import noise_clips, quantize
        >>> encoder = quantize(create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16), "w8a8")
        >>> calibrate(encoder, noise_clips(encoder, 4).split(2))
        4
    """
    num_clips = sum(len(clips) for clips in batches)
    if not num_clips:
        raise UserError("there is no clip to calibrate with: give a dataset with readable training clips")
    extremes, passed = _measure_extremes(encoder, batches)
    counts = {
        module: torch.zeros(NUM_BINS, dtype=torch.float64, device=bounds.device) for module, bounds in extremes.items()
    }

    def count(module: RunningRange, values: Tensor) -> None:
        low, high = extremes[module].tolist()
        counts[module] += torch.histc(values.float().clamp(*passed[module]), NUM_BINS, min=low, max=high)

    _watch(encoder, batches, count)
    for module, (low, high) in extremes.items():
        _, _, bits = module.grid()
        num_steps = float(module.int_scaling_impl(bits))
        module.bounds.copy_(best_bounds(counts[module].cpu(), float(low), float(high), num_steps))
        module.num_batches.fill_(1)
    return num_clips


def _measure_extremes(
    encoder: Encoder, batches: Sequence[Tensor]
) -> tuple[dict[RunningRange, Tensor], dict[RunningRange, tuple[float, float]]]:
    """Return the smallest and largest value [2] in each range, zero included, and what is let through after it."""
    extremes: dict[RunningRange, Tensor] = {}

    def observe(module: RunningRange, values: Tensor) -> None:
        low, high = extremes.get(module, torch.zeros(2, device=values.device))
        extremes[module] = torch.stack([values.amin().float().minimum(low), values.amax().float().maximum(high)])

    with _Readers() as readers:
        _watch(encoder, batches, observe, readers.follow)
    passed = {module: readers.passed.get(module, EVERYTHING) for module in extremes}
    return {module: bounds.clamp(*passed[module]) for module, bounds in extremes.items()}, passed


class _Readers(TorchFunctionMode):
    """Notes what the functions that read the tensors of a range let through, all of them together.

    A ReLU lets positive values through, so negative ones need not be told apart before it. If something else reads the
    tensor too, they count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passed: dict[RunningRange, tuple[float, float]] = {}
        self._ranges = WeakTensorKeyDictionary()

    def follow(self, module: RunningRange, values: Tensor) -> None:
        """Note what reads a tensor from now on."""
        self._ranges[values] = module

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor) and value in self._ranges]
        found = function(*args, **kwargs)
        gives_values = any(isinstance(output, Tensor) for output in tree_leaves(found))  # a size or a type is none
        for values in read if gives_values else ():
            module = self._ranges[values]
            low, high = _let_through(function, kwargs)
            known_low, known_high = self.passed.get(module, (low, high))
            self.passed[module] = min(low, known_low), max(high, known_high)
            if found is values:  # changed in place: what reads it later reads the result
                del self._ranges[values]
        return found


def _let_through(function: Any, options: Mapping[str, Any]) -> tuple[float, float]:
    """Return the values, zero included, that a function can tell apart; it is called with these named options."""
    if function is F.hardtanh:  # nn.ReLU6 too
        return min(0.0, options["min_val"]), max(0.0, options["max_val"])
    return (0.0, EVERYTHING[1]) if function in RELUS else EVERYTHING


def _watch(
    encoder: Encoder,
    batches: Sequence[Tensor],
    see: Callable[[RunningRange, Tensor], None],
    follow: Callable[[RunningRange, Tensor], None] = lambda module, values: None,
) -> None:
    """Embed clips without rounding activations; show what each range would round, and then what it hands on."""
    ranges = [module for module in encoder.body.modules() if isinstance(module, RunningRange)]
    convolutions = [module for module in encoder.body.modules() if isinstance(module, IntegerConvolution)]

    def unrounded(module: RunningRange, inputs: tuple[Tensor, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        see(module, inputs[0])
        values = inputs[0].view_as(inputs[0])  # others may read the input, but only the range's reader reads this
        follow(module, values)
        return (values, *output[1:])

    hooks = [module.register_forward_hook(unrounded) for module in ranges]
    for convolution in convolutions:
        convolution.is_simulated = True  # sums of integers would round with the ranges that are being measured
    try:
        with eval_mode(encoder.body):
            for clips in batches:
                encoder(clips)
    finally:
        for hook in hooks:
            hook.remove()
        for convolution in convolutions:
            convolution.is_simulated = False


def best_bounds(counts_n: Tensor, low: float, high: float, num_steps: float) -> Tensor:
    """Return the bounds [2] with the smallest sum of squared errors, among shares of the extremes.

    Args:
        counts_n: [N] numbers of values in equal bins from ``low`` to ``high``.
        low: Smallest value, at most zero.
        high: Largest value, at least zero.
        num_steps: Distance between the first and the last integer.

    Example:
        >>> counts = torch.zeros(100).double()
        >>> counts[50:60], counts[99] = 1000.0, 1.0  # nearly all values are below a fifth of the largest one
        >>> best_bounds(counts, -1.0, 1.0, num_steps=15)[1] < 0.5
        tensor(True)
    """
    edges = torch.linspace(low, high, len(counts_n) + 1, dtype=torch.float64)
    middles_n = (edges[1:] + edges[:-1]) / 2
    best, best_error = torch.tensor([low, high]), float("inf")
    for candidate_low in (low * LOW_FACTORS).unique():  # one bound at a time: all pairs would take 25 MB a range
        highs = (high * HIGH_FACTORS).unique()
        scales = ((highs - candidate_low) / num_steps).clamp(min=1e-12)[:, None]
        zeros = torch.round(-candidate_low / scales)
        rounded = torch.round(middles_n / scales).clamp(min=-zeros, max=num_steps - zeros) * scales
        errors = ((rounded - middles_n) ** 2 * counts_n).sum(dim=1)
        if float(errors.min()) < best_error:
            best_error = float(errors.min())
            best = torch.stack([candidate_low, highs[errors.argmin()]]).float()
    return best
