"""Learning rate as a pure function of the step: nothing to store, nothing to resume."""

from __future__ import annotations

import math
from collections.abc import Sequence


def learning_rate(
    step: int,
    *,
    peak: float,
    num_steps: int,
    num_warmup_steps: int = 0,
    schedule: str = "cosine",
    milestones: Sequence[float] = (),
    drop: float = 0.2,
) -> float:
    """Learning rate of one optimizer step.

    Args:
        step: From 0.
        peak: Reached when the warm-up ends.
        num_steps: Steps of the whole run.
        num_warmup_steps: Linear climb: step n of it has (n + 1) / num_warmup_steps of the peak.
        schedule: ``cosine`` falls to zero at the end; ``steps`` multiplies by ``drop`` at each milestone.
        milestones: Shares of the run, for ``steps``.
        drop: Factor, for ``steps``.
    """
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    if schedule == "steps":
        return peak * drop ** sum(step >= round(share * num_steps) for share in milestones)
    progress = (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2
