"""Depth estimated from colour, frame by frame.

``huggingface`` runs the network, ``coding`` turns its output into stored values. Depth that a camera recorded does not
come here: it is copied. Relative networks flicker a little, because every frame is estimated separately.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import UserError
from data_prep.depth.coding import InverseDepthCoder, code_metres
from data_prep.depth.huggingface import EXAMPLE_MODEL, DepthNetwork, load_depth_network
from data_prep.frames import Frame
from data_prep.recipe import Recipe

__all__ = ["DepthFunction", "check_depth", "check_depth_source", "create_depth"]

DepthFunction = Callable[[Frame], NDArray[np.uint16]]
"""Takes the next frame of a video. Returns its stored depth [H, W, 1]."""


def create_depth(recipe: Recipe) -> DepthFunction:
    """Create the function that estimates depth for one video. It takes the frames in order."""
    assert recipe.depth_model is not None, "checked by check_depth_source"
    network = _shared_network(recipe.depth_model)
    code = code_metres if network.is_metric else InverseDepthCoder()
    return lambda frame: code(network.estimate(frame.rgb))[:, :, None]


@lru_cache(maxsize=1)  # one network per process, for all its videos
def _shared_network(name: str) -> DepthNetwork:
    return load_depth_network(name)


def check_depth(recipe: Recipe) -> None:
    """Raise a ``UserError`` if the network of the recipe, if any, cannot be loaded."""
    if recipe.depth_model is not None:
        load_depth_network(recipe.depth_model)


def check_depth_source(recipe: Recipe, source: str) -> None:
    """Raise a ``UserError`` if the recipe names no network, which depth from colour needs."""
    if recipe.depth_model is None:
        raise UserError(
            f"--modalities depth cannot be made, because the videos come with {source} only: give --depth-model with "
            f"a network that estimates depth, for example {EXAMPLE_MODEL}, or remove depth"
        )
