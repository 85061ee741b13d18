"""The folds of cross-fitted teachers (``--folds``): which clips each network must not have seen, and whether it has.

Fold k of K of the split ``1`` is the test part of the split ``1@kofK``, so the network of fold k is an ordinary run
with labels on that split. Its ``student.json`` records what it learned from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from crossdistill.data.dataset import PairedClips
from crossdistill.data.entries import entries_of, keys_of, names_of
from crossdistill.data.manifest import HELD_OUT_MARK, Manifest
from crossdistill.distillation.student import locate_student, read_facts
from crossdistill.errors import UserError
from crossdistill.recipes.config import RunConfig
from crossdistill.utils.records import fingerprint


def fold_split(split: str, number: int, num_folds: int) -> str:
    """Return the split whose test part is a fold of the training clips, and which the fold's network learns from.

    Example:
        >>> fold_split("1@25%", 2, 3)
        '1@25%@2of3'
    """
    return f"{split}{HELD_OUT_MARK}{number}of{num_folds}"


def folded_dataset(config: RunConfig, manifests: Sequence[Manifest]) -> Manifest:
    """Return the dataset whose training clips are divided into folds: the first with labels and the run's split.

    Raises:
        UserError: There is none, or it has too few groups for so many folds.
    """
    split, num_folds = config.data.split, config.pair.folds
    assert num_folds is not None
    for manifest in manifests:
        if manifest.classes and manifest.has_split(split):
            manifest.positions(split=fold_split(split, 1, num_folds), part="test")
            return manifest
    raise UserError(
        f"--folds divides the training clips of a dataset with labels and split {split!r}, and --data names none: "
        "remove --folds, or choose another --split"
    )


def folds_of_clips(config: RunConfig, manifests: Sequence[Manifest]) -> dict[str, int]:
    """Return the number of the fold, from 1 on, of each training clip that has one, by ``Entry.key``."""
    manifest, num_folds = folded_dataset(config, manifests), config.pair.folds
    assert num_folds is not None
    split = config.data.split
    parts = {
        number: manifest.positions(split=fold_split(split, number, num_folds), part="test")
        for number in range(1, num_folds + 1)
    }
    return {key: number for number, part in parts.items() for key in keys_of(entries_of(manifest, part))}


def facts_of_labels(config: RunConfig, manifest: Manifest, clips: PairedClips) -> dict[str, Any]:
    """Return what ``student.json`` of a run with labels records, by which ``require_unseen`` knows its clips again."""
    return {"clips": _digest(manifest, names_of(clips.entries)), "student_weights": config.pair.student_weights}


def _digest(manifest: Manifest, names: Iterable[str]) -> str:
    """Return a digest of some clips of a dataset: their content and their names, in any order."""
    return fingerprint([manifest.content_digest, sorted(names)])


def require_unseen(weights: str, split: str, manifest: Manifest, published: Iterable[str]) -> None:
    """Raise a ``UserError`` unless a network has learned from all clips of the split's train part and from no other.

    Args:
        weights: Folder of a run with labels.
        split: The split that leaves the network's fold out.
        manifest: The dataset that is divided.
        published: Names of published weights, which the network may have started from.
    """
    needs = f"--folds needs a run with labels on split {split}, which has not seen that fold, and"
    if locate_student(weights) is None:
        raise UserError(f"{needs} {weights} is no run's folder: train it with --supervised --split {split}")
    training = read_facts(weights)[1].get("training", {})
    train = manifest.positions(split=split, part="train")
    clips = _digest(manifest, entries_of(manifest, train[manifest.is_usable[train]]).names())
    if training.get("split") != split:
        raise UserError(f"{needs} {weights} learned from split {training.get('split')}: give the folds in their order")
    if training.get("clips") != clips:
        raise UserError(
            f"{needs} {weights} learned from other clips than that split of {manifest.root} has: train it again"
        )
    started_from = training.get("student_weights")
    if started_from is not None and started_from not in published:
        raise UserError(
            f"{needs} {weights} started from {started_from}, which may have seen it: start from random or published "
            "weights"
        )
