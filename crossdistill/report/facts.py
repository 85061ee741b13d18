"""Facts about a run: its configuration, its student, and the machine and versions."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from crossdistill.recipes.checks import standardization_of, terms_of
from crossdistill.recipes.config import RunConfig
from crossdistill.recipes.recorded_teachers import recorded_teachers
from crossdistill.report.page import render
from crossdistill.report.record import RunRecord, UnavailableError

Pairs = list[tuple[str, str]]  # names and values


def run_facts(record: RunRecord) -> Markup:
    """Render the facts in groups, and the complete configuration in a fold-out."""
    groups = {
        "Training": _training_facts(record),
        "Student": _student_facts(record),
        "Machine and versions": _environment_facts(record.environment),
    }
    filled = {title: [(name, value) for name, value in pairs if value] for title, pairs in groups.items()}
    shown = [(title, pairs) for title, pairs in filled.items() if pairs]
    if not shown:
        raise UnavailableError("neither config.json nor student.json can be read.")
    configuration = json.dumps(record.configuration, indent=2, ensure_ascii=False) if record.configuration else ""
    return render("facts.html", groups=shown, configuration=configuration)


def _objective(config: RunConfig) -> str:
    """Return the terms of the loss, how the teacher is standardised, and the size of the bank if there is one."""
    standardized = standardization_of(config)
    scale = "" if standardized == "none" else f", standardized: {standardized}"
    has_bank = any(term.objective.student_anchors is not None for term in terms_of(config))
    bank = f", bank size {config.objective.bank_size}" if has_bank else ""
    return " + ".join(config.objective.objective) + scale + bank


def _training_facts(record: RunRecord) -> Pairs:
    config = record.config
    if config is None:
        return []
    options = config.optimization
    optimizer = f"{options.optimizer}, lr {options.lr:g}"
    objective = "cross-entropy with labels" if record.is_supervised else _objective(config)
    recorded = [f"{one.weights} (hash {one.weights_sha256})" for one in recorded_teachers(record.training)]
    return [
        ("teacher", record.origin or "none (labels)"),
        ("teacher weights", "" if record.is_supervised else ", ".join(recorded or config.pair.teacher_weights)),
        ("objective", objective),
        ("datasets", ", ".join(str(path) for path in config.data.data) or "toyactions"),
        ("split", config.data.split),
        ("epochs", f"{options.epochs}, batch size {options.clips_per_batch * options.accumulate}"),
        ("optimizer", f"{optimizer}, {options.schedule}, weight decay {options.weight_decay:g}"),
        ("seed", str(config.machine.seed)),
    ]


def _student_facts(record: RunRecord) -> Pairs:
    facts = record.facts
    view, training = facts.get("view", {}), record.training
    clips, unreadable = training.get("num_clips"), training.get("num_unreadable", 0)
    steps, seconds = training.get("steps"), float(training.get("seconds", 0))
    return [
        ("encoder", str(facts.get("encoder", ""))),
        ("view", "{num_frames} frames, stride {stride}, {size_px} px".format(**view) if view else ""),
        ("features", str(facts.get("embed_dim", ""))),
        ("bits", str(facts.get("quantize") or "")),
        ("training clips", "" if clips is None else f"{clips}, {unreadable} unreadable"),
        ("steps", "" if steps is None else f"{steps} in {_duration(seconds)}"),
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _environment_facts(environment: dict[str, Any]) -> Pairs:
    rest = [key for key in environment if key not in ("cpu", "num_cpu_cores", "gpus", "git_commit")]
    cpu, num_cores = environment.get("cpu"), environment.get("num_cpu_cores", "?")
    gpus = ", ".join(map(str, environment.get("gpus") or ["none"]))
    return [
        ("CPU", f"{cpu}, {num_cores} {'core' if num_cores == 1 else 'cores'}" if cpu else ""),
        ("GPU", gpus if environment else ""),
        ("commit", str(environment.get("git_commit") or "")),
        *((key, str(environment[key])) for key in rest if environment[key] is not None),
    ]


def headline(record: RunRecord) -> str:
    """Return one sentence: the student, the dataset and the teacher."""
    facts = record.training
    datasets = ", ".join(facts.get("datasets", [])) or ", ".join(path.name for path in record.datasets)
    where = f" on {datasets}" if datasets else ""
    if record.is_supervised:
        return f"{record.encoder}, trained{where} with labels."
    if not record.teachers:
        return f"{record.encoder}{where}."
    if record.teachers == "self":
        return f"{record.encoder}, trained{where} by its own EMA copy, without labels."
    return f"{record.encoder}, distilled{where} from {record.origin}."
