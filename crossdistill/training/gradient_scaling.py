"""Gradient scaling for fp16 (Micikevicius et al., Mixed Precision Training, ICLR 2018, arXiv 1710.03740, section 3.2).

Gradients below 6e-8 are zero in fp16. The loss is multiplied by a scale before the backward pass, and the gradients
are divided by it before the optimizer reads them. A step whose gradients overflow is skipped, and the scale is halved;
it is doubled after 2,000 steps without an overflow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossdistill.errors import UserError

MIN_SCALE = 1e-4
"""Below it, which takes 30 skipped steps in a row, the gradients overflow whatever the scale is."""


class GradientScaling:
    """A ``torch.amp.GradScaler`` that says which steps it skipped, or nothing if the precision needs none.

    Processes that share their gradients skip the same steps, because an overflow in one is an overflow in their mean.

    Args:
        precision: ``fp16`` turns scaling on.
        device: Device of the weights.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> scaling = GradientScaling("fp16", torch.device("cpu"))
        >>> scaling.scale(weight.sum()).backward()
        >>> weight.grad
        tensor([65536.])
        >>> scaling.unscale(optimizer)
        >>> scaling.step(optimizer), weight.item(), scaling.value
        (True, 0.0, 65536.0)
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    @property
    def value(self) -> float | None:
        """The scale; None without scaling. It waits for the device."""
        return self._scaler.get_scale() if self._scaler.is_enabled() else None

    def scale(self, loss: Tensor) -> Tensor:
        """Multiply a loss by the scale."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, before they are clipped. Called once for each step of the optimizer."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Let the optimizer step unless gradients are NaN or infinite, and return whether it did.

        Raises:
            UserError: The gradients overflow whatever the scale is.
        """
        before = self.value
        self._scaler.step(optimizer)
        self._scaler.update()
        after = self.value
        if before is None or after is None or after >= before:
            return True
        if after < MIN_SCALE:
            raise UserError(
                f"the gradients are NaN or infinite in fp16 although the loss is scaled by {after:.1e}: lower --lr, or "
                "choose --precision bf16 or fp32, and start again in another --out"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return numbers for a checkpoint; none without scaling."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; a checkpoint from before this precision leaves the scale as it is."""
        if state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state)
