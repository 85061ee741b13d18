"""What a way to estimate optical flow is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.frames import Frame
from data_prep.recipe import Recipe

FlowFunction = Callable[[Frame, Frame], NDArray[np.float32]]
"""From two neighbouring frames to [H, W, 2], x and y in pixels of the stored size: what is at p in the
first is at p + flow[p] in the second."""


@dataclass(frozen=True)
class FlowMethod:
    """One way to estimate flow."""

    create: Callable[[Recipe], FlowFunction]
    """Called once per video, in the worker."""
    sources: tuple[str, ...] = ("rgb", "depth")
    """Inputs that it can look at."""
    needs_motion_vectors: bool = False
    """Whether frames must carry the codec's motion vectors."""
    check: Callable[[Recipe], None] = lambda recipe: None
    """Raises a ``UserError`` before any work starts if the method cannot run (a library or weights are absent)."""
