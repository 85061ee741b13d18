"""The teachers of a run: from the names in its configuration to objects that embed batches.

A ``TeacherSource`` is a teacher as it was named, before anything is loaded. Only this module knows which kinds exist.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crossdistill.data.manifest import Manifest
from crossdistill.distillation.cache_folders import open_caches
from crossdistill.distillation.cache_key import absolute_if_path, weights_source
from crossdistill.distillation.teacher_cache import TeacherCache
from crossdistill.distillation.teachers import (
    CachedTeacher,
    CrossFittedTeacher,
    FrozenTeacher,
    SelfTeacher,
    ShardedTeacher,
    Teacher,
    require_no_classifier_needed,
    require_no_common_tokens_needed,
)
from crossdistill.distillation.terms import Term
from crossdistill.encoders import Encoder, is_from_file
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.recipes.config import AUTO, OWN, SELF, RunConfig
from crossdistill.recipes.context import RunContext
from crossdistill.recipes.folds import fold_split, folded_dataset, folds_of_clips, require_unseen
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
    split: str | None = None
    """The split that the teacher learns from, if it has a fold of its own; see ``fold_split``."""

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
    def weights(self) -> tuple[str, ...]:
        """Name of the weights of each network, for whoever loads it again; empty if the teacher has none of its own."""
        return ()

    @property
    def weights_option(self) -> tuple[str, ...]:
        """The value of ``--teacher-weights`` with which another training finds the same teacher."""
        return self.weights

    @property
    def is_known(self) -> bool:
        """Whether ``open`` finds everything; if not, ``with_weights`` comes first."""
        return True

    @abc.abstractmethod
    def preview(self, student: Encoder) -> Encoder:
        """Return the teacher's names and sizes without its weights."""

    @abc.abstractmethod
    def check(self, config: RunConfig, student: Encoder, terms: Sequence[Term]) -> None:
        """Raise a ``UserError`` for what is known to be wrong before anything is loaded or trained."""

    def check_data(self, config: RunConfig, manifests: Sequence[Manifest]) -> None:
        """Raise a ``UserError`` for what is known from the datasets before anything is loaded or trained."""
        return None

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
    def weights(self) -> tuple[str, ...]:
        """The weights as they were named, a path as an absolute one."""
        return (absolute_if_path(self.options.weights),)

    @property
    def is_known(self) -> bool:
        """Whether the weights are named."""
        return self.options.weights != AUTO

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
        return self.load(run, student.view, number=number)

    def load(self, run: RunContext, student_view: ViewSpec, *, number: int) -> FrozenTeacher:
        """Load the network and freeze it; only the student's view is read."""
        teacher = create_teacher(self.options, student_view)
        is_sharded = run.config.machine.teacher_sharding
        kind = ShardedTeacher if is_sharded else FrozenTeacher
        return kind(teacher, run.choose_execution(teacher, is_sharded=is_sharded), number=number)


@dataclass(frozen=True)
class FoldedSource(TeacherSource):
    """A network for each fold of the training clips (``--folds``), as one teacher."""

    members: tuple[TeacherOptions, ...]

    @staticmethod
    def of(members: Sequence[TeacherOptions]) -> FoldedSource:
        """Make the source of the networks, one for each fold in order."""
        origin = f"{len(members)} folds: {', '.join(dict.fromkeys(member.weights for member in members))}"
        return FoldedSource(members[0].name, origin, tuple(members))

    @property
    def _sources(self) -> list[NetworkSource]:
        return [NetworkSource.of(member) for member in self.members]

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights of each network as they were named, a path as an absolute one."""
        return tuple(name for source in self._sources for name in source.weights)

    @property
    def is_known(self) -> bool:
        """Whether the weights of all networks are named."""
        return all(source.is_known for source in self._sources)

    def preview(self, student: Encoder) -> Encoder:
        """Return the names and sizes of the first network."""
        return self._sources[0].preview(student)

    def check(self, config: RunConfig, student: Encoder, terms: Sequence[Term]) -> None:
        """Check every network, and that no term compares what is not mapped."""
        require_no_common_tokens_needed(terms)
        for source in self._sources:
            source.check(config, student, terms)

    def check_data(self, config: RunConfig, manifests: Sequence[Manifest]) -> None:
        """Check that there are groups enough for the folds, and that no network has seen its fold."""
        manifest = folded_dataset(config, manifests)
        for member in self.members:
            if member.weights != AUTO:
                published = [public.name for public in preview_encoder(member.name).public_weights]
                require_unseen(member.weights, member.split or "", manifest, published)

    def with_weights(self, find_weights: Callable[[TeacherOptions], str]) -> TeacherSource:
        """Find the weights of ``auto``, of one network after another."""
        return FoldedSource.of(
            [
                replace(member, weights=find_weights(member)) if member.weights == AUTO else member
                for member in self.members
            ]
        )

    def open(self, run: RunContext, student: Encoder, execution: Execution, *, number: int) -> Teacher:
        """Load the networks; see ``load``."""
        return self.load(run, student.view, number=number)

    def load(self, run: RunContext, student_view: ViewSpec, *, number: int) -> CrossFittedTeacher:
        """Load the networks. Their features are mapped later, when the training clips are selected."""
        self.check_data(run.config, run.manifests)
        teachers = [source.load(run, student_view, number=number) for source in self._sources]
        for member, teacher in zip(self.members[1:], teachers[1:], strict=True):
            if teacher.encoder.view != teachers[0].encoder.view:
                raise UserError(
                    f"--folds needs networks that see the same clips, and {member.weights} sees "
                    f"{teacher.encoder.view.size_text}, {self.members[0].weights} "
                    f"{teachers[0].encoder.view.size_text} or at another stride: train them with the same options"
                )
        return CrossFittedTeacher(teachers, folds_of_clips(run.config, run.manifests))


@dataclass(frozen=True)
class CacheSource(TeacherSource):
    """A teacher whose outputs ``crossdistill cache`` stored."""

    options: TeacherOptions
    cache: TeacherCache

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights that the cache was made with."""
        return self.cache.weights

    @property
    def weights_option(self) -> tuple[str, ...]:
        """The weights as they were given beside the cache, which holds what they compute: they may be gone."""
        return (self.options.weights,)

    def preview(self, student: Encoder) -> Encoder:
        """Return the cached network's names and sizes."""
        return self.cache.encoder()

    def check(self, config: RunConfig, student: Encoder, terms: Sequence[Term]) -> None:
        """Check that what the cache holds is enough for the run."""
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
        caches = _named_caches(open_caches(config.pair.teacher_cache), config)
        for cache in caches:
            cache.require_complete()
        names = config.pair.teacher or tuple(cache.key["teacher"] for cache in caches)
        # A cache has one teacher for all folds, and --folds beside it is refused later.
        options = teacher_options(replace(config, pair=replace(config.pair, teacher=names, folds=None)))
        return [CacheSource(each.name, str(c.folder), each, c) for each, c in zip(options, caches, strict=True)]
    if SELF in config.pair.teacher:
        return [SelfSource(SELF, "its EMA copy")]
    if config.pair.folds is not None and config.pair.teacher:
        return [FoldedSource.of(teacher_options(config))]
    return [NetworkSource.of(options) for options in teacher_options(config)]


def _named_caches(caches: list[TeacherCache], config: RunConfig) -> list[TeacherCache]:
    """Return the caches of the teachers that ``--teacher`` names, in its order; all without ``--teacher``."""
    folder, names = config.pair.teacher_cache, config.pair.teacher
    if len(caches) == 1 and len(names) == 1:
        return caches  # another name is refused together with the other fields of the key
    found = []
    for name in names:
        own = [cache for cache in caches if cache.key["teacher"] == name]
        if not own:
            held = ", ".join(cache.key["teacher"] for cache in caches)
            raise UserError(f"the teacher cache {folder} holds {held}, and not {name}: name teachers that it holds")
        if len(own) > 1:
            raise UserError(
                f"the teacher cache {folder} holds {len(own)} teachers {name}: give no --teacher for all of them, or "
                f"one of their folders as --teacher-cache, for example {own[0].folder}"
            )
        found += own
    if len(set(names)) < len(names):
        raise UserError(f"--teacher {' '.join(names)} names a teacher of {folder} twice: give each once")
    return found or caches


def teacher_options(config: RunConfig) -> list[TeacherOptions]:
    """Divide the options among the teachers: one value is for all teachers, several values are one for each.

    With ``--folds`` there is a teacher for each fold, all of one name.

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
    names: tuple[str, ...] = pair.teacher
    splits: tuple[str | None, ...] = (None,) * len(pair.teacher)
    if pair.folds is not None and pair.teacher:
        names, splits = _teachers_of_folds(config)
    num_teachers = len(names)
    for option, given in values.items():
        if num_teachers and len(given) not in (1, num_teachers):
            each = "teachers" if pair.folds is None else "folds"
            raise UserError(
                f"{option} has {len(given)} values for {num_teachers} {each}: give one for all, or one for each"
            )
    own_values = [given * num_teachers if len(given) == 1 else given for given in values.values()]
    return [TeacherOptions(name, *own) for name, *own in zip(names, *own_values, splits, strict=True)]


def _teachers_of_folds(config: RunConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return name and split of each fold's teacher; raise a ``UserError`` if the folds cannot have one each."""
    pair, num_folds = config.pair, config.pair.folds
    assert num_folds is not None
    if len(pair.teacher) > 1:
        raise UserError(
            f"--folds takes one --teacher, whose networks share the clips, and {len(pair.teacher)} were given: give one"
        )
    if len(pair.teacher_weights) == 1 and pair.teacher_weights != (AUTO,):
        raise UserError(
            f"--teacher-weights has 1 value for {num_folds} folds: give a run with labels for each, or auto"
        )
    numbers = range(1, num_folds + 1)
    return pair.teacher * num_folds, tuple(fold_split(config.data.split, number, num_folds) for number in numbers)


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
    ((teacher, name),) = create_networks(config, student_view)
    return teacher, name


def create_networks(config: RunConfig, student_view: ViewSpec) -> list[tuple[Encoder, str]]:
    """Build the network of each teacher; return them and the names of their weights."""
    named = [
        replace(options, weights=published_weights(options)) if options.weights == AUTO else options
        for options in teacher_options(config)
    ]
    return [(create_teacher(options, student_view), options.weights) for options in named]


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
