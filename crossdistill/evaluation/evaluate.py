"""Evaluate one encoder on one split: embed both parts once, then apply protocols to the features."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator

from crossdistill.data.dataset import check_entries
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.data.manifest import Manifest
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.evaluation.clips import check_dataset, check_names, entries_of_part
from crossdistill.evaluation.embedded_split import EmbeddedSplit
from crossdistill.evaluation.evaluations import evaluation_of_split
from crossdistill.evaluation.feature_store import kept_features
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.protocols import PROTOCOLS, apply_protocols
from crossdistill.evaluation.results import Evaluation
from crossdistill.evaluation.settings import ProtocolSettings, ReadSettings
from crossdistill.evaluation.views import TestViews
from crossdistill.training.run_folder import RunFolder
from crossdistill.training.trackers import require_tracker, track_results
from crossdistill.types import ViewSpec
from crossdistill.utils.console import console
from crossdistill.utils.distributed import create_accelerator, decide_on_first, use_all_cores
from crossdistill.utils.files import write_text_atomically

Result = TypeVar("Result")


@dataclass(frozen=True)
class EvaluatedEncoder:
    """An encoder with everything that embedding a split needs."""

    encoder: Encoder
    execution: Execution
    features_folder: Path | None = None
    """Folder of the feature store; None to keep nothing."""
    description: str | None = None
    """Start of the text of the progress bars; None for no bars."""

    def embed(self, manifest: Manifest, split: str, settings: ReadSettings, accelerator: Accelerator) -> EmbeddedSplit:
        """Embed both parts of a split; the result is complete on the first process only."""
        entries = {name: entries_of_part(manifest, split, name, settings.max_clips) for name in ("train", "test")}
        # Both parts are checked before the first is embedded, which may take hours.
        check_entries([*entries["train"], *entries["test"]], [self.encoder.view], short_clips=settings.short_clips)

        def part(name: str, views: TestViews) -> Features:
            return kept_features(
                self.encoder,
                entries[name],
                folder=self.features_folder,
                dataset=manifest.dataset,
                execution=self.execution,
                accelerator=accelerator,
                views=views,
                num_workers=settings.num_workers,
                decoder=settings.decoder,
                short_clips=settings.short_clips,
                description=None if self.description is None else f"{self.description}, {name} clips",
            )

        train, test = part("train", settings.train_views), part("test", settings.views)
        return EmbeddedSplit(train, test, len(manifest.classes), description=self.description)


def evaluate_encoder(
    encoder: Encoder,
    manifest: Manifest,
    *,
    split: str,
    execution: Execution,
    accelerator: Accelerator,
    protocols: Sequence[str] = ("knn", "linear"),
    ks: Sequence[int] = (1, 5, 20),
    max_clips: int | None = None,
    num_workers: int = 2,
    decoder: str = DEFAULT_DECODER,
    short_clips: str = "repeat",
    description: str | None = None,
    features_folder: Path | None = None,
) -> Evaluation:
    """Embed the middle of every video of both parts of a split once and apply protocols to the features.

    Args:
        encoder: The encoder, evaluated in eval mode; its training flag is restored.
        manifest: A labelled dataset with the encoder's stream.
        split: Name of the split: its ``train`` part is trained on, its ``test`` part is tested on.
        execution: How the encoder runs.
        accelerator: The processes that share the work; every process returns the same result.
        protocols: Names in ``PROTOCOLS``.
        ks: Numbers of neighbours for k-NN.
        max_clips: Largest number of videos of either part, spread evenly over it; None for all.
        num_workers: Number of processes that decode.
        decoder: Library that reads the videos.
        short_clips: Rule for videos that are shorter than the encoder's view, one of ``SHORT_CLIPS``.
        description: Start of the text of the progress bars; None for no bars.
        features_folder: Folder in which features are kept for the next evaluation; None to keep nothing.

    Raises:
        UserError: An unknown protocol or split, a dataset without labels or without the encoder's stream, or an empty
            part.
    """
    check_names("protocol", protocols, PROTOCOLS)
    check_dataset(manifest, encoder.view, split, wanted_by=encoder.name)
    reading = ReadSettings(max_clips=max_clips, num_workers=num_workers, decoder=decoder, short_clips=short_clips)
    settings = ProtocolSettings(ks=tuple(ks))
    student = EvaluatedEncoder(encoder, execution, features_folder=features_folder, description=description)
    embedded = student.embed(manifest, split, reading, accelerator)

    def evaluate() -> Evaluation:
        results = apply_protocols(embedded, protocols, settings)
        return evaluation_of_split(encoder.name, manifest, split, embedded, results, settings)

    return on_first(accelerator, evaluate)


def on_first(accelerator: Accelerator, compute: Callable[[], Result]) -> Result:
    """Compute on the first process, with the CPU threads of all processes, and give every process the result.

    With the same number of threads, one process and several give the same numbers to the last digit: matrix products
    may depend on the number of threads.
    """

    def with_all_threads() -> Result:
        with _threads_of_all(accelerator):
            return compute()

    return decide_on_first(accelerator, with_all_threads)


@contextlib.contextmanager
def _threads_of_all(accelerator: Accelerator) -> Iterator[None]:
    before = torch.get_num_threads()
    if accelerator.num_processes > 1 and accelerator.device.type == "cpu":
        torch.set_num_threads(before * accelerator.num_processes)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe(
    encoder: str,
    manifest: Manifest,
    split: str,
    sets: Sets,
    results: Sequence[ProtocolResult],
    settings: Settings,
    *,
    num_test_seen: int = 0,
) -> Evaluation:
    """Results with all that has to stand beside them."""
    unreadable = {**sets.train.unreadable, **sets.test.unreadable}
    return Evaluation(
        encoder=encoder,
        dataset=manifest.dataset,
        split=split,
        num_train=sets.train.num_clips,
        num_test=sets.test.num_clips,
        unreadable=unreadable,
        results=with_facts(results, sets, settings),
        coverage=sets.test.coverage,
        views=str(sets.test.views),
        train_views=str(sets.train.views),
        bootstrap=bootstrap_of([units_of(sets.test.videos, sets.test.groups)], settings),
        num_unreadable=len(unreadable),
        num_test_seen=num_test_seen,
    )


def num_seen_in_training(manifest: Manifest, split: str, training: dict[str, Any]) -> int:
    """How many test clips of a split the student learned from, because they are training clips of its own split.

    Args:
        manifest: The dataset of the evaluation.
        split: Whose test part.
        training: What the student's folder says of its training (``training`` of student.json); what weights that it
            started from, or its teacher, had seen is not known.
    """
    learned = training.get("split")
    if manifest.dataset not in training.get("datasets", ()) or learned not in manifest.splits:
        return 0
    seen = set(manifest.select(split=learned, part="train"))
    return sum(manifest.videos[i].is_usable for i in manifest.select(split=split, part="test") if i in seen)


def check_names(kind: str, given: Sequence[str], allowed: Any) -> None:
    """Raise a ``UserError`` for the first name that is not in a closed list, or where none is given."""
    if not given:
        raise UserError(f"no {kind} was given: choose of {', '.join(sorted(allowed))}")
    for name in given:
        if name not in allowed:
            raise unknown_name(kind, name, allowed)


def check_dataset(manifest: Manifest, view: ViewSpec, split: str, *, wanted_by: str) -> None:
    """Raise a ``UserError`` unless a dataset has labels, the stream, and clips in both parts of the split."""
    if not manifest.classes:
        raise UserError(f"the dataset {manifest.root} has no labels: evaluate on one that has")
    for part in ("train", "test"):
        entries = evaluated_entries(manifest, split, part, None)
        if not any(entry.video.is_usable for entry in entries):
            raise UserError(
                f"all {len(entries)} {part} clips of split {split!r} of {manifest.root} were skipped in preparation: "
                "see python -m data_prep verify, or choose another --split"
            )
    manifest.require_stream(view.kind.stream, wanted_by=wanted_by)


def evaluated_entries(manifest: Manifest, split: str, part: str, max_clips: int | None) -> list[Entry]:
    """The videos of one part of a split.

    Raises:
        UserError: There is no such split, or nothing in this part of it.
    """
    positions = manifest.select(split=split, part=part)
    if not positions:
        raise UserError(f"split {split!r} of {manifest.root} has no {part} clips: choose another --split")
    if max_clips is not None and len(positions) > max_clips:
        positions = [positions[i * len(positions) // max_clips] for i in range(max_clips)]
    return entries_of(manifest, positions)


def classes_nobody_shows(manifest: Manifest, split: str) -> list[str]:
    """Names of the test set's classes that no usable training clip shows."""
    shown = {
        part: {e.label for e in evaluated_entries(manifest, split, part, None) if e.video.is_usable}
        for part in ("train", "test")
    }
    return [manifest.classes[label] for label in sorted(shown["test"] - shown["train"]) if label >= 0]


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse(arguments)
    manifest = Manifest.load(options.data)
    _check(options, manifest)
    accelerator = create_accelerator()
    if accelerator.num_processes > 1:
        use_all_cores(accelerator)
    command = _Command(
        options, manifest, accelerator, {path: _open(path, options, accelerator) for path in options.folders}
    )
    evaluation = command.run()
    if not accelerator.is_main_process:
        return
    print_evaluation(evaluation)
    if options.json is not None:
        write_text_atomically(options.json, json.dumps(evaluation.to_json(), indent=2) + "\n")
    _track(options, evaluation)


def _track(options: Options, evaluation: Evaluation) -> None:
    """Put the numbers beside the curves of the runs that the students are of."""
    alone = evaluation.students or {str(options.students[0]): evaluation}
    for path, own in _by_folder(alone):
        folder, facts = read_facts(path)
        run, training = folder.parent, facts.get("training", {})
        if folder.name != "student" or not RunFolder(run).config.is_file() or not own.results:
            continue
        role = "student, supervised" if training.get("supervised") else "student, distilled"
        track_results(options.tracker, run, {role: own.to_json()}, step=int(training.get("steps", 0)))


def _by_folder(alone: dict[str, Evaluation]) -> Iterator[tuple[Path, Evaluation]]:
    """Each student's folder with its evaluation; of a name with {split} each split's own."""
    for name, own in alone.items():
        for each in own.splits.values() if SPLIT_MARK in name and own.splits else (own,):
            yield folder_for(Path(name), each.split), each


def _check(options: Options, manifest: Manifest) -> None:
    """Raise a ``UserError`` for everything that is known to be wrong before a weight is read."""
    require_tracker(options.tracker)
    check_names("protocol", options.protocols, (*PROTOCOLS, FINETUNE, *JOINT_PROTOCOLS))
    joint = [name for name in options.protocols if name in JOINT_PROTOCOLS]
    if joint and len(options.students) < 2:
        raise UserError(f"--protocols {joint[0]} compares students, and one was given: name two or more")
    for path, splits in options.folders.items():
        folder, facts = read_facts(path)
        view = read_view(folder, facts)
        for split in splits:
            check_dataset(manifest, view, split, wanted_by=f"the student {path} ({facts['encoder']})")
        options.test_views.require_fit(view)
        options.training_views.require_fit(view)
    for name in options.students:
        encoders = {read_facts(folder_for(name, split))[1]["encoder"]: None for split in options.split}
        if len(encoders) > 1:
            raise UserError(
                f"{name} stands for different networks ({', '.join(encoders)}): a mean over splits is one network's, "
                "so name students of one kind"
            )
    for split in options.split:
        absent = classes_nobody_shows(manifest, split)
        if absent:
            console.print(
                f"no training clip of split {split} shows {', '.join(absent)}: test clips of "
                f"{'this class' if len(absent) == 1 else 'these classes'} count as wrong",
                soft_wrap=True,
                highlight=False,
            )


def _open(path: Path, options: Options, accelerator: Accelerator) -> Student:
    encoder = load_student(path, allow_code=options.allow_code)
    execution = Execution.choose(encoder, device=accelerator.device, precision=options.mixed_precision, layout="auto")
    folder = read_facts(path)[0]
    beside = folder.parent if folder.name == "student" else folder
    return Student(
        name=str(path),
        encoder=encoder,
        execution=execution,
        folder=folder,
        features_folder=options.features or beside / FOLDER_NAME,
        description=encoder.name,
    )


@dataclass(frozen=True)
class _Command:
    """The students, splits and protocols of one command."""

    options: Options
    manifest: Manifest
    accelerator: Accelerator
    opened: dict[Path, Student]

    def student(self, name: Path, split: str) -> Student:
        """The student that a name stands for, on a split."""
        return self.opened[folder_for(name, split)]

    def run(self) -> Evaluation:
        """Every student by itself, and all together where there are several."""
        options = self.options
        settings = options.settings
        reading = Reading(
            options.test_views, options.training_views, None, options.workers, options.decoder, options.short_clips
        )
        sets = {
            (name, split): self.student(name, split).embed(self.manifest, split, reading, self.accelerator)
            for name in options.students
            for split in options.split
        }
        alone = {
            str(name): {
                split: self._alone(self.student(name, split), split, sets[name, split], reading)
                for split in options.split
            }
            for name in options.students
        }
        students = {name: mean_of_splits(by_split, settings) for name, by_split in alone.items()}
        if len(students) == 1:
            return students[str(options.students[0])]
        together = {
            split: on_first(
                self.accelerator,
                lambda split=split: self._together(split, {str(n): sets[n, split] for n in options.students}),
            )
            for split in options.split
        }
        return replace(mean_of_splits(together, settings), students=students)

    def _alone(self, student: Student, split: str, sets: Sets, reading: Reading) -> Evaluation:
        options = self.options
        names = [name for name in options.protocols if name in PROTOCOLS]
        if "fusion" in options.protocols:
            names += [name for name in MEMBER_PROTOCOLS if name not in names]
        tuned = self._fine_tuned(student, split, reading) if FINETUNE in options.protocols else None

        def evaluate() -> Evaluation:
            results = apply_protocols(sets, names, options.settings)
            results += [tuned()] if tuned is not None else []
            return describe(
                student.encoder.name,
                self.manifest,
                split,
                sets,
                results,
                options.settings,
                num_test_seen=self._num_seen(student, split),
            )

        evaluation: Evaluation = on_first(self.accelerator, evaluate)
        return evaluation

    def _num_seen(self, student: Student, split: str) -> int:
        assert student.folder is not None
        return num_seen_in_training(self.manifest, split, read_facts(student.folder)[1].get("training", {}))

    def _fine_tuned(self, student: Student, split: str, reading: Reading) -> Callable[[], ProtocolResult]:
        """Train and embed now, on every process; classify later, on the first."""
        fine_tuning = self.options.fine_tuning
        assert student.folder is not None
        run = fine_tuning.run(student.folder, data=self.manifest.root, split=split, accelerator=self.accelerator)
        tuned = _open(run, self.options, self.accelerator)
        sets = tuned.embed(self.manifest, split, reading, self.accelerator)
        classes = tuned.encoder.classifier
        assert classes is not None
        details = {**dataclasses.asdict(fine_tuning), "run": run.name}
        for name in ("workers", "decoder"):  # change nothing in the numbers
            del details[name]
        return lambda: classify(sets, classes, protocol=FINETUNE, details=details)

    def _together(self, split: str, sets: dict[str, Sets]) -> Evaluation:
        """Fusion and agreement of all students on the videos that all could read."""
        settings = self.options.settings
        members = dict(zip(sets, common_videos(list(sets.values())), strict=True))
        first = next(iter(members.values()))
        results = []
        if "fusion" in self.options.protocols:
            results = fuse(list(members.values()), ks=settings.ks, seed=settings.seed)
        students = [self.student(name, split) for name in self.options.students]
        encoders = " + ".join(student.encoder.name for student in students)
        num_test_seen = max(self._num_seen(student, split) for student in students)
        evaluation = describe(encoders, self.manifest, split, first, results, settings, num_test_seen=num_test_seen)
        if "agreement" not in self.options.protocols:
            return evaluation
        pairs = [
            agree(
                (a, b),
                members[a].test,
                members[b].test,
                classes=self.manifest.classes,
                num_draws=settings.num_bootstrap_draws,
                seed=settings.seed,
            )
            for a, b in combinations(members, 2)
        ]
        return replace(evaluation, agreement=pairs)
