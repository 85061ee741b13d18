"""The model card of a student or a teacher cache: a README.md with a YAML head, written from what is known of it.

What only a person knows is marked with ``FILL_IN``: the licence, and what the network may be used for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crossdistill.distillation.teacher_cache import TeacherCache
from crossdistill.encoders import Encoder
from crossdistill.errors import require_package
from crossdistill.evaluation.results import Evaluation
from crossdistill.publish.plain_paths import without_folders
from crossdistill.recipes.recorded_teachers import recorded_teachers
from crossdistill.report.facts import headline
from crossdistill.report.record import RunRecord, short_name
from crossdistill.report.tables import accuracies_of, row_names, title_of

FILL_IN = "FILL IN"
_TASKS = {  # whether the network sees clips, whether it names classes → the hub's name of the task
    (True, True): "video-classification",
    (True, False): "feature-extraction",
    (False, True): "image-classification",
    (False, False): "image-feature-extraction",
}
_MAX_LISTED_CLASSES = 30


@dataclass(frozen=True)
class CardOptions:
    """What the card says besides the contents of the run."""

    place: str
    """Name of the repository."""
    license: str | None = None
    """Identifier of the licence, as the hub spells it; to be filled in if None."""
    library: str = "crossdistill"
    """Library that loads the repository's main files."""
    how_to_load: str = ""
    """Markdown: further ways to load it."""


def student_card(record: RunRecord, encoder: Encoder, options: CardOptions) -> str:
    """Return the card of a student.

    Args:
        record: The run, or the student's folder alone: then the parts on the run say that nothing is known.
        encoder: The student.
        options: What else the card says.
    """
    evaluations = _evaluations(record)
    sections = [
        f"# {options.place.partition('/')[2]}",
        headline(record),
        "## Use",
        _use(record, encoder, options),
        "## Network",
        _table(("what", "value"), _network_rows(record, encoder)),
        "## Training",
        _training(record),
        "## Numbers",
        _numbers(evaluations),
        "## Intended use and limits",
        _intended_use(record, encoder),
        "## Licence",
        _licence(record, options),
    ]
    if record.configuration:
        text = json.dumps(without_folders(record.configuration), indent=2, ensure_ascii=False)
        sections += [
            "## Configuration",
            f"<details><summary>all options</summary>\n\n```json\n{text}\n```\n\n</details>",
        ]
    return _head(record, encoder, evaluations, options) + "\n" + "\n\n".join(sections) + "\n"


def cache_card(caches: Sequence[TeacherCache], options: CardOptions) -> str:
    """Return the card of a teacher cache, of one or several teachers."""
    first, modalities = caches[0], dict.fromkeys(cache.teacher_view.modality for cache in caches)
    hub = require_package("huggingface_hub", target="the card", extra="hf")
    data = hub.DatasetCardData(license=options.license, tags=["crossdistill", "embeddings", *modalities])
    rows = []
    for cache in caches:
        key, view = cache.key, cache.teacher_view
        rows += [
            ("teacher", short_name(str(key["teacher"]))),
            ("input", f"{view.modality}, {view.size_text}, stride {view.stride}"),
            ("embeddings", f"{cache.content_text}, computed in {key['precision']}"),
        ]
    rows += [
        ("clips", f"{first.num_clips} of split {first.key['split']}, {first.num_augmentations} augmentations each"),
        ("digest of the clips", str(first.key.get("content") or first.key["dataset"])),
    ]
    sections = [
        f"# {options.place.partition('/')[2]}",
        "Embeddings of a teacher on the training clips of a dataset: a student learns from them without the teacher.",
        "## Use",
        f"```bash\ncrossdistill train --teacher-cache {options.place} --student … --data …\n```",
        "A run compares the clips of its dataset with those of the cache, and stops if they differ.",
        "## Contents",
        _table(("what", "value"), rows),
        "## Licence",
        f"Licence of these files: {options.license or FILL_IN}. They are made of a dataset by a network: the terms of "
        f"both apply ({FILL_IN}).",
    ]
    return _yaml(data) + "\n" + "\n\n".join(sections) + "\n"


def _head(
    record: RunRecord, encoder: Encoder, evaluations: Sequence[tuple[str, Evaluation]], options: CardOptions
) -> str:
    """Return the YAML head. Its ``model-index`` has the accuracies of the trained student."""
    hub = require_package("huggingface_hub", target="the card", extra="hf")
    task = _TASKS[encoder.view.kind.has_time, encoder.classifier is not None]
    results = [
        hub.EvalResult(
            task_type="video-classification" if encoder.view.kind.has_time else "image-classification",
            dataset_type=evaluation.dataset,
            dataset_name=evaluation.dataset,
            dataset_split=f"split {evaluation.split}, test",
            metric_type="accuracy",
            metric_name=f"{title_of(name)}, top-1 in %"
            + (f" (95% interval {accuracy.note})" if accuracy.interval else ""),
            metric_value=round(100 * accuracy.value, 2),
        )
        for role, evaluation in evaluations
        if role == record.role
        for name, accuracy in accuracies_of(evaluation).items()
    ]
    tags = ["crossdistill", encoder.view.modality, "video" if encoder.view.kind.has_time else "image"]
    tags += [] if record.is_supervised or not record.teachers else ["knowledge-distillation"]
    tags += [encoder.bits] if encoder.bits else []
    data = hub.ModelCardData(
        library_name=options.library,
        tags=tags,
        pipeline_tag=task,
        license=options.license,
        model_name=options.place.partition("/")[2],
        eval_results=results or None,
    )
    return _yaml(data)


def _yaml(data: Any) -> str:
    licence = "" if data.license else f"# license: {FILL_IN}, for example apache-2.0\n"
    return f"---\n{licence}{data.to_yaml()}\n---\n"


def _evaluations(record: RunRecord) -> list[tuple[str, Evaluation]]:
    """Return all evaluations of the run, each with its role."""
    own = [(role, evaluation) for by_role in record.results.values() for role, evaluation in by_role.items()]
    return own + [(record.role, evaluation) for evaluation in record.more_results]


def _use(record: RunRecord, encoder: Encoder, options: CardOptions) -> str:
    given = ", allow_code=True" if ".py:" in encoder.name else ""
    code = [
        "import crossdistill",
        f'student = crossdistill.load_student("{options.place}"{given})',
        "features = student(clips)  # [B, C, T, H, W], normalised → " + f"[B, {encoder.embed_dim}]",
    ]
    if encoder.classifier is not None:
        code.append("student.classifier  # weight and bias of the linear layer from features to classes")
    parts = ["```python\n" + "\n".join(code) + "\n```"]
    # Without classes, the nearest clips of a dataset are the answer.
    data = "" if encoder.classifier is not None else " --data DATASET"
    parts.append(f"```bash\ncrossdistill predict {options.place} video.mp4{data}\n```")
    if given:
        parts.append(
            f"The network is built by `{short_name(encoder.name)}`, which is not part of this repository: get that "
            "file, read it, and only then allow it to run."
        )
    return "\n\n".join([*parts, *([options.how_to_load.strip()] if options.how_to_load else [])])


def _network_rows(record: RunRecord, encoder: Encoder) -> list[tuple[str, str]]:
    view = encoder.view
    classes = record.facts.get("classes") or []
    names = ", ".join(classes) if len(classes) <= _MAX_LISTED_CLASSES else "in student.json"
    num_classes = 0 if encoder.classifier is None else len(encoder.classifier.bias)
    rows = [
        ("architecture", f"`{short_name(encoder.name)}`, {encoder.num_parameters:,} parameters"),
        ("bits", encoder.bits or ""),
        ("input", f"{view.modality}, {view.size_text}, stride {view.stride}"),
        ("output", f"{encoder.embed_dim} features"),
        ("classes", f"{num_classes}{f': {names}' if names else ''}" if num_classes else ""),
    ]
    return [row for row in rows if row[1]]


def _training(record: RunRecord) -> str:
    config, training = record.config, record.training
    objectives = training.get("objective") or ([] if config is None else config.objective.objective)
    rows = [
        ("datasets", ", ".join(training.get("datasets", [])) or ", ".join(path.name for path in record.datasets)),
        (
            "clips",
            f"{training['num_clips']}, {training.get('num_unreadable', 0)} unreadable"
            if "num_clips" in training
            else "",
        ),
        ("split", str(training.get("split") or record.split)),
        ("objective", "cross-entropy with labels" if record.is_supervised else " + ".join(objectives)),
    ]
    for teacher in recorded_teachers(training):
        weights = f"weights `{without_folders(teacher.weights)}`, hash `{teacher.weights_sha256}`"
        rows.append(("teacher", f"`{short_name(teacher.name)}`, {weights}"))
    if config is not None:
        options = config.optimization
        batch = options.clips_per_batch * options.accumulate
        rows.append(("optimizer", f"{options.optimizer}, learning rate {options.lr:g}, {options.schedule}"))
        rows.append(("length", f"{options.epochs} epochs of batches of {batch}, {training.get('steps', '?')} steps"))
        rows.append(("seed", str(config.machine.seed)))
    environment = record.environment
    software = [
        f"{name} {environment[name]}" for name in ("crossdistill", "torch", "torchvision") if name in environment
    ]
    rows.append(("software", ", ".join(software)))
    machine = [str(gpu) for gpu in environment.get("gpus") or [environment.get("cpu", "")]]
    rows.append(("machine", ", ".join(filter(None, machine))))
    return _table(("what", "value"), [row for row in rows if row[1]])


def _numbers(evaluations: Sequence[tuple[str, Evaluation]]) -> str:
    """Return a table of accuracies for each dataset and split and, of runs without labels, the agreement."""
    by_set: dict[str, list[tuple[str, Evaluation]]] = {}
    for role, evaluation in evaluations:
        if evaluation.results:
            place = f"{evaluation.dataset}, split {evaluation.split}, {evaluation.num_test} test clips"
            by_set.setdefault(place, []).append((role, evaluation))
    parts = [_accuracy_table(place, found) for place, found in by_set.items()]
    pairs = [pair for _, evaluation in evaluations for pair in evaluation.agreement]
    if pairs:
        rows = [
            (
                " and ".join(pair.students),
                _with_interval(f"{pair.overlap:.3f}", pair.overlap_interval, "{:.3f}–{:.3f}"),
                f"{pair.chance_overlap:.3f}",
                f"{pair.cka:.3f}",
                str(pair.num_test),
            )
            for pair in pairs
        ]
        heads = ("networks", f"overlap of {pairs[0].k} neighbours", "by chance", "CKA", "clips")
        parts.append(_table(heads, rows))
    bootstrap = next((evaluation.bootstrap for _, evaluation in evaluations if evaluation.bootstrap), None)
    if bootstrap is not None:
        parts.append(
            f"In parentheses: {bootstrap.level:.0%} intervals, bootstrap of {bootstrap.num_draws} draws over "
            f"{bootstrap.num_units} {bootstrap.unit}s of the test set. They do not contain the variation between seeds."
        )
    seen = max((evaluation.num_test_seen for _, evaluation in evaluations), default=0)
    if seen:
        parts.append(f"{seen} test clips were seen in training: such numbers are no test results.")
    return "\n\n".join(parts) or "The run was not evaluated."


def _accuracy_table(place: str, evaluations: Sequence[tuple[str, Evaluation]]) -> str:
    """Return top-1 accuracies: a row for each protocol, a column for each network."""
    columns = [accuracies_of(evaluation) for _, evaluation in evaluations]
    heads = [place, *(f"{role}: `{short_name(evaluation.encoder)}`" for role, evaluation in evaluations)]
    rows = []
    for name in row_names(evaluation for _, evaluation in evaluations):
        cells = [column.get(name) for column in columns]
        texts = ["" if c is None else f"{100 * c.value:.1f}{f' ({c.note})' if c.note else ''}" for c in cells]
        rows.append([f"{title_of(name)}, top-1 in %", *texts])
    return _table(heads, rows)


def _intended_use(record: RunRecord, encoder: Encoder) -> str:
    view = encoder.view
    what = f"{'clips' if view.kind.has_time else 'pictures'} of {view.modality}"
    aim = (
        "features and classes" if encoder.classifier is not None else "features, for retrieval or a classifier on them"
    )
    datasets = ", ".join(record.training.get("datasets", [])) or "the training dataset"
    return "\n".join(
        [
            f"- The network turns {what} into {aim}. Intended for: {FILL_IN}.",
            f"- It was trained on {datasets}, and the numbers above are measured there alone. Other cameras, people, "
            "places and classes were not tested.",
            "- What the teachers and the training videos have wrong, the student can have wrong too.",
            f"- Not intended for: {FILL_IN} (for example decisions about single people).",
        ]
    )


def _licence(record: RunRecord, options: CardOptions) -> str:
    lines = [f"- These weights: {options.license or FILL_IN}."]
    lines += [
        f"- Teacher `{short_name(teacher.name)}`, weights `{without_folders(teacher.weights)}`: {FILL_IN} (its licence "
        "may bind students)."
        for teacher in recorded_teachers(record.training)
    ]
    lines += [f"- Dataset {name}: {FILL_IN} (its terms)." for name in record.training.get("datasets", [])]
    return "\n".join([*lines, f"- Contact: {FILL_IN}."])


def _with_interval(value: str, interval: tuple[float, float] | None, form: str) -> str:
    return value if interval is None else f"{value} ({form.format(*interval)})"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
