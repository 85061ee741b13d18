"""What a run's folder holds, read without failing over what is lost or of an earlier version."""

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
from crossdistill.recipes.config import RunConfig, from_dict
from crossdistill.training.run_folder import RunFolder

DISTILLED, SUPERVISED = "student, distilled", "student, supervised"
Row = dict[str, float]
"""Name to value of one line of ``metrics.jsonl``."""


def short_name(encoder: str) -> str:
    """An encoder's name without the folders of the Python file that builds it."""
    return Path(encoder).name if is_from_file(encoder) else encoder


class AbsentError(Exception):
    """A part of the page cannot be there; the message is the sentence that stands in its place."""


@dataclass(frozen=True)
class RunRecord:
    """A run as its folder describes it."""

    folder: Path
    name: str
    config: RunConfig | None
    """None where it is lost or cannot be understood."""
    configuration: dict[str, Any]
    """As it was written."""
    environment: dict[str, Any]
    metrics: tuple[Row, ...]
    results: dict[str, dict[str, Evaluation]]
    """Dataset's folder to role to evaluation."""
    more_results: tuple[Evaluation, ...]
    """Of the trained student: what ``crossdistill evaluate --json`` left in the folder."""
    facts: dict[str, Any]
    """``student.json``."""
    notes: tuple[str, ...]
    """What could not be read, in sentences."""

    @property
    def student(self) -> Path | None:
        """The folder with the student's weights, if there is one."""
        return find_student(self.folder)

    @property
    def is_supervised(self) -> bool:
        """Whether it learned from labels."""
        if self.config is not None:
            return self.config.pair.supervised
        return bool(self.facts.get("training", {}).get("supervised", False))

    @property
    def role(self) -> str:
        """What ``results.json`` calls the student that was trained; of several rounds the last."""
        trained = SUPERVISED if self.is_supervised else DISTILLED
        roles = [role for by_role in self.results.values() for role in by_role if role.startswith(trained)]
        rounds = [role for role in roles if role.startswith(f"{trained}, round")]
        return max(rounds, key=lambda role: int(role.rpartition(" ")[2]), default=trained)

    @property
    def encoder(self) -> str:
        """The student's network, as far as it is known."""
        configured = None if self.config is None else self.config.pair.student
        return short_name(str(self.facts.get("encoder") or configured or "a student"))

    @property
    def teachers(self) -> str:
        """Their names in words; empty if it learned from labels."""
        return "" if self.config is None else " and ".join(short_name(name) for name in self.config.pair.teacher)

    @property
    def datasets(self) -> tuple[Path, ...]:
        """The folders of the datasets that it learned from, as they were named then."""
        configured = () if self.config is None else self.config.data.data
        return configured or tuple(Path(path) for path in self.results)


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder; of self-distillation in rounds the curves are those of the last round.

    Raises:
        UserError: It is no run's folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give a run's folder, as train.py --out names it")
    rounds = sorted(folder.glob("round-*"), key=lambda path: path.name.zfill(40))
    inside = rounds[-1] if rounds and not RunFolder(folder).config.is_file() else folder
    files = (RunFolder(inside).config, RunFolder(folder).results)
    if not any(path.is_file() for path in files) and find_student(folder) is None:
        raise UserError(
            f"{folder} is not a run's folder (no config.json, no results.json, no student): give the folder that "
            "train.py --out names"
        )
    notes: list[str] = []
    curves = folder if RunFolder(folder).metrics.is_file() or not rounds else rounds[-1]
    if curves is not folder:
        notes.append(f"Curves are those of {curves.name}.")
    written = _read_json(RunFolder(inside).config, notes)
    configuration, environment = (_section(written, key) for key in ("configuration", "environment"))
    student = find_student(folder)
    facts = {} if student is None else _read_json(student / FACTS_NAME, notes)
    return RunRecord(
        folder=folder,
        name=folder.resolve().name,
        config=_understood(configuration, notes) if configuration else None,
        configuration=configuration,
        environment=environment,
        metrics=read_metrics(RunFolder(curves).metrics),
        results=_read_results(RunFolder(folder).results, notes),
        more_results=_more_results(folder, str(facts.get("encoder"))),
        facts=facts,
        notes=tuple(notes),
    )


def _read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """An object of a file; empty with a note where there is none."""
    if not path.is_file():
        notes.append(f"There is no {path.name}.")
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read ({error}).")
        return {}
    return content if isinstance(content, dict) else {}


def _section(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _understood(configuration: dict[str, Any], notes: list[str]) -> RunConfig | None:
    """The configuration without keys of another version, which are noted."""
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
        notes.append(f"Options of another version of crossdistill are not looked at: {', '.join(dropped)}.")
    try:
        return from_dict(known, source="config.json")
    except UserError as error:
        notes.append(f"The configuration is of another version of crossdistill ({error}).")
        return None


def read_metrics(path: Path) -> tuple[Row, ...]:
    """The finite numbers of every whole line; empty without a file."""
    if not path.is_file():
        return ()
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # a line that a kill cut short
        if isinstance(values, dict) and "step" in values:
            rows.append({k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)})
    return tuple(row for row in rows if "step" in row)


def _read_results(path: Path, notes: list[str]) -> dict[str, dict[str, Evaluation]]:
    found: dict[str, dict[str, Evaluation]] = {}
    for dataset, by_role in (_read_json(path, notes) if path.is_file() else {}).items():
        for role, values in by_role.items() if isinstance(by_role, dict) else ():
            try:
                found.setdefault(dataset, {})[role] = read_evaluation(values)
            except UserError as error:
                notes.append(f"Of {path.name} the results of the {role} are left out: {error}.")
    return found


def _more_results(folder: Path, encoder: str) -> tuple[Evaluation, ...]:
    """Evaluations of this student that lie beside ``results.json``; anything else in the folder is passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = _read_json(path, [])
        if content.get("format") != SCHEMA_FORMAT or content.get("encoder") != encoder:
            continue
        try:
            found.append(read_evaluation(content))
        except UserError:
            continue  # of a newer version: what is shown is what can be understood
    return tuple(found)
