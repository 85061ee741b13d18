"""Hold out a part of the train set, on which hyperparameters are chosen. Shapes: N train clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from crossdistill.errors import UserError

HELD_OUT_SHARE = 0.2


def held_out_part(labels_n: Tensor, groups: Sequence[str | None], *, seed: int) -> tuple[Tensor, str]:
    """Choose about a fifth of the train set: [N] bool, and the unit that was held out, ``group`` or ``video``.

    Where every clip has a group, whole groups are held out: near-duplicates on both sides would reward overfitting.
    Otherwise a fifth of every class is held out.

    Raises:
        UserError: One of the two sides would be empty.
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
            f"linear-sweep holds out a fifth of the train clips, and {len(labels_n)} clips are too few for that: "
            "remove linear-sweep from --protocols"
        )
    return is_held_n, "video"
