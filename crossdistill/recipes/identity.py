"""Identity of a run: its folder, and the options that must not change when it is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossdistill.data.manifest import Manifest
from crossdistill.recipes.config import (
    ObjectiveConfig,
    PairConfig,
    RunConfig,
    to_dict,
    with_current_names,
    with_former_names,
)
from crossdistill.recipes.teachers import TeacherOptions, TeacherSource, file_name_of
from crossdistill.utils.records import fingerprint

RUNS_FOLDER = Path("runs")
MAX_NUMBERED_FOLDERS = 10_000


def choose_folder(config: RunConfig, sources: Sequence[TeacherSource]) -> Path:
    """Return --out, or else ``runs/<student>-from-<teacher>``, numbered so that no run is overwritten."""
    if config.machine.out is not None:
        return config.machine.out
    source = "-and-".join(file_name_of(source.name) for source in sources) or "labels"
    base = RUNS_FOLDER / f"{file_name_of(config.pair.student or '')}-from-{source}"
    candidates = [base, *(base.with_name(f"{base.name}-{i}") for i in range(2, MAX_NUMBERED_FOLDERS))]
    first_free = next(i for i, path in enumerate(candidates) if not path.exists())
    return candidates[max(0, first_free - 1) if config.machine.resume else first_free]


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the part of a configuration that a resumed run must share with the run that it continues."""
    values = to_dict(config)
    kept = ("seed", "precision", "channels_last")
    values["machine"] = {key: values["machine"][key] for key in kept}
    for key in ("max_unreadable", "decoder"):  # without effect on what is learned: every decoder gives the same frames
        del values["data"][key]
    return values


upgrade = with_current_names
"""Turns an identity that version 0.1 wrote into one of today."""


def own_teacher_config(
    config: RunConfig, teacher: TeacherOptions, folder: Path, manifests: Sequence[Manifest]
) -> RunConfig:
    """Return the configuration of the run that trains a missing teacher.

    Its folder is named after its options and the content of the datasets, so that a teacher that was
    trained on other clips is never used.

    Args:
        config: Configuration of the student's run.
        teacher: The teacher without weights.
        folder: Folder of the student's run. The teacher's folder is created next to it.
        manifests: The datasets.
    """
    recipe = config.teacher_training
    trained = replace(
        config,
        pair=replace(
            PairConfig(),
            supervised=True,
            student=teacher.name,
            student_frames=teacher.num_frames,
            student_stride=teacher.stride,
            student_size=teacher.size_px,
        ),
        data=replace(config.data, strong_views=False),
        objective=ObjectiveConfig(),
        optimization=replace(config.optimization, epochs=recipe.teacher_epochs, lr=recipe.teacher_lr),
    )
    clips = [[video.to_json() for video in manifest.videos] for manifest in manifests]
    key = fingerprint([with_former_names(identity(trained)), clips], num_digits=8)
    out = folder.parent / "teachers" / f"{file_name_of(teacher.name)}-{key}"
    return replace(trained, machine=replace(config.machine, out=out, resume=True, evaluate=False))
