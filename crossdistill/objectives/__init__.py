"""The objectives by name. A new one is a file of its own and one entry in ``OBJECTIVES``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from crossdistill.errors import unknown_name
from crossdistill.objectives.base import Objective
from crossdistill.objectives.compress import CompRess, compress_loss

__all__ = ["OBJECTIVES", "CompRess", "Objective", "compress_loss", "create_objective"]

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "compress-2q": partial(CompRess, student_anchors="momentum"),
    "compress-2q-live": partial(CompRess, student_anchors="live"),
    "compress-1q": partial(CompRess, student_anchors="teacher"),
}


def create_objective(name: str, *, temperature: float = 0.04) -> Objective:
    """Build an objective by name, by default with the paper's temperature."""
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    return OBJECTIVES[name](temperature=temperature)
