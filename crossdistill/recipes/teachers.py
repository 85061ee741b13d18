"""The teachers of a run: from the names in its configuration to objects that embed batches.

A ``TeacherSource`` is a teacher as it was named, before anything is loaded. Only this module knows which kinds exist.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossdistill.distillation.teacher_cache import TeacherCache, absolute_if_path, weights_source
from crossdistill.distillation.teachers import (
    CachedTeacher,
    FrozenTeacher,
    SelfTeacher,
    Teacher,
    require_no_classifier_needed,
)
from crossdistill.distillation.terms import Term
from crossdistill.encoders import Encoder, is_from_file
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.recipes.config import AUTO, OWN, SELF, RunConfig
from crossdistill.recipes.context import RunContext
from crossdistill.recipes.weights import (
    create_encoder_as_stored,
    load_named_weights,
    preview_encoder,
    require_weights_exist,
)
from crossdistill.types import ViewSpec

# Frames that an image teacher of a clip student embeds and averages, unless --teacher-frames says otherwise.
NUM_IMAGE_TEACHER_FRAMES = 4


@dataclass(frozen=True)
class TeacherOptions:
    """What the configuration says about one teacher."""

    name: str
    weights: str
    num_frames: int | None = None
    stride: int | None = None
    size_px: int | None = None

    @property
    def view(self) -> dict[str, int | None]:
        """The changes to the encoder's own view."""
        return {"num_frames": self.num_frames, "stride": self.stride, "size_px": self.size_px}


@dataclass(frozen=True)
class TeacherSource(abc.ABC):
    """A teacher as the configuration names it, before anything is loaded."""

    name: str
    """Name of the encoder; ``self`` for the student's own EMA copy."""
    origin: str
    """Source of the teacher, for messages: its weights, or the folder of its cache."""

    @property
    def weights(self) -> str | None:
        """Name of the teacher's weights, for whoever loads it again; None if it has none of its own."""
        return None

    @abc.abstractmethod
    def preview(self, student: Encoder) -> Encoder:
        """Return the teacher's names and sizes without its weights."""

    @abc.abstractmethod
    def check(self, config: RunConfig, student: Encoder, terms: Sequence[Term]) -> None:
        """Raise a ``UserError`` for what is known to be wrong before anything is loaded or trained."""

    @abc.abstractmethod
    def open(self, run: RunContext, student: Encoder, execution: Execution, *, number: int) -> Teacher:
        """Load the teacher.

        Args:
            run: The run.
            student: The student with loaded weights.
            execution: Device, precision and memory layout of the student.
            number: Position among the teachers.
        """

    def with_weights(self, find_weights: Callable[[TeacherOptions], str]) -> TeacherSource:
        """Replace weights that are not known yet by those that ``find_weights`` returns."""
        return self


@dataclass(frozen=True)
class NetworkSource(TeacherSource):
    """A frozen network as teacher."""

    options: TeacherOptions

    @staticmethod
    def of(options: TeacherOptions) -> NetworkSource:
        """Make the source of a network."""
        return NetworkSource(options.name, options.weights, options)

    @property
    def weights(self) -> str:
        """The weights as they were named, a path as an absolute one."""
        return absolute_if_path(self.options.weights)

    def preview(self, student: Encoder) -> Encoder:
        """Return the network's names and sizes."""
        return preview_encoder(self.options.name, self.options.weights, **self.options.view)

    def check(self, config: RunConfig, student: Encoder, terms: Sequence[Term]) -> None:
        """Check that the terms fit and that the weights exist."""
        name, weights = self.options.name, self.options.weights
        if weights == OWN and not is_from_file(name):
            raise UserError(
                "--teacher-weights own is for a teacher path/to/file.py:function that loads its weights itself, not "
                f"for {name}: give a weight file or a run's folder"
            )
        teacher = self.preview(student)
        for term in terms:
            term.require_fit(student=student, teacher=teacher, is_loaded=False)
        if weights not in (AUTO, OWN):
            require_weights_exist("--teacher-weights", weights, teacher)

    def with_weights(self, find_weights: Callable[[TeacherOptions], str]) -> TeacherSource:
        """Find the weights of ``auto``."""
        if self.options.weights != AUTO:
            return self
        return NetworkSource.of(replace(self.options, weights=find_weights(self.options)))

    def open(self, run: RunContext, student: Encoder, execution: Execution, *, number: int) -> Teacher:
        """Load the network and freeze it."""
        teacher = create_teacher(self.options, student.view)
        return FrozenTeacher(teacher, run.choose_execution(teacher), number=number)


@dataclass(frozen=True)
class CacheSource(TeacherSource):
    """A teacher whose embeddings ``crossdistill cache`` stored."""

    options: TeacherOptions
    cache: TeacherCache

    @property
    def weights(self) -> str:
        """The weights that the cache was made with."""
        return self.cache.weights

    def preview(self, student: Encoder) -> Encoder:
        """Return the cached network's names and sizes."""
        return self.cache.encoder()

    def check(self, config: RunConfig, student: Encoder, terms: Sequence[Term]) -> None:
        """Check that pooled embeddings of one teacher are enough for the run."""
        if len(config.pair.teacher) > 1 or config.objective.measured_scale is not None:
            raise UserError(
                "--teacher-cache stores raw embeddings of one teacher, but --teacher is "
                f"{' '.join(config.pair.teacher)} and --standardize is {config.objective.standardize}: remove "
                "--teacher-cache, or give one --teacher and --standardize none or running"
            )
        self.cache.require_fit(terms)
        for term in terms:
            term.require_fit(student=student, teacher=self.cache.encoder())

    def open(self, run: RunContext, student: Encoder, execution: Execution, *, number: int) -> Teacher:
        """Open the cache. Its clips are checked against the training clips later, when these are selected."""
        expected: dict[str, Any] = {
            "teacher": self.options.name,
            "teacher_view": {name: value for name, value in self.options.view.items() if value is not None},
        }
        if self.options.weights != AUTO:
            expected["teacher_weights"] = weights_source(self.options.weights)
        precision = self.cache.key["precision"]
        if precision != execution.precision:
            run.announce(
                f"the embeddings in {self.cache.folder} were computed in {precision}, and this run computes in "
                f"{execution.precision}: make another cache with --precision {execution.precision} for equal numbers"
            )
        return CachedTeacher(self.cache, run.accelerator.device, split=run.config.data.split, expected=expected)


class SelfSource(TeacherSource):
    """An EMA copy of the student as teacher (``--teacher self``)."""

    def preview(self, student: Encoder) -> Encoder:
        """Return the student."""
        return student

    def check(self, config: RunConfig, student: Encoder, terms: Sequence[Term]) -> None:
        """Check that no option is given that a teacher that changes during training does not support."""
        pair = config.pair
        if len(pair.teacher) > 1 or pair.rounds > 1 or config.objective.measured_scale is not None:
            raise UserError(
                "--teacher self changes during training, so it allows no other teacher, no --rounds and no "
                "--standardize but running: remove them"
            )
        if pair.teacher_weights != (AUTO,) or pair.teacher_frames or pair.teacher_stride or pair.teacher_size:
            raise UserError("--teacher self starts as the student and sees what it sees: give only --student-… options")
        require_no_classifier_needed(terms)

    def open(self, run: RunContext, student: Encoder, execution: Execution, *, number: int) -> Teacher:
        """Copy the student."""
        return SelfTeacher(student, execution, momentum=run.config.objective.ema_momentum)


def teacher_sources(config: RunConfig) -> list[TeacherSource]:
    """List the teachers of a run in the order in which they were given.

    Raises:
        UserError: A teacher cache is damaged or incomplete, or an option has a wrong number of values.
    """
    if config.pair.teacher_cache is not None:
        cache = TeacherCache(config.pair.teacher_cache)
        cache.require_complete()
        names = config.pair.teacher or (cache.key["teacher"],)
        options = teacher_options(replace(config, pair=replace(config.pair, teacher=names)))
        return [CacheSource(options[0].name, str(cache.folder), options[0], cache)]
    if SELF in config.pair.teacher:
        return [SelfSource(SELF, "its EMA copy")]
    return [NetworkSource.of(options) for options in teacher_options(config)]


def teacher_options(config: RunConfig) -> list[TeacherOptions]:
    """Divide the options among the teachers: one value is for all teachers, several values are one for each.

    Raises:
        UserError: An option has neither one value nor one for each teacher.
    """
    pair = config.pair
    values = {
        "--teacher-weights": pair.teacher_weights,
        "--teacher-frames": pair.teacher_frames or (None,),
        "--teacher-stride": pair.teacher_stride or (None,),
        "--teacher-size": pair.teacher_size or (None,),
    }
    num_teachers = len(pair.teacher)
    for option, given in values.items():
        if num_teachers and len(given) not in (1, num_teachers):
            raise UserError(
                f"{option} has {len(given)} values for {num_teachers} teachers: give one for all, or one for each"
            )
    each = [given * num_teachers if len(given) == 1 else given for given in values.values()]
    return [TeacherOptions(name, *own) for name, *own in zip(pair.teacher, *each, strict=True)]


def create_teacher(options: TeacherOptions, student_view: ViewSpec) -> Encoder:
    """Build a teacher's network with its weights.

    Args:
        options: Options of the teacher. Its weights are a file, a run's folder, published weights, or ``own``.
        student_view: View of the student. The frames of an image teacher are spread over the student's clip.
    """
    teacher = create_encoder_as_stored(options.name, options.weights, **options.view)
    if not teacher.view.kind.has_time and student_view.kind.has_time:
        own = teacher.view.num_frames if teacher.view.num_frames > 1 else NUM_IMAGE_TEACHER_FRAMES
        num_frames = options.num_frames or own
        # Without --teacher-stride the teacher's frames are spread over the student's clip.
        stride = options.stride or max(1, student_view.num_frames * student_view.stride // num_frames)
        teacher.view = replace(teacher.view, num_frames=num_frames, stride=stride)
    if options.weights != OWN:
        load_named_weights(teacher, options.weights, option="--teacher-weights")
    return teacher


def create_only_teacher(config: RunConfig, student_view: ViewSpec) -> tuple[Encoder, str]:
    """Build the network of a configuration with one teacher; return it and the name of its weights."""
    (options,) = teacher_options(config)
    if options.weights == AUTO:
        options = replace(options, weights=published_weights(options))
    return create_teacher(options, student_view), options.weights


def published_weights(options: TeacherOptions) -> str:
    """Return the name of the weights that the teacher's library publishes for its modality.

    Raises:
        UserError: There are none.
    """
    name = options.name
    teacher = preview_encoder(name)
    for public in teacher.public_weights:
        if teacher.view.modality in public.modalities:
            return public.name
    raise UserError(
        f"there are no known weights for the teacher {name}: give --teacher-weights FILE"
        f"{' (or own, if its Python file loads the weights)' if is_from_file(name) else ''}, or train it with "
        f"--supervised --student {name} --data … --out DIR and then give --teacher-weights DIR"
    )


def file_name_of(encoder: str) -> str:
    """Return an encoder's name without characters that file systems dislike: ``a/b.py:make`` is ``b.py-make``."""
    return Path(encoder).name.replace(":", "-")
