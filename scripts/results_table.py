"""Collect runs into a CSV file: mean and standard deviation over seeds of 1-NN, linear and cluster accuracy.

    python scripts/results_table.py OUT --rows scripts/rows_utd_mhad.yaml > docs/results/utd_mhad.csv
    python scripts/results_table.py OUT --students > docs/results/ablations.csv

OUT holds one folder for each run, named ``<run>-seed<n>``, as ``scripts/reproduce_*.sh`` write them. With --rows every
line is one student beside its teachers, its supervised baseline and itself untrained, as the YAML file says. With
--students every distilled student is a line, the best in linear accuracy first. ``scripts/make_results.py`` then writes
the tables and the plot of the documentation.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

RUN_NAME = re.compile(r"(?P<run>.+)-seed(?P<seed>\d+)")
PROTOCOLS = {"1-nn": "1nn", "linear": "linear", "cluster": "cluster"}
GAIN_PROTOCOLS = ("1-nn", "linear")
NETWORKS = ("teacher", "second_teacher", "baseline", "untrained", "distilled")
Accuracies = dict[str, dict[int, float]]
"""Protocol to seed to top-1 accuracy in percent."""
Runs = dict[str, dict[str, Accuracies]]
"""Run to role to accuracies."""


def collect(folder: Path) -> Runs:
    """Read ``results.json`` of every run in a folder."""
    found: Runs = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for path in sorted(folder.glob("*/results.json")):
        name = RUN_NAME.fullmatch(path.parent.name)
        if name is None:
            continue
        for by_role in json.loads(path.read_text(encoding="utf-8")).values():
            for role, evaluation in by_role.items():
                for protocol in PROTOCOLS.keys() & evaluation["results"].keys():
                    top1 = evaluation["results"][protocol]["top1"]
                    found[name["run"]][role][protocol][int(name["seed"])] = 100 * top1
    return found


def mean_and_deviation(values: list[float]) -> tuple[str, str]:
    """Mean and sample deviation with one decimal; no deviation for one value."""
    if not values:
        return "", ""
    mean = round(statistics.mean(values), 1) + 0.0  # + 0.0: no "-0.0"
    return f"{mean:.1f}", f"{statistics.stdev(values):.1f}" if len(values) > 1 else ""


def columns_of(network: str, accuracies: Accuracies) -> dict[str, str]:
    """The cells of one network."""
    cells = {}
    for protocol, short in PROTOCOLS.items():
        mean, deviation = mean_and_deviation(list(accuracies.get(protocol, {}).values()))
        cells |= {f"{network}_{short}": mean, f"{network}_{short}_sd": deviation}
    return cells


def gains_of(student: Accuracies, baseline: Accuracies) -> dict[str, str]:
    """Points by which the student is ahead of its baseline, over the seeds that both have."""
    cells = {}
    for protocol in GAIN_PROTOCOLS:
        ours, theirs = student.get(protocol, {}), baseline.get(protocol, {})
        gains = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        mean, deviation = mean_and_deviation(gains)
        cells |= {f"gain_{PROTOCOLS[protocol]}": mean, f"gain_{PROTOCOLS[protocol]}_sd": deviation}
    return cells


def rows_of(found: Runs, uses: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, str]]:
    """One row for each line of a rows file; lines whose run is missing are left out.

    ``run`` and ``baseline`` name runs. ``role`` and ``teachers`` name roles other than the usual ones. A run from a
    cache does not evaluate its teacher: ``teacher_run`` names a run that does.
    """
    for use, lines in uses.items():
        for line in lines:
            by_role = found.get(line["run"], {})
            student = by_role.get(line.get("role", "student, distilled"))
            if student is None:
                print(f"not run: {use}, {line['student']} from {line['teacher']}", file=sys.stderr)
                continue
            baseline = found.get(line["baseline"], {}).get("student, supervised", {})
            taught = found.get(line.get("teacher_run", line["run"]), {})
            teachers = [taught.get(role, {}) for role in line.get("teachers", ["teacher"])]
            networks = [*teachers, *[{}] * (2 - len(teachers)), baseline, by_role.get("student, random", {}), student]
            row = {"use": use, "student": line["student"], "teacher": line["teacher"]}
            for name, network in zip(NETWORKS, networks, strict=True):
                row |= columns_of(name, network)
            yield row | gains_of(student, baseline) | {"seeds": str(len(student["linear"]))}


def students_of(found: Runs) -> Iterator[dict[str, str]]:
    """One row for each distilled student, the best in linear accuracy first."""
    students = {run: by_role["student, distilled"] for run, by_role in found.items() if "student, distilled" in by_role}
    for run, student in sorted(students.items(), key=lambda item: -statistics.mean(item[1]["linear"].values())):
        yield {"run": run, **columns_of("distilled", student), "seeds": str(len(student["linear"]))}


def main() -> None:
    """Print the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--students", action="store_true", help="distilled students only, the best first")
    what.add_argument("--rows", type=Path, help="YAML: use to lines of student, teacher, run, baseline")
    options = parser.parse_args()
    found = collect(options.folder)
    if not found:
        raise SystemExit(f"{options.folder} has no <run>-seed<n>/results.json: run one of scripts/reproduce_*.sh first")
    if options.rows is None:
        rows = list(students_of(found))
    else:
        rows = list(rows_of(found, yaml.safe_load(options.rows.read_text(encoding="utf-8"))))
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
