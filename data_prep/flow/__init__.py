"""Methods that estimate optical flow. One is a ``FlowMethod`` and an entry in ``FLOW_METHODS``."""

from __future__ import annotations

from crossdistill.errors import UserError
from data_prep.flow.base import FlowFunction, FlowMethod
from data_prep.flow.motion_vectors import MOTION_VECTORS
from data_prep.flow.opencv import DIS, FARNEBACK, FLOW_PRESETS, TVL1
from data_prep.recipe import Recipe

__all__ = ["FLOW_METHODS", "FLOW_PRESETS", "FlowMethod", "check_flow", "check_flow_source", "create_flow"]


def _create_raft(recipe: Recipe) -> FlowFunction:
    from data_prep.flow.raft import create_raft  # imports torch, for which --help and the other methods need not wait

    return create_raft(recipe)


def _check_raft(recipe: Recipe) -> None:
    from data_prep.flow.raft import load_raft

    load_raft(recipe.flow_weights)


FLOW_METHODS: dict[str, FlowMethod] = {
    "dis": DIS,
    "farneback": FARNEBACK,
    "tvl1": TVL1,
    "raft": FlowMethod(create=_create_raft, check=_check_raft),
    "motion-vectors": MOTION_VECTORS,
}


def create_flow(recipe: Recipe) -> FlowFunction:
    """Create the function that estimates flow for one video."""
    return FLOW_METHODS[recipe.flow].create(recipe)


def check_flow(recipe: Recipe) -> None:
    """Raise a ``UserError`` if a library or weights are missing that the method of the recipe needs."""
    FLOW_METHODS[recipe.flow].check(recipe)


def check_flow_source(recipe: Recipe, source: str) -> None:
    """Raise a ``UserError`` if the method of the recipe cannot estimate flow from this modality."""
    method = FLOW_METHODS[recipe.flow]
    if source not in method.sources:
        usable = ", ".join(name for name, other in FLOW_METHODS.items() if source in other.sources)
        raise UserError(
            f"--flow {recipe.flow} needs {' or '.join(method.sources)}, and the videos come with {source} only: "
            f"choose one of {usable}"
        )
