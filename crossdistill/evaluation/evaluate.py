"""``crossdistill evaluate``: protocols on the features of one split of a prepared dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from accelerate import Accelerator

from crossdistill.console import print_table
from crossdistill.data.dataset import Entry, check_entries, entries_of
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.data.manifest import Manifest
from crossdistill.encoders import Encoder
from crossdistill.errors import UserError, unknown_name
from crossdistill.evaluation.cluster import evaluate_cluster
from crossdistill.evaluation.features import Features, extract_features
from crossdistill.evaluation.knn import evaluate_knn
from crossdistill.evaluation.linear import evaluate_linear
from crossdistill.evaluation.results import ProtocolResult
from crossdistill.files import write_text_atomically
from crossdistill.runner import Execution
from crossdistill.student import load_student

Protocol = Callable[[Features, Features, int, Sequence[int]], list[ProtocolResult]]


def _knn(train: Features, test: Features, num_classes: int, ks: Sequence[int]) -> list[ProtocolResult]:
    results = evaluate_knn(
        train_features=train.features,
        train_labels=train.labels,
        test_features=test.features,
        test_labels=test.labels,
        num_classes=num_classes,
        ks=ks,
    )
    return list(results.values())


def _linear(train: Features, test: Features, num_classes: int, ks: Sequence[int]) -> list[ProtocolResult]:
    return [
        evaluate_linear(
            train_features=train.features,
            train_labels=train.labels,
            test_features=test.features,
            test_labels=test.labels,
            num_classes=num_classes,
        )
    ]


def _cluster(train: Features, test: Features, num_classes: int, ks: Sequence[int]) -> list[ProtocolResult]:
    return [
        evaluate_cluster(
            train_features=train.features,
            train_labels=train.labels,
            test_features=test.features,
            test_labels=test.labels,
            num_classes=num_classes,
        )
    ]


PROTOCOLS: dict[str, Protocol] = {"knn": _knn, "linear": _linear, "cluster": _cluster}


@dataclass(frozen=True)
class Evaluation:
    """The outcome of some protocols for one encoder on one split."""

    encoder: str
    dataset: str
    split: str
    num_train: int
    """Training clips that were embedded."""
    num_test: int
    """Test clips that were embedded and so evaluated."""
    unreadable: dict[str, str]
    """Videos of either part that could not be read, with the reason; they are left out."""
    results: dict[str, ProtocolResult]

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "encoder": self.encoder,
            "dataset": self.dataset,
            "split": self.split,
            "num_train": self.num_train,
            "num_test": self.num_test,
            "num_unreadable": len(self.unreadable),
            "unreadable": self.unreadable,
            "results": {name: result.to_json() for name, result in self.results.items()},
        }


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
) -> Evaluation:
    """Embed both parts of a split once and apply protocols to the features.

    Args:
        encoder: Embeds the middle of every video.
        manifest: A labelled dataset with the encoder's stream.
        split: Trains on its ``train`` part, tests on its ``test`` part.
        execution: How the encoder runs.
        accelerator: Tells the processes apart; every process returns the same result.
        protocols: Of ``PROTOCOLS``.
        ks: Numbers of neighbours for k-NN.
        max_clips: Most clips of either part, spread evenly over it; None for all.
        num_workers: Processes that decode.
        decoder: Which library reads the videos.
        short_clips: What becomes of videos that are shorter than the encoder's view: one of ``SHORT_CLIPS``.
        description: Starts the progress bars' text; no bars if None.
    """
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise unknown_name("protocol", protocol, PROTOCOLS)
    if not manifest.classes:
        raise UserError(f"the dataset {manifest.root} has no labels: evaluate on one that has")
    manifest.require_stream(encoder.view.kind.stream, wanted_by=encoder.name)
    entries = {part: _evaluated_entries(manifest, split, part, max_clips) for part in ("train", "test")}
    # Of both parts before the first is embedded.
    check_entries([*entries["train"], *entries["test"]], [encoder.view], short_clips=short_clips)
    train, test = (
        extract_features(
            encoder,
            entries[part],
            execution=execution,
            accelerator=accelerator,
            num_workers=num_workers,
            decoder=decoder,
            short_clips=short_clips,
            description=None if description is None else f"{description}, {part} clips",
        )
        for part in ("train", "test")
    )
    results = [result for name in protocols for result in PROTOCOLS[name](train, test, len(manifest.classes), ks)]
    return Evaluation(
        encoder=encoder.name,
        dataset=manifest.dataset,
        split=split,
        num_train=train.num_clips,
        num_test=test.num_clips,
        unreadable={**train.unreadable, **test.unreadable},
        results={result.protocol: result for result in results},
    )


def _evaluated_entries(manifest: Manifest, split: str, part: str, max_clips: int | None) -> list[Entry]:
    positions = manifest.select(split=split, part=part)
    if not positions:
        raise UserError(f"split {split!r} of {manifest.root} has no {part} clips: choose another --split")
    if max_clips is not None and len(positions) > max_clips:
        positions = [positions[i * len(positions) // max_clips] for i in range(max_clips)]
    return entries_of(manifest, positions)


@dataclass(frozen=True)
class Options:
    """Evaluate a trained student on one split of a prepared, labelled dataset."""

    student: tyro.conf.Positional[Path]
    """A run's folder, or the folder with student.safetensors."""
    data: Path
    """A prepared dataset (see python -m data_prep)."""
    split: str = "1"
    """Which official split."""
    protocols: tuple[str, ...] = ("knn", "linear")
    """knn: nearest neighbours by cosine similarity; linear: a linear layer on frozen features; cluster: k-means, and
    each cluster one class."""
    k: tuple[int, ...] = (1, 5, 20)
    """Numbers of neighbours for knn."""
    json: Path | None = None
    """Write the results there as well."""
    workers: int = 2
    """Processes that decode."""
    decoder: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """Which library reads the videos; pyav reads what another cannot give exactly."""
    short_clips: Literal["repeat", "loop", "error"] = "repeat"
    """Videos shorter than a clip: repeat their end frames, loop (start them again), or error (refuse to start)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """As in training."""
    allow_code: bool = False
    """Run the Python file that a student of one's own network (path/to/file.py:function) names."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UserError(f"--workers is {self.workers}: give 0 (decode in this process) or more")


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = tyro.cli(Options, args=arguments, prog="crossdistill evaluate", description=Options.__doc__)
    accelerator = Accelerator(mixed_precision="no")
    encoder = load_student(options.student, allow_code=options.allow_code)
    execution = Execution.choose(encoder, device=accelerator.device, precision=options.precision, layout="auto")
    evaluation = evaluate_encoder(
        encoder,
        Manifest.load(options.data),
        split=options.split,
        execution=execution,
        accelerator=accelerator,
        protocols=options.protocols,
        ks=options.k,
        num_workers=options.workers,
        decoder=options.decoder,
        short_clips=options.short_clips,
        description=encoder.name,
    )
    if not accelerator.is_main_process:
        return
    print_evaluation(evaluation)
    if options.json is not None:
        write_text_atomically(options.json, json.dumps(evaluation.to_json(), indent=2) + "\n")


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the table, and the coverage under it."""
    rows = [
        (name, f"{result.top1:.1%}", f"{result.top5:.1%}", f"{result.mean_class:.1%}")
        for name, result in evaluation.results.items()
    ]
    title = f"{evaluation.encoder} on {evaluation.dataset}, split {evaluation.split}"
    print_table(title, ("protocol", "top-1", "top-5", "mean class"), rows)
    print(
        f"{evaluation.num_test} test clips evaluated against {evaluation.num_train} training clips; "
        f"{len(evaluation.unreadable)} could not be read"
    )
    for video, reason in sorted(evaluation.unreadable.items()):
        print(f"  {video}: {reason}")
