"""Rows of the CSV files of docs/results, as tables and plots take them."""

from __future__ import annotations

import csv
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
MEASURES = {"1nn": "1-NN", "linear": "linear"}
LOW_SHOT = {"1shot": "1 label a class", "5shot": "5 labels a class", "10shot": "10 labels a class"}
PICTURE_MEASURES = MEASURES | {"cluster": "cluster"} | LOW_SHOT

Row = dict[str, str]


def read(name: str) -> list[Row]:
    """The rows of docs/results/NAME.csv; none if no run has made it."""
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def signed(number: str) -> str:
    """A gain with its sign, in typographic minus."""
    return f"{float(number):+.1f}".replace("-", "−") if float(number) else "0.0"


def measures_of(row: Row) -> dict[str, str]:
    """Column to name of the measures in which a student has a gain."""
    return {key: measure for key, measure in (MEASURES | LOW_SHOT).items() if row.get(f"gain_{key}")}
