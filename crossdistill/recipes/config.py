"""A run's configuration: dataclasses, one YAML file, command-line overrides.

Sections nest in YAML and vanish on the command line (``optimization: {lr: 0.1}`` is ``--lr 0.1``).
Nothing below ``build.py`` reads configuration.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from crossdistill.errors import UserError, unknown_name
from crossdistill.training.trackers import TrackerName
from crossdistill.utils.command_line import parse_options

STRICT = ConfigDict(extra="forbid")
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def several(value: Any) -> tuple[Any, ...]:
    """One value, several or none (None) as a tuple, so that a file may say ``teacher: rgb_r3d50``."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


Names = Annotated[tuple[str, ...], BeforeValidator(several)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(several)]


@dataclass(frozen=True)
class PairConfig:
    """Who learns from whom."""

    __pydantic_config__ = STRICT

    teacher: Names = ()
    """Frozen encoder to learn from, for example rgb_r3d50, or path/to/file.py:function; see `crossdistill encoders`.
    Several may be given. self: the student's own EMA copy (ISD; see configs/isd.yaml)."""
    student: str | None = None
    """Encoder to train, for example flow_r3d18."""
    supervised: bool = False
    """Train the student with labels and no teacher: how teachers are made, and the baseline to beat."""
    teacher_weights: Names = ("auto",)
    """A weight file, published weights by name (kinetics400, imagenet), a run's student folder, own (what
    path/to/file.py:function itself loads), or auto: the published ones; on toyactions a teacher trained first.
    One for all teachers, or one for each; so for the next three."""
    teacher_cache: Path | None = None
    """The teacher's embeddings, made by `crossdistill cache`: neither the teacher nor its stream is then needed."""
    student_weights: str | None = None
    """A weight file, published weights by name, or a student folder to start from; fresh weights if absent."""
    teacher_frames: Counts = ()
    """Frames the teacher sees; if absent its own number (an image teacher of a clip student: 4)."""
    teacher_stride: Counts = ()
    """Video frames between the teacher's frames; its own if absent."""
    teacher_size: Counts = ()
    """Height and width of the teacher's view in pixels; its own if absent."""
    student_frames: Count | None = None
    """Frames the student sees; its own number if absent."""
    student_stride: Count | None = None
    """Video frames between the student's frames; its own if absent."""
    student_size: Count | None = None
    """Height and width of the student's view in pixels; its own if absent."""
    rounds: Count = 1
    """Self-distillation: so many students after each other, from the second on taught by the one before."""
    precision: str | None = None
    """Train a student of few bits, for example w4a8: weights of 4 bits and activations of 8, each 2 to 8 (brevitas)."""


@dataclass(frozen=True)
class DataConfig:
    """What is learned from."""

    __pydantic_config__ = STRICT

    data: tuple[Path, ...] = ()
    """Prepared datasets (see python -m data_prep); several may be given. None: toyactions, made at first use."""
    split: str = "1"
    """Which official split: trains on its train part, evaluates on its test part."""
    crop_area_min: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Smallest share of the picture that a random crop keeps."""
    strong_views: bool = False
    """Distort what the student sees, not what the teachers see: other contrast and brightness, erased boxes. With
    --teacher self both crop for themselves as well."""
    mirror: Literal["auto", "yes", "no"] = "auto"
    """Mirror half of the clips; auto: yes, unless labels are used and mirroring changes them."""
    max_unreadable: Share = 0.05
    """Share of the clips that may turn out unreadable before the run stops."""
    decoder: Literal["pyav", "decord", "torchcodec"] = "pyav"
    """Which library reads the videos; pyav reads what another cannot give exactly."""
    short_clips: Literal["repeat", "loop", "error"] = "repeat"
    """Videos shorter than a clip: repeat their end frames, loop (start them again), or error (refuse to start)."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """How student and teacher are compared; defaults are the paper's but for the objective (docs/results)."""

    __pydantic_config__ = STRICT

    objective: tuple[str, ...] = ("compress-2q-live", "simreg")
    """One or a sum of several, each name or name:weight, for example compress-1q simreg:0.5. By similarities to the
    bank: compress-2q (the paper's: student anchors from its EMA copy), compress-2q-live (from itself), compress-1q (the
    teacher's), seed, infonce, bingo. By embeddings: simreg, cosine, smooth-l1, mse. By relations in the batch: rkd. By
    tokens: token-matching, attention-transfer. By class probabilities, if the teacher has a classifier: kd, dkd, dist.
    With labels beside another: cross-entropy (MARS: cross-entropy mse:50)."""
    adapter: Literal["auto", "identity", "linear", "mlp2", "mlp3", "mlp4", "temporal-pool", "attention-pool"] = "auto"
    """Between the student's features and the loss, dropped after training; auto: each objective's own."""
    temperature: Positive | None = None
    """Softmax temperature of the similarities; if absent the objective's own (compress 0.04 on both sides)."""
    teacher_temperature: Positive | None = None
    """Of the teacher's side, where an objective has two (seed)."""
    bank_size: Count = 128_000
    """How many anchors the memory bank keeps."""
    bank_dtype: Literal["fp32", "bf16"] = "fp32"
    """How anchors are stored."""
    ema_momentum: Share = 0.999
    """How much of the EMA copy stays at each step (compress-2q, --teacher self)."""
    standardize: Literal["none", "mean-variance", "phi-s"] = "none"
    """Bring the embeddings of each teacher to mean 0 and variance 1 before they are compared: every feature by itself,
    or phi-s: all by one factor after a rotation that makes them equal. For several teachers of different scales."""
    teacher_drop: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of several teachers, how often each is left out of a batch (the one that the student is worst at never is)."""


@dataclass(frozen=True)
class OptimizationConfig:
    """How weights move; defaults are the paper's."""

    __pydantic_config__ = STRICT

    epochs: Count = 130
    """Passes over the training clips."""
    batch_size: Count = 256
    """Clips per batch of one process."""
    accumulate: Count = 1
    """Batches per optimizer step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: Positive = 0.01
    """Peak learning rate."""
    momentum: Share = 0.9
    """Of SGD."""
    weight_decay: NotNegative = 1e-4
    """Decoupled for AdamW."""
    schedule: Literal["steps", "cosine"] = "steps"
    """steps: multiply by --lr-drop at each of --lr-milestones; cosine: to zero at the end."""
    lr_milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (90 / 130, 120 / 130)
    """Where the learning rate drops, as shares of the run."""
    lr_drop: Positive = 0.2
    """Factor of each drop."""
    warmup_epochs: NotNegative = 0.0
    """Epochs in which the learning rate climbs linearly from zero."""
    clip_norm: NotNegative = 0.0
    """Largest norm of the gradient; 0 switches clipping off."""


@dataclass(frozen=True)
class TeacherTrainingConfig:
    """The teacher that is trained first when --teacher-weights auto finds none (toyactions)."""

    __pydantic_config__ = STRICT

    teacher_epochs: Count = 30
    """Epochs of its supervised training; all else is as for the student."""
    teacher_lr: Positive = 0.01
    """Its peak learning rate."""


@dataclass(frozen=True)
class MachineConfig:
    """Where and how fast it runs, and what it leaves behind."""

    __pydantic_config__ = STRICT

    out: Path | None = None
    """The run's folder; runs/<student>-from-<teacher> if absent."""
    resume: bool = False
    """Go on from the newest whole checkpoint in --out."""
    seed: CountOrZero = 0
    """Seed of weights, order and augmentation."""
    mixed_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on GPUs that have it, and on CPUs with AMX if its gradients repeat to the bit."""
    channels_last: Literal["auto", "yes", "no"] = "auto"
    """Channels last in memory; auto: on GPUs, and on CPUs for encoders that it makes faster."""
    workers: CountOrZero = 2
    """Processes that decode, per training process."""
    checkpoint_every_steps: CountOrZero = 0
    """Steps between checkpoints; 0: once an epoch."""
    log_every_steps: Count = 10
    """Steps between lines of metrics.jsonl and TensorBoard."""
    knn_every_epochs: NotNegative = 0.0
    """Epochs between k-NN evaluations on held-out clips; 0: five in the whole run. Needs labels."""
    knn_clips: CountOrZero = 400
    """Most clips of either part used by the k-NN evaluations while training; 0 switches them off."""
    tracker: TrackerName = "tensorboard"
    """Where curves and results go besides metrics.jsonl and results.json."""
    evaluate: bool = True
    """Evaluate teacher, random student and trained student when training ends (needs labels)."""


@dataclass(frozen=True)
class RunConfig:
    """Train a student from a teacher without labels, or (--supervised) an encoder with labels."""

    __pydantic_config__ = STRICT

    pair: tyro.conf.OmitArgPrefixes[PairConfig] = field(default_factory=PairConfig)
    data: tyro.conf.OmitArgPrefixes[DataConfig] = field(default_factory=DataConfig)
    objective: tyro.conf.OmitArgPrefixes[ObjectiveConfig] = field(default_factory=ObjectiveConfig)
    optimization: tyro.conf.OmitArgPrefixes[OptimizationConfig] = field(default_factory=OptimizationConfig)
    teacher_training: tyro.conf.OmitArgPrefixes[TeacherTrainingConfig] = field(default_factory=TeacherTrainingConfig)
    machine: tyro.conf.OmitArgPrefixes[MachineConfig] = field(default_factory=MachineConfig)


def from_dict(values: dict[str, Any], *, source: str) -> RunConfig:
    """Validate nested values; the error names the dotted path of the first wrong one.

    Args:
        values: As a YAML file holds them; what is absent keeps its default.
        source: Where they come from, for the error.
    """
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        raise UserError(_first_error(error, source)) from error


def _first_error(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return str(unknown_name(f"key in {source}:", path, _known_paths(path)))
    return f"{source}: {path} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _known_paths(path: str) -> list[str]:
    sections = {f.name: f.default_factory for f in dataclasses.fields(RunConfig)}
    section = path.partition(".")[0]
    if section not in sections or "." not in path:
        return list(sections)
    default = sections[section]()  # type: ignore[operator]
    return [f"{section}.{f.name}" for f in dataclasses.fields(default)]


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of nested sections."""
    if not path.is_file():
        raise UserError(f"there is no configuration file {path}: name one of configs/, or leave --config out")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}: a configuration is sections of keys and values")
    return values or {}


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain values that ``from_dict`` and YAML take."""
    return dict(TypeAdapter(RunConfig).dump_python(config, mode="json"))


def save_yaml(config: RunConfig) -> str:
    """The configuration as YAML text."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def toyactions_preset() -> dict[str, Any]:
    """What a laptop needs on the embedded dataset, used when no --data is given."""
    text = resources.files("crossdistill.recipes").joinpath("toyactions.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def parse(arguments: list[str] | None = None, *, prog: str = "train.py") -> RunConfig:
    """Command line to configuration: defaults, then --config FILE, then options.

    With no dataset in any of them, toyactions and its preset come below the file and the options.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    file_values, arguments, source = _take_config_option(arguments)
    config = _parse_options(from_dict(file_values, source=source), arguments, prog)
    if config.data.data:
        return config
    preset = toyactions_preset()
    pair = config.pair
    if set(pair.teacher_weights) != {"auto"} or pair.teacher_cache is not None or "self" in pair.teacher:
        # a teacher that exists brings its own view
        preset["pair"] = {key: value for key, value in preset["pair"].items() if not key.startswith("teacher_")}
    values = merge(preset, file_values)
    return _parse_options(from_dict(values, source=source), arguments, prog)


def _take_config_option(arguments: list[str]) -> tuple[dict[str, Any], list[str], str]:
    for i, argument in enumerate(arguments):
        name, has_value, value = argument.partition("=")
        if name == "--config":
            rest = arguments[i + 1 :]
            if not has_value:
                if not rest:
                    raise UserError("--config needs a YAML file: name one of configs/")
                value, rest = rest[0], rest[1:]
            return load_yaml(Path(value)), arguments[:i] + rest, value
    return {}, arguments, "the configuration"


DESCRIPTION = (
    "Train a student from a teacher without labels, or (--supervised) an encoder with labels. --config FILE reads a "
    "YAML file of configs/ first; options override it. The defaults below are the paper's but for the objective; with "
    "no --data the embedded dataset toyactions is prepared and a preset for laptops "
    "(crossdistill/recipes/toyactions.yaml) replaces them."
)


def _parse_options(default: RunConfig, arguments: list[str], prog: str) -> RunConfig:
    config = parse_options(RunConfig, arguments, prog=prog, description=DESCRIPTION, default=default)
    return from_dict(to_dict(config), source="the command line")


def merge(base: dict[str, Any], *over: dict[str, Any]) -> dict[str, Any]:
    """Nested values, of which later ones win key by key."""
    merged = dict(base)
    for values in over:
        for key, value in values.items():
            merged[key] = merge(merged.get(key, {}), value) if isinstance(value, dict) else value
    return merged
