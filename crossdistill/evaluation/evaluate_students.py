"""Evaluate trained students on splits of a dataset: each by itself, their means over splits, and all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import load_student, read_facts, read_view
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation.clips import (
    check_dataset,
    check_names,
    classes_without_training_clips,
    num_seen_in_training,
)
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.evaluate import EvaluatedEncoder, on_first
from crossdistill.evaluation.evaluations import evaluation_of_split, mean_of_splits
from crossdistill.evaluation.feature_store import FOLDER_NAME
from crossdistill.evaluation.protocols import FINETUNE, JOINT_PROTOCOLS, PROTOCOLS, apply_protocols
from crossdistill.evaluation.protocols.agreement import compare_students
from crossdistill.evaluation.protocols.finetune import classify
from crossdistill.evaluation.protocols.fusion import common_videos, fuse
from crossdistill.evaluation.results import Evaluation, ProtocolResult
from crossdistill.evaluation.roles import Role
from crossdistill.evaluation.settings import FineTuning, ProtocolSettings, ReadSettings
from crossdistill.training.run_folder import RunFolder
from crossdistill.training.trackers import require_tracker, track_results
from crossdistill.utils.console import console
from crossdistill.utils.distributed import create_accelerator, use_all_cores

SPLIT_MARK = "{split}"
"""Placeholder of the split's name in a student's folder."""
# Applied to each member of a fusion, so that the table shows the gain of fusing them.
MEMBER_PROTOCOLS = ("knn", "linear", "retrieval")

FineTune = Callable[..., Path]
"""``fine_tune(settings, student_folder, data=..., split=..., accelerator=...)``: trains and gives the run's folder."""


@dataclass(frozen=True)
class StudentEvaluation:
    """Which students are evaluated, on what, and how.

    Raises:
        UserError: No student, or a student, split or protocol twice, or a file instead of a student's folder.
    """

    students: tuple[Path, ...]
    """Folders of runs or students; ``{split}`` in a name stands for the split."""
    data: Path
    """Folder of the prepared, labelled dataset."""
    split: tuple[str, ...] = ("1",)
    protocols: tuple[str, ...] = ("knn", "linear")
    reading: ReadSettings = field(default_factory=ReadSettings)
    settings: ProtocolSettings = field(default_factory=ProtocolSettings)
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    features: Path | None = None
    """Folder in which features are kept; None for the folder ``features`` beside each student."""
    precision: str = "auto"
    """``auto``, ``fp32`` or ``bf16``."""
    tracker: str = "none"
    """Tracker that gets the numbers of a run's student."""
    allow_code: bool = False
    """Whether the Python file that a student names may run."""

    def __post_init__(self) -> None:
        if self.reading.num_workers < 0:
            raise UserError(f"--workers is {self.reading.num_workers}: give 0 (decode in this process) or more")
        if not self.students:
            raise UserError("no student was given: name a run's folder, or several")
        if len(set(self.students)) < len(self.students):
            raise UserError("a student was named twice: name each student once")
        for name in ("split", "protocols"):
            given = getattr(self, name)
            if not given:
                raise UserError(f"--{name} is empty: name one or more")
            if len(set(given)) < len(given):
                raise UserError(f"--{name} {' '.join(given)}: name one or more, each once")
        for path in self.folders:
            if path.is_file():
                raise UserError(
                    f"{path} is a file, and a student is a folder with student.json and student.safetensors: give a "
                    "run's folder (train.py --student-weights makes a student from weights; pickles are never run)"
                )

    @property
    def folders(self) -> dict[Path, tuple[str, ...]]:
        """Student's folder to the splits on which it is tested."""
        splits: dict[Path, tuple[str, ...]] = {}
        for path in self.students:
            for split in self.split:
                folder = folder_for(path, split)
                splits[folder] = (*splits.get(folder, ()), split)
        return splits


def folder_for(path: Path, split: str) -> Path:
    """Replace ``{split}`` in a student's folder by the name of the split.

    Example:
        >>> folder_for(Path("runs/flow-{split}"), "2").name
        'flow-2'
    """
    return Path(str(path).replace(SPLIT_MARK, split))


def evaluate_students(
    request: StudentEvaluation, *, fine_tune: FineTune | None = None, accelerator: Accelerator | None = None
) -> Evaluation:
    """Evaluate students as requested.

    Args:
        request: Students, dataset, protocols and settings.
        fine_tune: Trains a student on labels; required for the protocol ``finetune``.
        accelerator: The processes that share the work; made here if None. Every process returns the same result.

    Returns:
        The evaluation of one student (the mean of several splits), or of several students together.

    Raises:
        UserError: The request does not fit the students or the dataset; known before a weight is read.
    """
    manifest = Manifest.load(request.data)
    check_request(request, manifest)
    accelerator = accelerator or create_accelerator()
    if accelerator.num_processes > 1:
        use_all_cores(accelerator)
    return _Students(request, manifest, accelerator, fine_tune).evaluate()


def check_request(request: StudentEvaluation, manifest: Manifest) -> None:
    """Check the request before weights are loaded, and print the classes that have no training clips.

    Raises:
        UserError: An unknown protocol or tracker, or students that do not fit the dataset, its splits or the views.
    """
    require_tracker(request.tracker)
    check_names("protocol", request.protocols, (*PROTOCOLS, FINETUNE, *JOINT_PROTOCOLS))
    joint = [name for name in request.protocols if name in JOINT_PROTOCOLS]
    if joint and len(request.students) < 2:
        raise UserError(f"--protocols {joint[0]} compares students, and one was given: name two or more")
    for path, splits in request.folders.items():
        folder, facts = read_facts(path)
        view = read_view(folder, facts)
        for split in splits:
            check_dataset(manifest, view, split, wanted_by=f"the student {path} ({facts['encoder']})")
        request.reading.views.require_fit(view)
        request.reading.train_views.require_fit(view)
    for name in request.students:
        encoders = {read_facts(folder_for(name, split))[1]["encoder"]: None for split in request.split}
        if len(encoders) > 1:
            raise UserError(
                f"{name} stands for different networks ({', '.join(encoders)}), and a mean over splits is the mean of "
                "one network: name students of one encoder"
            )
    for split in request.split:
        absent = classes_without_training_clips(manifest, split)
        if absent:
            console.print(
                f"no training clip of split {split} shows {', '.join(absent)}: test clips of "
                f"{'this class' if len(absent) == 1 else 'these classes'} count as wrong",
                soft_wrap=True,
                highlight=False,
            )


@dataclass(frozen=True)
class _Student:
    """A loaded student."""

    folder: Path
    """Folder with ``student.json``."""
    network: EvaluatedEncoder

    @property
    def name(self) -> str:
        return self.network.encoder.name

    def num_seen(self, manifest: Manifest, split: str) -> int:
        """Count the test clips of a split that the student was trained on."""
        return num_seen_in_training(manifest, split, read_facts(self.folder)[1].get("training", {}))


@dataclass(frozen=True)
class _Students:
    """The students of a request on its splits."""

    request: StudentEvaluation
    manifest: Manifest
    accelerator: Accelerator
    fine_tune: FineTune | None

    @cached_property
    def loaded(self) -> dict[Path, _Student]:
        """Every folder's student."""
        return {path: self._load(path) for path in self.request.folders}

    def _load(self, path: Path) -> _Student:
        request = self.request
        encoder = load_student(path, allow_code=request.allow_code)
        execution = Execution.choose(
            encoder, device=self.accelerator.device, precision=request.precision, layout="auto"
        )
        folder = read_facts(path)[0]
        beside = folder.parent if folder.name == "student" else folder
        network = EvaluatedEncoder(encoder, execution, request.features or beside / FOLDER_NAME, encoder.name)
        return _Student(folder, network)

    def _embed(self, student: _Student, split: str) -> EmbeddedSplit:
        return student.network.embed(self.manifest, split, self.request.reading, self.accelerator)

    def evaluate(self) -> Evaluation:
        """Evaluate every student by itself, and all together where there are several."""
        names, splits, settings = self.request.students, self.request.split, self.request.settings
        students = {(name, split): self.loaded[folder_for(name, split)] for name in names for split in splits}
        embedded = {key: self._embed(student, key[1]) for key, student in students.items()}
        alone = {
            str(name): mean_of_splits(
                {split: self._evaluate_one(students[name, split], split, embedded[name, split]) for split in splits},
                settings,
            )
            for name in names
        }
        if len(alone) == 1:
            return alone[str(names[0])]
        together = {
            split: self._evaluate_together(
                split,
                [students[name, split] for name in names],
                {str(name): embedded[name, split] for name in names},
            )
            for split in splits
        }
        return replace(mean_of_splits(together, settings), students=alone)

    def _evaluate_one(self, student: _Student, split: str, embedded: EmbeddedSplit) -> Evaluation:
        request = self.request
        names = [name for name in request.protocols if name in PROTOCOLS]
        if "fusion" in request.protocols:
            names += [name for name in MEMBER_PROTOCOLS if name not in names]
        tuned = self._fine_tuned(student, split) if FINETUNE in request.protocols else None

        def evaluate() -> Evaluation:
            results = apply_protocols(embedded, names, request.settings)
            results += [tuned()] if tuned is not None else []
            num_seen = student.num_seen(self.manifest, split)
            return evaluation_of_split(
                student.name, self.manifest, split, embedded, results, request.settings, num_test_seen=num_seen
            )

        return on_first(self.accelerator, evaluate)

    def _fine_tuned(self, student: _Student, split: str) -> Callable[[], ProtocolResult]:
        """Fine-tune and embed on every process; the function that is returned classifies on the first process."""
        settings = self.request.fine_tuning
        assert self.fine_tune is not None, "the protocol finetune needs a function that trains"
        run = self.fine_tune(
            settings, student.folder, data=self.manifest.root, split=split, accelerator=self.accelerator
        )
        tuned = self._load(run)
        embedded, classifier = self._embed(tuned, split), tuned.network.encoder.classifier
        assert classifier is not None, "a supervised run keeps its classifier"
        details: dict[str, Any] = {**dataclasses.asdict(settings), "run": run.name}
        for name in ("workers", "decoder"):  # they do not change the numbers
            del details[name]
        details["mixed_precision"] = details.pop("precision")  # its name in the results format
        return lambda: classify(embedded, classifier, details=details)

    def _evaluate_together(
        self, split: str, students: list[_Student], embedded: dict[str, EmbeddedSplit]
    ) -> Evaluation:
        """Fuse and compare all students on the videos that all of them could read."""
        return on_first(self.accelerator, lambda: self._fuse_and_compare(split, students, embedded))

    def _fuse_and_compare(self, split: str, students: list[_Student], embedded: dict[str, EmbeddedSplit]) -> Evaluation:
        settings, protocols = self.request.settings, self.request.protocols
        members = dict(zip(embedded, common_videos(list(embedded.values())), strict=True))
        results = fuse(list(members.values()), settings) if "fusion" in protocols else []
        evaluation = evaluation_of_split(
            " + ".join(student.name for student in students),
            self.manifest,
            split,
            next(iter(members.values())),
            results,
            settings,
            num_test_seen=max(student.num_seen(self.manifest, split) for student in students),
        )
        if "agreement" not in protocols:
            return evaluation
        pairs = [
            compare_students((a, b), members[a].test, members[b].test, classes=self.manifest.classes, settings=settings)
            for a, b in combinations(members, 2)
        ]
        return replace(evaluation, agreement=pairs)


def track_students(request: StudentEvaluation, evaluation: Evaluation) -> None:
    """Send the numbers to the trackers of the runs that trained the students."""
    alone = evaluation.students or {str(request.students[0]): evaluation}
    for path, own in _by_folder(alone):
        folder, facts = read_facts(path)
        run, training = folder.parent, facts.get("training", {})
        if folder.name != "student" or not RunFolder(run).config.is_file() or not own.results:
            continue
        role = Role.SUPERVISED if training.get("supervised") else Role.DISTILLED
        track_results(request.tracker, run, {str(role): own.to_json()}, step=int(training.get("steps", 0)))


def _by_folder(alone: dict[str, Evaluation]) -> Iterator[tuple[Path, Evaluation]]:
    """Yield each student's folder with its evaluation; a name with ``{split}`` stands for one student per split."""
    for name, own in alone.items():
        for each in own.splits.values() if SPLIT_MARK in name and own.splits else (own,):
            yield folder_for(Path(name), each.split), each
