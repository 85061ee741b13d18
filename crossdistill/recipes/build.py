"""Configuration to objects, in one place. Nothing below this reads configuration."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import Entry, PairedClips, check_entries, entries_of
from crossdistill.data.distort import distort
from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.data.transforms import Augmentation
from crossdistill.distillation.distiller import Distiller
from crossdistill.distillation.heads import Tower, get_adapter, require_trained_by_tokens
from crossdistill.distillation.student import find_student, load_student, read_facts, read_view
from crossdistill.distillation.supervised import SupervisedTask
from crossdistill.distillation.teacher_cache import TeacherCache, describe_clips, weights_source
from crossdistill.distillation.teachers import CachedTeacher, FrozenTeacher, SelfTeacher, Teacher
from crossdistill.distillation.terms import Term, create_terms
from crossdistill.encoders import Encoder, create_encoder, is_from_file
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.hardware import free_memory_bytes, uses_bf16
from crossdistill.encoders.weights import load_tensors, load_weights, read_public_weights
from crossdistill.errors import UserError
from crossdistill.quantization.bits import parse_bit_widths
from crossdistill.quantization.layers import require_brevitas
from crossdistill.quantization.quantize import quantize
from crossdistill.quantization.ranges import is_range
from crossdistill.recipes.config import PairConfig, RunConfig, several, to_dict
from crossdistill.recipes.standardization import standardize_teachers
from crossdistill.training.loop import TrainingPlan
from crossdistill.training.schedule import learning_rate
from crossdistill.training.trackers import require_tracker
from crossdistill.types import ViewSpec
from crossdistill.utils.console import console
from crossdistill.utils.distributed import decide_on_first

BANK_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RUNS_FOLDER = Path("runs")
TOYACTIONS_FOLDER = Path("data/toyactions")
AUTO = "auto"
OWN = "own"
# Frames of a clip that an image teacher embeds and averages, unless --teacher-frames says otherwise.
NUM_IMAGE_TEACHER_FRAMES = 4
# Features up to which a head learns at the encoder's rate (AdamW).
HEAD_BASE_WIDTH = 128
# Added to --seed for the heads, so that none begins with the numbers of the encoder's first layers.
HEAD_SEED_SHIFT = 1 << 32
# The name of the teacher that is the student's own EMA copy.
SELF = "self"
# Evaluations on held-out clips in one run, unless --knn-every-epochs says otherwise.
NUM_EVALUATIONS = 5


def open_teacher_cache(config: RunConfig) -> tuple[TeacherCache | None, RunConfig]:
    """The cache of --teacher-cache, and the configuration with the teacher that it is of; None without one.

    Raises:
        UserError: It is no whole cache, or the run has no teacher.
    """
    if config.pair.teacher_cache is None:
        return None, config
    if config.pair.supervised:
        raise UserError("--supervised learns from labels, not from a teacher: leave --teacher-cache out")
    cache = TeacherCache(config.pair.teacher_cache)
    cache.require_complete()
    if len(config.pair.teacher) > 1 or config.objective.standardize != "none":
        raise UserError(
            "--teacher-cache is for one teacher whose embeddings are taken as they are: leave it out, or give one "
            "--teacher and --standardize none"
        )
    return cache, replace(config, pair=replace(config.pair, teacher=config.pair.teacher or (cache.key["teacher"],)))


@dataclass(frozen=True)
class TeacherOptions:
    """What the command line says of one teacher."""

    name: str
    weights: str
    num_frames: int | None = None
    stride: int | None = None
    size_px: int | None = None


def chosen_teachers(config: RunConfig) -> list[TeacherOptions]:
    """The teachers in the order in which they were given; options that were given once are all theirs.

    Raises:
        UserError: An option was given neither once nor once for each teacher.
    """
    pair = config.pair
    names = {
        "--teacher-weights": pair.teacher_weights,
        "--teacher-frames": pair.teacher_frames or (None,),
        "--teacher-stride": pair.teacher_stride or (None,),
        "--teacher-size": pair.teacher_size or (None,),
    }
    for option, values in names.items():
        if len(values) not in (1, len(pair.teacher)):
            raise UserError(
                f"{option} has {len(values)} values for {len(pair.teacher)} teachers: give one for all, or one for each"
            )
    each = [values * len(pair.teacher) if len(values) == 1 else values for values in names.values()]
    return [TeacherOptions(name, *own) for name, *own in zip(pair.teacher, *each, strict=True)]


def replay_cached_clips(config: RunConfig, cache: TeacherCache, dataset: PairedClips) -> PairedClips:
    """The training clips as the cache has them.

    Raises:
        UserError: It was made of another teacher, other clips or other options; the sentence names the first.
    """
    (teacher,) = chosen_teachers(config)
    view = {"num_frames": teacher.num_frames, "stride": teacher.stride, "size_px": teacher.size_px}
    wants: dict[str, Any] = {
        "teacher": teacher.name,
        "teacher_view": {name: value for name, value in view.items() if value is not None},
        **describe_clips(dataset, split=config.data.split),
    }
    if teacher.weights != AUTO:
        wants["teacher_weights"] = weights_source(teacher.weights)
    cache.require(wants)
    return dataset.replayed(cache.replay())


def check_pair(config: RunConfig, cache: TeacherCache | None = None) -> None:
    """Raise a ``UserError`` for what can be known to be wrong before anything is made or trained.

    Args:
        config: The run's.
        cache: That of --teacher-cache, if there is one.
    """
    pair = config.pair
    if pair.student is None:
        raise UserError("no student was given: add for example --student flow_r3d18 (crossdistill encoders lists all)")
    if pair.supervised and pair.teacher:
        raise UserError(
            f"--supervised learns from labels, not from the teacher {pair.teacher[0]!r}: leave one of them out"
        )
    if not pair.supervised and not pair.teacher:
        raise UserError("no teacher was given: add for example --teacher rgb_r3d50, or --supervised to use labels")
    require_tracker(config.machine.tracker)
    if pair.precision is not None:
        parse_bit_widths(pair.precision)
        require_brevitas()
    terms = _terms(config)
    _check_of_use(config, terms)
    if config.optimization.batch_size == 1 and any(term.adapter.startswith("mlp") for term in terms):
        raise UserError("an MLP between student and loss normalises by the batch: give --batch-size 2 or more")
    student = _on_meta(
        pair.student,
        pair.student_weights,
        num_frames=pair.student_frames,
        stride=pair.student_stride,
        size_px=pair.student_size,
    )
    if pair.student_weights is not None:
        _check_weights_exist("--student-weights", pair.student_weights, student)
    if not pair.supervised and all(get_adapter(term.adapter).takes_tokens for term in terms):
        require_trained_by_tokens(student)
    if cache is not None:
        cache.require_fit(terms)
        for term in terms:
            term.require_fit(student=student, teacher=cache.encoder())
        return
    if SELF in pair.teacher:
        _check_self(config, terms)
        return
    for teacher in chosen_teachers(config):
        _check_teacher(teacher, student, terms)


def later_round(config: RunConfig) -> RunConfig:
    """What every round after the first has in common, before there is a student to teach it: for checks alone."""
    pair = config.pair
    later = round_config(config, Path(), 2)
    return replace(
        later,
        pair=replace(
            later.pair,
            teacher_weights=(AUTO,),
            teacher_frames=several(pair.student_frames),
            teacher_stride=several(pair.student_stride),
            teacher_size=several(pair.student_size),
        ),
    )


def _check_of_use(config: RunConfig, terms: list[Term]) -> None:
    """Raise a ``UserError`` for options that would do nothing, or fail when hours have passed."""
    pair, objective = config.pair, config.objective
    compared = {term.objective.compares for term in terms}
    if objective.standardize != "none" and "features" not in compared:
        raise UserError(
            f"--standardize is of embeddings, and --objective {' '.join(objective.objective)} compares none: leave it "
            "out"
        )
    if objective.teacher_drop and len(pair.teacher) < 2:
        raise UserError("--teacher-drop leaves out one of several teachers: give two or more, or leave it out")
    if pair.supervised and config.data.strong_views and pair.rounds == 1:
        raise UserError("--strong-views is for students of a teacher, and --supervised has none: leave it out")
    if pair.rounds > 1 and "logits" in compared and "labels" not in compared:
        raise UserError(
            f"--rounds wants a classifier of each student, and --objective {' '.join(objective.objective)} leaves none:"
            " add cross-entropy, or choose an objective on embeddings, for example compress-1q"
        )


def _check_teacher(options: TeacherOptions, student: Encoder, terms: list[Term]) -> None:
    view = {"num_frames": options.num_frames, "stride": options.stride, "size_px": options.size_px}
    teacher = _on_meta(options.name, options.weights, **view)
    for term in terms:
        term.require_fit(student=student, teacher=teacher, is_loaded=False)
    if options.weights == OWN and not is_from_file(options.name):
        raise UserError(
            f"--teacher-weights own is for a teacher path/to/file.py:function that loads its weights itself, not for "
            f"{options.name}: give a weight file or a run's folder"
        )
    if options.weights not in (AUTO, OWN):
        _check_weights_exist("--teacher-weights", options.weights, teacher)


def _check_self(config: RunConfig, terms: list[Term]) -> None:
    pair = config.pair
    if len(pair.teacher) > 1 or pair.rounds > 1 or config.objective.standardize != "none":
        raise UserError(
            "--teacher self stands alone, with one round and --standardize none: what it gives changes while it trains"
        )
    if pair.teacher_weights != (AUTO,) or pair.teacher_frames or pair.teacher_stride or pair.teacher_size:
        raise UserError("--teacher self begins as the student and sees what it sees: give --student-… options alone")
    for term in terms:
        if term.objective.compares == "logits":
            raise UserError(f"the objective {term.name} needs a classifier, and --teacher self has none: try seed")


def _on_meta(name: str, weights: str | None, **view: int | None) -> Encoder:
    """Names and sizes, without memory or time; but a stranger's network may read values while it is built."""
    with contextlib.nullcontext() if is_from_file(name) else torch.device("meta"):
        return create_encoder(name, config=_stored_config(name, weights), **view)


def _check_weights_exist(option: str, weights: str, encoder: Encoder) -> None:
    published = [public.name for public in encoder.public_weights]
    if weights in published or Path(weights).exists():
        return
    names = f", or one of the published: {', '.join(published)}" if published else ""
    raise UserError(f"{option} {weights} does not exist: give a weight file or a run's folder{names}")


def open_datasets(config: RunConfig, accelerator: Accelerator) -> list[Manifest]:
    """Load the manifests of --data; with none given prepare toyactions at its first use."""
    if config.data.data:
        return [Manifest.load(path) for path in config.data.data]
    if (TOYACTIONS_FOLDER / MANIFEST_NAME).is_file():
        return [Manifest.load(TOYACTIONS_FOLDER)]
    from data_prep.datasets.toyactions import ToyactionsOptions, prepare

    decide_on_first(accelerator, lambda: str(prepare(ToyactionsOptions(out=TOYACTIONS_FOLDER)).root))
    return [Manifest.load(TOYACTIONS_FOLDER)]


def labelled(manifests: Iterable[Manifest], split: str) -> list[Manifest]:
    """Those that have classes and both parts of a split, and so can be evaluated on."""
    return [
        manifest
        for manifest in manifests
        if manifest.classes
        and split in manifest.splits
        and all(manifest.select(split=split, part=part) for part in ("train", "test"))
    ]


def create_student(config: RunConfig, *, is_fresh: bool = False) -> Encoder:
    """Build the student; its fresh weights depend on --seed alone.

    Args:
        config: The run's.
        is_fresh: Ignore --student-weights: the random student of the final table.
    """
    pair = config.pair
    assert pair.student is not None
    torch.manual_seed(config.machine.seed)
    trained = _stored_view(pair.student_weights)
    student = create_encoder(
        pair.student,
        num_frames=pair.student_frames or trained.get("num_frames"),
        stride=pair.student_stride or trained.get("stride"),
        size_px=pair.student_size or trained.get("size_px"),
        config=_stored_config(pair.student, pair.student_weights),
    )
    if pair.student_weights is not None and not is_fresh:
        _load_from(student, pair.student_weights, option="--student-weights", adapt_stem=True)
    if pair.precision is not None and student.bits is None:
        quantize(student, parse_bit_widths(pair.precision))
    if student.bits != pair.precision:
        raise UserError(
            f"--student-weights {pair.student_weights} are of a student quantised to {student.bits}: "
            f"add --precision {student.bits}, or start from one that is not quantised"
        )
    return student


def create_teacher(options: TeacherOptions, student_view: ViewSpec) -> Encoder:
    """Build a teacher with its weights.

    Args:
        options: With weights that are known: a weight file, a run's or student's folder, or ``own``.
        student_view: Tells an image teacher how long the student's clips are.
    """
    weights = options.weights
    trained = _stored_view(weights)
    num_frames = options.num_frames or trained.get("num_frames")
    stride = options.stride or trained.get("stride")
    size_px = options.size_px or trained.get("size_px")
    stored = _stored_config(options.name, weights)
    teacher = create_encoder(options.name, num_frames=num_frames, stride=stride, size_px=size_px, config=stored)
    if not teacher.view.kind.has_time and student_view.kind.has_time:
        own = teacher.view.num_frames if teacher.view.num_frames > 1 else NUM_IMAGE_TEACHER_FRAMES
        num_frames = options.num_frames or own
        span = student_view.num_frames * student_view.stride
        stride = options.stride or max(1, span // num_frames)
        teacher.view = replace(teacher.view, num_frames=num_frames, stride=stride)
    if weights != OWN:
        _load_from(teacher, weights, option="--teacher-weights")
    return teacher


def check_loaded_teachers(config: RunConfig, student: Encoder) -> None:
    """Raise a ``UserError`` for given weights that do not serve the objectives, before another teacher is trained."""
    for options, term in itertools.product(chosen_teachers(config), _terms(config)):
        if options.weights != AUTO:
            term.require_fit(student=student, teacher=create_teacher(options, student.view))


def _stored_view(weights: str | None) -> dict[str, Any]:
    """The view that the weights of a student's folder were trained with; empty for other weights."""
    folder = find_student(weights) if weights is not None else None
    return {} if folder is None else vars(read_view(*read_facts(folder)))


def _stored_config(name: str, weights: str | None) -> dict[str, Any] | None:
    """What a student's folder that is given for weights knows of its network, if it is this one."""
    folder = find_student(weights) if weights is not None else None
    if folder is None:
        return None
    facts = read_facts(folder)[1]
    config: dict[str, Any] | None = facts.get("config") if facts["encoder"] == name else None
    return config


def _load_from(encoder: Encoder, weights: str, *, option: str, adapt_stem: bool = False) -> None:
    for public in encoder.public_weights:
        if weights == public.name:
            if not adapt_stem and encoder.view.modality not in public.modalities:
                raise UserError(
                    f"{option} {weights} are weights of {' and '.join(public.modalities)}: as they are they make no "
                    f"teacher of {encoder.view.modality}; give a weight file of {encoder.name}, or train one with "
                    "--supervised --student-weights"
                )
            load_tensors(encoder, read_public_weights(public), source=public.url, adapt_stem=adapt_stem)
            return
    folder = find_student(weights)
    if folder is None:
        if Path(weights).is_dir():
            raise UserError(
                f"{option} {weights} is a folder without a student: give a weight file, a finished run, or pretrained "
                "for a network of Hugging Face"
            )
        load_weights(encoder, Path(weights), adapt_stem=adapt_stem)
        return
    name = read_facts(folder)[1]["encoder"]
    is_same = _architecture(name) == _architecture(encoder.name) if adapt_stem else name == encoder.name
    if not is_same:
        raise UserError(f"{option} {weights} holds {name}, not {encoder.name}: name that, or give other weights")
    stored = load_student(folder, allow_code=True)  # no other code than that which the command itself names
    if stored.bits is not None:
        quantize(encoder, parse_bit_widths(stored.bits))
    load_tensors(encoder, stored.body.state_dict(), source=str(folder), adapt_stem=adapt_stem)
    encoder.classifier = stored.classifier


def _architecture(encoder: str) -> str:
    """A name without its modality."""
    return encoder if is_from_file(encoder) else encoder.partition("_")[2]


def training_set(
    config: RunConfig,
    manifests: list[Manifest],
    *,
    student_view: ViewSpec,
    teacher_views: Sequence[ViewSpec],
    accelerator: Accelerator,
) -> PairedClips:
    """The training clips of all datasets: the split's train part, and without --supervised what is in no split.

    How many of them the preparation had to skip is printed.
    """
    uses_labels = learns_from_labels(config)
    option = "--supervised" if config.pair.supervised else "the objective cross-entropy"
    views = [student_view, *teacher_views]
    entries: list[Entry] = []
    for manifest in manifests:
        for view in views:
            manifest.require_stream(view.kind.stream, wanted_by=f"a {view.modality} encoder")
        if uses_labels and not manifest.classes:
            raise UserError(f"{option} needs labels, and the dataset {manifest.root} has none: leave it out")
        entries += entries_of(manifest, _training_positions(manifest, config.data.split, uses_labels=uses_labels))
    usable = [entry for entry in entries if entry.video.is_usable]
    unlabelled = [entry for entry in usable if entry.label < 0]
    if uses_labels and unlabelled:
        raise UserError(
            f"{option} needs labels, and {len(unlabelled)} of {len(usable)} training clips have none (first: "
            f"{unlabelled[0].key}): leave it out, or prepare the dataset with classes"
        )
    check_evaluated_clips(config, manifests, views)
    if len(usable) < len(entries):
        num_skipped = len(entries) - len(usable)
        announce(accelerator, f"{num_skipped} of {len(entries)} training videos were skipped in preparation: left out")
    if uses_labels and len(manifests) > 1:
        raise UserError(f"{option} takes one dataset, not {len(manifests)}: their classes differ")
    is_mirrored = {
        "yes": True,
        "no": False,
        "auto": not uses_labels or all(manifest.flip_keeps_label for manifest in manifests),
    }[config.data.mirror]
    augmentation = Augmentation(area_min=config.data.crop_area_min, mirror_probability=0.5 if is_mirrored else 0.0)
    return PairedClips(
        usable,
        student_view=student_view,
        teacher_views=teacher_views,
        augmentation=augmentation,
        teacher_augmentation=augmentation if SELF in config.pair.teacher else None,
        seed=config.machine.seed,
        replace_unreadable=True,
        decoder=config.data.decoder,
        short_clips=config.data.short_clips,
    )


def learns_from_labels(config: RunConfig) -> bool:
    """Whether the run needs the clips' classes."""
    return config.pair.supervised or any(term.objective.compares == "labels" for term in _terms(config))


def check_evaluated_clips(config: RunConfig, manifests: list[Manifest], views: list[ViewSpec]) -> None:
    """Raise a ``UserError`` before training if ``--short-clips`` would refuse the evaluation at its end."""
    if not config.machine.evaluate and config.machine.knn_clips == 0:
        return
    split = config.data.split
    for manifest in labelled(manifests, split):
        positions = [i for part in ("train", "test") for i in manifest.select(split=split, part=part)]
        for view in views:  # each network is evaluated by itself
            check_entries(entries_of(manifest, positions), [view], short_clips=config.data.short_clips)


def _training_positions(manifest: Manifest, split: str, *, uses_labels: bool) -> list[int]:
    """Positions of the split's train part; without labels also of the videos that are in no split at all."""
    positions = manifest.select(split=split, part="train") if manifest.splits else []
    if uses_labels and manifest.splits:
        return positions
    return sorted([*positions, *(i for i, video in enumerate(manifest.videos) if not video.splits)])


def choose_execution(
    config: RunConfig, encoder: Encoder, accelerator: Accelerator, *, is_trained: bool = False
) -> Execution:
    """How an encoder of this run computes; all processes do what the first one finds best."""
    precision = decide_on_first(
        accelerator,
        lambda: uses_bf16(
            encoder,
            setting=config.machine.mixed_precision,
            device=accelerator.device,
            training_batch_size=config.optimization.batch_size if is_trained else None,
        ),
    )
    return Execution.choose(
        encoder,
        device=accelerator.device,
        precision="bf16" if precision else "fp32",
        layout=config.machine.channels_last,
    )


def _terms(config: RunConfig) -> list[Term]:
    options = config.objective
    adapter = None if options.adapter == AUTO else options.adapter
    return create_terms(
        options.objective,
        temperature=options.temperature,
        teacher_temperature=options.teacher_temperature,
        adapter=adapter,
    )


def create_distiller(
    config: RunConfig,
    *,
    student: Encoder,
    teachers: Sequence[Encoder] | TeacherCache,
    dataset: PairedClips,
    num_classes: int,
    folder: Path,
    accelerator: Accelerator,
) -> Distiller:
    """Student, teachers, objectives and banks as configured.

    Args:
        config: The run's.
        student: Trained.
        teachers: Frozen in place; empty for ``--teacher self``.
        dataset: The training clips, by which teachers are standardised.
        num_classes: Of the labels; 0 without.
        folder: The run's.
        accelerator: Tells the processes apart.
    """

    def gather(tensor: Tensor) -> Tensor:
        gathered: Tensor = accelerator.gather(tensor)
        return gathered

    objective = config.objective
    student_execution = choose_execution(config, student, accelerator, is_trained=True)
    taught_by: list[Teacher]
    if isinstance(teachers, TeacherCache):
        taught_by = [CachedTeacher(teachers, accelerator.device)]
    elif SELF in config.pair.teacher:
        taught_by = [SelfTeacher(student, student_execution, momentum=objective.ema_momentum)]
    else:
        taught_by = [
            FrozenTeacher(teacher, choose_execution(config, teacher, accelerator), number=number)
            for number, teacher in enumerate(teachers)
        ]
    if objective.standardize != "none":
        for term, teacher in itertools.product(_terms(config), taught_by):  # before minutes of embedding
            term.require_fit(student=student, teacher=teacher.encoder)
        taught_by = standardize_teachers(
            taught_by,
            dataset,
            method=objective.standardize,
            accelerator=accelerator,
            batch_size=config.optimization.batch_size,
            num_workers=config.machine.workers,
            folder=folder,
        )
    # Heads begin with the same weights whatever was built before them: a teacher, or its cache.
    torch.manual_seed(config.machine.seed + HEAD_SEED_SHIFT)
    return Distiller(
        student=student,
        teachers=taught_by,
        terms=_terms(config),
        bank_size=objective.bank_size,
        bank_dtype=BANK_DTYPES[objective.bank_dtype],
        ema_momentum=objective.ema_momentum,
        teacher_drop=objective.teacher_drop,
        num_classes=num_classes or None,
        distort=distort if config.data.strong_views else None,
        student_execution=student_execution,
        gather=gather,
    )


def check_data_and_memory(
    config: RunConfig, manifests: Sequence[Manifest], cache: TeacherCache | None, accelerator: Accelerator
) -> None:
    """Raise a ``UserError`` before anything is trained, a teacher for this run included.

    Args:
        config: The run's.
        manifests: Its datasets, of which every one needs the streams of all encoders.
        cache: In place of the teachers, if there is one.
        accelerator: Says where the memory banks are.
    """
    pair = config.pair
    assert pair.student is not None
    student = _on_meta(pair.student, pair.student_weights)
    if cache is not None:
        teachers = [cache.encoder()]
    elif SELF in pair.teacher:
        teachers = [student]
    else:
        teachers = [_on_meta(options.name, options.weights) for options in chosen_teachers(config)]
    for manifest, encoder in itertools.product(manifests, [student, *teachers]):
        view = encoder.view
        manifest.require_stream(view.kind.stream, wanted_by=f"a {view.modality} encoder")
    _check_bank_memory(config, student, teachers, accelerator)


def _check_bank_memory(
    config: RunConfig, student: Encoder, teachers: Sequence[Encoder], accelerator: Accelerator
) -> None:
    terms, size = _terms(config), config.objective.bank_size
    if all(term.objective.student_anchors is None for term in terms):
        return
    has_student_side = any(term.fills_student_side for term in terms)
    num_values = sum(
        teacher.embed_dim + (max(student.embed_dim, teacher.embed_dim) if has_student_side else 0)
        for teacher in teachers
    )
    num_bytes = size * num_values * BANK_DTYPES[config.objective.bank_dtype].itemsize
    device, host = accelerator.device, torch.device("cpu")
    # Processes of a machine share its memory. A checkpoint is written from there: from a bank that is there without a
    # copy, from one on a GPU through a whole copy.
    needed = {host: num_bytes * accelerator.num_processes} if device == host else {device: num_bytes, host: num_bytes}
    for where, num_needed in needed.items():
        free = free_memory_bytes(where)
        if free is not None and num_needed > free:
            raise UserError(
                f"a bank of {size} anchors needs {num_needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on "
                f"{where}{'' if where == device else ', through which its checkpoints go'}: lower --bank-size"
                + ("" if config.objective.bank_dtype == "bf16" else ", or choose --bank-dtype bf16")
            )


def create_supervised(
    config: RunConfig, *, student: Encoder, num_classes: int, accelerator: Accelerator
) -> SupervisedTask:
    """The student with a classifier."""
    execution = choose_execution(config, student, accelerator, is_trained=True)
    return SupervisedTask(encoder=student, execution=execution, num_classes=num_classes)


def create_optimizer(config: RunConfig, tower: Tower) -> torch.optim.Optimizer:
    """SGD or AdamW over everything that trains, in the fused form: one pass over the weights instead of many.

    AdamW moves every weight by about the learning rate, so a head's output moves with the number of its inputs, and on
    2048 features a rate that suits the encoder makes the output jump. Its rate is therefore divided by the width
    (Yang et al., Tensor Programs V, arXiv 2203.03466, table 3: Adam's rate of output weights goes with 1 / fan-in).
    """
    options = config.optimization
    # Ranges of a quantised student are learned, and would be decayed towards nothing.
    named = list(tower.encoder.named_parameters())
    ranges = [value for name, value in named if is_range(name)]
    encoder = [value for name, value in named if not is_range(name)]
    head = list(tower.heads.parameters())
    own: list[dict[str, Any]] = [{"params": ranges, "weight_decay": 0.0}] if ranges else []
    groups: list[dict[str, Any]]
    if options.optimizer == "sgd":
        groups = [{"params": [*encoder, *head]}, *own]
        return torch.optim.SGD(
            groups,
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            fused=True,
        )
    groups = [{"params": encoder, "lr_scale": 1.0}, *own]
    if head:
        groups.append({"params": head, "lr_scale": min(1.0, HEAD_BASE_WIDTH / tower.encoder.embed_dim)})
    return torch.optim.AdamW(groups, lr=options.lr, weight_decay=options.weight_decay, fused=True)


def create_plan(config: RunConfig) -> TrainingPlan:
    """How long, how fast, how often."""
    options, machine = config.optimization, config.machine

    def rate(step: int, num_steps: int, steps_per_epoch: int) -> float:
        return learning_rate(
            step,
            peak=options.lr,
            num_steps=num_steps,
            num_warmup_steps=round(options.warmup_epochs * steps_per_epoch),
            schedule=options.schedule,
            milestones=options.lr_milestones,
            drop=options.lr_drop,
        )

    def evaluate_every(num_steps: int, steps_per_epoch: int) -> int:
        if machine.knn_every_epochs:
            return max(1, round(machine.knn_every_epochs * steps_per_epoch))
        return max(1, num_steps // NUM_EVALUATIONS)

    return TrainingPlan(
        num_epochs=options.epochs,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        learning_rate=rate,
        clip_norm=options.clip_norm,
        seed=machine.seed,
        num_workers=machine.workers,
        checkpoint_every_steps=machine.checkpoint_every_steps,
        log_every_steps=machine.log_every_steps,
        evaluate_every_steps=evaluate_every,
        max_unreadable=config.data.max_unreadable,
        tracker=machine.tracker,
    )


def run_folder(config: RunConfig) -> Path:
    """--out; if absent ``runs/<student>-from-<teacher>``, numbered so that no run is written over."""
    if config.machine.out is not None:
        return config.machine.out
    source = "labels" if config.pair.supervised else "-and-".join(_file_name(name) for name in config.pair.teacher)
    base = RUNS_FOLDER / f"{_file_name(config.pair.student or '')}-from-{source}"
    taken = [base, *(base.with_name(f"{base.name}-{i}") for i in range(2, 10_000))]
    first_free = next(i for i, path in enumerate(taken) if not path.exists())
    return taken[max(0, first_free - 1) if config.machine.resume else first_free]


def _file_name(encoder: str) -> str:
    """A name without what file systems dislike: ``a/b.py:make`` is ``b.py-make``."""
    return Path(encoder).name.replace(":", "-")


def identity(config: RunConfig) -> dict[str, Any]:
    """What a resumed run must have in common with the run it goes on with."""
    values = to_dict(config)
    kept = ("seed", "mixed_precision", "channels_last")
    values["machine"] = {key: values["machine"][key] for key in kept}
    for key in ("max_unreadable", "decoder"):  # of no effect on what is learned: every decoder gives the same frames
        del values["data"][key]
    return values


def teacher_config(config: RunConfig, teacher: TeacherOptions, folder: Path, manifests: list[Manifest]) -> RunConfig:
    """The run that makes a teacher of this run, when there are no weights for it.

    Its folder is named after its options and what the datasets hold, so that a teacher of other clips is never taken.
    """
    pair = replace(
        PairConfig(),
        supervised=True,
        student=teacher.name,
        student_frames=teacher.num_frames,
        student_stride=teacher.stride,
        student_size=teacher.size_px,
    )
    recipe = config.teacher_training
    optimization = replace(config.optimization, epochs=recipe.teacher_epochs, lr=recipe.teacher_lr)
    data = replace(config.data, strong_views=False)
    made = replace(config, pair=pair, data=data, optimization=optimization, objective=type(config.objective)())
    clips = [[video.to_json() for video in manifest.videos] for manifest in manifests]
    key = hashlib.sha256(json.dumps([identity(made), clips], sort_keys=True).encode()).hexdigest()[:8]
    out = folder.parent / "teachers" / f"{_file_name(teacher.name)}-{key}"
    machine = replace(config.machine, out=out, resume=True, evaluate=False)
    return replace(made, machine=machine)


def round_config(config: RunConfig, folder: Path, number: int) -> RunConfig:
    """One round of self-distillation: its own folder and seed, and from the second on the last student as teacher."""
    pair, data, objective = replace(config.pair, rounds=1), config.data, config.objective
    if number == 1 and pair.supervised:
        data = replace(data, strong_views=False)  # they are for students of a teacher, which the next rounds have
    if number > 1:
        objective = replace(objective, teacher_drop=0.0)
        pair = replace(
            pair,
            supervised=False,
            teacher=several(pair.student),
            teacher_weights=(str(folder / f"round-{number - 1}"),),
            teacher_cache=None,
            teacher_frames=(),
            teacher_stride=(),
            teacher_size=(),
        )
    machine = replace(config.machine, out=folder / f"round-{number}", seed=config.machine.seed + number - 1)
    return replace(config, pair=pair, data=data, objective=objective, machine=machine)


def trains_its_own_teacher(manifests: list[Manifest]) -> bool:
    """Whether --teacher-weights auto trains the teacher: on the embedded dataset, where it takes minutes."""
    return [manifest.dataset for manifest in manifests] == ["toyactions"]


def with_published_weights(options: TeacherOptions) -> TeacherOptions:
    """For ``auto`` the weights that the teacher's library publishes for its modality.

    Raises:
        UserError: There are none.
    """
    name = options.name
    if options.weights != AUTO:
        return options
    with contextlib.nullcontext() if is_from_file(name) else torch.device("meta"):
        teacher = create_encoder(name)
    for public in teacher.public_weights:
        if teacher.view.modality in public.modalities:
            return replace(options, weights=public.name)
    raise UserError(
        f"there are no known weights for the teacher {name}: give --teacher-weights FILE"
        f"{' (or own, if it loads them itself)' if is_from_file(name) else ''}, or train it with "
        f"--supervised --student {name} --data … --out DIR and then give --teacher-weights DIR"
    )


def announce(accelerator: Accelerator, text: str) -> None:
    """Print a line on the first process."""
    if accelerator.is_main_process:
        console.print(text, highlight=False, soft_wrap=True)  # paths are copied from it
