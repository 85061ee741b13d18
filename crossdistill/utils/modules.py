"""How modules compute for the length of a ``with`` block: in eval mode, or in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and afterwards every part of it back into the mode that this part had.

    Example:
        >>> module = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with eval_mode(module):
        ...     [part.training for part in module]
        [False, False]
        >>> [part.training for part in module]
        [True, False]
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        module.train(modes[0][1])  # a method of the module: some forget there what they keep in eval mode
        for part, is_training in modes:
            part.training = is_training


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which autocast is off, so that float32 inputs stay float32.

    Under autocast to bf16 a linear layer returns 8 bits of precision even for ``inputs.float()``.
    """
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
