"""Identity of a run: its folder, and the options that must not change when it is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossdistill.data.manifest import Manifest
from crossdistill.distillation.cache_folders import open_caches
from crossdistill.distillation.student import WEIGHTS_NAME, find_student, locate_student
from crossdistill.recipes.checks import standardization_of
from crossdistill.recipes.config import (
    ObjectiveConfig,
    PairConfig,
    RunConfig,
    SupervisionConfig,
    to_dict,
    with_current_names,
    with_former_names,
)
from crossdistill.recipes.sizes import PAPER_BANK_SIZE, PAPER_BATCH_SIZE
from crossdistill.recipes.teachers import TeacherOptions, TeacherSource, file_name_of
from crossdistill.training.run_folder import RUNS_FOLDER
from crossdistill.utils.files import sha256_of
from crossdistill.utils.records import fingerprint, without

FORMER_DEFAULT_OBJECTIVE = ("compress-2q-live", "simreg")
MAX_NUMBERED_FOLDERS = 10_000


def choose_folder(config: RunConfig, sources: Sequence[TeacherSource]) -> Path:
    """Return --out, or else ``runs/<student>-from-<teacher>``, numbered so that no run is overwritten.

    A numbered folder is made at once, so that a run that starts at the same time takes the next number.
    """
    if config.machine.out is not None:
        return config.machine.out
    source = "-and-".join(file_name_of(source.name) for source in sources) or "labels"
    if config.pair.proxy is not None:
        source += f"-through-{file_name_of(config.pair.proxy)}"
    base = RUNS_FOLDER / f"{file_name_of(config.pair.student or '')}-from-{source}"
    candidates = [base, *(base.with_name(f"{base.name}-{i}") for i in range(2, MAX_NUMBERED_FOLDERS))]
    if config.machine.resume:
        return candidates[max(0, next(i for i, path in enumerate(candidates) if not path.exists()) - 1)]
    return next(path for path in candidates if _is_made(path))


def _is_made(path: Path) -> bool:
    """Make a folder, and return whether no other process has made it."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the part of a configuration that a resumed run must share with the run that it continues."""
    values = to_dict(config)
    kept = ["seed", "precision", "channels_last"]
    if values["machine"]["compile"]:  # so that runs from before this option are known again
        kept.append("compile")
    values["machine"] = {key: values["machine"][key] for key in kept}
    # A machine may lack a decoder: all give the same frames, in colours that differ by a few levels at most.
    for key in ("max_unreadable", "decoder"):
        del values["data"][key]
    if values["data"]["shots"] is None:  # so that runs from before this option are known again
        del values["data"]["shots"]
    if not values["objective"]["mix"]:  # likewise
        del values["objective"]["mix"]
    values["objective"]["standardize"] = standardization_of(config)  # auto is the same run as what it was decided to be
    if values["supervision"] == to_dict(RunConfig())["supervision"]:  # so that runs from before are known again
        del values["supervision"]
    if values["optimization"]["layer_decay"] == 1:  # likewise
        del values["optimization"]["layer_decay"]
    if values["optimization"]["drop_path"] is None:  # likewise
        del values["optimization"]["drop_path"]
    if values["pair"]["folds"] is None:  # likewise
        del values["pair"]["folds"]
    if values["pair"]["proxy"] is None:  # likewise
        for key in [key for key in values["pair"] if key.startswith("proxy")]:
            del values["pair"][key]
    return values


def contents(config: RunConfig, manifests: Sequence[Manifest]) -> dict[str, list[str]]:
    """Return digests of the datasets, weights and cache of a run, by the dotted names of their options.

    A resumed run may find them at other paths, and must find the same content.
    """
    pair = config.pair
    found = {
        "data.data": [manifest.content_digest for manifest in manifests],
        "pair.teacher_weights": [_weights_digest(name) for name in pair.teacher_weights],
    }
    if pair.student_weights is not None:
        found["pair.student_weights"] = [_weights_digest(pair.student_weights)]
    if pair.teacher_cache is not None:
        found["pair.teacher_cache"] = [fingerprint(cache.key) for cache in open_caches(pair.teacher_cache)]
    return found


def _weights_digest(name: str) -> str:
    """Return the digest of a weight file or of a run's student; the name itself for published weights."""
    student = locate_student(name)
    path = Path(name) if student is None else student / WEIGHTS_NAME
    return sha256_of(path) if path.is_file() else name


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
        manifests: The datasets that the teacher learns from.
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
        data=replace(config.data, split=teacher.split or config.data.split, strong_views=False, shots=None),
        objective=ObjectiveConfig(),
        optimization=replace(
            config.optimization, epochs=recipe.teacher_epochs, lr=recipe.teacher_lr, layer_decay=1.0, drop_path=None
        ),
        supervision=SupervisionConfig(),  # it is the student's
    )
    # A teacher that learns labels does not depend on the objective, nor on the paths of the datasets.
    options = without(without(identity(trained), "data.data"), "objective")
    content = [manifest.content_digest for manifest in manifests]
    key = fingerprint([with_former_names(options), content], num_digits=8)
    teachers, name = folder.parent / "teachers", file_name_of(teacher.name)
    out = teachers / f"{name}-{key}"
    former = teachers / f"{name}-{_former_key(trained, manifests)}"
    if find_student(former) is not None:
        out = former
    if config.data.data:  # a student may also learn from datasets without labels
        trained = replace(trained, data=replace(trained.data, data=tuple(manifest.root for manifest in manifests)))
    return replace(trained, machine=replace(config.machine, out=out, resume=True, evaluate=False))


def _former_key(trained: RunConfig, manifests: Sequence[Manifest]) -> str:
    """Return the key of version 0.1, which had the default objective and the paths of the datasets in it."""
    former = ObjectiveConfig(objective=FORMER_DEFAULT_OBJECTIVE, bank_size=PAPER_BANK_SIZE)
    batch_size = trained.optimization.batch_size or PAPER_BATCH_SIZE
    optimization = replace(trained.optimization, batch_size=batch_size)
    trained = replace(trained, objective=former, optimization=optimization)
    clips = [[video.to_json() for video in manifest.videos] for manifest in manifests]
    return fingerprint([with_former_names(identity(trained)), clips], num_digits=8)
