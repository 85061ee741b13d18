"""Tables of an evaluation as CSV files: confusion matrix and accuracy of each class by protocol, and robustness.

Shapes: B test clips, C classes.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.evaluation.protocols.robustness import absolute_robustness, group_of, relative_robustness
from crossdistill.evaluation.results import TOP1, Evaluation, Outcome, ProtocolResult
from crossdistill.evaluation.tables import short_names
from crossdistill.utils.files import write_text_atomically

CLASS_COLUMNS = ("class", "num_test", "num_predicted", "num_right", "recall", "precision", "f1")
ROBUSTNESS_COLUMNS = (
    "group",
    "family",
    "severity",
    "top1",
    "low",
    "high",
    "absolute_robustness",
    "relative_robustness",
)


def write_tables(evaluation: Evaluation, folder: Path, classes: Sequence[str]) -> list[Path]:
    """Write the tables of one split into a folder, those of several students and splits into folders inside it.

    ``<protocol>-confusion.csv`` has the number of clips by true class (row) and predicted class (column);
    ``<protocol>-classes.csv`` has recall, precision and F1 of each class; both for protocols that predict a class.
    ``robustness.csv`` has a row for each family and severity. A mean of splits has only the last.

    Args:
        evaluation: As ``evaluate_students`` returns it, with outcomes.
        folder: Made if it does not exist.
        classes: Names of the classes.

    Returns:
        The files.
    """
    written = []
    for name, student in zip(
        short_names(list(evaluation.students)).values(), evaluation.students.values(), strict=True
    ):
        written += write_tables(student, folder / file_name(name), classes)
    for split, of_split in evaluation.splits.items():
        written += write_tables(of_split, folder / f"split-{file_name(split)}", classes)
    for name, result in evaluation.results.items():
        stem = folder / file_name(name)
        if "families" in result.details:
            written.append(_write(stem.with_name(f"{stem.name}.csv"), ROBUSTNESS_COLUMNS, robustness_rows(result)))
        outcome = result.outcome
        if isinstance(outcome, Outcome) and outcome.predicted_b is not None:
            counts_cc = confusion_counts(outcome.labels_b, outcome.predicted_b, len(classes))
            rows = [(own, *counts.tolist()) for own, counts in zip(classes, counts_cc, strict=True)]
            written.append(_write(stem.with_name(f"{stem.name}-confusion.csv"), ("true class", *classes), rows))
            table = class_rows(counts_cc, classes)
            written.append(_write(stem.with_name(f"{stem.name}-classes.csv"), CLASS_COLUMNS, table))
    return written


def confusion_counts(labels_b: Tensor, predicted_b: Tensor, num_classes: int) -> NDArray[np.int64]:
    """Count clips [C, C] by true class (row) and predicted class (column)."""
    counts_cc = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts_cc, (labels_b.numpy(), predicted_b.numpy()), 1)
    return counts_cc


def class_rows(counts_cc: NDArray[np.int64], classes: Sequence[str]) -> list[tuple[str | int | float, ...]]:
    """Compute ``CLASS_COLUMNS`` of every class; a share of no clips is 0.

    Example:
        >>> class_rows(np.array([[3, 1], [2, 2]]), ["open", "close"])[0]
        ('open', 4, 5, 3, 0.75, 0.6, 0.6666666666666666)
    """
    rows: list[tuple[str | int | float, ...]] = []
    for i, name in enumerate(classes):
        num_right, num_test, num_predicted = int(counts_cc[i, i]), int(counts_cc[i].sum()), int(counts_cc[:, i].sum())
        recall, precision = num_right / max(1, num_test), num_right / max(1, num_predicted)
        f1 = 2 * num_right / max(1, num_test + num_predicted)
        rows.append((name, num_test, num_predicted, num_right, recall, precision, f1))
    return rows


def robustness_rows(result: ProtocolResult) -> list[tuple[str | float | None, ...]]:
    """List ``ROBUSTNESS_COLUMNS``: the clean clips, every family and severity, and the mean of every family."""
    clean = result.details["clean_top1"]
    rows: list[tuple[str | float | None, ...]] = [("", "clean", "", clean, None, None, 1.0, 1.0 if clean else None)]
    for family, found in result.details["families"].items():
        by_severity = {**found["top1"], "mean": found["mean_top1"]}
        for severity, top1 in by_severity.items():
            measure = family if severity == "mean" else f"{family}-{severity}"
            ends = result.intervals.get(measure, (None, None))
            shares = (absolute_robustness(clean, top1), relative_robustness(clean, top1))
            rows.append((group_of(family), family, severity, top1, *ends, *shares))
    ends = result.intervals.get(TOP1, (None, None))
    overall = (result.details["absolute_robustness"], result.details["relative_robustness"])
    return [*rows, ("", "mean", "", result.top1, *ends, *overall)]


def file_name(name: str) -> str:
    """Turn the name of a student, split or protocol into that of a file.

    Example:
        >>> file_name("lowshot-1%"), file_name("runs/flow")
        ('lowshot-1%', 'runs-flow')
    """
    return re.sub(r"[^\w.%@+-]+", "-", name).strip("-.") or "student"


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, text.getvalue())
    return path
