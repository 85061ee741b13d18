"""The data of a run: its datasets, its training clips, and which datasets it can be evaluated on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from crossdistill.data.clip_policy import ClipPolicy
from crossdistill.data.dataset import PairedClips, check_entries
from crossdistill.data.decoded import DecodedVideos
from crossdistill.data.entries import NO_POSITIONS, Entries, Positions, entries_of
from crossdistill.data.manifest import Manifest, is_prepared
from crossdistill.data.stores import check_shards
from crossdistill.data.transforms import Augmentation
from crossdistill.distillation.student import CLASSIFIER_NAME, find_student
from crossdistill.distillation.teachers import Teacher
from crossdistill.errors import UserError
from crossdistill.evaluation.settings import Shots
from crossdistill.recipes.config import RunConfig, from_dict
from crossdistill.recipes.context import announce
from crossdistill.training.run_folder import RunFolder
from crossdistill.types import ViewSpec
from crossdistill.utils.distributed import decide_on_first
from crossdistill.utils.locks import folder_lock

TOYACTIONS_FOLDER = Path("data/toyactions")


def open_datasets(config: RunConfig, accelerator: Accelerator) -> list[Manifest]:
    """Load the manifests of --data; without --data, those of toyactions, which is rendered at its first use."""
    if config.data.data:
        manifests = [Manifest.load(path) for path in config.data.data]
        for manifest in manifests:
            check_shards(manifest)
        return manifests
    decide_on_first(accelerator, lambda: _render_toyactions(accelerator))
    return [Manifest.load(TOYACTIONS_FOLDER)]


def _render_toyactions(accelerator: Accelerator) -> None:
    if is_prepared(TOYACTIONS_FOLDER):
        return
    from data_prep.datasets.toyactions import ToyactionsOptions, prepare

    # A run that starts at the same time waits, and then finds the dataset complete.
    with folder_lock(TOYACTIONS_FOLDER, advice="", on_wait=lambda holder: announce(accelerator, f"{holder}: waiting")):
        if not is_prepared(TOYACTIONS_FOLDER):
            prepare(ToyactionsOptions(out=TOYACTIONS_FOLDER))


def is_toyactions(manifests: Sequence[Manifest]) -> bool:
    """Whether toyactions is the only dataset: there, training a missing teacher takes minutes."""
    return [manifest.dataset for manifest in manifests] == ["toyactions"]


def evaluable(manifests: Iterable[Manifest], split: str) -> list[Manifest]:
    """Return the datasets that have class labels and both parts of a split."""
    return [
        manifest
        for manifest in manifests
        if manifest.classes
        and manifest.has_split(split)
        and all(len(manifest.positions(split=split, part=part)) for part in ("train", "test"))
    ]


def main_dataset(config: RunConfig) -> Path:
    """Return a run's first dataset with labels and both parts of its split; without any, its first dataset."""
    folders = config.data.data or (TOYACTIONS_FOLDER,)
    if len(folders) == 1:
        return folders[0]
    labelled = evaluable(map(Manifest.load, folders), config.data.split)
    return labelled[0].root if labelled else folders[0]


def dataset_of_run(folder: Path) -> Path | None:
    """Return the ``main_dataset`` of a run whose student has no classes; None without a run, or if it is gone."""
    path, student = RunFolder.of_student(folder).config, find_student(folder)
    if not path.is_file() or student is None or (student / CLASSIFIER_NAME).is_file():
        return None
    config = from_dict(json.loads(path.read_text(encoding="utf-8"))["configuration"], source=str(path))
    folders = config.data.data or (TOYACTIONS_FOLDER,)
    return main_dataset(config) if all(map(is_prepared, folders)) else None


def select_training_clips(
    config: RunConfig,
    manifests: Sequence[Manifest],
    *,
    student_view: ViewSpec,
    teacher_views: Sequence[ViewSpec] = (),
    uses_labels: bool,
    crops_teachers_apart: bool = False,
    accelerator: Accelerator,
) -> PairedClips:
    """Collect the training clips of all datasets: the split's train part, and without labels videos without a split.

    Args:
        config: Configuration of the run.
        manifests: Datasets of the run.
        student_view: What the student sees.
        teacher_views: What the teachers see.
        uses_labels: Whether the run learns from class labels.
        crops_teachers_apart: Whether the teachers see crops of their own.
        accelerator: The first process prints how many videos the preparation skipped.

    Raises:
        UserError: A stream or a label is missing.
    """
    views = [student_view, *teacher_views]
    entries = Entries()
    for manifest in manifests:
        for view in views:
            manifest.require_stream(view.kind.stream, wanted_by=f"a {view.modality} encoder")
        entries += entries_of(manifest, _training_positions(config, manifest, uses_labels=uses_labels))
    usable = entries.at(entries.is_usable)
    if uses_labels:
        _require_labels(config, manifests, usable)
    check_evaluated_clips(config, manifests, views)
    if len(usable) < len(entries):
        num_skipped = len(entries) - len(usable)
        announce(accelerator, f"{num_skipped} of {len(entries)} training files were skipped in preparation: left out")
    # Mirroring may turn one class into another ("left" into "right"), which matters only where labels are used.
    mirrors = {"yes": True, "no": False, "auto": not uses_labels or all(m.flip_keeps_label for m in manifests)}
    probability = 0.5 if mirrors[config.data.mirror] else 0.0
    augmentation = Augmentation(area_min=config.data.crop_area_min, mirror_probability=probability)
    policy, options = None, config.supervision
    if options.auto_augment != "none":
        policy = ClipPolicy(options.auto_augment, student_view, options.rand_ops, options.rand_magnitude)
    return PairedClips(
        usable,
        student_view=student_view,
        teacher_views=teacher_views,
        augmentation=augmentation,
        teacher_augmentation=augmentation if crops_teachers_apart else None,
        policy=policy,
        seed=config.machine.seed,
        replace_unreadable=True,
        decoder=config.data.decoder,
        short_clips=config.data.short_clips,
        decoded=DecodedVideos(round(config.machine.keep_decoded_gb * 1e9)) if config.machine.keep_decoded_gb else None,
    )


def count_training_clips(config: RunConfig, manifests: Iterable[Manifest], *, uses_labels: bool) -> int:
    """Count the clips that ``select_training_clips`` returns.

    Raises:
        UserError: A dataset has no such split.
    """
    return sum(
        int(manifest.is_usable[_training_positions(config, manifest, uses_labels=uses_labels)].sum())
        for manifest in manifests
    )


def views_of(teachers: Sequence[Teacher]) -> list[ViewSpec]:
    """Return the views by which clips are drawn: those of the teachers, or of all teachers of their cache."""
    of_store = next((views for teacher in teachers if (views := teacher.clip_views) is not None), None)
    return [teacher.encoder.view for teacher in teachers] if of_store is None else of_store


def check_evaluated_clips(config: RunConfig, manifests: Iterable[Manifest], views: Sequence[ViewSpec]) -> None:
    """Raise a ``UserError`` before training if ``--short-clips`` would refuse the evaluation at its end."""
    if not config.machine.evaluate and config.machine.knn_clips == 0:
        return
    split = config.data.split
    for manifest in evaluable(manifests, split):
        positions = np.concatenate([manifest.positions(split=split, part=part) for part in ("train", "test")])
        for view in views:  # each network is evaluated by itself
            check_entries(entries_of(manifest, positions), [view], short_clips=config.data.short_clips)


def _require_labels(config: RunConfig, manifests: Sequence[Manifest], usable: Entries) -> None:
    option = "--supervised" if config.pair.supervised else "the objective cross-entropy"
    for manifest in manifests:
        if not manifest.classes:
            raise UserError(f"{option} needs labels, and the dataset {manifest.root} has none: remove {option}")
    unlabelled = np.flatnonzero(usable.labels < 0).tolist()
    if unlabelled:
        other = "give --teacher in place of --supervised" if option == "--supervised" else f"remove {option}"
        raise UserError(
            f"{option} needs labels, and {len(unlabelled)} of {len(usable)} training clips have none (first: "
            f"{usable[unlabelled[0]].key}): {other}, or prepare the dataset with classes"
        )
    if len(manifests) > 1:
        raise UserError(f"{option} takes one dataset, and {len(manifests)} were given: their classes differ")


def _training_positions(config: RunConfig, manifest: Manifest, *, uses_labels: bool) -> Positions:
    positions = manifest.positions(split=config.data.split, part="train") if manifest.splits else NO_POSITIONS
    if not (uses_labels and manifest.splits):
        positions = np.sort(np.concatenate([positions, manifest.without_split]))
    return _draw_shots(config, manifest, positions) if uses_labels and config.data.shots else positions


def _draw_shots(config: RunConfig, manifest: Manifest, positions: Positions) -> Positions:
    usable = positions[manifest.is_usable[positions]]
    if not len(usable):
        return usable
    labels, shots = torch.from_numpy(entries_of(manifest, usable).labels), Shots.parse(config.data.shots or "")
    largest = int(labels.unique(return_counts=True)[1].max())
    if shots.number is not None and shots.number > largest:
        raise UserError(
            f"--shots is {shots}, and the largest class of {manifest.root} has {largest} training clips: give at most "
            "so many, or leave it out"
        )
    return usable[shots.draw(labels, seed=config.machine.seed).numpy()]
