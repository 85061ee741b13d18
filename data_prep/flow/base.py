"""The interface of a flow method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.frames import Frame
from data_prep.recipe import Recipe

FlowFunction = Callable[[Frame, Frame], NDArray[np.float32]]
"""Takes two neighbouring frames. Returns the flow [H, W, 2], x and y in pixels of the stored size: what is at pixel p
in the first frame is at p + flow[p] in the second."""


@dataclass(frozen=True)
class FlowMethod:
    """A method that estimates optical flow."""

    create: Callable[[Recipe], FlowFunction]
    """Creates the function for one video, in the worker."""
    sources: tuple[str, ...] = ("rgb", "depth")
    """Modalities that it can use."""
    needs_motion_vectors: bool = False
    """Whether frames must carry the motion vectors of the codec."""
    check: Callable[[Recipe], None] = lambda recipe: None
    """Raises a ``UserError`` if a library or weights are missing. Called before any work starts."""
