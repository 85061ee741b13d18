"""Configuration to objects, in one place. Nothing below this reads configuration."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.config import RunConfig, to_dict
from crossdistill.console import console
from crossdistill.data.dataset import Entry, PairedClips, check_entries, entries_of
from crossdistill.data.manifest import MANIFEST_NAME, Manifest
from crossdistill.data.transforms import Augmentation
from crossdistill.distiller import Distiller, Tower
from crossdistill.distributed import decide_on_first
from crossdistill.encoders import Encoder, create_encoder, is_from_file
from crossdistill.encoders.weights import load_tensors, load_weights, read_public_weights
from crossdistill.engine import TrainingPlan
from crossdistill.errors import UserError
from crossdistill.hardware import uses_bf16
from crossdistill.objectives import Term, create_terms
from crossdistill.precision import parse_bit_widths, quantize, require_brevitas
from crossdistill.runner import Execution
from crossdistill.schedule import learning_rate
from crossdistill.student import find_student, load_student, read_facts
from crossdistill.supervised import SupervisedTask
from crossdistill.teacher_cache import CachedTeacher, TeacherCache, describe_clips, weights_source
from crossdistill.types import ViewSpec

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
    return cache, replace(config, pair=replace(config.pair, teacher=config.pair.teacher or cache.key["teacher"]))


def replay_cached_clips(config: RunConfig, cache: TeacherCache, dataset: PairedClips) -> PairedClips:
    """The training clips as the cache has them.

    Raises:
        UserError: It was made of another teacher, other clips or other options; the sentence names the first.
    """
    pair = config.pair
    view = {"num_frames": pair.teacher_frames, "stride": pair.teacher_stride, "size_px": pair.teacher_size}
    wants: dict[str, Any] = {
        "teacher": pair.teacher,
        "teacher_view": {name: value for name, value in view.items() if value is not None},
        **describe_clips(dataset, split=config.data.split),
    }
    if pair.teacher_weights != AUTO:
        wants["teacher_weights"] = weights_source(pair.teacher_weights)
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
    if pair.supervised and pair.teacher is not None:
        raise UserError(
            f"--supervised learns from labels, not from the teacher {pair.teacher!r}: leave one of them out"
        )
    if not pair.supervised and pair.teacher is None:
        raise UserError("no teacher was given: add for example --teacher rgb_r3d50, or --supervised to use labels")
    if pair.quantize is not None:
        parse_bit_widths(pair.quantize)
        require_brevitas()
    terms = _terms(config)
    student = _on_meta(
        pair.student,
        pair.student_weights,
        num_frames=pair.student_frames,
        stride=pair.student_stride,
        size_px=pair.student_size,
    )
    teacher = None
    if cache is not None:
        cache.require_fit(terms)
        for term in terms:
            term.require_fit(student=student, teacher=cache.encoder())
    elif pair.teacher is not None:
        teacher = _on_meta(
            pair.teacher,
            pair.teacher_weights,
            num_frames=pair.teacher_frames,
            stride=pair.teacher_stride,
            size_px=pair.teacher_size,
        )
        for term in terms:
            term.require_fit(student=student, teacher=teacher, is_loaded=False)
    if config.optimization.batch_size == 1 and any(term.adapter.startswith("mlp") for term in terms):
        raise UserError("an MLP between student and loss normalises by the batch: give --batch-size 2 or more")
    if pair.teacher_weights == OWN and not is_from_file(pair.teacher or ""):
        raise UserError(
            f"--teacher-weights own is for a teacher path/to/file.py:function that loads its weights itself, not for "
            f"{pair.teacher}: give a weight file or a run's folder"
        )
    teacher_weights = None if pair.teacher_weights in (AUTO, OWN) else pair.teacher_weights
    given = (("--teacher-weights", teacher_weights, teacher), ("--student-weights", pair.student_weights, student))
    for option, weights, encoder in given:
        if weights is not None and encoder is not None:
            _check_weights_exist(option, weights, encoder)


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
    from data_prep.toyactions import Options, prepare

    decide_on_first(accelerator, lambda: str(prepare(Options(out=TOYACTIONS_FOLDER)).root))
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
    if pair.quantize is not None and student.quantize is None:
        quantize(student, parse_bit_widths(pair.quantize))
    if student.quantize != pair.quantize:
        raise UserError(
            f"--student-weights {pair.student_weights} are of a student quantised to {student.quantize}: "
            f"add --quantize {student.quantize}, or start from one that is not quantised"
        )
    return student


def create_teacher(config: RunConfig, weights: str, student_view: ViewSpec) -> Encoder:
    """Build the teacher with its weights.

    Args:
        config: The run's.
        weights: A weight file, a run's or student's folder, or ``own``.
        student_view: Tells an image teacher how long the student's clips are.
    """
    pair = config.pair
    assert pair.teacher is not None
    trained = _stored_view(weights)
    num_frames = pair.teacher_frames or trained.get("num_frames")
    stride = pair.teacher_stride or trained.get("stride")
    size_px = pair.teacher_size or trained.get("size_px")
    stored = _stored_config(pair.teacher, weights)
    teacher = create_encoder(pair.teacher, num_frames=num_frames, stride=stride, size_px=size_px, config=stored)
    if not teacher.view.kind.has_time and student_view.kind.has_time:
        own = teacher.view.num_frames if teacher.view.num_frames > 1 else NUM_IMAGE_TEACHER_FRAMES
        num_frames = pair.teacher_frames or own
        span = student_view.num_frames * student_view.stride
        stride = pair.teacher_stride or max(1, span // num_frames)
        teacher.view = replace(teacher.view, num_frames=num_frames, stride=stride)
    if weights != OWN:
        _load_from(teacher, weights, option="--teacher-weights")
    return teacher


def _stored_view(weights: str | None) -> dict[str, Any]:
    """The view that the weights of a student's folder were trained with; empty for other weights."""
    folder = find_student(weights) if weights is not None else None
    return {} if folder is None else dict(read_facts(folder)[1]["view"])


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
    if stored.quantize is not None:
        quantize(encoder, parse_bit_widths(stored.quantize))
    load_tensors(encoder, stored.body.state_dict(), source=str(folder), adapt_stem=adapt_stem)
    encoder.classes = stored.classes


def _architecture(encoder: str) -> str:
    """A name without its modality."""
    return encoder if is_from_file(encoder) else encoder.partition("_")[2]


def training_set(
    config: RunConfig,
    manifests: list[Manifest],
    *,
    student_view: ViewSpec,
    teacher_view: ViewSpec | None,
    accelerator: Accelerator,
) -> PairedClips:
    """The training clips of all datasets: the split's train part, and without --supervised what is in no split.

    How many of them the preparation had to skip is printed.
    """
    uses_labels = config.pair.supervised
    entries: list[Entry] = []
    for manifest in manifests:
        for view in (student_view, teacher_view):
            if view is not None:
                manifest.require_stream(view.kind.stream, wanted_by=f"a {view.modality} encoder")
        if uses_labels and not manifest.classes:
            raise UserError(f"--supervised needs labels, and the dataset {manifest.root} has none: leave it out")
        entries += entries_of(manifest, _training_positions(manifest, config.data.split, uses_labels=uses_labels))
    usable = [entry for entry in entries if entry.video.is_usable]
    check_evaluated_clips(config, manifests, [view for view in (student_view, teacher_view) if view is not None])
    if len(usable) < len(entries):
        num_skipped = len(entries) - len(usable)
        announce(accelerator, f"{num_skipped} of {len(entries)} training videos were skipped in preparation: left out")
    if uses_labels and len(manifests) > 1:
        raise UserError(f"--supervised takes one dataset, not {len(manifests)}: their classes differ")
    is_mirrored = {
        "yes": True,
        "no": False,
        "auto": not uses_labels or all(manifest.flip_keeps_label for manifest in manifests),
    }[config.data.mirror]
    return PairedClips(
        usable,
        student_view=student_view,
        teacher_view=teacher_view,
        augmentation=Augmentation(area_min=config.data.crop_area_min, mirror_probability=0.5 if is_mirrored else 0.0),
        seed=config.machine.seed,
        replace_unreadable=True,
        decoder=config.data.decoder,
        short_clips=config.data.short_clips,
    )


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
            setting=config.machine.precision,
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
    config: RunConfig, *, student: Encoder, teacher: Encoder | TeacherCache, accelerator: Accelerator
) -> Distiller:
    """Student, teacher, objective and bank as configured."""

    def gather(tensor: Tensor) -> Tensor:
        gathered: Tensor = accelerator.gather(tensor)
        return gathered

    objective = config.objective
    student_execution = choose_execution(config, student, accelerator, is_trained=True)
    # Heads begin with the same weights whatever was built before them: a teacher, or its cache.
    torch.manual_seed(config.machine.seed + HEAD_SEED_SHIFT)
    return Distiller(
        student=student,
        teacher=teacher if isinstance(teacher, Encoder) else CachedTeacher(teacher, accelerator.device),
        terms=_terms(config),
        bank_size=objective.bank_size,
        bank_dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[objective.bank_dtype],
        ema_momentum=objective.ema_momentum,
        student_execution=student_execution,
        teacher_execution=choose_execution(config, teacher, accelerator) if isinstance(teacher, Encoder) else None,
        gather=gather,
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
    encoder, head = list(tower.encoder.parameters()), list(tower.heads.parameters())
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            [*encoder, *head], lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
        )
    groups: list[dict[str, Any]] = [{"params": encoder, "lr_scale": 1.0}]
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
    source = "labels" if config.pair.supervised else _file_name(config.pair.teacher or "")
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
    kept = ("seed", "precision", "channels_last")
    values["machine"] = {key: values["machine"][key] for key in kept}
    for key in ("max_unreadable", "decoder"):  # of no effect on what is learned: every decoder gives the same frames
        del values["data"][key]
    return values


def teacher_config(config: RunConfig, folder: Path, manifests: list[Manifest]) -> RunConfig:
    """The run that makes the teacher of this run, when there are no weights for it.

    Its folder is named after its options and what the datasets hold, so that a teacher of other clips is never taken.
    """
    pair = replace(
        config.pair,
        teacher=None,
        teacher_cache=None,
        quantize=None,
        supervised=True,
        teacher_weights=AUTO,
        student=config.pair.teacher,
        student_weights=None,
        student_frames=config.pair.teacher_frames,
        student_stride=config.pair.teacher_stride,
        student_size=config.pair.teacher_size,
        teacher_frames=None,
        teacher_stride=None,
        teacher_size=None,
    )
    recipe = config.teacher_training
    optimization = replace(config.optimization, epochs=recipe.teacher_epochs, lr=recipe.teacher_lr)
    made = replace(config, pair=pair, optimization=optimization, objective=type(config.objective)())
    clips = [[video.to_json() for video in manifest.videos] for manifest in manifests]
    key = hashlib.sha256(json.dumps([identity(made), clips], sort_keys=True).encode()).hexdigest()[:8]
    out = folder.parent / "teachers" / f"{_file_name(config.pair.teacher or '')}-{key}"
    machine = replace(config.machine, out=out, resume=True, evaluate=False)
    return replace(made, machine=machine)


def trains_its_own_teacher(manifests: list[Manifest]) -> bool:
    """Whether --teacher-weights auto trains the teacher: on the embedded dataset, where it takes minutes."""
    return [manifest.dataset for manifest in manifests] == ["toyactions"]


def published_teacher_weights(config: RunConfig) -> str:
    """The name of the weights that the teacher's library publishes for its modality.

    Raises:
        UserError: There are none.
    """
    name = config.pair.teacher or ""
    with contextlib.nullcontext() if is_from_file(name) else torch.device("meta"):
        teacher = create_encoder(name)
    for public in teacher.public_weights:
        if teacher.view.modality in public.modalities:
            return public.name
    raise UserError(
        f"there are no known weights for the teacher {name}: give --teacher-weights FILE"
        f"{' (or own, if it loads them itself)' if is_from_file(name) else ''}, or train it with "
        f"--supervised --student {name} --data … --out DIR and then give --teacher-weights DIR"
    )


def announce(accelerator: Accelerator, text: str) -> None:
    """Print a line on the first process."""
    if accelerator.is_main_process:
        console.print(text, highlight=False)
