"""Hold out a part of the training videos, on which settings are chosen. Shapes: N training videos.

A split ``1@PART`` is made of the train part of split ``1`` alone: ``PART`` of it is the test part, and the rest is the
train part. So the videos on which a result is reported take no part in any choice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from crossdistill.errors import UserError

_SEED = 0  # the same videos are held out in every run, whatever its --seed


def held_out_part(
    labels_n: Tensor, groups: Sequence[str | None], *, share: float, seed: int, advice: str
) -> tuple[Tensor, str]:
    """Choose a share of the training videos: [N] bool, and the unit that was held out, ``group`` or ``video``.

    Where videos have groups, whole groups are held out: near-duplicates on both sides would reward overfitting. A video
    without a group among others with one is a group of its own. Without groups, the share is held out of every class.

    Raises:
        UserError: One of the two sides would be empty; ``advice`` is the end of the sentence.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(set(groups) - {None}) > 1:
        own = [group if group is not None else i for i, group in enumerate(groups)]
        named = sorted(set(own), key=lambda name: (isinstance(name, int), name))
        shuffled = torch.randperm(len(named), generator=generator).tolist()
        held = {named[i] for i in shuffled[: min(len(named) - 1, max(1, round(share * len(named))))]}
        return torch.tensor([group in held for group in own]), "group"
    is_held_n = torch.zeros(len(labels_n), dtype=torch.bool)
    for label in labels_n.unique():
        clips = (labels_n == label).nonzero()[:, 0]
        order = torch.randperm(len(clips), generator=generator)
        is_held_n[clips[order[: round(share * len(clips))]]] = True
    if is_held_n.all() or not is_held_n.any():
        raise UserError(f"{len(labels_n)} training clips are too few to hold out {100 * share:g} % of them: {advice}")
    return is_held_n, "video"


def is_held_out(labels: Sequence[int], groups: Sequence[str | None], part: str, *, split: str) -> list[bool]:
    """Find the training videos that ``part`` holds out.

    Args:
        labels: Class of each training video; -1 for a video without a label.
        groups: Group of each training video.
        part: A share (``25%``) of the groups, or of each class if there are none; or the names of groups, joined
            by ``+`` (``s3+s7``).
        split: Name of the whole split, for errors.

    Raises:
        UserError: ``part`` names no group or no share, or nothing would be left on one side.

    Example:
        >>> is_held_out([0, 0, 1], ["s1", "s3", "s3"], "s3", split="1@s3")
        [False, True, True]
    """
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)%", part)
    if percent is not None:
        if not 0 < float(percent[1]) < 100:
            raise UserError(f"split {split!r} holds out {part}: give more than 0% and less than 100%")
        advice = "choose another share"
        share = float(percent[1]) / 100
        return held_out_part(torch.tensor(labels), groups, share=share, seed=_SEED, advice=advice)[0].tolist()
    known = sorted({group for group in groups if group is not None})
    wanted = {part} if part in known else set(part.split("+"))
    unknown = sorted(wanted - set(known))
    if unknown:
        shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise UserError(
            f"split {split!r} holds out {unknown[0]!r}, which is no group of its training videos: give a share such as "
            f"25%{f', or groups ({shown}) joined by +' if known else ''}"
        )
    held = [group in wanted for group in groups]
    if all(held):
        raise UserError(f"split {split!r} holds out all of its training videos: leave a group out")
    return held
