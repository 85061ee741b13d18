"""What decides the content of prepared streams: the recipe, and what became of one source."""

from __future__ import annotations

from dataclasses import dataclass, field

from crossdistill.data.manifest import Stream


@dataclass(frozen=True)
class Recipe:
    """How streams are made. The same recipe and source give the same bytes."""

    short_side_px: int = 256
    """Videos that are smaller keep their size: enlarging adds no detail and costs time ever after."""
    min_frames: int = 8
    keep_original: bool = False
    """The rgb stream is the source file itself; it is only indexed."""
    flow: str = "dis"
    """One of ``data_prep.flow.FLOW_METHODS``."""
    flow_preset: str = "fast"
    """Effort of DIS."""
    flow_weights: str | None = None
    """Weights of RAFT: a name of torchvision's, or a file."""
    depth_model: str | None = None
    """Folder or name of the network that estimates depth from colour."""


@dataclass(frozen=True)
class Outcome:
    """What became of one source video."""

    status: str
    """``ok``, ``repaired`` or ``skipped``, as in ``Video.status``."""
    reason: str = ""
    """Why it is not ``ok``: a category, then perhaps a colon and details."""
    streams: dict[str, Stream] = field(default_factory=dict)


class UnusableVideo(Exception):
    """The video has too little to offer; the message is the outcome's reason."""
