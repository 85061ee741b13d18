"""What was run, and how it went: configuration, versions, hardware, curves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from crossdistill.report.charts import Series, colour_of, line_chart
from crossdistill.report.page import render
from crossdistill.report.record import AbsentError, Row, RunRecord
from crossdistill.report.svg import element, percent, short_number

LR, KNN, SPEED = "lr", "knn", "clips_per_second"
SHARES = (KNN, "accuracy")
NOT_LOSSES = ("step", LR, SPEED, "bank_fill", "grad_norm", *SHARES)
SHARE_NAMES = {KNN: "1-NN of held-out clips", "accuracy": "right training clips"}

Pairs = list[tuple[str, str]]


def what_was_run(record: RunRecord) -> Markup:
    """Facts in groups, and the whole configuration to unfold."""
    groups = [
        ("Training", _training_facts(record)),
        ("Student", _student_facts(record)),
        ("Machine and versions", _environment_facts(record)),
    ]
    shown = [(title, pairs) for title, pairs in groups if pairs]
    if not shown:
        raise AbsentError("neither config.json nor student.json can be read.")
    configuration = json.dumps(record.configuration, indent=2, ensure_ascii=False) if record.configuration else ""
    return render("facts.html", groups=shown, configuration=configuration)


def _training_facts(record: RunRecord) -> Pairs:
    config = record.config
    if config is None:
        return []
    options = config.optimization
    bank = f", bank of {config.objective.bank_size}"
    objective = "cross-entropy with labels" if record.is_supervised else " + ".join(config.objective.objective) + bank
    pairs = [
        ("taught by", record.teachers or "labels"),
        ("weights", "" if record.is_supervised else ", ".join(config.pair.teacher_weights)),
        ("objective", objective),
        ("datasets", ", ".join(str(path) for path in config.data.data) or "toyactions"),
        ("split", config.data.split),
        ("epochs", f"{options.epochs}, batches of {options.batch_size * options.accumulate}"),
        ("optimizer", f"{options.optimizer}, rate {options.lr:g}, {options.schedule}, decay {options.weight_decay:g}"),
        ("seed", str(config.machine.seed)),
    ]
    return [(name, value) for name, value in pairs if value]


def _student_facts(record: RunRecord) -> Pairs:
    facts = record.facts
    view, training = facts.get("view", {}), facts.get("training", {})
    pairs: Pairs = [("network", str(facts.get("encoder", "")))]
    if view:
        pairs.append(("sees", f"{view['num_frames']} frames, every {_ordinal(view['stride'])}, {view['size_px']} px"))
    if "embed_dim" in facts:
        pairs.append(("features", str(facts["embed_dim"])))
    if facts.get("quantize"):
        pairs.append(("precision", str(facts["quantize"])))
    if "num_clips" in training:
        pairs.append(("learned from", f"{training['num_clips']} clips, {training.get('num_unreadable', 0)} unreadable"))
    if "steps" in training:
        pairs.append(("steps", f"{training['steps']} in {_duration(float(training.get('seconds', 0)))}"))
    return [(name, value) for name, value in pairs if value]


def _ordinal(number: int) -> str:
    names = {1: "one", 2: "2nd", 3: "3rd"}
    return names.get(number, f"{number}th")


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


def curves(record: RunRecord) -> Markup:
    """Losses, held-out accuracy, learning rate and speed over steps."""
    rows = record.metrics
    if not rows:
        raise AbsentError("the run has no metrics.jsonl with a whole line.")
    charts = [
        _chart("Loss and its terms", rows, _losses(rows)),
        _chart("Accuracy while training", rows, [key for key in SHARES if _has(rows, key)], is_share=True),
        _chart("Learning rate", rows, [LR]),
        _chart("Clips per second", rows, [SPEED]),
    ]
    return element("div", *(chart for chart in charts if chart is not None), class_="pictures")


def _losses(rows: Sequence[Row]) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row if key not in NOT_LOSSES)
    terms = [key for key in keys if key != "loss"]
    # One term alone is the loss itself.
    return ["loss", *terms] if len(terms) > 1 else ["loss"] if "loss" in keys else terms


def _has(rows: Iterable[Row], key: str) -> bool:
    return any(key in row for row in rows)


def _chart(title: str, rows: Sequence[Row], keys: Sequence[str], *, is_share: bool = False) -> Markup | None:
    series = [
        Series(SHARE_NAMES.get(key, key), *points_of(rows, key), colour_of(i))
        for i, key in enumerate(keys)
        if _has(rows, key)
    ]
    if not series:
        return None
    y_format = _whole_percent if is_share else short_number
    return line_chart(series, title=title, x_label="step", y_format=y_format)


def _whole_percent(share: float) -> str:
    return percent(share, 0)


def points_of(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the lines that have a key."""
    chosen = [row for row in rows if key in row]
    return [row["step"] for row in chosen], [row[key] for row in chosen]


def headline(record: RunRecord) -> str:
    """One sentence: who learned what from whom."""
    facts: dict[str, Any] = record.facts.get("training", {})
    datasets = ", ".join(facts.get("datasets", [])) or ", ".join(path.name for path in record.datasets)
    where = f" on {datasets}" if datasets else ""
    if record.is_supervised:
        return f"{record.encoder} learned{where} from labels."
    if not record.teachers:
        return f"{record.encoder}{where}."
    if record.teachers == "self":
        return f"{record.encoder} learned{where} from its own EMA copy, without labels."
    return f"{record.encoder} learned{where} from {record.teachers}."
