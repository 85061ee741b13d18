"""``crossdistill transfer``: will it help? What a sample of clips says about a pair before it is trained, and after.

It embeds the same moments of the same videos, cut alike, with teacher and student, and compares the two spaces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import Entry, PairedClips, entries_of, make_loader
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.student import find_student, load_student, read_facts
from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.weights import weights_hash
from crossdistill.errors import UserError
from crossdistill.evaluation.protocols.agreement import (
    MIN_CLIPS_FOR_CKA,
    NeighbourClasses,
    chance_overlap,
    linear_cka,
    nearest_others,
    neighbour_classes,
    share_of_common,
    shuffled_overlaps,
)
from crossdistill.recipes import build
from crossdistill.recipes.agreement_report import (
    FRESH,
    NUM_SHUFFLES,
    TRAINED,
    Agreement,
    ClassOverlap,
    Report,
    print_report,
)
from crossdistill.recipes.config import MachineConfig, PairConfig, RunConfig, several
from crossdistill.types import PairedBatch
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.console import progress_bar
from crossdistill.utils.distributed import create_accelerator
from crossdistill.utils.files import write_text_atomically

BATCH_SIZE = 32
TEACHER = "teacher"


@dataclass(frozen=True)
class Options:
    """Will it help? Compare teacher and student on a sample of clips, before a training or after it."""

    teacher: str
    """As in training, for example rgb_r3d50."""
    student: str
    """As in training, for example flow_r3d18; or the folder of a run or of a trained student."""
    data: Path
    """A prepared dataset (see python -m data_prep), with labels or without."""
    teacher_weights: str = build.AUTO
    """As in training; auto: the ones that the teacher's library publishes."""
    student_weights: str | None = None
    """Weights of the student; fresh if absent."""
    precision: str | None = None
    """As in training, for example w4a8; a student's folder brings its own."""
    split: str = "1"
    """Which official split; of no effect on data without splits."""
    part: Literal["auto", "train", "test"] = "auto"
    """Which part of it; auto: test for a student with weights, else train, so that no test clip takes part in the
    choice of a pair."""
    clips: int = 400
    """Most clips in the sample, spread evenly over the part."""
    k: int = 10
    """How many nearest neighbours are compared."""
    teacher_frames: int | None = None
    """As in training, and so the next five; a student's folder brings its own view."""
    teacher_stride: int | None = None
    teacher_size: int | None = None
    student_frames: int | None = None
    student_stride: int | None = None
    student_size: int | None = None
    json: Path | None = None
    """Write the figures there as well."""
    seed: int = 0
    """Of the fresh student's weights."""
    workers: int = 2
    """Processes that decode."""
    decoder: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """Which library reads the videos; pyav reads what another cannot give exactly."""
    short_clips: Literal["repeat", "loop", "error"] = "repeat"
    """Videos shorter than a clip: repeat their end frames, loop (start them again), or error (refuse to start)."""
    mixed_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """As in training."""
    allow_code: bool = False
    """Run the Python file that a student's folder names (path/to/file.py:function)."""

    @property
    def min_clips(self) -> int:
        """With fewer, every other clip is a neighbour or CKA is not defined."""
        return max(self.k + 2, MIN_CLIPS_FOR_CKA)


@dataclass(frozen=True)
class Pair:
    """The networks to compare, in eval mode."""

    teacher: Encoder
    students: dict[str, Encoder]
    """``FRESH``, and ``TRAINED`` if it has weights: one architecture, one view."""
    origin: str | None
    """A sentence about a trained student whose teacher was not this one, or is not known; None if it was."""


@dataclass(frozen=True)
class Embedded:
    """Features of the same clips in every field, in the order of the dataset: [N, D] float32 on the CPU."""

    teacher: Tensor
    students: dict[str, Tensor]
    positions: list[int]
    """[N] of the entries that were read."""
    unreadable: dict[str, str]
    """Dataset/video to reason."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog="crossdistill transfer")
    accelerator = create_accelerator()
    report = examine(options, accelerator)
    if not accelerator.is_main_process:
        return
    print_report(report)
    if options.json is not None:
        write_text_atomically(options.json, json.dumps(report.to_json(), indent=2) + "\n")


def check_numbers(options: Options) -> None:
    """Raise a ``UserError`` for a number that is too low for anything."""
    least = {"workers": 0, "seed": 0, "k": 1, "clips": options.min_clips}
    for name in ("frames", "stride", "size"):
        least |= {f"teacher_{name}": 1, f"student_{name}": 1}
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and value < lowest:
            reason = f" (k + 2, and {MIN_CLIPS_FOR_CKA} at least)" if name == "clips" else ""
            raise UserError(f"--{name.replace('_', '-')} is {value}: give {lowest}{reason} or more")


def examine(options: Options, accelerator: Accelerator) -> Report:
    """Build the pair, embed the sample and compare."""
    check_numbers(options)
    if options.teacher == build.SELF:
        raise UserError(
            "--teacher self begins as the student, so that there are no two networks to compare: name a frozen encoder"
        )
    manifest = Manifest.load(options.data)
    pair = open_pair(options)
    for encoder in (pair.teacher, pair.students[FRESH]):
        manifest.require_stream(encoder.view.kind.stream, wanted_by=encoder.name)
    entries, sample = choose_clips(manifest, options, is_trained=TRAINED in pair.students)
    embedded = embed_together(entries, pair, options, accelerator)
    if len(embedded.positions) < options.min_clips:
        raise UserError(
            f"only {len(embedded.positions)} of {len(entries)} clips could be read, and --k {options.k} needs "
            f"{options.min_clips}: lower --k, raise --clips, or prepare the dataset again"
        )
    read = [entries[position] for position in embedded.positions]
    return compare(embedded, read, pair, manifest, k=options.k, sample=sample)


def open_pair(options: Options) -> Pair:
    """Teacher and students with their weights, as a training would build them."""
    folder = find_student(options.student)
    if folder is not None or _is_path(options.student):
        brought = ("student_weights", "precision", "student_frames", "student_stride", "student_size")
        if any(getattr(options, name) for name in brought):
            raise UserError(
                f"--student {options.student} is a trained student with weights, view and precision of its own: leave "
                "out --student-weights, --student-frames, --student-stride, --student-size and --precision, or name an "
                "encoder"
            )
        trained = load_student(options.student, allow_code=options.allow_code)
        view = trained.view
        own = replace(
            options,
            student=trained.name,
            student_weights=str(folder),
            precision=trained.bits,
            student_frames=view.num_frames,
            student_stride=view.stride,
            student_size=view.size_px,
        )
        config = _run_config(own)
    else:
        trained = None
        config = _run_config(options)
    build.check_pair(config)
    fresh = build.create_student(config, is_fresh=True).eval()
    if trained is None and options.student_weights is not None:
        trained = build.create_student(config).eval()
    if trained is not None:
        fresh.view = trained.view
    (chosen,) = build.chosen_teachers(config)
    teacher = build.create_teacher(build.with_published_weights(chosen), fresh.view).eval()
    students = {FRESH: fresh} if trained is None else {FRESH: fresh, TRAINED: trained}
    folder = folder or find_student(options.student_weights or "")
    return Pair(teacher, students, None if trained is None else _other_origin(folder, teacher))


def _is_path(student: str) -> bool:
    """Whether a student that is no trained one was meant to be one; names of libraries' networks may have slashes."""
    return Path(student).exists() or ("/" in student and ":" not in student)


def _run_config(options: Options) -> RunConfig:
    pair = PairConfig(
        teacher=several(options.teacher),
        teacher_weights=several(options.teacher_weights),
        teacher_frames=several(options.teacher_frames),
        teacher_stride=several(options.teacher_stride),
        teacher_size=several(options.teacher_size),
        student=options.student,
        student_weights=options.student_weights,
        student_frames=options.student_frames,
        student_stride=options.student_stride,
        student_size=options.student_size,
        precision=options.precision,
    )
    return RunConfig(pair=pair, machine=MachineConfig(seed=options.seed))


def _other_origin(folder: Path | None, teacher: Encoder) -> str | None:
    """What to say where a student has learned from something else than this teacher, or nobody knows from what."""
    if folder is None:
        return "What these student weights learned from is not known here: the figures compare two networks, no more."
    training = read_facts(folder)[1].get("training", {})
    names = str(training.get("teacher")).split(" and ")
    hashes = str(training.get("teacher_weights_sha256")).split(" and ")
    if training.get("supervised"):
        source = "labels"
    elif len(names) > 1 and (teacher.name, weights_hash(teacher)) in zip(names, hashes, strict=False):
        return None
    elif training.get("teacher") in (None, teacher.name):
        if training.get("teacher_weights_sha256") in (None, weights_hash(teacher)):
            return None
        source = f"{teacher.name} with other weights"
    else:
        source = training["teacher"]
    return f"This student learned from {source}, not from this teacher: the figures compare two networks, no more."


def choose_clips(manifest: Manifest, options: Options, *, is_trained: bool) -> tuple[list[Entry], str]:
    """The sample: usable videos of a part of the split (of everything without splits), spread evenly over it.

    Returns:
        The videos, and which they are in words.

    Raises:
        UserError: There are too few for k.
    """
    if manifest.splits:
        part = options.part if options.part != "auto" else ("test" if is_trained else "train")
        positions = manifest.select(split=options.split, part=part)
        where = f"split {options.split}, {part} part"
    else:
        positions, where = list(range(len(manifest.videos))), "no splits"
    usable = [position for position in positions if manifest.videos[position].is_usable]
    if len(usable) < options.min_clips:
        raise UserError(
            f"{manifest.root} ({where}) has {len(usable)} usable clips, and --k {options.k} needs {options.min_clips}: "
            "lower --k, or choose another --part or --data"
        )
    chosen = min(options.clips, len(usable))
    spread = [usable[i * len(usable) // chosen] for i in range(chosen)]
    return entries_of(manifest, spread), where


def embed_together(entries: Sequence[Entry], pair: Pair, options: Options, accelerator: Accelerator) -> Embedded:
    """Read each video once, at the one moment and in the one crop that a pair shares, and embed it with all networks.

    ``extract_features`` would take the middle of every network's own view instead, and would keep a video of which
    only one stream can be read.
    """
    networks = {TEACHER: pair.teacher, **pair.students}
    executions = {
        role: Execution.choose(network, device=accelerator.device, precision=options.mixed_precision)
        for role, network in networks.items()
    }
    dataset = PairedClips(
        entries,
        student_view=pair.students[FRESH].view,
        teacher_views=[pair.teacher.view],
        decoder=options.decoder,
        short_clips=options.short_clips,
    )
    keys = [SampleKey(i, epoch=0) for i in range(len(entries))]
    batches = [keys[i : i + BATCH_SIZE] for i in range(0, len(keys), BATCH_SIZE)]
    is_cuda = accelerator.device.type == "cuda"
    loader = make_loader(dataset, batches, num_workers=options.workers, pin_memory=is_cuda)
    chunks = {role: [torch.empty(0, network.embed_dim)] for role, network in networks.items()}
    positions: list[int] = []
    unreadable: dict[str, str] = {}
    with torch.inference_mode(), progress_bar(unit="batches", is_shown=accelerator.is_main_process) as bar:
        for batch in bar.track(loader, total=len(batches), description="teacher and student"):
            unreadable |= dict(batch.unreadable)
            positions += batch.sample_ids.tolist()
            if len(batch):
                for role, features in _embed(batch.to(accelerator.device), networks, executions).items():
                    chunks[role].append(features)
    embedded = {role: torch.cat(parts) for role, parts in chunks.items()}
    return Embedded(embedded.pop(TEACHER), embedded, positions, unreadable)


def _embed(
    batch: PairedBatch, networks: Mapping[str, Encoder], executions: Mapping[str, Execution]
) -> dict[str, Tensor]:
    (teacher_view,) = batch.teachers
    views = {role: teacher_view if role == TEACHER else batch.student for role in networks}
    return {role: executions[role].embed(network, views[role]).cpu() for role, network in networks.items()}


def compare(
    embedded: Embedded, entries: Sequence[Entry], pair: Pair, manifest: Manifest, *, k: int, sample: str
) -> Report:
    """Compute every figure.

    Args:
        embedded: Features of N clips.
        entries: The N videos.
        pair: The networks, for their names.
        manifest: The dataset, for its classes.
        k: How many neighbours.
        sample: Which clips, in words.
    """
    near_teacher = nearest_others(embedded.teacher, k)
    near = {role: nearest_others(features, k) for role, features in embedded.students.items()}
    shares = {role: share_of_common(near_teacher, neighbours) for role, neighbours in near.items()}
    shuffled = {role: shuffled_overlaps(near_teacher, near[role], num_shuffles=NUM_SHUFFLES) for role in near}
    agreements = {
        role: Agreement(
            overlap=shares[role].mean().item(),
            highest_shuffled_overlap=shuffled[role].max().item(),
            cka=linear_cka(embedded.teacher, features),
        )
        for role, features in embedded.students.items()
    }
    is_trained = TRAINED in shares
    teacher_1nn, leaves_film_out = _teacher_classes(embedded.teacher, entries)
    return Report(
        teacher=pair.teacher.name,
        student=pair.students[FRESH].name,
        dataset=manifest.dataset,
        sample=sample,
        num_clips=len(entries),
        unreadable=embedded.unreadable,
        k=k,
        chance=chance_overlap(len(entries), k),
        agreements=agreements,
        classes=_by_class(shares, entries, manifest.classes) if is_trained else (),
        teacher_1nn=teacher_1nn,
        leaves_film_out=leaves_film_out,
        gain=_mean_and_error(shares[TRAINED] - shares[FRESH]) if is_trained else None,
        origin=pair.origin,
    )


def _teacher_classes(features_nd: Tensor, entries: Sequence[Entry]) -> tuple[NeighbourClasses | None, bool]:
    """1-NN accuracy of the labelled clips, across films where the sample has several films of a class."""
    labelled = [i for i, entry in enumerate(entries) if entry.label >= 0]
    features_nd = features_nd[labelled]
    labels_n = torch.tensor([entries[i].label for i in labelled], dtype=torch.int64)
    # A group is a film within its class; a video without a group is a film of its own.
    keys = [(entries[i].label, entries[i].video.group or entries[i].key) for i in labelled]
    number = {key: position for position, key in enumerate(dict.fromkeys(keys))}
    films_n = torch.tensor([number[key] for key in keys], dtype=torch.int64)
    across_films = neighbour_classes(features_nd, labels_n, films_n)
    if across_films is not None and len(number) < len(keys):
        return across_films, True
    return neighbour_classes(features_nd, labels_n, torch.arange(len(labelled))), False


def _by_class(
    shares: Mapping[str, Tensor], entries: Sequence[Entry], classes: Sequence[str]
) -> tuple[ClassOverlap, ...]:
    """Of classes in the sample, the one whose neighbours the trained student kept best first."""
    labels = torch.tensor([entry.label for entry in entries])
    overlaps = [
        ClassOverlap(
            name,
            num_clips=int((labels == label).sum()),
            overlaps={role: share[labels == label].mean().item() for role, share in shares.items()},
        )
        for label, name in enumerate(classes)
        if (labels == label).any()
    ]
    return tuple(sorted(overlaps, key=lambda one: -one.overlaps[TRAINED]))


def _mean_and_error(differences_n: Tensor) -> tuple[float, float]:
    """The mean over clips and its standard error."""
    return differences_n.mean().item(), differences_n.std().item() / len(differences_n) ** 0.5
