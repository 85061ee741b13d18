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
    dtype: Literal["fp16", "fp32", "int8"] = "fp16"
    """Data type of what is stored. int8 has a scale for each row beside it; the command says which cosine
    is kept."""
    tokens: str | None = None
    """Store tokens as well, for objectives that compare them: pooled to this grid of times x rows x columns, for
    example 1x4x4; own: the grid that the teacher has."""
    logits: bool = False
    """Store the logits of the teacher's classifier as well. Without it they are computed from the stored embeddings,
    which needs one classifier for all clips and so not --folds."""
    estimate: bool = False
    """Write nothing: embed clips for ten seconds, and print the size of the cache and the time that it takes."""
    clips_per_shard: int = 1024
    """Clips per file. At most so many are embedded again after an interruption."""
    embed_batch_size: int = CLIPS_AT_ONCE
    """Batch size of the teacher's forward pass."""


@dataclass(frozen=True)
class VerifyOptions:
    """Check lengths and checksums of a cache's files, embed a sample of its clips again and compare.

    The command fails if a cosine is below 0.9999 (int8: 0.99).
    """

    cache: tyro.conf.Positional[Path]
    """Folder of the cache."""
    data: tuple[Path, ...]
    """The datasets that the cache was made of, in the same order."""
    teacher: tuple[str, ...] = ()
    """The teachers that the cache should be of; the cache's own if absent."""
    teacher_weights: tuple[str, ...] = (AUTO,)
    """Weights of each teacher; auto: those that the cache was made with."""
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
