"""Facts about a run: its configuration, its student, and the machine and versions."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from crossdistill.report.page import render
from crossdistill.report.record import RunRecord, UnavailableError

Pairs = list[tuple[str, str]]  # names and values


def run_facts(record: RunRecord) -> Markup:
    """Render the facts in groups, and the complete configuration in a fold-out."""
    groups = [
        ("Training", _training_facts(record)),
        ("Student", _student_facts(record)),
        ("Machine and versions", _environment_facts(record)),
    ]
    shown = [(title, pairs) for title, pairs in groups if pairs]
    if not shown:
        raise UnavailableError("neither config.json nor student.json can be read.")
    configuration = json.dumps(record.configuration, indent=2, ensure_ascii=False) if record.configuration else ""
    return render("facts.html", groups=shown, configuration=configuration)


def _training_facts(record: RunRecord) -> Pairs:
    config = record.config
    if config is None:
        return []
    options = config.optimization
    bank, optimizer = f", bank size {config.objective.bank_size}", f"{options.optimizer}, lr {options.lr:g}"
    objective = "cross-entropy with labels" if record.is_supervised else " + ".join(config.objective.objective) + bank
    pairs = [
        ("teacher", record.teachers or "none (labels)"),
        ("teacher weights", "" if record.is_supervised else ", ".join(config.pair.teacher_weights)),
        ("objective", objective),
        ("datasets", ", ".join(str(path) for path in config.data.data) or "toyactions"),
        ("split", config.data.split),
        ("epochs", f"{options.epochs}, batch size {options.batch_size * options.accumulate}"),
        ("optimizer", f"{optimizer}, {options.schedule}, weight decay {options.weight_decay:g}"),
        ("seed", str(config.machine.seed)),
    ]
    return [(name, value) for name, value in pairs if value]


def _student_facts(record: RunRecord) -> Pairs:
    facts = record.facts
    view, training = facts.get("view", {}), facts.get("training", {})
    pairs: Pairs = [("encoder", str(facts.get("encoder", "")))]
    if view:
        pairs.append(("view", f"{view['num_frames']} frames, stride {view['stride']}, {view['size_px']} px"))
    if "embed_dim" in facts:
        pairs.append(("features", str(facts["embed_dim"])))
    if facts.get("quantize"):
        pairs.append(("bits", str(facts["quantize"])))
    if "num_clips" in training:
        pairs.append(("training clips", f"{training['num_clips']}, {training.get('num_unreadable', 0)} unreadable"))
    if "steps" in training:
        pairs.append(("steps", f"{training['steps']} in {_duration(float(training.get('seconds', 0)))}"))
    return [(name, value) for name, value in pairs if value]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _environment_facts(record: RunRecord) -> Pairs:
    environment = record.environment
    gpus = environment.get("gpus") or []
    rest = [key for key in environment if key not in ("cpu", "num_cpu_cores", "gpus", "git_commit")]
    pairs: Pairs = []
    if "cpu" in environment:
        num_cores = environment.get("num_cpu_cores", "?")
        pairs.append(("CPU", f"{environment['cpu']}, {num_cores} {'core' if num_cores == 1 else 'cores'}"))
    if environment:
        pairs.append(("GPU", ", ".join(map(str, gpus)) or "none"))
    if environment.get("git_commit"):
        pairs.append(("commit", str(environment["git_commit"])))
    return pairs + [(key, str(environment[key])) for key in rest if environment[key] is not None]


def headline(record: RunRecord) -> str:
    """Return one sentence: the student, the dataset and the teacher."""
    facts: dict[str, Any] = record.facts.get("training", {})
    datasets = ", ".join(facts.get("datasets", [])) or ", ".join(path.name for path in record.datasets)
    where = f" on {datasets}" if datasets else ""
    if record.is_supervised:
        return f"{record.encoder}, trained{where} with labels."
    if not record.teachers:
        return f"{record.encoder}{where}."
    if record.teachers == "self":
        return f"{record.encoder}, trained{where} by its own EMA copy, without labels."
    return f"{record.encoder}, distilled{where} from {record.teachers}."
