"""Read a run folder. Files that are missing, damaged or of another version become notes instead of errors."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.distillation.student import FACTS_NAME, find_student
from crossdistill.encoders import is_from_file
from crossdistill.errors import UserError
from crossdistill.evaluation.results import SCHEMA_FORMAT, Evaluation, read_evaluation
from crossdistill.evaluation.roles import NumberedRole, Role
from crossdistill.recipes.config import RunConfig, from_dict
from crossdistill.recipes.recorded_teachers import recorded_teachers
from crossdistill.training.run_folder import RunFolder

MetricsLine = dict[str, float]  # values of one line of metrics.jsonl by name


class UnavailableError(Exception):
    """A part of the page cannot be made; the message is the sentence that the page shows in its place."""


def short_name(encoder: str) -> str:
    """Return an encoder's name without the folders of the Python file that builds it.

    Example:
        >>> short_name("my/models/net.py:build"), short_name("rgb_r3d18")
        ('net.py:build', 'rgb_r3d18')
    """
    return Path(encoder).name if is_from_file(encoder) else encoder


@dataclass(frozen=True)
class RunRecord:
    """Contents of a run folder."""

    folder: Path
    name: str
    config: RunConfig | None
    """None if it is missing or of another version."""
    configuration: dict[str, Any]
    """The configuration as written, with keys of any version."""
    environment: dict[str, Any]
    metrics: tuple[MetricsLine, ...]
    results: dict[str, dict[str, Evaluation]]
    """Evaluations by dataset folder and role."""
    more_results: tuple[Evaluation, ...]
    """Evaluations of the trained student in other files of the folder (``crossdistill evaluate --json``)."""
    facts: dict[str, Any]
    """Contents of ``student.json``."""
    notes: tuple[str, ...]
    """Sentences about what could not be read."""

    @property
    def student(self) -> Path | None:
        """Folder of the student's weights, if there is one."""
        return find_student(self.folder)

    @property
    def training(self) -> dict[str, Any]:
        """Facts about the training, from ``student.json``."""
        training: dict[str, Any] = self.facts.get("training", {})
        return training

    @property
    def is_supervised(self) -> bool:
        """Whether the student learned from labels."""
        trained = self.training.get("supervised", False)
        return bool(trained) if self.config is None else self.config.pair.supervised

    @property
    def role(self) -> str:
        """Role of the trained student in ``results.json``; with several rounds, the student of the last round."""
        trained = Role.SUPERVISED if self.is_supervised else Role.DISTILLED
        parsed = [NumberedRole.parse(role) for by_role in self.results.values() for role in by_role]
        found = [role for role in parsed if role is not None and role.role is trained]
        return str(max(found, key=lambda role: role.number or 0, default=trained))

    @property
    def split(self) -> str:
        """Split that the run is evaluated on."""
        return RunConfig().data.split if self.config is None else self.config.data.split

    @property
    def encoder(self) -> str:
        """Name of the student's encoder; "a student" if it is unknown."""
        configured = None if self.config is None else self.config.pair.student
        return short_name(str(self.facts.get("encoder") or configured or "a student"))

    @property
    def teachers(self) -> str:
        """Names of the teachers, joined by "and"; empty if the student learned from labels."""
        recorded = recorded_teachers(self.training)
        configured = () if self.config is None else self.config.pair.teacher
        return " and ".join(short_name(name) for name in [teacher.name for teacher in recorded] or configured)

    @property
    def origin(self) -> str:
        """The teachers; a proxy with those that it learned from."""
        config = self.config
        if config is None or config.pair.proxy is None:
            return self.teachers
        return f"{self.teachers}, the proxy of {' and '.join(map(short_name, config.pair.teacher))}"

    @property
    def datasets(self) -> tuple[Path, ...]:
        """Folders of the training datasets, as given at training."""
        configured = () if self.config is None else self.config.data.data
        return configured or tuple(Path(path) for path in self.results)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder. With several rounds the curves are those of the last round.

    A folder that does not exist or is not a run folder is a ``UserError``.
    """
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist: give a run folder (--out of crossdistill train)")
    rounds = sorted(folder.glob("round-*"), key=lambda path: path.name.zfill(40))
    inside = rounds[-1] if rounds and not RunFolder(folder).config.is_file() else folder
    files = (RunFolder(inside).config, RunFolder(folder).results)
    if not any(path.is_file() for path in files) and find_student(folder) is None:
        raise UserError(
            f"{folder} is not a run folder (no config.json, no results.json, no student): give the --out folder of "
            "crossdistill train"
        )
    notes: list[str] = []
    curves = folder if RunFolder(folder).metrics.is_file() or not rounds else rounds[-1]
    if curves is not folder:
        notes.append(f"The curves are those of {curves.name}.")
    written = _read_json(RunFolder(inside).config, notes)
    sections = [written.get(key) for key in ("configuration", "environment")]
    configuration, environment = (section if isinstance(section, dict) else {} for section in sections)
    student = find_student(folder)
    facts = {} if student is None else _read_json(student / FACTS_NAME, notes)
    return RunRecord(
        folder=folder,
        name=folder.resolve().name,
        config=_parse_config(configuration, notes) if configuration else None,
        configuration=configuration,
        environment=environment,
        metrics=read_metrics(RunFolder(curves).metrics),
        results=_read_results(RunFolder(folder).results, notes),
        more_results=_more_results(folder, str(facts.get("encoder"))),
        facts=facts,
        notes=tuple(notes),
    )


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """Read a JSON object; returns an empty one and adds a note if that fails."""
    content = None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read ({error}).")
    return content if isinstance(content, dict) else {}


def _parse_config(configuration: dict[str, Any], notes: list[str]) -> RunConfig | None:
    """Parse a configuration, ignoring keys of another version; adds a note about them."""
    sections = {field.name: field.default_factory for field in dataclasses.fields(RunConfig)}
    known: dict[str, Any] = {}
    dropped = []
    for name, values in configuration.items():
        if name not in sections or not isinstance(values, dict):
            dropped.append(name)
            continue
        keys = {field.name for field in dataclasses.fields(sections[name]())}  # type: ignore[operator]
        known[name] = {key: value for key, value in values.items() if key in keys}
        dropped += [f"{name}.{key}" for key in values if key not in keys]
    if dropped:
        notes.append(f"Options of another version of crossdistill are ignored: {', '.join(dropped)}.")
    try:
        return from_dict(known, source="config.json")
    except UserError as error:
        notes.append(f"The configuration is of another version of crossdistill ({error}).")
        return None


def read_metrics(path: Path) -> tuple[MetricsLine, ...]:
    """Read the finite numbers of every complete line; returns no line if there is no file."""
    if not path.is_file():
        return ()
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # a killed run leaves an incomplete last line
        if isinstance(values, dict):
            lines.append({k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)})
    return tuple(line for line in lines if "step" in line)


def _read_results(path: Path, notes: list[str]) -> dict[str, dict[str, Evaluation]]:
    found: dict[str, dict[str, Evaluation]] = {}
    for dataset, by_role in (_read_json(path, notes) if path.is_file() else {}).items():
        for role, values in by_role.items() if isinstance(by_role, dict) else ():
            try:
                found.setdefault(dataset, {})[role] = read_evaluation(values)
            except UserError as error:
                notes.append(f"{path.name}: the results of {role} cannot be read: {error}.")
    return found


def _more_results(folder: Path, encoder: str) -> tuple[Evaluation, ...]:
    """Read evaluations of this student that lie beside ``results.json``, and ignore all other files."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = _read_json(path, [])
        if content.get("format") != SCHEMA_FORMAT or content.get("encoder") != encoder:
            continue
        try:
            found.append(read_evaluation(content))
        except UserError:
            continue  # written by a newer version
    return tuple(found)
