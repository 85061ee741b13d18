"""Options of the commands that take every option of training beside their own: cache and agreement.

They stand apart from the work, so that ``--help`` need not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from crossdistill.errors import UserError, require_at_least
from crossdistill.evaluation.defaults import CLIPS_AT_ONCE, MIN_CLIPS_FOR_CKA
from crossdistill.recipes.config import AUTO, Decoder


@dataclass(frozen=True)
class CacheOptions:
    """What ``crossdistill cache`` adds to the options of training."""

    augmentations: int
    """Number of augmented versions of every clip: training epoch e uses version e modulo this number."""
    out: Path
    """Folder of the cache. An existing cache of the same options is resumed."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """Data type of the stored embeddings."""
    clips_per_shard: int = 1024
    """Clips per file. At most so many are embedded again after an interruption."""
    embed_batch_size: int = CLIPS_AT_ONCE
    """Batch size of the teacher's forward pass."""


@dataclass(frozen=True)
class VerifyOptions:
    """Embed a sample of a cache's clips again and compare: the command fails if a cosine is below 0.9999."""

    cache: tyro.conf.Positional[Path]
    """Folder of the cache."""
    data: tuple[Path, ...]
    """The datasets that the cache was made of, in the same order."""
    teacher: str | None = None
    """The teacher that the cache should be of; the cache's own if absent."""
    teacher_weights: str = AUTO
    """Weights of the teacher; auto: those that the cache was made with."""
    clips: int = 64
    """Number of clips to embed again."""
    embed_batch_size: int = CLIPS_AT_ONCE
    """Batch size of the teacher's forward pass."""
    workers: int = 2
    """Number of decoding processes."""
    decoder: Decoder = "pyav"
    """Library that decodes the videos."""
    allow_code: bool = False
    """Run the Python file that the cache names as its teacher (path/to/file.py:function)."""


@dataclass(frozen=True)
class AgreementOptions:
    """What ``crossdistill agreement`` adds to the options of training."""

    part: Literal["auto", "train", "test"] = "auto"
    """Part of the split; auto: test for a student with weights, else train, so that no test clip helps to choose a
    pair."""
    clips: int = 400
    """Maximum number of clips, spread evenly over the part."""
    k: int = 10
    """Number of nearest neighbours to compare."""
    json: Path | None = None
    """File to write the figures to, as JSON."""
    allow_code: bool = False
    """Run the Python file that a student's folder names (path/to/file.py:function)."""

    @property
    def min_clips(self) -> int:
        """Fewest clips: with fewer, every other clip is a neighbour, or CKA is not defined."""
        return max(self.k + 2, MIN_CLIPS_FOR_CKA)

    def check(self) -> None:
        """Raise a ``UserError`` for numbers that are too low."""
        require_at_least("--k", self.k, 1)
        if self.clips < self.min_clips:
            raise UserError(
                f"--clips is {self.clips}: give {self.min_clips} (k + 2, and at least {MIN_CLIPS_FOR_CKA}) or more"
            )
