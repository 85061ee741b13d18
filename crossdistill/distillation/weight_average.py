"""An exponential moving average (EMA) of everything that trains, which is evaluated and saved in its place.

Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging, 1992. Parameters and BatchNorm's statistics are
averaged. The decay of a short run must not keep the weights of its start, so it rises to its value as in timm's
``ModelEmaV3(use_warmup=True)``. ``MomentumCopy`` is something else: a teacher inside the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from crossdistill.distillation.student_with_heads import StudentWithHeads

WARMUP_POWER = 2 / 3


def decay_at(step: int, decay: float) -> float:
    """Return the weight of the old average at the update with a number from 0 on, at most ``decay``.

    Example:
        >>> [round(decay_at(step, 0.999), 3) for step in (0, 1, 2, 10, 1000, 100_000)]
        [0.0, 0.0, 0.37, 0.785, 0.99, 0.999]
    """
    return 0.0 if step <= 1 else min(decay, 1 - step**-WARMUP_POWER)


class WeightAverage:
    """The average of a module's weights.

    Args:
        module: What trains; it is copied.
        decay: Weight of the old average at each update, in (0, 1), after the warm-up.
    """

    def __init__(self, module: StudentWithHeads, *, decay: float) -> None:
        self.decay = decay
        self._average = AveragedModel(module, multi_avg_fn=self._move, use_buffers=True)

    @property
    def module(self) -> StudentWithHeads:
        """The module with averaged weights."""
        module = self._average.module
        assert isinstance(module, StudentWithHeads)
        return module

    @torch.no_grad()
    def _move(self, averages: Sequence[Tensor], values: Sequence[Tensor], num_updates: Tensor | int) -> None:
        decay = decay_at(int(num_updates), self.decay)
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - decay)
            else:
                average.copy_(value)

    def update(self, module: StudentWithHeads) -> None:
        """Move the average towards the module."""
        self._average.update_parameters(module)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average and the number of updates."""
        return dict(self._average.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict`` returned."""
        self._average.load_state_dict(state)
