"""Compare a teacher with a student on a sample of clips, before training or after it.

Both networks embed the same moments of the same videos in the same crop; ``evaluation/teacher_agreement.py`` compares
the two spaces.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import PairedClips
from crossdistill.data.entries import Entries, Entry, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.student import load_student, locate_student, read_facts
from crossdistill.encoders import Encoder
from crossdistill.encoders.weights import weights_hash
from crossdistill.errors import UserError
from crossdistill.evaluation.embedder import EmbeddedBatches, Embedder, batches_of
from crossdistill.evaluation.roles import Role
from crossdistill.evaluation.teacher_agreement import AgreementReport, compare_spaces
from crossdistill.recipes.checks import check_configuration
from crossdistill.recipes.command_options import AgreementOptions
from crossdistill.recipes.config import SELF, RunConfig
from crossdistill.recipes.context import choose_execution
from crossdistill.recipes.data import open_datasets
from crossdistill.recipes.student import create_student
from crossdistill.recipes.teachers import create_only_teacher, teacher_sources
from crossdistill.utils.files import write_text_atomically


@dataclass(frozen=True)
class _EncoderPair:
    """The networks to compare, in eval mode."""

    teacher: Encoder
    students: dict[str, Encoder]
    """Role to student: the random one, and the trained one if it has weights; both of one architecture and view."""
    origin: str | None
    """See ``AgreementReport.origin``."""


def measure_agreement(config: RunConfig, options: AgreementOptions, accelerator: Accelerator) -> AgreementReport:
    """Build the pair as training would build it, embed a sample of clips and compare.

    Args:
        config: Configuration of the training: teacher, student, data, seed, workers, precision.
        options: Options of the comparison.
        accelerator: Determines the device.

    Raises:
        UserError: The configuration has no single frozen teacher, or the sample has too few clips.
    """
    options.check()
    _require_one_frozen_teacher(config)
    manifests = open_datasets(config, accelerator)
    if len(manifests) > 1:
        raise UserError(f"the agreement is measured on one dataset, and --data names {len(manifests)}: give one")
    (manifest,) = manifests
    pair = _open_pair(config, allow_code=options.allow_code)
    for encoder in (pair.teacher, pair.students[Role.RANDOM]):
        manifest.require_stream(encoder.view.kind.stream, wanted_by=encoder.name)
    entries, sample = _choose_clips(manifest, config.data.split, options, is_trained=Role.TRAINED in pair.students)
    spaces, positions, unreadable = _embed_together(entries, pair, config, accelerator)
    if len(positions) < options.min_clips:
        raise UserError(
            f"only {len(positions)} of {len(entries)} clips could be read, and --k {options.k} needs "
            f"{options.min_clips}: lower --k, raise --clips, or prepare the dataset again"
        )
    report = compare_spaces(
        spaces.pop(Role.TEACHER),
        spaces,
        [entries[position] for position in positions],
        manifest.classes,
        k=options.k,
        teacher=pair.teacher.name,
        student=pair.students[Role.RANDOM].name,
        dataset=manifest.dataset,
        sample=sample,
        unreadable=unreadable,
        origin=pair.origin,
    )
    if options.json is not None and accelerator.is_main_process:
        write_text_atomically(options.json, json_format.dumps(report.to_json(), indent=2) + "\n")
    return report


def _require_one_frozen_teacher(config: RunConfig) -> None:
    if SELF in config.pair.teacher:
        raise UserError("--teacher self starts as the student, so there is nothing to compare: name a frozen encoder")
    pair = config.pair
    if pair.teacher_cache is not None or pair.supervised or pair.folds is not None or len(pair.teacher) != 1:
        raise UserError(
            "crossdistill agreement compares one frozen teacher with one student: give one --teacher, and neither "
            "--teacher-cache nor --supervised nor --folds"
        )
    if config.pair.proxy is not None:
        raise UserError("crossdistill agreement compares one frozen teacher: give the trained proxy as --teacher")


def _open_pair(config: RunConfig, *, allow_code: bool) -> _EncoderPair:
    pair = config.pair
    folder = locate_student(pair.student or "")
    trained: Encoder | None = None
    if folder is not None or _is_path(pair.student or ""):
        if pair.student_weights or pair.bits or any(pair.student_view.values()):
            raise UserError(
                f"--student {pair.student} is a trained student with weights, view and bits of its own: remove "
                "--student-weights, --student-frames, --student-stride, --student-size and --bits, or name an encoder"
            )
        trained = load_student(pair.student or "", allow_code=allow_code)
        view = trained.view
        pair = replace(
            pair,
            student=trained.name,
            student_weights=str(folder),
            bits=trained.bits,
            student_frames=view.num_frames,
            student_stride=view.stride,
            student_size=view.size_px,
        )
        config = replace(config, pair=pair)
    check_configuration(config, teacher_sources(config))
    random = create_student(config, is_random=True).eval()
    if trained is None and pair.student_weights is not None:
        trained = create_student(config).eval()
    if trained is not None:
        random.view = trained.view
    teacher = create_only_teacher(config, random.view)[0].eval()
    if trained is None:
        return _EncoderPair(teacher, {Role.RANDOM: random}, None)
    origin = _other_origin(folder or locate_student(pair.student_weights or ""), teacher)
    return _EncoderPair(teacher, {Role.RANDOM: random, Role.TRAINED: trained}, origin)


def _is_path(student: str) -> bool:
    """Whether a student was meant as a folder; names of libraries' networks contain slashes after a colon."""
    return bool(student) and (Path(student).exists() or ("/" in student and ":" not in student))


def _other_origin(folder: Path | None, teacher: Encoder) -> str | None:
    """Describe the student's training if it used another teacher or an unknown one; None otherwise."""
    if folder is None:
        return "What these student weights learned from is not known: the figures only compare two networks."
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
    return f"This student learned from {source}, not from this teacher: the figures only compare two networks."


def _choose_clips(
    manifest: Manifest, split: str, options: AgreementOptions, *, is_trained: bool
) -> tuple[Entries, str]:
    """Choose usable videos of a part of the split, spread evenly over it, and describe the sample."""
    if manifest.splits:
        part = options.part if options.part != "auto" else ("test" if is_trained else "train")
        positions = manifest.positions(split=split, part=part)
        where = f"split {split}, {part} part"
    else:
        positions, where = np.arange(len(manifest.videos)), "no splits"
    usable = entries_of(manifest, positions[manifest.is_usable[positions]])
    if len(usable) < options.min_clips:
        raise UserError(
            f"{manifest.root} ({where}) has {len(usable)} usable clips, and --k {options.k} needs {options.min_clips}: "
            "lower --k, or choose another --part or --data"
        )
    return usable.spread(options.clips), where


def _embed_together(
    entries: Sequence[Entry], pair: _EncoderPair, config: RunConfig, accelerator: Accelerator
) -> tuple[dict[str, Tensor], list[int], dict[str, str]]:
    """Embed every video with all networks, at one moment and in one crop, as the pair would see it in training.

    ``extract_features`` would take the middle of each network's own view instead, and would keep a video of which only
    one stream can be read.

    Returns:
        Role to features [N, D], the positions of the N videos that could be read, and the reasons for the others.
    """
    networks = {Role.TEACHER: pair.teacher, **pair.students}
    embedders = [
        Embedder(network, choose_execution(config, network, accelerator), teacher=0 if role == Role.TEACHER else None)
        for role, network in networks.items()
    ]
    dataset = PairedClips(
        entries,
        student_view=pair.students[Role.RANDOM].view,
        teacher_views=[pair.teacher.view],
        decoder=config.data.decoder,
        short_clips=config.data.short_clips,
    )
    embedded = EmbeddedBatches(
        dataset,
        batches_of([SampleKey(i, epoch=0) for i in range(len(entries))]),
        embedders,
        num_workers=config.machine.workers,
        pin_memory=accelerator.device.type == "cuda",
        description="teacher and student" if accelerator.is_main_process else None,
    )
    chunks = {role: [torch.empty(0, network.embed_dim)] for role, network in networks.items()}
    positions: list[int] = []
    for batch, features in embedded:
        positions += batch.sample_ids.tolist()
        for chunk, rows in zip(chunks.values(), features, strict=True):
            chunk.append(rows)
    return {role: torch.cat(parts) for role, parts in chunks.items()}, positions, embedded.unreadable
