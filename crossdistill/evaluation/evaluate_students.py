"""Evaluate trained students on splits of a dataset: each by itself, their means over splits, and all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import Accelerator

from crossdistill.data.manifest import Manifest
from crossdistill.data.stores import check_shards
from crossdistill.distillation.student import load_student, read_facts, read_view
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError, require_num_workers
from crossdistill.evaluation.clips import (
    check_dataset,
    check_names,
    classes_without_training_clips,
    num_seen_in_training,
)
from crossdistill.evaluation.defaults import EXPORTED_SUFFIXES
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.embedder import ExportedNetwork
from crossdistill.evaluation.evaluate import EvaluatedEncoder, EvaluatedFile, EvaluatedNetwork, embed_split, on_first
from crossdistill.evaluation.evaluations import evaluation_of_split, mean_of_splits
from crossdistill.evaluation.gains import paired_gains
from crossdistill.evaluation.perturbed_protocols import PerturbedPlan
from crossdistill.evaluation.protocols import (
    FINETUNE,
    JOINT_PROTOCOLS,
    MISSING_MODALITY,
    MULTI_LABEL,
    ORDER,
    PROTOCOLS,
    ROBUSTNESS,
    TOKEN_PROTOCOLS,
    apply_protocols,
)
from crossdistill.evaluation.protocols.agreement import compare_students
from crossdistill.evaluation.protocols.finetune import classify
from crossdistill.evaluation.protocols.fusion import common_videos, fuse
from crossdistill.evaluation.protocols.missing_modality import fuse_without_each, require_modalities
from crossdistill.evaluation.protocols.multi_label import read_label_sets
from crossdistill.evaluation.results import Evaluation, Gain, ProtocolResult
from crossdistill.evaluation.roles import Role
from crossdistill.evaluation.settings import FineTuning, ProtocolSettings, ReadSettings
from crossdistill.training.run_folder import RunFolder
from crossdistill.training.trackers import require_tracker, track_results
from crossdistill.types import ViewSpec
from crossdistill.utils.console import console
from crossdistill.utils.distributed import create_accelerator, use_all_cores

SPLIT_MARK = "{split}"
"""Placeholder of the split's name in a student's folder."""
# Applied to each member of a fusion, so that the table shows the gain of fusing them.
MEMBER_PROTOCOLS = ("knn", "linear", "retrieval")

NEEDS_ENCODER = (FINETUNE, ROBUSTNESS, ORDER, *TOKEN_PROTOCOLS)
"""Protocols that train the network, read its tokens, or embed changed clips: not those of an exported file."""

FineTune = Callable[..., Path]
"""``fine_tune(settings, student_folder, data=..., split=..., accelerator=...)``: trains and gives the run's folder."""
OpenExported = Callable[[Path], ExportedNetwork]
"""Opens an exported file in a runtime."""


@dataclass(frozen=True)
class StudentEvaluation:
    """Which students are evaluated, on what, and how; raises a ``UserError`` for names given twice and other files."""

    students: tuple[Path, ...]
    """Folders of runs or students, and exported files; ``{split}`` in a name stands for the split."""
    data: Path
    split: tuple[str, ...] = ("1",)
    protocols: tuple[str, ...] = ("knn", "linear")
    reading: ReadSettings = field(default_factory=ReadSettings)
    settings: ProtocolSettings = field(default_factory=ProtocolSettings)
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    features: Path | None = None
    """Folder in which features are kept; None for the folder ``features`` beside each student."""
    precision: str = "auto"
    tracker: str = "none"
    allow_code: bool = False

    def __post_init__(self) -> None:
        require_num_workers(self.reading.num_workers)
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
            if path.is_file() and path.suffix not in EXPORTED_SUFFIXES:
                raise UserError(
                    f"{path} is a file, and a student is a folder with student.json and student.safetensors: give a "
                    f"run's folder or a file of crossdistill export ({', '.join(EXPORTED_SUFFIXES)}) (crossdistill "
                    "train --student-weights makes a student from weights; pickles are never run)"
                )
            if path.suffix in EXPORTED_SUFFIXES and not path.exists():
                raise UserError(f"there is no exported file {path}: write one with crossdistill export")
            refused = [name for name in self.protocols if name in NEEDS_ENCODER]
            if is_exported(path) and refused:
                raise UserError(
                    f"{path} is an exported file, and --protocols {refused[0]} needs the student's folder: give that, "
                    "or remove the protocol"
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
    """Replace ``{split}`` in a student's folder by the name of the split."""
    return Path(str(path).replace(SPLIT_MARK, split))


def is_exported(path: Path) -> bool:
    """Return whether a path is an exported file, by its suffix."""
    return path.suffix in EXPORTED_SUFFIXES and path.is_file()


def facts_of(path: Path) -> dict[str, Any]:
    """Return the facts in a student's ``student.json``; empty for an exported file."""
    return {} if is_exported(path) else read_facts(path)[1]


def evaluate_students(
    request: StudentEvaluation,
    *,
    fine_tune: FineTune | None = None,
    open_exported: OpenExported | None = None,
    accelerator: Accelerator | None = None,
) -> Evaluation:
    """Evaluate one student (the mean of its splits), or several students together; every process returns the same.

    ``fine_tune`` is required for the protocol ``finetune``, ``open_exported`` for exported files; ``accelerator`` is
    made here if None.

    Raises:
        UserError: The request does not fit the students or the dataset; known before a weight is read.
    """
    manifest = Manifest.load(request.data)
    check_shards(manifest)
    files: dict[Path, ExportedNetwork] = {}
    for path in filter(is_exported, request.folders):
        assert open_exported is not None, "exported files need a function that opens them"
        files[path] = open_exported(path)
    check_request(request, manifest, files)
    accelerator = accelerator or create_accelerator()
    if accelerator.num_processes > 1:
        use_all_cores(accelerator)
    return _Students(request, manifest, files, accelerator, fine_tune).evaluate()


def check_request(
    request: StudentEvaluation, manifest: Manifest, files: Mapping[Path, ExportedNetwork] = MappingProxyType({})
) -> None:
    """Check what is known before weights are loaded, or raise a ``UserError``; print notices.

    ``files`` are the exported files, which have been opened.
    """
    require_tracker(request.tracker)
    check_names("protocol", request.protocols, (*PROTOCOLS, ROBUSTNESS, ORDER, FINETUNE, *JOINT_PROTOCOLS))
    joint = [name for name in request.protocols if name in JOINT_PROTOCOLS]
    if joint and len(request.students) < 2:
        raise UserError(f"--protocols {joint[0]} compares students, and one was given: name two or more")
    modalities, notices = [], []
    for path, splits in request.folders.items():
        view, encoder = _seen_by(path, files)
        modalities.append(view.modality)
        who = f"the student {path} ({encoder})"
        plan = PerturbedPlan.of(view, request.protocols, request.settings, manifest.classes, wanted_by=who)
        notices += plan.notices(str(path), view, request.protocols, manifest.classes)
        for split in splits:
            check_dataset(manifest, view, split, wanted_by=who, needs_labels=request.protocols != (MULTI_LABEL,))
        request.reading.views.require_fit(view)
        request.reading.train_views.require_fit(view)
    if MISSING_MODALITY in request.protocols:
        require_modalities(modalities)
    if MULTI_LABEL in request.protocols:
        if request.settings.label_sets is None:
            raise UserError(f"--protocols {MULTI_LABEL} needs the classes of every video: give --label-sets FILE")
        read_label_sets(request.settings.label_sets)
    for name in request.students:
        encoders = {_seen_by(folder_for(name, split), files)[1]: None for split in request.split}
        if len(encoders) > 1:
            raise UserError(
                f"{name} stands for different networks ({', '.join(encoders)}), and a mean over splits is the mean of "
                "one network: name students of one encoder"
            )
    for split in request.split:
        absent = classes_without_training_clips(manifest, split)
        if absent:
            which = "this class" if len(absent) == 1 else "these classes"
            notices.append(
                f"no training clip of split {split} shows {', '.join(absent)}: test clips of {which} count as wrong"
            )
    for notice in dict.fromkeys(notices):  # once for all students
        console.print(notice, soft_wrap=True, highlight=False)


def _seen_by(path: Path, files: Mapping[Path, ExportedNetwork]) -> tuple[ViewSpec, str]:
    """Return the view of a student or exported file, and the name of its encoder."""
    if path in files:
        return files[path].view, files[path].name
    folder, facts = read_facts(path)
    return read_view(folder, facts), facts["encoder"]


@dataclass(frozen=True)
class _Students:
    """The students of a request on its splits."""

    request: StudentEvaluation
    manifest: Manifest
    files: Mapping[Path, ExportedNetwork]
    accelerator: Accelerator
    fine_tune: FineTune | None

    @cached_property
    def loaded(self) -> dict[Path, EvaluatedNetwork]:
        """Every folder's student, and every exported file."""
        return {path: self._open(path) if path in self.files else self._load(path) for path in self.request.folders}

    def _open(self, path: Path) -> EvaluatedFile:
        exported = self.files[path]
        features = self.request.features or RunFolder(path.parent).features
        return EvaluatedFile(exported, features, f"{exported.name} in {exported.runtime}")

    def _load(self, path: Path) -> EvaluatedEncoder:
        request, device = self.request, self.accelerator.device
        encoder = load_student(path, allow_code=request.allow_code)
        execution = Execution.choose(encoder, device=device, precision=request.precision, layout="auto")
        features = request.features or RunFolder.of_student(path).features
        return EvaluatedEncoder(encoder, execution, features, encoder.name)

    def _embed(self, student: EvaluatedNetwork, split: str) -> EmbeddedSplit:
        return embed_split(student, self.manifest, split, self.request.reading, self.accelerator)

    @property
    def _uses_tokens(self) -> bool:
        return not set(self.request.protocols).isdisjoint(TOKEN_PROTOCOLS)

    def evaluate(self) -> Evaluation:
        """Evaluate every student by itself, and all together where there are several."""
        names, splits, settings = self.request.students, self.request.split, self.request.settings
        if self._uses_tokens:
            for student in self.loaded.values():
                assert isinstance(student, EvaluatedEncoder), "files are refused with protocols of tokens"
                student.check_tokens(settings.probe)
        folders = {(name, split): folder_for(name, split) for name in names for split in splits}
        embedded = {key: self._embed(self.loaded[folder], key[1]) for key, folder in folders.items()}
        alone = {}
        for name in names:
            by_split = {s: self._evaluate_one(folders[name, s], s, embedded[name, s]) for s in splits}
            alone[str(name)] = mean_of_splits(by_split, settings)
        if len(alone) == 1:
            return alone[str(names[0])]
        together = {}
        for split in splits:
            paths, members = [folders[name, split] for name in names], {str(n): embedded[n, split] for n in names}
            compute = partial(self._evaluate_together, split, paths, members)
            together[split] = on_first(self.accelerator, compute)
        first, *others = alone
        gains = [gain for other in others for gain in self._gains(alone[other], alone[first], (other, first))]
        return replace(mean_of_splits(together, settings), students=alone, gains=gains)

    def _gains(self, student: Evaluation, first: Evaluation, names: tuple[str, str]) -> list[Gain]:
        """Compare a student with the first one in every protocol."""
        settings = self.request.settings

        def compute() -> list[Gain]:
            draws = settings.num_bootstrap_draws
            return list(paired_gains(student, first, names=names, num_draws=draws, seed=settings.seed).values())

        return on_first(self.accelerator, compute)

    def _evaluate_one(self, path: Path, split: str, embedded: EmbeddedSplit) -> Evaluation:
        request = self.request
        names = [name for name in request.protocols if name in PROTOCOLS]
        if {"fusion", MISSING_MODALITY} & set(request.protocols):
            names += [name for name in MEMBER_PROTOCOLS if name not in names]
        tuned = self._fine_tuned(path, split) if FINETUNE in request.protocols else None
        student, classes = self.loaded[path], self.manifest.classes
        perturbed: Callable[[], list[ProtocolResult]] = list
        if isinstance(student, EvaluatedEncoder):
            if self._uses_tokens:  # here, so that only one student's are in memory
                embedded = student.with_tokens(embedded, self.manifest, split, request.reading, self.accelerator)
            plan = PerturbedPlan.of(student.view, request.protocols, request.settings, classes, wanted_by=student.name)
            perturbed = plan.embed(
                student, self.manifest, split, request.reading, self.accelerator, embedded, request.settings
            )

        def evaluate() -> Evaluation:
            results = [*apply_protocols(embedded, names, request.settings), *perturbed()]
            results += [tuned()] if tuned is not None else []
            return self._evaluation_of([path], split, embedded, results)

        return on_first(self.accelerator, evaluate)

    def _fine_tuned(self, path: Path, split: str) -> Callable[[], ProtocolResult]:
        """Fine-tune and embed on every process; the function that is returned classifies on the first process."""
        settings, data = self.request.fine_tuning, self.manifest.root
        assert self.fine_tune is not None, "the protocol finetune needs a function that trains"
        run = self.fine_tune(settings, read_facts(path)[0], data=data, split=split, accelerator=self.accelerator)
        tuned = self._load(run)
        embedded, classifier = self._embed(tuned, split), tuned.encoder.classifier
        assert classifier is not None, "a supervised run keeps its classifier"
        details: dict[str, Any] = {**dataclasses.asdict(settings), "run": run.name}
        for name in ("workers", "decoder", *(() if settings.recipe else ("recipe",))):
            del details[name]  # they do not change the numbers
        details["mixed_precision"] = details.pop("precision")  # its name in the results format
        return lambda: classify(embedded, classifier, details=details)

    def _evaluate_together(self, split: str, paths: list[Path], embedded: dict[str, EmbeddedSplit]) -> Evaluation:
        """Fuse and compare all students on the videos that all of them could read."""
        settings, protocols, classes = self.request.settings, self.request.protocols, self.manifest.classes
        members = dict(zip(embedded, common_videos(list(embedded.values())), strict=True))
        results = fuse(list(members.values()), settings) if "fusion" in protocols else []
        if MISSING_MODALITY in protocols:
            modalities = [self.loaded[path].view.modality for path in paths]
            results = fuse_without_each(list(members.values()), modalities, settings)
        evaluation = self._evaluation_of(paths, split, next(iter(members.values())), results)
        pairs = list(combinations(members, 2)) if "agreement" in protocols else []
        agreement = [
            compare_students(pair, *(members[name].test for name in pair), classes=classes, settings=settings)
            for pair in pairs
        ]
        return replace(evaluation, agreement=agreement)

    def _evaluation_of(
        self, paths: list[Path], split: str, embedded: EmbeddedSplit, results: list[ProtocolResult]
    ) -> Evaluation:
        name = " + ".join(self.loaded[path].name for path in paths)
        trainings = [facts_of(path).get("training", {}) for path in paths]
        num_seen = max(num_seen_in_training(self.manifest, split, training) for training in trainings)
        settings = self.request.settings
        return evaluation_of_split(name, self.manifest, split, embedded, results, settings, num_test_seen=num_seen)


def track_students(request: StudentEvaluation, evaluation: Evaluation) -> None:
    """Send the numbers to the trackers of the runs that trained the students."""
    for name, alone in (evaluation.students or {str(request.students[0]): evaluation}).items():
        # A name with ``{split}`` stands for one student per split.
        for own in alone.splits.values() if SPLIT_MARK in name and alone.splits else (alone,):
            path = folder_for(Path(name), own.split)
            if is_exported(path):
                continue
            folder, facts = read_facts(path)
            run, training = RunFolder.of_student(folder), facts.get("training", {})
            if run.config.is_file() and own.results:
                role = Role.SUPERVISED if training.get("supervised") else Role.DISTILLED
                by_role, step = {str(role): own.to_json()}, int(training.get("steps", 0))
                track_results(request.tracker, run.path, by_role, step=step)
