"""The configuration of a run: dataclasses, a YAML file, command-line options, or keywords in Python.

Sections nest in YAML and disappear on the command line and in Python: ``optimization: {lr: 0.1}`` is ``--lr 0.1`` and
``distill(lr=0.1)``. Only this room and the rooms above it read configuration; the rooms below take arguments.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from crossdistill.errors import UserError, unknown_name
from crossdistill.recipes.config_files import config_names, find_config_file, read_yaml
from crossdistill.training.trackers import TrackerName
from crossdistill.utils.command_line import parse_options

STRICT = ConfigDict(extra="forbid")
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Decoder = Literal["pyav", "decord", "torchcodec", "torchcodec-cuda"]
ShortClips = Literal["repeat", "loop", "error"]

AUTO = "auto"
"""Value of ``teacher_weights``: the published weights, or on toyactions a teacher that is trained first."""
OWN = "own"
"""Value of ``teacher_weights``: ``path/to/file.py:function`` loads its weights itself."""
SELF = "self"
"""Value of ``teacher``: the student's own EMA copy."""

RENAMED = {"pair.precision": "pair.bits", "machine.mixed_precision": "machine.precision"}
"""Keys of version 0.1 to the keys of today. Files with the old keys are still read."""


def several(value: Any) -> tuple[Any, ...]:
    """Return one value, several values or no value (None) as a tuple, so that a file may say ``teacher: rgb_r3d50``."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Names = Annotated[tuple[str, ...], BeforeValidator(several)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(several)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(several)]


@dataclass(frozen=True)
class PairConfig:
    """Which student learns from which teachers."""

    __pydantic_config__ = STRICT

    teacher: Names = ()
    """Frozen encoder to learn from, for example rgb_r3d50, or path/to/file.py:function; `crossdistill encoders` lists
    them. Several are allowed. self: the student's own EMA copy (ISD, see configs/isd.yaml)."""
    student: str | None = None
    """Encoder to train, for example flow_r3d18."""
    proxy: str | None = None
    """Large encoder between several teachers and the student (EUPE): it learns from the teachers first, in the folder
    proxy of the run, and the student then learns from it alone. All options of training hold for both. With
    --teacher-cache the proxy learns from the cache."""
    supervised: bool = False
    """Train the student with labels and without a teacher: this makes teachers, and the baseline to beat."""
    teacher_weights: Names = ("auto",)
    """Weights of the teacher: a weight file, a run's folder, a repository of the Hugging Face hub
    (organisation/name), published weights by name (kinetics400, imagenet), own (path/to/file.py:function loads them
    itself), or auto: the published weights, and on toyactions a teacher that is trained first. Give one value for all
    teachers or one for each."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-fitted teachers (Dao et al. 2021): divide the training clips into so many folds, whole groups each, and
    learn about every clip from a teacher that has not seen it. --teacher-weights takes one run with labels for each
    fold (--supervised --split 1@2of3 leaves fold 2 of 3 out); auto: they are trained first, on any dataset."""
    teacher_cache: Path | None = None
    """Folder that `crossdistill cache` made, or a repository of the Hugging Face hub (organisation/name): what the
    teachers say is read from it, and neither they nor their streams are needed. With --teacher only the named ones of
    several teachers are used."""
    student_weights: str | None = None
    """Weights to start from: a weight file, published weights by name, a run's folder or a repository of the Hugging
    Face hub (organisation/name); random weights if absent."""
    teacher_frames: Counts = ()
    """Frames that the teacher sees; its own number if absent (4 for an image teacher of a clip student). One value for
    all teachers or one for each."""
    teacher_stride: Counts = ()
    """Distance between two of the teacher's frames, in frames of the video; its own if absent."""
    teacher_size: Counts = ()
    """Height and width of what the teacher sees, in pixels; its own if absent."""
    student_frames: Count | None = None
    """Frames that the student sees; its own number if absent."""
    student_stride: Count | None = None
    """Distance between two of the student's frames, in frames of the video; its own if absent."""
    student_size: Count | None = None
    """Height and width of what the student sees, in pixels; its own if absent."""
    proxy_frames: Count | None = None
    """Frames that the proxy sees; its own number if absent."""
    proxy_stride: Count | None = None
    """Distance between two of the proxy's frames, in frames of the video; its own if absent."""
    proxy_size: Count | None = None
    """Height and width of what the proxy sees, in pixels; its own if absent."""
    rounds: Count = 1
    """Number of rounds of self-distillation. From the second on, the student of the round before is the teacher."""
    bits: str | None = None
    """Train a quantised student, for example w4a8: 4-bit weights and 8-bit activations, each 2 to 8 bits (brevitas)."""

    @property
    def student_view(self) -> dict[str, int | None]:
        """The changes to the student's own view, as keywords of ``create_encoder``."""
        return {"num_frames": self.student_frames, "stride": self.student_stride, "size_px": self.student_size}


@dataclass(frozen=True)
class DataConfig:
    """The training data and how clips are drawn from it."""

    __pydantic_config__ = STRICT

    data: Paths = ()
    """One or several prepared datasets (see python -m data_prep); toyactions, rendered at first use, if absent."""
    split: str = "1"
    """Official split: the run trains on its train part and evaluates on its test part. 1@s3 holds group s3 out of the
    train part of split 1, 1@25% a quarter of its groups, and 1@2of5 the second of five folds of them: the run evaluates
    on these, so that settings are chosen without the test clips."""
    shots: Annotated[str | None, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)] = None
    """With labels: learn from so many training clips of each class alone, a number or a share, for example 5 or 10%;
    all if absent. They are those that `crossdistill evaluate --protocols lowshot` draws first with the same seed."""
    crop_area_min: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Smallest share of the picture's area that a random crop keeps. The authors' code of CompRess has 0.08, as
    configs/compress/recipe.yaml; that of ISD has 0.2."""
    strong_views: bool = False
    """Change contrast and brightness and erase boxes in what the student sees, not in what the teachers see. What an
    image student sees is also blurred, and changes saturation and hue."""
    mirror: Literal["auto", "yes", "no"] = "auto"
    """Mirror half of the clips; auto: yes, unless the run uses labels that mirroring changes."""
    max_unreadable: Share = 0.05
    """Share of the clips that may be unreadable before the run stops."""
    decoder: Decoder = "pyav"
    """Library that decodes the videos; pyav replaces another one where that cannot give exact frames."""
    short_clips: ShortClips = "repeat"
    """What to do with videos shorter than a clip: repeat their end frames, loop them, or stop with an error."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """How student and teacher are compared; the defaults are those of the CompRess paper, except the objective."""

    __pydantic_config__ = STRICT

    objective: Names = ("compress-1q", "smooth-l1:5")
    """One objective or a sum of several, each name or name:weight, for example seed simreg:0.5. They compare
    similarities to the memory bank: compress-2q (the paper's: student anchors come from its EMA copy), compress-2q-live
    (from the student itself), compress-1q (from the teacher), seed, infonce, bingo; embeddings: simreg, cosine,
    smooth-l1, mse, unic, cospress; relations inside the batch: rkd; tokens: token-matching, attention-transfer;
    relations inside a clip: token-relations, time-relations; class probabilities of a teacher with a classifier: kd,
    dkd, dist; labels, beside another objective: cross-entropy (MARS: cross-entropy mse:50)."""
    adapter: Literal[
        "auto", "identity", "linear", "mlp2", "mlp3", "mlp4", "ladder", "temporal-pool", "attention-pool"
    ] = "auto"
    """Head between the student's features and the loss, dropped after training; auto: each objective's own. ladder: the
    sum of MLPs on several blocks of the student and on its features (UNIC)."""
    temperature: Positive | None = None
    """Softmax temperature of the similarities; each objective's own if absent (compress: 0.04 on both sides)."""
    teacher_temperature: Positive | None = None
    """Softmax temperature of the teacher's side, for objectives with two temperatures."""
    bank_size: Count | None = None
    """Number of anchors in the memory bank. If absent, the paper's 128,000, or one for each training clip if there are
    fewer."""
    bank_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type in which anchors are stored; bf16 halves the memory."""
    ema_momentum: Share = 0.999
    """Decay of the student's EMA copy (compress-2q, --teacher self)."""
    standardize: Literal["auto", "none", "mean-variance", "phi-s", "running"] = "auto"
    """Standardise the embeddings of each teacher to mean 0 and variance 1 before they are compared. mean-variance
    scales each feature by itself; phi-s scales all by one factor after a rotation that equalises them; both are
    measured on training clips before training, or read from a teacher cache. running (UNIC's) scales each feature by
    itself, by the mean and variance of the batches so far, without a pass over the clips; auto takes it where
    smooth-l1 or unic is in the sum, and none elsewhere. Use it for several teachers of different scales."""
    mix: bool = False
    """Mix each batch with itself, in the same way for student and teachers (function matching, Beyer et al. 2022). It
    is for long runs (--config patient). The teacher must run, and no labels are used."""
    teacher_drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of leaving each of several teachers out of a clip's loss; the one with the largest loss always stays.
    Out of a batch's loss, if an objective compares the clips of a batch with each other (rkd, dist, cospress)."""

    @property
    def measured_scale(self) -> Literal["mean-variance", "phi-s"] | None:
        """How teachers are standardised by statistics that are measured before training; None if they are not."""
        return self.standardize if self.standardize == "mean-variance" or self.standardize == "phi-s" else None


@dataclass(frozen=True)
class OptimizationConfig:
    """Optimizer and schedule; the defaults are those of the CompRess paper."""

    __pydantic_config__ = STRICT

    epochs: Count = 130
    """Passes over the training clips. With --resume, a higher number than at the start trains longer: from there on the
    rate follows the schedule of the new number. A run that has ended continues only if it had --keep-checkpoints."""
    batch_size: Count | None = None
    """Clips per batch of one process. If absent, the paper's 256, or fewer below 4,096 training clips per process: a
    sixteenth of them, and no fewer than 16. A run that other processes resume keeps the product of processes,
    --batch-size and --accumulate: with the options of its start, both are chosen anew."""
    accumulate: Count = 1
    """Batches per optimizer step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: Positive = 0.01
    """Peak learning rate."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 1e-4
    """Weight decay, decoupled for AdamW."""
    schedule: Literal["steps", "cosine"] = "steps"
    """steps: multiply the rate by --lr-drop at each of --lr-milestones; cosine: decay to zero at the end."""
    lr_milestones: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], ...],
        tyro.conf.arg(help_behavior_hint="(default: 0.692 0.923, epochs 90 and 120 of 130)"),
    ] = (90 / 130, 120 / 130)
    """Points at which the learning rate drops, as shares of the run."""
    lr_drop: Positive = 0.2
    """Factor of each drop."""
    warmup_epochs: NotNegative = 0.0
    """Epochs in which the learning rate rises linearly from zero."""
    clip_norm: NotNegative = 0.0
    """Maximum norm of the gradient; 0 disables clipping."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each layer of the student to the one below it (BEiT); 1: the same rate for all.
    Early layers of a trained network then change little: 0.65 to 0.8 is usual when a ViT is fine-tuned. The classifier
    and the heads have --lr."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stochastic depth: share of the clips for which the last block of the student adds nothing in a training step; it
    falls linearly to 0 in the first block. The network's own if absent (0 in most). Only for networks that have it:
    ViT, Swin, ConvNeXt, MViT."""

    @property
    def clips_per_batch(self) -> int:
        """``batch_size`` of a run, whose sizes were chosen by its data."""
        assert self.batch_size is not None, "fit_to_data comes first"
        return self.batch_size


@dataclass(frozen=True)
class SupervisionConfig:
    """What keeps a student that learns from labels (--supervised) from overfitting; configs/finetune.yaml has all."""

    __pydantic_config__ = STRICT

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each label that is spread over all classes; 0.1 is usual."""
    mixup: NotNegative = 0.0
    """Mix each batch with itself, clips and labels by the same share from Beta(a, a), where a is this number; 0: not.
    0.8 is usual for long fine-tuning of ViTs, less for small networks, which underfit."""
    cutmix: NotNegative = 0.0
    """Replace a box of each clip, the same in all frames, by that of another clip, and so much of its label; the area
    is from Beta(a, a), where a is this number; 0: not. With --mixup too, each batch has one of the two by chance."""
    auto_augment: Literal["none", "rand", "trivial"] = "none"
    """Random changes of colour and geometry, the same for all frames of a clip: rand (RandAugment: --rand-ops
    operations of strength --rand-magnitude) or trivial (TrivialAugment: one operation of random strength, nothing to
    tune). For encoders of pictures alone: flow, depth and skeletons have no colours."""
    rand_ops: Count = 2
    """Operations of RandAugment, one after the other; VideoMAE has 4."""
    rand_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """Strength of RandAugment's operations, 0 to 30; timm's and VideoMAE's m7 of 10 is 21."""
    weight_ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Evaluate and save the exponential moving average of the weights, with this decay at most, 0.999 for example; 0:
    the last weights. The decay rises to it in the first steps as in timm."""


@dataclass(frozen=True)
class TeacherTrainingConfig:
    """Training of the teacher that --teacher-weights auto needs on toyactions, or of those that --folds needs."""

    __pydantic_config__ = STRICT

    teacher_epochs: Count = 30
    """Epochs of the teacher's supervised training; everything else is as for the student."""
    teacher_lr: Positive = 0.01
    """The teacher's peak learning rate."""


@dataclass(frozen=True)
class MachineConfig:
    """Folder, hardware, logging and evaluation of the run."""

    __pydantic_config__ = STRICT

    out: Path | None = None
    """The run's folder; runs/<student>-from-<teacher> if absent."""
    resume: bool = False
    """Continue from the newest intact checkpoint in --out."""
    seed: CountOrZero = 0
    """Seed of weights, order and augmentation."""
    precision: Precision = "auto"
    """Precision of forward and backward passes. auto on a GPU: bf16 if it has it, fp16 on Volta and Turing (V100, T4),
    else fp32; on a CPU: bf16 with AMX if its gradients repeat to the bit, else fp32. With fp16 the gradients are
    scaled, and steps whose gradients overflow are skipped."""
    channels_last: Literal["auto", "yes", "no"] = "auto"
    """Memory format channels last; auto: on GPUs, and on CPUs for encoders that it makes faster."""
    compile: bool = False
    """Compile the student's training step and the teachers' forward passes with torch.compile. It takes minutes at the
    start; the page Speed says when it pays."""
    gradient_checkpointing: bool = False
    """Compute the activations inside the student's blocks again in the backward pass instead of keeping them: less
    memory, about a third more time, the same numbers."""
    teacher_sharding: bool = False
    """Divide the weights of each teacher among the processes (FSDP2), for teachers too large for one GPU. The run does
    not evaluate such a teacher."""
    workers: CountOrZero = 2
    """Number of decoding processes per training process."""
    keep_decoded_gb: NotNegative = 0.0
    """Memory in GB in which each training process keeps decoded videos, so that it does not decode them in every epoch.
    With --workers each decoding process has an equal share of it and keeps videos of its own, so that a video is in
    memory once for each. Pictures are not kept. For training sets of short, small videos; 0: none."""
    checkpoint_every_steps: CountOrZero = 0
    """Steps between checkpoints; 0: once per epoch."""
    checkpoint_every_minutes: NotNegative = 0.0
    """Minutes after which a checkpoint is written beside those of --checkpoint-every-steps; 0: none."""
    keep_checkpoints: bool = False
    """Keep the newest two checkpoints when the run ends. Otherwise one remains with the weights alone, with which
    --resume evaluates the run again."""
    log_every_steps: Count = 10
    """Steps between two lines of metrics.jsonl and of the tracker; fewer in a run that would have less than 20."""
    knn_every_epochs: NotNegative = 0.0
    """Epochs between two k-NN evaluations on test clips; 0: five evaluations in the whole run. Needs labels."""
    knn_clips: CountOrZero = 400
    """Maximum number of clips of either part in the k-NN evaluations during training; 0 disables them."""
    tracker: TrackerName = "tensorboard"
    """Destination of curves and results besides metrics.jsonl and results.json."""
    evaluate: bool = True
    """Evaluate teacher, random student and trained student when training ends; needs labels."""


@dataclass(frozen=True)
class RunConfig:
    """Train a student from a teacher without labels, or (--supervised) an encoder with labels."""

    __pydantic_config__ = STRICT

    pair: tyro.conf.OmitArgPrefixes[PairConfig] = field(default_factory=PairConfig)
    data: tyro.conf.OmitArgPrefixes[DataConfig] = field(default_factory=DataConfig)
    objective: tyro.conf.OmitArgPrefixes[ObjectiveConfig] = field(default_factory=ObjectiveConfig)
    optimization: tyro.conf.OmitArgPrefixes[OptimizationConfig] = field(default_factory=OptimizationConfig)
    supervision: tyro.conf.OmitArgPrefixes[SupervisionConfig] = field(default_factory=SupervisionConfig)
    teacher_training: tyro.conf.OmitArgPrefixes[TeacherTrainingConfig] = field(default_factory=TeacherTrainingConfig)
    machine: tyro.conf.OmitArgPrefixes[MachineConfig] = field(default_factory=MachineConfig)


SECTIONS: dict[str, type] = {entry.name: entry.default_factory for entry in dataclasses.fields(RunConfig)}  # type: ignore[misc]
"""Name of each section to its dataclass."""


COMMAND_LINE = "the command line"


def from_dict(values: Mapping[str, Any], *, source: str) -> RunConfig:
    """Build a configuration from nested values.

    Args:
        values: Sections of keys, as a YAML file holds them; absent keys keep their defaults.
        source: Where the values come from, for the error.

    Raises:
        UserError: A key is unknown or a value is not allowed; the sentence names the dotted path of the first one.
    """
    try:
        return TypeAdapter(RunConfig).validate_python(with_current_names(values))
    except ValidationError as error:
        raise UserError(_first_error(error, source)) from error


def with_current_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of version 0.1 in nested values.

    Example:
        >>> with_current_names({"machine": {"mixed_precision": "bf16"}})
        {'machine': {'precision': 'bf16'}}
    """
    return _rename(values, RENAMED)


def with_former_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Give nested values the keys of version 0.1, for fingerprints that must not change with a name."""
    return _rename(values, {new: old for old, new in RENAMED.items()})


def _rename(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    renamed = {name: dict(part) if isinstance(part, Mapping) else part for name, part in values.items()}
    for old, new in names.items():
        section, _, key = old.partition(".")
        part = renamed.get(section)
        if isinstance(part, dict) and key in part:
            part[new.partition(".")[2]] = part.pop(key)
    return renamed


def _first_error(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if source == COMMAND_LINE:
        option = str(first["loc"][min(1, len(first["loc"]) - 1)]).replace("_", "-")
        return f"--{option} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return str(unknown_name(f"key in {source}:", path, _known_paths(path)))
    return f"{source}: {path} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _known_paths(path: str) -> list[str]:
    section = path.partition(".")[0]
    if section not in SECTIONS or "." not in path:
        return list(SECTIONS)
    return [f"{section}.{entry.name}" for entry in dataclasses.fields(SECTIONS[section])]


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of nested sections; ``base: FILE`` names another one beside it, whose values it replaces."""
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    shared = read_yaml(path.parent / str(base))
    if "base" in shared:
        raise UserError(f"{path} names the base {base}, which names another base: name that one, or copy its values")
    return merge(with_current_names(shared), with_current_names(values))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return plain nested values that ``from_dict`` and YAML take."""
    return dict(TypeAdapter(RunConfig).dump_python(config, mode="json"))


def toyactions_preset() -> dict[str, Any]:
    """Return the values for the embedded dataset on a laptop, used when no dataset is given."""
    text = resources.files("crossdistill.recipes").joinpath("toyactions.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def merge(base: Mapping[str, Any], *over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested values; later ones replace earlier ones key by key."""
    merged = dict(base)
    for values in over:
        for key, value in values.items():
            merged[key] = merge(merged.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged


def with_preset(values: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """Put the preset of toyactions below nested values.

    Args:
        values: What the user gave in a file or in Python.
        config: The whole configuration, options of the command line included.
    """
    preset = toyactions_preset()
    pair = config.pair
    if set(pair.teacher_weights) != {AUTO} or pair.teacher_cache is not None or SELF in pair.teacher:
        # The preset's teacher views are for a teacher that is trained first; an existing teacher brings its own view.
        preset["pair"] = {key: value for key, value in preset["pair"].items() if not key.startswith("teacher_")}
    if pair.proxy is None:
        preset["pair"] = {key: value for key, value in preset["pair"].items() if not key.startswith("proxy_")}
    return merge(preset, values)


def from_keywords(**keywords: Any) -> RunConfig:
    """Build a configuration from the names of the command line's options, with or without ``config=FILE``.

    Raises:
        UserError: A keyword is unknown, or a value is not allowed.

    Example:
        >>> from_keywords(teacher="rgb_r3d18", student="flow_r3d18", data="data/ucf101", lr=0.1).optimization.lr
        0.1
    """
    section_of = {entry.name: section for section, kind in SECTIONS.items() for entry in dataclasses.fields(kind)}
    file_values = {} if (path := keywords.pop("config", None)) is None else load_yaml(find_config_file(str(path)))
    values: dict[str, Any] = {}
    for name, value in keywords.items():
        if name not in section_of:
            raise unknown_name("keyword", name, section_of, listed_by="crossdistill train --help")
        # Keywords may give weights as paths, which are texts in a configuration.
        plain = str(value) if isinstance(value, Path) else value
        if isinstance(value, list | tuple):
            plain = [str(part) if isinstance(part, Path) else part for part in value]
        values.setdefault(section_of[name], {})[name] = plain
    values = merge(with_current_names(file_values), values)
    config = from_dict(values, source="the keywords")
    return config if config.data.data else from_dict(with_preset(values, config), source="the keywords")


def parse(arguments: list[str] | None = None, *, prog: str = "crossdistill train") -> RunConfig:
    """Parse a command line: defaults, then --config FILE, then options.

    Without a dataset in any of them, the preset of toyactions comes below the file and the options.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    file_values, arguments, source = _take_config_option(arguments)
    config = _parse_options(from_dict(file_values, source=source), arguments, prog)
    if config.data.data:
        return config
    values = with_preset(with_current_names(file_values), config)
    return _parse_options(from_dict(values, source=source), arguments, prog)


def _take_config_option(arguments: list[str]) -> tuple[dict[str, Any], list[str], str]:
    for i, argument in enumerate(arguments):
        name, has_value, value = argument.partition("=")
        if name == "--config":
            rest = arguments[i + 1 :]
            if not has_value:
                if not rest:
                    raise UserError(
                        f"--config was given without a file: give a YAML file, or a name: {', '.join(config_names())}"
                    )
                value, rest = rest[0], rest[1:]
            return load_yaml(find_config_file(value)), arguments[:i] + rest, value
    return {}, arguments, "the configuration"


DESCRIPTION = (
    "Train a student from a teacher without labels, or (--supervised) an encoder with labels. --config FILE reads a "
    "YAML file, or a recipe that comes with the package by its name, for example isd or compress/moco_to_resnet18_2q; "
    "options override it. The defaults below are those of the CompRess paper, "
    "except the objective and the crops. Without --data the embedded dataset toyactions is rendered, and a preset for "
    "laptops (crossdistill/recipes/toyactions.yaml) replaces the defaults."
)


def _parse_options(default: RunConfig, arguments: list[str], prog: str) -> RunConfig:
    config = parse_options(RunConfig, arguments, prog=prog, description=DESCRIPTION, default=default)
    return from_dict(to_dict(config), source=COMMAND_LINE)
