"""The recipes, which decide the content of the prepared streams, and the outcome of one source."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from crossdistill.data.manifest import Stream

MISSING = "missing"
"""Reason of a video that the lists name and that was not found."""


@dataclass(frozen=True)
class Recipe:
    """How streams are made. The same recipe and source give the same bytes."""

    short_side_px: int = 256
    """Short side of the stored pictures. Smaller videos keep their size: enlarging adds no detail and costs time."""
    min_frames: int = 8
    """Smallest number of readable frames. Videos with fewer are skipped."""
    keep_original: bool = False
    """Whether the rgb stream is the source file itself."""
    flow: str = "dis"
    """Flow method, one of ``data_prep.flow.FLOW_METHODS``."""
    flow_preset: str = "fast"
    """Effort of DIS, one of ``data_prep.flow.FLOW_PRESETS``."""
    flow_weights: str | None = None
    """Weights of RAFT: a name in torchvision, or a file."""
    depth_model: str | None = None
    """Network that estimates depth from colour: a model name on Hugging Face, or the folder of a saved model."""

    @property
    def uses_network(self) -> bool:
        """Whether a neural network estimates a stream. Its need of memory is its own, not that of the video."""
        return self.flow == "raft" or self.depth_model is not None

    @property
    def writes_files(self) -> bool:
        """Whether streams are written: all but an original."""
        return True


@dataclass(frozen=True)
class PictureRecipe:
    """How still pictures are stored. The same recipe and source give the same bytes."""

    kind: Literal["pictures"] = "pictures"
    short_side_px: int | None = None
    """Short side of the stored JPEG files; smaller pictures keep their size. None to use the files as they are."""
    quality: int = 95
    """Quality of the stored JPEG files, from 1 to 100."""
    uses_network: ClassVar[bool] = False

    @property
    def writes_files(self) -> bool:
        """Whether pictures are written, and not only indexed."""
        return self.short_side_px is not None


AnyRecipe = Recipe | PictureRecipe


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of one source video or picture."""

    status: str
    """``ok``, ``repaired`` or ``skipped``, as in ``Video.status``."""
    reason: str = ""
    """Why the status is not ``ok``: a category, then optionally a colon and details."""
    streams: dict[str, Stream] = field(default_factory=dict)


class UnusableVideo(Exception):
    """A video or picture cannot be prepared. The message is the reason of its outcome."""
