"""Collect runs into tables: mean ± standard deviation over seeds of 1-NN, linear accuracy and cluster alignment.

    python scripts/results_table.py OUT [--rows scripts/rows_utd_mhad.yaml | --students]

OUT holds one folder for each run, named ``<row>-seed<n>``, as ``scripts/reproduce_*.sh`` make them. Without --rows
every network of every run is a line. With it, every line is one student: beside its teacher, its twin that learned from
labels and itself untrained, in the groups and under the titles of the file. With --students every distilled student is
a line, the best in linear accuracy first.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RUN_NAME = re.compile(r"(?P<row>.+)-seed(?P<seed>\d+)")
PROTOCOLS = {"1-nn": "1-NN", "linear": "linear", "cluster": "cluster"}
Accuracies = dict[str, dict[int, float]]
"""Protocol to seed to top-1 accuracy in percent."""


@dataclass(frozen=True)
class Network:
    """One role in the runs of one row."""

    encoder: str
    accuracies: Accuracies


def collect(folder: Path) -> dict[str, dict[str, Network]]:
    """Row to role to what was measured."""
    found: dict[str, dict[str, Network]] = defaultdict(dict)
    for path in sorted(folder.glob("*/results.json")):
        name = RUN_NAME.fullmatch(path.parent.name)
        if name is None:
            continue
        for by_role in json.loads(path.read_text(encoding="utf-8")).values():
            for role, evaluation in by_role.items():
                network = found[name["row"]].setdefault(role, Network(evaluation["encoder"], defaultdict(dict)))
                for protocol in PROTOCOLS.keys() & evaluation["results"].keys():
                    top1 = evaluation["results"][protocol]["top1"]
                    network.accuracies[protocol][int(name["seed"])] = 100 * top1
    return dict(found)


def cell(values: list[float]) -> str:
    """Mean and sample deviation, and a note where there is one seed alone."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean} (1 seed)"


def cells(network: Network | None) -> str:
    """All protocols of a network in one cell of a table."""
    if network is None:
        return "–"
    return " / ".join(cell(list(network.accuracies[protocol].values())) for protocol in PROTOCOLS)


def difference(student: Network, twin: Network | None) -> str:
    """By how many points the student passes its twin, over the seeds that both have."""
    if twin is None:
        return "–"
    parts = []
    for protocol in ("1-nn", "linear"):
        ours, theirs = student.accuracies[protocol], twin.accuracies[protocol]
        gains = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        deviation = f" ± {statistics.stdev(gains):.1f}" if len(gains) > 1 else ""
        parts.append(f"{statistics.mean(gains):+.1f}{deviation}" if gains else "–")
    return " / ".join(parts)


def print_all(found: dict[str, dict[str, Network]]) -> None:
    """One line for each network of each run."""
    print(f"| run | network | encoder | {' | '.join(PROTOCOLS.values())} | seeds |\n|---|---|---|---|---|---|---|")
    for row, by_role in sorted(found.items()):
        for role, network in by_role.items():
            values = " | ".join(cell(list(network.accuracies[protocol].values())) for protocol in PROTOCOLS)
            print(f"| {row} | {role} | {network.encoder} | {values} | {len(network.accuracies['linear'])} |")


def print_students(found: dict[str, dict[str, Network]]) -> None:
    """One line for each distilled student, the best first."""
    students = {row: by_role["student, distilled"] for row, by_role in found.items() if "student, distilled" in by_role}
    best_first = sorted(students.items(), key=lambda item: -statistics.mean(item[1].accuracies["linear"].values()))
    print(f"| run | {' | '.join(PROTOCOLS.values())} | seeds |\n|---|---|---|---|---|")
    for row, network in best_first:
        values = " | ".join(cell(list(network.accuracies[protocol].values())) for protocol in PROTOCOLS)
        print(f"| {row} | {values} | {len(network.accuracies['linear'])} |")


def print_groups(found: dict[str, dict[str, Network]], rows: dict[str, list[dict[str, Any]]]) -> None:
    """One line for each student, in groups."""
    for title, lines in rows.items():
        print(f"\n### {title}\n")
        print("| student | teacher | with labels | untrained | distilled | distilled − with labels | seeds |")
        print("|---|---|---|---|---|---|---|")
        for line in lines:
            print_line(found, line)


def print_line(found: dict[str, dict[str, Network]], line: dict[str, Any]) -> None:
    """One student: ``run`` and ``twin`` are rows, ``role`` and ``teachers`` roles that are not the usual.

    A run from a cache does not evaluate its teacher: ``teacher_run`` is the row of one that does.
    """
    by_role, twin = found.get(line["run"], {}), found.get(line.get("twin", ""), {})
    student = by_role.get(line.get("role", "student, distilled"))
    if student is None:
        print(f"| {line['title']} | not run | | | | | 0 |")
        return
    with_labels = twin.get("student, supervised")
    roles = line.get("teachers", ["teacher"])
    taught = found.get(line.get("teacher_run", line["run"]), {})
    teacher = "; ".join(cells(taught.get(role)) for role in roles)
    untrained = cells(by_role.get("student, random"))
    print(
        f"| {line['title']} | {teacher} | {cells(with_labels)} | {untrained} | {cells(student)} "
        f"| {difference(student, with_labels)} | {len(student.accuracies['linear'])} |"
    )


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the runs")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--students", action="store_true", help="distilled students alone, the best first")
    what.add_argument("--rows", type=Path, help="YAML: group to lines of title, run, twin, role, teachers, teacher_run")
    options = parser.parse_args()
    found = collect(options.folder)
    if not found:
        raise SystemExit(
            "no run named <row>-seed<n> with results.json is there: run scripts/reproduce_utd_mhad.sh first"
        )
    if options.rows is not None:
        print_groups(found, yaml.safe_load(options.rows.read_text(encoding="utf-8")))
    elif options.students:
        print_students(found)
    else:
        print_all(found)


if __name__ == "__main__":
    main()
