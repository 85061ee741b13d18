"""The embeddings of a run's networks: student, random student, teachers and twin on one dataset.

Features come from the store that ``crossdistill evaluate`` keeps beside the run, so most are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.distillation.student import find_student, load_student
from crossdistill.encoders import Encoder, is_from_file
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation.clips import check_dataset
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.evaluate import EvaluatedEncoder
from crossdistill.evaluation.evaluations import evaluation_of_split
from crossdistill.evaluation.feature_store import FOLDER_NAME
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.protocols import apply_protocols
from crossdistill.evaluation.results import Evaluation
from crossdistill.evaluation.settings import ProtocolSettings, ReadSettings
from crossdistill.recipes.config import AUTO, SELF, RunConfig
from crossdistill.recipes.data import TOYACTIONS_FOLDER, is_toyactions
from crossdistill.recipes.identity import own_teacher_config
from crossdistill.recipes.student import create_student
from crossdistill.recipes.teachers import TeacherOptions, create_teacher, published_weights, teacher_options
from crossdistill.report.record import AbsentError, RunRecord
from crossdistill.utils.distributed import create_accelerator

Loaded = TypeVar("Loaded")
MEASURED = ("knn", "linear", "retrieval")
STUDENT, TEACHER, RANDOM, TWIN = "student", "teacher", "random", "twin"
"""Kinds of networks; also the names of their colours."""
RANDOM_ROLE, TWIN_ROLE = "student, random", "supervised twin"


def kind_of(role: str) -> str:
    """Which of the four kinds a role of ``results.json`` is."""
    kinds = {"teacher": TEACHER, RANDOM_ROLE: RANDOM, TWIN_ROLE: TWIN}
    return next((kind for start, kind in kinds.items() if role.startswith(start)), STUDENT)


@dataclass(frozen=True)
class Options:
    """How networks are loaded and clips are read."""

    num_clips: int = 5000
    """Most clips of either part that are embedded."""
    num_workers: int = 2
    has_teacher: bool = True
    allow_code: bool = False


@dataclass(frozen=True)
class Network:
    """A network of the run with its weights."""

    role: str
    encoder: Encoder
    features_folder: Path
    weights_file: Path | None = None

    @property
    def kind(self) -> str:
        """One of the four kinds."""
        return kind_of(self.role)


@dataclass(frozen=True)
class Space:
    """A network's embedding of both parts of a split."""

    network: Network
    sets: EmbeddedSplit
    evaluation: Evaluation | None
    """With outcomes, clip by clip; None without labels."""
    is_whole: bool
    """Whether every clip was embedded, so that the numbers are those of the dataset."""

    @property
    def role(self) -> str:
        """As results call it."""
        return self.network.role


def find_dataset(record: RunRecord, data: Path | None) -> Manifest:
    """The dataset that the page shows: ``--data``, or the first of the run's that is still there.

    Raises:
        AbsentError: There is none, or none that was given.
        UserError: ``--data`` is no prepared dataset.
    """
    if data is not None:
        return Manifest.load(data)
    candidates = record.datasets or (TOYACTIONS_FOLDER,)
    for path in candidates:
        if (path / MANIFEST_NAME).is_file():
            return Manifest.load(path)
    named = ", ".join(map(str, candidates))
    raise AbsentError(f"the dataset is not where it was ({named}): say with --data where it is now.")


def load_trained(record: RunRecord, role: str, options: Options) -> Network:
    """The student that a run trained.

    Raises:
        AbsentError: There is none, or its weights cannot be loaded.
    """
    folder = record.student
    if folder is None:
        raise AbsentError(f"{record.name} holds no student (yet).")
    with_reason = _loading(lambda: load_student(folder, allow_code=options.allow_code))
    return Network(role, with_reason, record.folder / FOLDER_NAME, folder / "student.safetensors")


def load_random(record: RunRecord, options: Options) -> Network:
    """The student as it was before training, with weights that ``--seed`` decides."""
    config = _configured(record)
    _allow(config.pair.student or "", options)
    encoder = _loading(lambda: create_student(config, is_random=True).eval())
    return Network(RANDOM_ROLE, encoder, record.folder / FOLDER_NAME)


def load_teachers(
    record: RunRecord, student: Encoder, manifest: Manifest | None, options: Options
) -> Iterator[Network | str]:
    """Each teacher, or the sentence that says why it is not there."""
    config = _configured(record)
    if not options.has_teacher:
        yield "the teacher was left out (--no-teacher)."
        return
    if SELF in config.pair.teacher:
        yield "the teacher was the student's own EMA copy, which is not kept."
        return
    chosen = teacher_options(config)
    for number, teacher in enumerate(chosen, start=1):
        role = "teacher" if len(chosen) == 1 else f"teacher {number}"
        try:
            _allow(teacher.name, options)
            found = _with_weights(record, config, teacher, manifest)
            encoder = _loading(lambda found=found: create_teacher(found, student.view).eval())  # type: ignore[misc]
        except AbsentError as error:
            yield str(error)
            continue
        yield Network(role, encoder, record.folder / FOLDER_NAME, _weights_file(found.weights))


def _with_weights(
    record: RunRecord, config: RunConfig, teacher: TeacherOptions, manifest: Manifest | None
) -> TeacherOptions:
    """With the weights that ``auto`` meant: those of the teacher that was trained first, or the published ones."""
    if teacher.weights != AUTO:
        return teacher
    if manifest is not None and is_toyactions([manifest]):
        made = own_teacher_config(config, teacher, record.folder, [manifest]).machine.out
        if made is None or find_student(made) is None:
            raise AbsentError(f"the teacher that was trained first is no longer there ({made}).")
        return replace(teacher, weights=str(made))
    return replace(teacher, weights=_loading(lambda: published_weights(teacher)))


def _weights_file(weights: str) -> Path | None:
    folder = find_student(weights)
    path = Path(weights) if folder is None else folder / "student.safetensors"
    return path if path.is_file() else None


def _configured(record: RunRecord) -> RunConfig:
    if record.config is None:
        raise AbsentError("the run's configuration is lost or of another version.")
    return record.config


def _allow(name: str, options: Options) -> None:
    if is_from_file(name) and not options.allow_code:
        raise AbsentError(f"{name} is built by a Python file, which is only run with --allow-code.")


def _loading(load: Callable[[], Loaded]) -> Loaded:
    """What a loader gives; its errors as the sentence of an absent part."""
    try:
        return load()
    except (UserError, OSError) as error:
        raise AbsentError(f"it cannot be loaded: {error}.") from error


def embed(
    network: Network, manifest: Manifest, config: RunConfig | None, options: Options, *, description: str
) -> Space:
    """Embed both parts of the run's split and apply the protocols that need no more than features.

    Args:
        network: With its weights.
        manifest: The dataset.
        config: Of the run that trained it; None where it is lost.
        options: How clips are read.
        description: Starts the progress bars' text.

    Raises:
        AbsentError: The dataset lacks labels, the split or the network's stream, or a clip is too short.
    """
    split = "1" if config is None else config.data.split
    accelerator = create_accelerator()
    setting = "auto" if config is None else config.machine.precision
    execution = Execution.choose(network.encoder, device=accelerator.device, precision=setting)
    student = EvaluatedEncoder(
        network.encoder,
        execution,
        features_folder=network.features_folder,
        description=description,
    )
    reading = ReadSettings(
        max_clips=options.num_clips,
        num_workers=options.num_workers,
        short_clips="repeat" if config is None else config.data.short_clips,
    )
    settings = ProtocolSettings()
    try:
        check_dataset(manifest, network.encoder.view, split, wanted_by=f"the {network.role}")
        sets = student.embed(manifest, split, reading, accelerator)
        results = apply_protocols(sets, MEASURED, settings)
    except UserError as error:
        raise AbsentError(f"{error}.") from error
    evaluation = evaluation_of_split(network.encoder.name, manifest, split, sets, results, settings)
    largest = max(len(manifest.select(split=split, part=part)) for part in ("train", "test"))
    return Space(network, sets, evaluation, is_whole=largest <= options.num_clips)


def on_common_videos(*parts: Features) -> list[Features]:
    """The same videos in the same order in every space: those that all networks could read."""
    common = set.intersection(*(set(part.videos) for part in parts))
    chosen = []
    for part in parts:
        order = sorted((name, i) for i, name in enumerate(part.videos) if name in common)
        chosen.append(part.select([i for _, i in order]))
    return chosen


def predictions(space: Space, protocol: str) -> tuple[Tensor, Tensor]:
    """[B] classes of the test clips and [B] what a protocol takes them for.

    Raises:
        AbsentError: The protocol predicts none.
    """
    result = None if space.evaluation is None else space.evaluation.results.get(protocol)
    outcome = None if result is None else result.outcome
    if outcome is None or outcome.predicted_b is None:
        raise AbsentError(f"the protocol {protocol} predicts no class.")
    predicted: Tensor = outcome.predicted_b
    labels: Tensor = outcome.labels_b
    return labels.to(torch.int64), predicted
