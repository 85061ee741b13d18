"""What can be known of a network without its values: shapes on the meta device, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# What gives its first argument another value but no other shape.
ELEMENTWISE: frozenset[Callable[..., Any]] = frozenset(
    {
        functional.batch_norm,
        functional.dropout,
        functional.gelu,
        functional.group_norm,
        functional.hardsigmoid,
        functional.hardswish,
        functional.hardtanh,
        functional.layer_norm,
        functional.relu,
        functional.relu6,
        functional.silu,
        functional.softmax,
        torch.erf,
        torch.sigmoid,
        Tensor.relu,
        Tensor.sigmoid,
        Tensor.softmax,
    }
)
# Zeros in their place: torch draws anew until every value is within bounds, which what lies in memory might never be.
RANDOM: frozenset[Callable[..., Any]] = frozenset({Tensor.normal_, Tensor.uniform_})


class SizesOnly(TorchFunctionMode):
    """Leaves out random initial values and elementwise functions, which on the meta device are slow Python.

    A network that is built inside has weights of no meaning; its sizes and operations are as ever.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call the function, or give what has the shape of its result."""
        if func in RANDOM:
            return args[0].zero_()
        if func in ELEMENTWISE and args:
            return args[0]
        return func(*args, **(kwargs or {}))


def output_shape(module: nn.Module, *input_shape: int) -> tuple[int, ...]:
    """The shape that a module maps an input of another to, found without computing a value.

    Args:
        module: On any device; not changed.
        input_shape: Of its one argument.

    Raises:
        Exception: Whatever the module raises for such an input.
    """
    tensors = {name: value.detach().to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad(), torch.device("meta"), SizesOnly():
            output: Tensor = torch.func.functional_call(module, tensors, (torch.empty(input_shape),))
    finally:
        module.train(was_training)
    return tuple(output.shape)
