"""All checks of a run, called before anything is created or trained.

Each check is defined in the module that it belongs to; this module calls them. ``check_configuration`` needs neither
data nor weights; ``check_data_and_memory`` also needs the datasets.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from accelerate import Accelerator

from crossdistill.data.manifest import Manifest
from crossdistill.distillation.terms import Term, create_terms, expects_standardized
from crossdistill.encoders import Encoder
from crossdistill.encoders.hardware import free_memory_bytes
from crossdistill.errors import UserError
from crossdistill.evaluation.settings import Shots
from crossdistill.recipes.config import AUTO, SELF, RunConfig, SupervisionConfig
from crossdistill.recipes.context import Batches
from crossdistill.recipes.data import count_training_clips
from crossdistill.recipes.proxy import stages
from crossdistill.recipes.sizes import fillable_bank_size
from crossdistill.recipes.student import check_student, require_fitting_batch
from crossdistill.recipes.teachers import TeacherSource
from crossdistill.recipes.weights import preview_encoder
from crossdistill.training.trackers import require_tracker

BANK_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def terms_of(config: RunConfig) -> list[Term]:
    """Build the terms of a run's loss."""
    options = config.objective
    return create_terms(
        options.objective,
        temperature=options.temperature,
        teacher_temperature=options.teacher_temperature,
        adapter=None if options.adapter == AUTO else options.adapter,
    )


def standardization_of(config: RunConfig) -> str:
    """Return how the teachers' features of a run are standardised, with ``auto`` decided by the objectives."""
    chosen = config.objective.standardize
    if chosen != AUTO:
        return chosen
    return "running" if expects_standardized(terms_of(config)) else "none"


def uses_labels(config: RunConfig) -> bool:
    """Whether a run learns from class labels."""
    return config.pair.supervised or any(term.objective.compares == "labels" for term in terms_of(config))


def check_configuration(config: RunConfig, sources: Sequence[TeacherSource]) -> None:
    """Raise a ``UserError`` for everything that is known to be wrong before anything is made or trained."""
    require_tracker(config.machine.tracker)
    _check_who_teaches(config, sources)
    _check_folds(config)
    _check_proxy(config)
    _check_options_have_an_effect(config, terms_of(config), num_teachers=len(sources))
    _check_supervision(config)
    if config.data.shots is not None:
        Shots.parse(config.data.shots)
    for stage, its_sources in stages(config, sources):
        terms = terms_of(stage)
        student = check_student(stage, terms)
        _check_augmentation(stage, student)
        for source in its_sources:
            source.check(stage, student, terms)


def _check_who_teaches(config: RunConfig, sources: Sequence[TeacherSource]) -> None:
    if not config.pair.supervised and not sources:
        raise UserError("no teacher was given: add for example --teacher rgb_r3d50, or --supervised to use labels")
    if config.pair.supervised and sources:
        option = "--teacher-cache" if config.pair.teacher_cache is not None else f"--teacher {sources[0].name}"
        raise UserError(f"--supervised learns from labels and {option} learns from a teacher: remove one of them")


def _check_folds(config: RunConfig) -> None:
    """Refuse ``--folds`` where no frozen networks run, and where clips of several folds are mixed."""
    pair = config.pair
    if pair.folds is None:
        return
    others = {
        "--supervised": pair.supervised,
        "--teacher self": SELF in pair.teacher,
        "--teacher-cache": pair.teacher_cache is not None,
        "--teacher-sharding": config.machine.teacher_sharding,
        "--mix": config.objective.mix,
    }
    for option, is_given in others.items():
        if is_given:
            what = {
                "--mix": "of several folds makes clips of none",
                "--teacher-sharding": "needs networks that all processes call equally often",
            }.get(option, "has no networks to divide them among")
            raise UserError(f"--folds gives each training clip to one network, and {option} {what}: remove one of them")


def _check_proxy(config: RunConfig) -> None:
    """Refuse options that do not go together with ``--proxy``, and options of a proxy without one."""
    pair = config.pair
    if pair.proxy is None:
        own = {"frames": pair.proxy_frames, "stride": pair.proxy_stride, "size": pair.proxy_size}
        for name, value in own.items():
            if value is not None:
                raise UserError(f"--proxy-{name} {value} has no effect without --proxy: name the proxy, or remove it")
        return
    given = f"--proxy {pair.proxy}"
    if pair.folds is not None:
        raise UserError(
            f"{given} and --folds do not go together: train {pair.proxy} as --student with --folds first, and then "
            "give its folder as --teacher-weights"
        )
    if pair.supervised:
        raise UserError(f"{given} learns from teachers and --supervised learns from labels: remove one of the two")
    if SELF in pair.teacher:
        raise UserError(
            f"{given} learns from frozen teachers, and --teacher self changes with the student: name others"
        )


def _check_options_have_an_effect(config: RunConfig, terms: Sequence[Term], *, num_teachers: int) -> None:
    """Refuse options that would do nothing, or that would fail after hours of training."""
    pair, objective, shots = config.pair, config.objective, config.data.shots
    named = f"--objective {' '.join(objective.objective)}"
    compared = {term.objective.compares for term in terms}
    if objective.standardize not in (AUTO, "none") and "features" not in compared:
        raise UserError(f"--standardize has no effect with {named}, which compares no embeddings: remove it")
    if objective.teacher_drop and num_teachers < 2:
        raise UserError("--teacher-drop leaves out one of several teachers: give two or more teachers, or remove it")
    if shots is not None and not uses_labels(config):
        raise UserError(f"--shots {shots} chooses labelled clips, and {named} uses no labels: remove it")
    if shots is not None and (pair.rounds > 1 or pair.teacher_cache is not None):
        option = "--rounds" if pair.rounds > 1 else "--teacher-cache"
        raise UserError(f"--shots {shots} chooses other clips than {option} needs: remove one of the two")
    if pair.supervised and config.data.strong_views and pair.rounds == 1:
        raise UserError("--strong-views has no effect with --supervised, which has no teacher: remove it")
    if config.machine.teacher_sharding:
        _check_sharding(config)
    if objective.mix and pair.teacher_cache is not None:
        raise UserError(
            "--mix needs a teacher that sees the mixed clips, and --teacher-cache has embeddings of whole clips: "
            "remove one of the two"
        )
    if objective.mix and ("labels" in compared or (pair.supervised and pair.rounds == 1)):
        raise UserError("--mix makes clips without a label of their own, and this run uses labels: remove --mix")
    if (pair.rounds > 1 or pair.proxy) and "logits" in compared and "labels" not in compared:
        needed = (
            "--proxy needs a classifier of the proxy" if pair.proxy else "--rounds needs a classifier of each student"
        )
        raise UserError(
            f"{needed}, and {named} leaves none: add cross-entropy, or choose an objective on embeddings, for example "
            "compress-1q"
        )


def _check_supervision(config: RunConfig) -> None:
    """Refuse options of training with labels where there are none, and options of RandAugment without it."""
    given, default = config.supervision, SupervisionConfig()
    if not config.pair.supervised:
        for entry in dataclasses.fields(default):
            if getattr(given, entry.name) != getattr(default, entry.name):
                option = f"--{entry.name.replace('_', '-')} {getattr(given, entry.name)}"
                raise UserError(
                    f"{option} has an effect on training with labels alone (--supervised): remove it"
                    + (", or choose --mix" if entry.name in ("mixup", "cutmix") else "")
                )
    for name in ("rand_ops", "rand_magnitude"):
        if given.auto_augment != "rand" and getattr(given, name) != getattr(default, name):
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(given, name)} has no effect without --auto-augment rand: add "
                "that, or remove it"
            )


def _check_augmentation(config: RunConfig, student: Encoder) -> None:
    """Refuse augmentations that make no sense for what the student sees."""
    kind, given = student.view.kind, config.supervision
    if given.auto_augment != "none" and not kind.is_colour:
        raise UserError(
            f"--auto-augment {given.auto_augment} changes colours and turns pictures, and a {kind.name} view is no "
            "photograph: remove it"
        )
    if given.cutmix and not kind.is_picture:
        raise UserError(f"--cutmix cuts boxes out of pictures, and a {kind.name} view is none: remove it")


def _check_sharding(config: RunConfig) -> None:
    pair, machine = config.pair, config.machine
    is_cached = pair.teacher_cache is not None and pair.proxy is None
    if pair.supervised or is_cached or SELF in pair.teacher:
        raise UserError("--teacher-sharding divides a frozen teacher, and this run has none that runs: remove it")
    if machine.compile or config.objective.measured_scale is not None:
        option = "--compile" if machine.compile else "--standardize"
        raise UserError(f"--teacher-sharding does not go together with {option}: remove one of the two")


def check_data_and_memory(
    config: RunConfig,
    sources: Sequence[TeacherSource],
    manifests: Sequence[Manifest],
    accelerator: Accelerator,
    batches: Batches,
) -> None:
    """Raise a ``UserError`` if a dataset lacks a stream or the memory banks do not fit, before a teacher is trained."""
    num_clips = count_training_clips(config, manifests, uses_labels=uses_labels(config))
    size = fillable_bank_size(config, num_clips, batches)
    for stage, its_sources in stages(config, sources):
        assert stage.pair.student is not None
        student = preview_encoder(stage.pair.student, stage.pair.student_weights)
        teachers = [source.preview(student) for source in its_sources]
        for manifest, encoder in itertools.product(manifests, [student, *teachers]):
            view = encoder.view
            manifest.require_stream(view.kind.stream, wanted_by=f"a {view.modality} encoder")
        require_fitting_batch(batches.now.batch_size, terms_of(stage))
        for source in its_sources:
            source.check_data(stage, manifests)
        _check_bank_memory(stage, size, student, teachers, accelerator)


def _check_bank_memory(
    config: RunConfig, size: int, student: Encoder, teachers: Sequence[Encoder], accelerator: Accelerator
) -> None:
    terms = terms_of(config)
    if all(term.objective.student_anchors is None for term in terms):
        return
    has_student_side = any(term.fills_student_side for term in terms)
    num_values = sum(
        teacher.embed_dim + (max(student.embed_dim, teacher.embed_dim) if has_student_side else 0)
        for teacher in teachers
    )
    num_bytes = size * num_values * BANK_DTYPES[config.objective.bank_dtype].itemsize
    device, host = accelerator.device, torch.device("cpu")
    # The processes of a machine share its memory. A checkpoint of a bank on a GPU goes through a whole copy in memory.
    needed = {host: num_bytes * accelerator.num_processes} if device == host else {device: num_bytes, host: num_bytes}
    for where, num_needed in needed.items():
        free = free_memory_bytes(where)
        if free is not None and num_needed > free:
            raise UserError(
                f"a bank of {size} anchors needs {num_needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on "
                f"{where}{'' if where == device else ', through which its checkpoints go'}: lower --bank-size"
                + ("" if config.objective.bank_dtype == "bf16" else ", or choose --bank-dtype bf16")
            )
