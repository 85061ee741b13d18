"""Shapes of a network's outputs, found on the meta device within milliseconds and without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from crossdistill.utils.modules import eval_mode

# Functions whose result has the shape of their first argument.
_NORMS = (functional.batch_norm, functional.group_norm, functional.layer_norm)
_ACTIVATIONS = (functional.gelu, functional.relu, functional.relu6, functional.silu, functional.softmax)
_HARD = (functional.hardsigmoid, functional.hardswish, functional.hardtanh)
_METHODS = (Tensor.relu, Tensor.sigmoid, Tensor.softmax)
ELEMENTWISE: frozenset[Any] = frozenset(
    (*_NORMS, *_ACTIVATIONS, *_HARD, *_METHODS, functional.dropout, torch.erf, torch.sigmoid)
)
# Replaced by zeros. Left empty, a truncated normal could draw for ever until all values lie within its bounds.
RANDOM: frozenset[Any] = frozenset({Tensor.normal_, Tensor.uniform_})


class SizesOnly(TorchFunctionMode):
    """Skips random initialisation and elementwise functions, which are slow Python on the meta device.

    Weights of a network that is built inside have no meaning. Its sizes and the operations that are counted stay right.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, or return a tensor of the same shape as its result."""
        if func in RANDOM:
            return args[0].zero_()
        if func in ELEMENTWISE and args:
            return args[0]
        return func(*args, **(kwargs or {}))


def output_shape(module: nn.Module, *input_shape: int) -> tuple[int, ...]:
    """Return the shape of a module's output for one input, without computing it, on whatever device the module is.

    Raises:
        Exception: Whatever the module raises for such an input.

    Example:
        >>> output_shape(nn.Conv2d(3, 8, kernel_size=3, stride=2), 1, 3, 33, 33)
        (1, 8, 16, 16)
    """
    tensors = {name: value.detach().to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    with eval_mode(module), torch.no_grad(), torch.device("meta"), SizesOnly():
        output: Tensor = torch.func.functional_call(module, tensors, (torch.empty(input_shape),))
    return tuple(output.shape)
