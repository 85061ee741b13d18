"""``crossdistill predict``: what a student says of video files, or of what a camera sees."""

from __future__ import annotations

import contextlib
import json as json_format
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from torch import Tensor

from crossdistill.data.dataset import Entry, PairedClips, entries_of, make_loader
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.student import find_class_names, find_student, load_student
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.evaluation.feature_store import FOLDER_NAME, FeatureStore, complete, exported_key, kept_features
from crossdistill.evaluation.features import Features, assemble, no_features
from crossdistill.export.metadata import EMBEDDINGS
from crossdistill.predict.camera import open_camera, recordings
from crossdistill.predict.predictor import (
    ByClassifier,
    ByNeighbours,
    Judge,
    Network,
    OnnxNetwork,
    Prediction,
    TorchNetwork,
    run_in_parts,
)
from crossdistill.predict.video_clips import VideoClips, read_video_clips, recipe_for, require_source
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.console import console, progress_bar
from crossdistill.utils.distributed import create_accelerator
from crossdistill.utils.files import require_writable, write_text_atomically
from data_prep.recipe import Recipe

BATCH_SIZE = 8


@dataclass(frozen=True)
class Options:
    """Say what videos show: by the student's own classifier, or else by the nearest training clips of --data."""

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """The student (a run's folder, or the folder with student.safetensors; needless with --onnx), then videos."""
    onnx: Path | None = None
    """Run this file of crossdistill export in onnxruntime in place of PyTorch."""
    camera: int | None = None
    """Number of a camera to watch until Ctrl-C, in place of videos."""
    seconds: float = 3.0
    """How long a camera is watched for each answer."""
    data: Path | None = None
    """The prepared dataset that the student was trained on: its clips are compared, its classes give names."""
    split: str = "1"
    """Whose training clips are compared."""
    k: int = 5
    """How many nearest clips vote."""
    clips: int = 10
    """Clips of a video, spread evenly over it, over which the answer is averaged."""
    top: int = 5
    """How many classes, or nearest clips, are shown."""
    json: Path | None = None
    """Write the answers there as well."""
    features: Path | None = None
    """Folder in which the features of the training clips are kept; the folder features beside the student if absent,
    or beside the file of --onnx where no student is given."""
    workers: int = 2
    """Processes that decode the training clips."""
    allow_code: bool = False
    """Run the Python file that a student of one's own network (path/to/file.py:function) names."""

    def check(self) -> None:
        """Raise a ``UserError`` for values that cannot work; after parsing, which would put its own words around it."""
        for name in ("k", "clips", "top"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}: give 1 or more")
        if self.json is not None:
            require_writable(self.json)
        if self.features is not None:
            require_writable(self.features / "features")
        if self.workers < 0:
            raise UserError(f"--workers is {self.workers}: give 0 (decode in this process) or more")
        if not self.seconds > 0:
            raise UserError(f"--seconds is {self.seconds}: give more than 0")
        if self.camera is None and not self.videos:
            raise UserError("there is no video to look at: give video files after the student, or --camera 0")
        if self.camera is not None and self.videos:
            raise UserError(f"--camera and {len(self.videos)} video files were given: give one or the other")

    @property
    def student(self) -> Path | None:
        """The student's folder; None if it was left out because of ``--onnx``."""
        is_left_out = self.onnx is not None and not (self.paths and self.paths[0].is_dir())
        return None if is_left_out or not self.paths else self.paths[0]

    @property
    def videos(self) -> tuple[Path, ...]:
        """The files to look at."""
        return self.paths if self.student is None else self.paths[1:]


@dataclass(frozen=True)
class Answer:
    """What became of one video."""

    video: str
    prediction: Prediction | None
    """None if it could not be read."""
    num_clips: int = 0
    note: str = ""
    """What is amiss with the file; the reason if there is no prediction."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        if self.prediction is None:
            return {"video": self.video, "error": self.note}
        return {"video": self.video, "num_clips": self.num_clips, "note": self.note, **self.prediction.to_json()}


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog="crossdistill predict")
    options.check()
    manifest = None if options.data is None else Manifest.load(options.data)
    network = open_network(options, manifest)
    recipe = recipe_for(network.view, manifest)
    check_files(options.videos)
    for path in options.videos or [Path(f"camera {options.camera}")]:
        require_source(path, network.view, recipe)
    with contextlib.ExitStack() as stack:
        # Before the gallery is embedded, which may take long.
        device = None if options.camera is None else stack.enter_context(open_camera(options.camera))
        judge = choose_judge(network, manifest, options)
        answers = show_all(answers_of(network, judge, recipe, options, device), is_endless=device is not None)
    if options.json is not None:
        content = {"student": network.name, "answers": [answer.to_json() for answer in answers]}
        write_text_atomically(options.json, json_format.dumps(content, indent=2) + "\n")
    num_failed = sum(answer.prediction is None for answer in answers)
    # What a camera shows last before it is unplugged may be too short.
    if num_failed and (options.camera is None or num_failed == len(answers)):
        raise UserError(f"{num_failed} of {len(answers)} videos could not be read, for the reasons above: mend them")


def check_files(paths: Sequence[Path]) -> None:
    """Raise a ``UserError`` for the first file that is not there; one that is damaged is an answer of its own."""
    for path in paths:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            raise UserError(f"the video {path} {what}: give video files after the student")


def show_all(found: Iterable[Answer], *, is_endless: bool) -> list[Answer]:
    """Print answers as they come; Ctrl-C ends what has no end."""
    answers = []
    with contextlib.suppress(KeyboardInterrupt) if is_endless else contextlib.nullcontext():
        for answer in found:
            show(answer)
            answers.append(answer)
    return answers


def open_network(options: Options, manifest: Manifest | None) -> Network:
    """The student in the runtime that was asked for.

    Raises:
        UserError: It cannot be loaded.
    """
    if options.onnx is not None:
        return OnnxNetwork(options.onnx)
    student = options.student
    if student is None:
        raise UserError("there is no student: give a run's folder before the videos, or --onnx FILE")
    if student.is_file():
        raise UserError(f"{student} is a file: give the student's folder first, then the videos (or --onnx FILE)")
    encoder = load_student(student, allow_code=options.allow_code)
    return TorchNetwork(encoder, find_class_names(student, encoder.classifier, manifest))


def choose_judge(network: Network, manifest: Manifest | None, options: Options) -> Judge:
    """The student's classifier, or else the training clips of the dataset, which are embedded here.

    Raises:
        UserError: There is neither, or the dataset is not the student's.
    """
    if network.num_classes:
        names = network.classes
        if not names and manifest is not None and len(manifest.classes) == network.num_classes:
            names = manifest.classes
        if not names:
            console.print(
                f"nothing names the {network.num_classes} classes of {network.name}, so they are numbers: --data with "
                "the dataset that it was trained on gives their names",
                soft_wrap=True,
                highlight=False,
            )
        elif manifest is not None and tuple(names) != manifest.classes:
            console.print(
                f"{network.name} names the {len(names)} classes that it was trained on; --data, which has others, "
                "--split and --k are not used",
                soft_wrap=True,
                highlight=False,
            )
        return ByClassifier(names)
    if manifest is None:
        raise UserError(
            f"{network.name} learned without labels and names no classes: give --data with a prepared dataset, whose "
            "nearest clips are then named"
        )
    kept_in = folder_of_features(options)
    return embed_gallery(network, manifest, split=options.split, k=options.k, workers=options.workers, kept_in=kept_in)


def folder_of_features(options: Options) -> Path | None:
    """Where features are kept: as ``crossdistill evaluate`` does it, or beside the ONNX file if that is all there is.

    Returns:
        None if nothing can be written there.
    """
    if options.features is not None:
        return options.features
    if options.student is not None:
        folder = find_student(options.student) or options.student
        beside = folder.parent if folder.name == "student" else folder
    else:
        assert options.onnx is not None
        beside = options.onnx.parent
    kept_in = beside / FOLDER_NAME
    return kept_in if os.access(kept_in if kept_in.is_dir() else beside, os.W_OK) else None


def embed_gallery(
    network: Network, manifest: Manifest, *, split: str, k: int, workers: int, kept_in: Path | None = None
) -> ByNeighbours:
    """Embed the middle of every training clip of a dataset; of one without splits, of every clip.

    Args:
        network: A student.
        manifest: The dataset.
        split: Whose training clips are embedded.
        k: How many of them vote.
        workers: Processes that decode.
        kept_in: Folder of the feature store, which gives what was embedded before; None to keep nothing.

    Raises:
        UserError: There is no such split, stream or clip.
    """
    manifest.require_stream(network.view.kind.stream, wanted_by=network.name)
    positions = manifest.select(split=split, part="train") if manifest.splits else range(len(manifest.videos))
    entries = [entry for entry in entries_of(manifest, list(positions)) if entry.video.is_usable]
    description = f"clips of {manifest.dataset}"
    if isinstance(network, TorchNetwork):
        found = kept_features(
            network.encoder,
            entries,
            folder=kept_in,
            dataset=manifest.dataset,
            execution=network.execution,
            accelerator=create_accelerator(),
            num_workers=workers,
            description=description,
        )
    else:
        assert isinstance(network, OnnxNetwork)
        found = embed_with_file(network, entries, manifest.dataset, kept_in, workers, description)
    if not found.num_clips:
        raise UserError(f"no training clip of {manifest.root} can be read: check it with python -m data_prep verify")
    return ByNeighbours(found.features, found.labels.tolist(), found.videos, manifest.classes, k=k)


def embed_with_file(
    network: OnnxNetwork, entries: Sequence[Entry], dataset: str, kept_in: Path | None, workers: int, description: str
) -> Features:
    """The features that an exported file gives of the middles of clips, as ``kept_features`` does it in PyTorch.

    Args:
        network: The file in onnxruntime.
        entries: The clips.
        dataset: Name of the dataset.
        kept_in: Folder of the feature store; None to keep nothing.
        workers: Processes that decode.
        description: What the progress bar says.
    """

    def extract(chosen: Sequence[Entry]) -> Features:
        return embed_clips(network, chosen, num_workers=workers, description=description)

    if kept_in is None:
        return extract(entries)
    key = exported_key(
        network.path, encoder=network.name, view=network.view, embed_dim=network.embed_dim, dataset=dataset
    )
    store = FeatureStore(kept_in, key)
    return complete(
        store, entries, extract, accelerator=create_accelerator(), view=network.view, description=description
    )


def embed_clips(network: OnnxNetwork, entries: Sequence[Entry], *, num_workers: int, description: str) -> Features:
    """Features of the middles of the clips that can be read."""
    keys = [SampleKey(i, epoch=0) for i in range(len(entries))]
    batches = [keys[i : i + BATCH_SIZE] for i in range(0, len(keys), BATCH_SIZE)]
    loader = make_loader(PairedClips(entries, student_view=network.view), batches, num_workers=num_workers)
    rows: dict[int, Tensor] = {}
    unreadable: dict[str, str] = {}
    with progress_bar(unit="batches") as bar:
        for batch in bar.track(loader, total=len(batches), description=description):
            unreadable |= dict(batch.unreadable)
            if len(batch):
                embedded_n1d = network.run(batch.student)[EMBEDDINGS][:, None]
                rows |= dict(zip(batch.sample_ids.tolist(), embedded_n1d, strict=True))
    return assemble(rows, entries, unreadable, no_features(network.embed_dim))


def answers_of(network: Network, judge: Judge, recipe: Recipe, options: Options, device: Any) -> Iterator[Answer]:
    """Of the files, or of what a camera sees, if one was opened."""
    if device is None:
        return answers_of_files(network, judge, recipe, options)
    return answers_of_camera(device, network, judge, recipe, options)


def answers_of_files(network: Network, judge: Judge, recipe: Recipe, options: Options) -> Iterator[Answer]:
    """Look at one file after the other; one that cannot be read is an answer too."""
    with progress_bar(unit="videos", is_shown=len(options.videos) > 1) as bar:
        for path in bar.track(options.videos, description="predict"):
            yield answer_of(path, network, judge, recipe, options, name=str(path))


def answers_of_camera(
    device: Any, network: Network, judge: Judge, recipe: Recipe, options: Options
) -> Iterator[Answer]:
    """Look at what a camera sees, a few seconds at a time, until it gives no more."""
    console.print(f"camera {options.camera}: an answer every {options.seconds:g} s, until Ctrl-C", highlight=False)
    path = None
    for path in recordings(device, seconds=options.seconds):
        yield answer_of(path, network, judge, recipe, options, name=f"camera {options.camera}")
    if path is None:
        raise UserError(f"camera {options.camera} gives no picture: check it with another program")
    console.print(f"camera {options.camera} gives no more pictures", highlight=False)


def answer_of(path: Path, network: Network, judge: Judge, recipe: Recipe, options: Options, *, name: str) -> Answer:
    """Look at one file."""
    try:
        clips: VideoClips = read_video_clips(path, network.view, num_clips=options.clips, recipe=recipe)
    except UnreadableVideoError as error:
        return Answer(name, None, note=str(error).removeprefix(f"{path}: "))
    prediction = judge.predict(run_in_parts(network, clips.view), top=options.top)
    return Answer(name, prediction, num_clips=len(clips.centres_seconds), note=clips.note)


def show(answer: Answer) -> None:
    """Print one answer."""
    for line in lines_of(answer):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def lines_of(answer: Answer) -> Iterable[str]:
    """An answer for people: the file, then a line for each class or clip."""
    if answer.prediction is None:
        return [f"{answer.video}: cannot be read ({answer.note})"]
    clips = f"{answer.num_clips} clip{'s' if answer.num_clips > 1 else ''}"
    note = f"; {answer.note}" if answer.note else ""
    basis = answer.prediction.basis
    classes = [f"  {guess.share:6.1%}  {guess.name}" for guess in answer.prediction.classes]
    nearest = [
        f"  {clip.similarity:6.3f}  near {clip.name}{f' ({clip.class_name})' if clip.class_name else ''}"
        for clip in answer.prediction.nearest
    ]
    return [f"{answer.video} ({clips}, {basis}{note})", *classes, *nearest]
