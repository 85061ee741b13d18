"""Parts of the train set: one to choose hyperparameters on, and small ones to learn from.

Shapes: N train clips.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from crossdistill.errors import UserError

HELD_OUT_SHARE = 0.2


def held_out_part(labels_n: Tensor, groups: Sequence[str | None], *, seed: int) -> tuple[Tensor, str]:
    """Choose about a fifth of the train set to choose hyperparameters on.

    Whole groups where every clip has one: what is chosen on near-duplicates of the clips it was trained on is chosen
    for memory. Of ungrouped clips a fifth of every class.

    Args:
        labels_n: [N] int64.
        groups: [N].
        seed: Of the choice.

    Returns:
        [N] bool, and by what it was held out: ``group`` or ``video``.

    Raises:
        UserError: Nothing would be left on one of the sides.
    """
    generator = torch.Generator().manual_seed(seed)
    named = sorted({group for group in groups if group is not None})
    if len(named) > 1 and None not in groups:
        shuffled = torch.randperm(len(named), generator=generator).tolist()
        held = {named[i] for i in shuffled[: max(1, round(HELD_OUT_SHARE * len(named)))]}
        return torch.tensor([group in held for group in groups]), "group"
    is_held_n = torch.zeros(len(labels_n), dtype=torch.bool)
    for label in labels_n.unique():
        clips = (labels_n == label).nonzero()[:, 0]
        order = torch.randperm(len(clips), generator=generator)
        is_held_n[clips[order[: round(HELD_OUT_SHARE * len(clips))]]] = True
    if is_held_n.all() or not is_held_n.any():
        raise UserError(
            f"a sweep holds out a fifth of the train clips, and {len(labels_n)} clips are too few for that: leave "
            "linear-sweep out"
        )
    return is_held_n, "video"


@dataclass(frozen=True)
class Shots:
    """How many training clips of each class are labelled: a share of them, or a number."""

    share: float | None = None
    number: int | None = None

    @staticmethod
    def parse(text: str) -> Shots:
        """Read ``1%`` or ``5``.

        Raises:
            UserError: It is neither a percentage above 0 and up to 100 nor a whole number from 1 on.
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
        """Positions of the labelled clips: of every class its share, at least one; or the number, at most all."""
        generator = torch.Generator().manual_seed(seed)
        chosen = []
        for label in labels_n.unique():
            clips = (labels_n == label).nonzero()[:, 0]
            wanted = self.number if self.share is None else max(1, round(self.share * len(clips)))
            chosen.append(clips[torch.randperm(len(clips), generator=generator)[:wanted]])
        return torch.cat(chosen).sort().values
