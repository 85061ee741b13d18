"""Load the networks of a run: the student, the same student before training, its teachers and a supervised baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TypeVar

from crossdistill.data.manifest import Manifest, is_prepared
from crossdistill.distillation.student import find_student, load_student, locate_student
from crossdistill.encoders import Encoder, require_code_allowed
from crossdistill.errors import UserError
from crossdistill.evaluation.roles import NumberedRole, Role, teacher_roles
from crossdistill.recipes.config import AUTO, SELF, RunConfig
from crossdistill.recipes.data import TOYACTIONS_FOLDER, evaluable, is_toyactions
from crossdistill.recipes.identity import own_teacher_config
from crossdistill.recipes.proxy import student_stage
from crossdistill.recipes.recorded_teachers import load_again, recorded_teachers
from crossdistill.recipes.student import create_student
from crossdistill.recipes.teachers import TeacherOptions, published_weights, teacher_options
from crossdistill.report.options import ReportOptions
from crossdistill.report.record import RunRecord, UnavailableError
from crossdistill.training.run_folder import RunFolder

Loaded = TypeVar("Loaded")
BASELINE_ROLE = "supervised baseline"  # of the same student trained with labels by another run (--baseline)


class Kind(str, Enum):
    """Kind of network; also the CSS class of its colour."""

    STUDENT = "student"
    TEACHER = "teacher"
    RANDOM = "random"
    """The student before training."""
    BASELINE = "baseline"

    __str__ = str.__str__


def kind_of(role: str) -> Kind:
    """Return the kind of network of a role, for example teacher for ``teacher 2`` and for ``proxy``."""
    if role == BASELINE_ROLE:
        return Kind.BASELINE
    parsed = NumberedRole.parse(role)
    kinds = {Role.TEACHER: Kind.TEACHER, Role.PROXY: Kind.TEACHER, Role.RANDOM: Kind.RANDOM}
    return Kind.STUDENT if parsed is None else kinds.get(parsed.role, Kind.STUDENT)


@dataclass(frozen=True)
class Network:
    """A network of the run with its weights, and the feature store that ``crossdistill evaluate`` fills too."""

    role: str
    encoder: Encoder
    features_folder: Path
    weights_file: Path | None = None

    @property
    def kind(self) -> Kind:
        """Kind of the network."""
        return kind_of(self.role)


def find_dataset(record: RunRecord, data: Path | None) -> Manifest:
    """Open ``--data``, or of the run's datasets that still exist the first one with labels and both parts of its split.

    If none has labels it is the first one; if none exists, raise an ``UnavailableError``.
    """
    if data is not None:
        return Manifest.load(data)
    candidates = record.datasets or (TOYACTIONS_FOLDER,)
    found = [Manifest.load(path) for path in candidates if is_prepared(path)]
    if found:
        return (evaluable(found, record.split) or found)[0]
    raise UnavailableError(
        f"the dataset no longer exists at {', '.join(map(str, candidates))}: give its folder with --data."
    )


def load_trained(record: RunRecord, role: str, options: ReportOptions) -> Network:
    """Load the student that a run trained, or raise an ``UnavailableError``."""
    folder = record.student
    if folder is None:
        raise UnavailableError(f"{record.name} contains no student (yet).")
    encoder = _load(lambda: load_student(folder, allow_code=options.allow_code))
    return Network(role, encoder, RunFolder(record.folder).features, folder / "student.safetensors")


def load_random(record: RunRecord, options: ReportOptions) -> Network:
    """Create the student as it was before training, with the run's seed."""
    config = _configured(record)
    _allow(config.pair.student or "", options)
    encoder = _load(lambda: create_student(config, is_random=True).eval())
    return Network(str(Role.RANDOM), encoder, RunFolder(record.folder).features)


def load_teachers(
    record: RunRecord, student: Encoder, manifest: Manifest | None, options: ReportOptions
) -> Iterator[Network | str]:
    """Load every teacher; yields a sentence with the reason for each one that is unavailable."""
    config = _configured(record)
    if not options.teacher:
        yield "the teacher was disabled by --no-teacher."
        return
    if SELF in config.pair.teacher:
        yield "the teacher was the student's own EMA copy, which is not stored."
        return
    has_proxy = config.pair.proxy is not None
    if has_proxy:  # the student learned from it alone
        config = student_stage(config, str(RunFolder(record.folder).proxy.path))
    chosen = _teachers_of(record, config)
    roles = [str(Role.PROXY)] if has_proxy else teacher_roles(len(chosen))
    hashes = [one for one in str(record.training.get("teacher_weights_sha256") or "").split(" and ") if one]
    for role, teacher in zip(roles, chosen, strict=True):
        try:
            _allow(teacher.name, options)
            found = _with_weights(record, config, teacher, manifest)
            encoder = _load(lambda found=found: load_again(found, student.view, hashes))  # type: ignore[misc]
        except UnavailableError as error:
            yield str(error)
            continue
        yield Network(role, encoder, RunFolder(record.folder).features, _weights_file(found.weights))


def _teachers_of(record: RunRecord, config: RunConfig) -> list[TeacherOptions]:
    """List the teachers as recorded; as configured, where nothing was recorded or the recorded path is gone."""
    configured = teacher_options(config)
    recorded = [teacher.options for teacher in recorded_teachers(record.training)]
    if len(recorded) != len(configured):
        return recorded or configured
    gone = [Path(own.weights).is_absolute() and not Path(own.weights).exists() for own in recorded]
    return [
        replace(own, weights=other.weights) if is_gone else own
        for own, other, is_gone in zip(recorded, configured, gone, strict=True)
    ]


def _with_weights(
    record: RunRecord, config: RunConfig, teacher: TeacherOptions, manifest: Manifest | None
) -> TeacherOptions:
    """Replace ``auto`` by the weights that the run used: a teacher that it trained, or published weights."""
    if teacher.weights != AUTO:
        return teacher
    if manifest is not None and (teacher.split is not None or is_toyactions([manifest])):
        trained = own_teacher_config(config, teacher, record.folder, [manifest]).machine.out
        if trained is None or find_student(trained) is None:
            raise UnavailableError(f"the teacher that the run trained no longer exists ({trained}).")
        return replace(teacher, weights=str(trained))
    return replace(teacher, weights=_load(lambda: published_weights(teacher)))


def _weights_file(weights: str) -> Path | None:
    folder = locate_student(weights)
    path = Path(weights) if folder is None else folder / "student.safetensors"
    return path if path.is_file() else None


def _configured(record: RunRecord) -> RunConfig:
    if record.config is None:
        raise UnavailableError("the configuration of the run is missing or of another version.")
    return record.config


def _allow(name: str, options: ReportOptions) -> None:
    _load(lambda: require_code_allowed(name, named_by="it", allow_code=options.allow_code))


def _load(load: Callable[[], Loaded]) -> Loaded:
    """Call a loader and convert its errors into an ``UnavailableError``."""
    try:
        return load()
    except (UserError, OSError) as error:
        raise UnavailableError(f"the network cannot be loaded: {error}.") from error
