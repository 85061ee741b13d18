"""Settings of an evaluation: how clips are read, what protocols need besides features, and how to fine-tune."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.errors import UserError, require_at_least, unknown_name
from crossdistill.evaluation.defaults import NUM_BOOTSTRAP_DRAWS
from crossdistill.evaluation.perturbations import FAMILIES, SEVERITIES, Perturbation
from crossdistill.evaluation.views import TestViews

FEATURES_OF_A_HEAD = 64
"""Features of a head in ViTs of all sizes, V-JEPA 2's probes included."""


@dataclass(frozen=True)
class ReadSettings:
    """How the videos of a split are read."""

    views: TestViews = field(default_factory=TestViews)
    """Views of every test video."""
    train_views: TestViews = field(default_factory=TestViews)
    """Views of every training video."""
    max_clips: int | None = None
    """Largest number of videos of either part, spread evenly over it; None for all."""
    num_workers: int = 2
    decoder: str = DEFAULT_DECODER
    short_clips: str = "repeat"
    """Rule for videos that are shorter than a clip, one of ``SHORT_CLIPS``."""
    perturbation: Perturbation | None = None
    """Change of every clip; None for clips as they are."""


@dataclass(frozen=True)
class Shots:
    """Number of labelled training clips of each class: a share of them, or a count."""

    share: float | None = None
    number: int | None = None

    @staticmethod
    def parse(text: str) -> Shots:
        """Read ``1%`` or ``5``.

        Raises:
            UserError: The text is neither a percentage in (0, 100] nor a whole number of at least 1.

        Example:
            >>> Shots.parse("10%"), Shots.parse("5")
            (Shots(share=0.1, number=None), Shots(share=None, number=5))
        """
        if re.fullmatch(r"[1-9]\d*", text):
            return Shots(number=int(text))
        percent = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
        if percent is not None and 0 < float(percent[1]) <= 100:
            return Shots(share=float(percent[1]) / 100)
        raise UserError(f"--shots {text} is neither a share nor a number: give for example 1% 10% 5")

    def __str__(self) -> str:
        return f"{100 * self.share:g}%" if self.share is not None else str(self.number)

    def draw(self, labels_n: Tensor, *, seed: int) -> Tensor:
        """Draw the positions of the labelled clips.

        A share gives at least one clip of every class; a count gives at most all clips of the class.
        """
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in labels_n.unique():
            clips = (labels_n == label).nonzero()[:, 0]
            wanted = self.number if self.share is None else max(1, round(self.share * len(clips)))
            chosen.append(clips[torch.randperm(len(clips), generator=generator)[:wanted]])
        return torch.cat(chosen).sort().values


@dataclass(frozen=True)
class ProbeSettings:
    """The attentive probe and the grid of rates that are tried; V-JEPA 2 has depth 4 and 16 heads, on ViTs."""

    depth: int = 1
    """Attention layers: one of cross-attention after ``depth - 1`` of self-attention."""
    num_heads: int | None = None
    """Heads of each layer; None for one for each 64 features of a token."""
    lrs: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3)
    """Peak learning rates of AdamW; V-JEPA 2's."""
    weight_decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)
    """V-JEPA 2's."""
    num_epochs: int = 20
    has_positions: bool = False
    """Whether a learned vector for its place and time is added to each token."""

    def __post_init__(self) -> None:
        require_at_least("--probe-depth", self.depth, 1)
        require_at_least("--probe-epochs", self.num_epochs, 1)
        if self.num_heads is not None:
            require_at_least("--probe-heads", self.num_heads, 1)
        if not self.lrs or min(self.lrs) <= 0:
            raise UserError(f"--probe-lrs is {_joined(self.lrs)}: give learning rates above 0")
        if not self.weight_decays or min(self.weight_decays) < 0:
            raise UserError(f"--probe-weight-decays is {_joined(self.weight_decays)}: give decays of at least 0")

    def heads_of(self, token_dim: int) -> int:
        """Choose the number of heads for tokens of some number of features.

        Raises:
            UserError: The number that was given does not divide the features.

        Example:
            >>> [ProbeSettings().heads_of(dim) for dim in (64, 192, 432, 512)]
            [1, 3, 6, 8]
        """
        if self.num_heads is None:
            return max(h for h in range(1, max(1, token_dim // FEATURES_OF_A_HEAD) + 1) if token_dim % h == 0)
        if token_dim % self.num_heads:
            raise UserError(
                f"--probe-heads {self.num_heads} does not divide the {token_dim} features of a token: give a divisor, "
                "or remove it"
            )
        return self.num_heads


def _joined(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values) or "empty"


@dataclass(frozen=True)
class ProtocolSettings:
    """What protocols need besides features."""

    ks: tuple[int, ...] = (1, 5, 20)
    """Numbers of neighbours for k-NN; 1 is the paper's."""
    shots: tuple[Shots, ...] = (Shots(share=0.01), Shots(share=0.1), Shots(number=5))
    """Numbers of labelled clips of a class, for the low-shot protocol."""
    num_low_shot_draws: int = 5
    """How often the labelled clips are drawn."""
    num_bootstrap_draws: int = NUM_BOOTSTRAP_DRAWS
    """Number of test sets that are drawn for an interval; 0 for no intervals."""
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    """The attentive probe."""
    seed: int = 0
    """Seed of the order of clips, held-out parts, low-shot draws, first clusters and the bootstrap."""
    families: tuple[str, ...] = ()
    """Families of perturbations for robustness, keys of ``FAMILIES``; empty for all that make sense for the view."""
    severities: tuple[int, ...] = SEVERITIES
    """Severities for robustness, from 1 to 5."""
    class_pairs: tuple[str, ...] = ()
    """For order, pairs of classes such as ``Open:Close``, or one file of them; empty to find them by their names."""
    label_sets: Path | None = None
    """For multi-label, the file with the classes of every video."""
    classifier: Literal["probe", "own"] = "probe"
    """What classifies for robustness and order: a linear probe, or the layer that the student was trained with."""

    def __post_init__(self) -> None:
        if not self.severities or set(self.severities) - set(SEVERITIES):
            given = " ".join(map(str, self.severities)) or "is empty"
            raise UserError(f"--severities {given}: choose from 1 to 5")
        for option, names in (("--families", self.families), ("--severities", self.severities)):
            if len(set(names)) < len(names):
                raise UserError(f"{option} {' '.join(map(str, names))}: name each once")
        for name in self.families:
            if name not in FAMILIES:
                raise unknown_name("family of perturbations", name, FAMILIES)
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"--k is {' '.join(map(str, self.ks)) or 'empty'}: give numbers of neighbours from 1 on")
        require_at_least("--draws", self.num_low_shot_draws, 1)
        require_at_least("--bootstrap", self.num_bootstrap_draws, 0, note="no intervals")
        require_at_least("--seed", self.seed, 0)


@dataclass(frozen=True)
class FineTuning:
    """How a student is fine-tuned: AdamW, a cosine and one epoch of warm-up, unless a recipe says otherwise."""

    epochs: int = 30
    lr: float = 1e-3
    """Peak learning rate."""
    batch_size: int = 16
    workers: int = 2
    precision: str = "auto"
    decoder: str = DEFAULT_DECODER
    short_clips: str = "repeat"
    seed: int = 0
    recipe: dict[str, Any] = field(default_factory=dict)
    """Sections of options of training, as a configuration file has them. Instead of its epochs, learning rate and batch
    size, those above hold."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.lr <= 0 or self.batch_size < 1:
            raise UserError(
                f"--finetune-epochs {self.epochs}, --finetune-lr {self.lr} and --finetune-batch-size {self.batch_size} "
                "must be above 0"
            )
