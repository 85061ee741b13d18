"""Hold out a part of the training videos, on which settings are chosen. Shapes: N training videos.

A split ``1@PART`` is made of the train part of split ``1`` alone: ``PART`` of it is the test part, and the rest is the
train part. So the videos on which a result is reported take no part in any choice. Parts nest: ``1@25%@2of3`` holds out
the second of three folds of what ``1@25%`` trains on.
"""

from __future__ import annotations

import re
from collections import Counter
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
        own, named = _units(groups)
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


def _units(groups: Sequence[str | None]) -> tuple[list[str | int], list[str | int]]:
    """Return what each video must stay together with, its group or its own position; and all of these once, sorted."""
    own = [group if group is not None else i for i, group in enumerate(groups)]
    return own, sorted(set(own), key=lambda name: (isinstance(name, int), name))


def folds_of(labels: Sequence[int], groups: Sequence[str | None], *, num_folds: int, split: str) -> list[int]:
    """Divide the training videos into folds of equal classes, and return the fold of each video, from 1 on.

    Groups stay whole, as in ``held_out_part``. The largest groups are placed first, each where its classes are rarest
    so far; among equals the order is random, but the same in every run.

    Args:
        labels: Class of each training video; -1 for a video without a label.
        groups: Group of each training video.
        num_folds: Number of folds.
        split: Name of the whole split, for errors.

    Raises:
        UserError: There are fewer than two folds, or more folds than groups or videos.

    Example:
        >>> folds_of([0, 0, 1, 1], ["ann", "ben", "ann", "ben"], num_folds=2, split="1@1of2")
        [1, 2, 1, 2]
    """
    is_grouped = len(set(groups) - {None}) > 1
    own, named = _units(groups if is_grouped else [None] * len(groups))
    unit = "group" if is_grouped else "video"
    if not 2 <= num_folds <= len(named):
        raise UserError(
            f"split {split!r} asks for {num_folds} fold{'s' * (num_folds != 1)}, and there are {len(named)} training "
            f"{unit}s: choose 2 to {len(named)} folds"
        )
    classes: dict[str | int, Counter[int]] = {name: Counter() for name in named}
    for name, label in zip(own, labels, strict=True):
        classes[name][label] += 1
    shuffled = torch.randperm(len(named), generator=torch.Generator().manual_seed(_SEED)).tolist()
    chosen: dict[str | int, int] = {}
    filled: list[Counter[int]] = [Counter() for _ in range(num_folds)]
    for i in sorted(shuffled, key=lambda i: -classes[named[i]].total()):
        counts = classes[named[i]]
        alike = [sum(fold[label] * count for label, count in counts.items()) for fold in filled]
        best = min(range(num_folds), key=lambda fold: (alike[fold], filled[fold].total(), fold))
        filled[best].update(counts)
        chosen[named[i]] = best + 1
    return [chosen[name] for name in own]


def is_held_out(labels: Sequence[int], groups: Sequence[str | None], part: str, *, split: str) -> list[bool]:
    """Find the training videos that ``part`` holds out.

    Args:
        labels: Class of each training video; -1 for a video without a label.
        groups: Group of each training video.
        part: A share (``25%``) of the groups, or of each class if there are none; a fold (``2of3``), see ``folds_of``;
            or the names of groups, joined by ``+`` (``s3+s7``).
        split: Name of the whole split, for errors.

    Raises:
        UserError: ``part`` names no group, no fold and no share, or nothing would be left on one side.

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
    fold = re.fullmatch(r"(\d+)of(\d+)", part)
    if fold is not None:
        number, num_folds = int(fold[1]), int(fold[2])
        folds = folds_of(labels, groups, num_folds=num_folds, split=split)
        if not 1 <= number <= num_folds:
            raise UserError(f"split {split!r} holds out fold {number}: choose fold 1 to {num_folds}")
        return [each == number for each in folds]
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
