"""Collect runs into a CSV file: mean and standard deviation over seeds of 1-NN, linear, cluster and low-shot accuracy.

Gains have the 95 % interval of a paired bootstrap over groups of test videos (people) as well, if the results hold the
hits of single clips; the hits of the seeds are averaged first. An empty cell means a point estimate.

    python scripts/results_table.py OUT --rows scripts/rows_utd_mhad.yaml > docs/results/utd_mhad.csv
    python scripts/results_table.py RUNS --rows scripts/rows_utd_mhad.yaml --update docs/results/utd_mhad.csv
    python scripts/results_table.py OUT --students > docs/results/ablations.csv

OUT holds one folder for each run, named ``<run>-seed<n>``, as ``scripts/reproduce_*.sh`` write them, or is a file in
which ``scripts/result_runs.py`` has kept such runs; several are read together. What ``crossdistill evaluate`` wrote to
``evaluation.json`` replaces the trained student of ``results.json``. With --rows every line is one student beside its
teachers, its supervised baseline and itself untrained, as the YAML file says. With --students every distilled student
is a line, the best in linear accuracy first. --update writes into a table that exists: its rows stay unless these runs
have at least as many seeds. ``scripts/make_results.py`` then writes the tables and the plot of the
documentation.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from result_runs import DISTILLED, SUPERVISED, runs_of

from crossdistill import paired_gains, read_evaluation

LOW_SHOT = {"lowshot-1": "1shot", "lowshot-5": "5shot", "lowshot-10": "10shot"}
PROTOCOLS = {"1-nn": "1nn", "linear": "linear", "cluster": "cluster"} | LOW_SHOT
GAIN_PROTOCOLS = ("1-nn", "linear", *LOW_SHOT)
OPTIONAL = re.compile("shot|epochs|machine")
"""Columns that are left out if no run has them."""
NETWORKS = ("teacher", "second_teacher", "baseline", "untrained", "distilled")
Accuracies = dict[str, dict[int, float]]
"""Protocol to seed to top-1 accuracy in percent."""
Evaluations = dict[int, dict[str, Any]]
"""Seed to the JSON of an evaluation."""


@dataclass
class Network:
    """One network of a run, over the seeds."""

    accuracies: Accuracies = field(default_factory=lambda: defaultdict(dict))
    evaluations: Evaluations = field(default_factory=dict)
    epochs: set[str] = field(default_factory=set)
    machines: set[str] = field(default_factory=set)


Runs = dict[str, dict[str, Network]]
"""Run to role to network."""


def collect(paths: Iterable[Path]) -> Runs:
    """Read the runs of folders and of files that keep runs; a later one replaces an earlier one of the same seed."""
    found: Runs = defaultdict(lambda: defaultdict(Network))
    for run in {(run.run, run.seed): run for path in paths for run in runs_of(path)}.values():
        for role, evaluation in run.evaluations.items():
            network = found[run.run][role]
            network.epochs |= {run.epochs} - {""}
            network.machines |= set(run.machines)
            network.evaluations[run.seed] = evaluation
            for protocol in PROTOCOLS.keys() & evaluation["results"].keys():
                network.accuracies[protocol][run.seed] = 100 * evaluation["results"][protocol]["top1"]
    return found


def of_seeds(network: Network, seeds: Iterable[int]) -> Network:
    """A network in these seeds alone, or in all of its own if it has none of them."""
    wanted = set(seeds)
    # Low-shot accuracies of a baseline are of runs of their own, which may have other seeds than its evaluations.
    if not any(wanted & by_seed.keys() for by_seed in (network.evaluations, *network.accuracies.values())):
        return network
    accuracies = {
        protocol: {seed: value for seed, value in by_seed.items() if seed in wanted}
        for protocol, by_seed in network.accuracies.items()
    }
    evaluations = {seed: value for seed, value in network.evaluations.items() if seed in wanted}
    return replace(network, accuracies=accuracies, evaluations=evaluations)


def baseline_of(found: Runs, run: str, role: str) -> Network:
    """What a student is compared with. Low-shot accuracies of a supervised one: the network trained on these labels."""
    network = found.get(run, {}).get(role, Network())
    if role != SUPERVISED:
        return network
    accuracies: Accuracies = {name: seeds for name, seeds in network.accuracies.items() if name not in LOW_SHOT}
    for name in LOW_SHOT:
        accuracies[name] = few_shot(found, run, name).accuracies.get(name, {})
    return replace(network, accuracies=accuracies)


def compared(student: Network, baseline: Network) -> Network:
    """The student with its low-shot accuracies of the seeds for which the baseline has some, if it has any."""
    accuracies = dict(student.accuracies)
    for name in LOW_SHOT:
        if theirs := baseline.accuracies.get(name):
            accuracies[name] = {seed: value for seed, value in accuracies.get(name, {}).items() if seed in theirs}
    return replace(student, accuracies=accuracies)


def few_shot(found: Runs, run: str, protocol: str) -> Network:
    """The supervised network that was trained on the labels of a low-shot protocol alone."""
    return found.get(f"{run}-shots{protocol.removeprefix('lowshot-')}", {}).get(SUPERVISED, Network())


def mean_and_deviation(values: list[float]) -> tuple[str, str]:
    """Mean and sample deviation with one decimal; no deviation for one value."""
    if not values:
        return "", ""
    mean = round(statistics.mean(values), 1) + 0.0  # + 0.0: no "-0.0"
    return f"{mean:.1f}", f"{statistics.stdev(values):.1f}" if len(values) > 1 else ""


def columns_of(name: str, network: Network) -> dict[str, str]:
    """The cells of one network."""
    cells = {}
    for protocol, short in PROTOCOLS.items():
        mean, deviation = mean_and_deviation(list(network.accuracies.get(protocol, {}).values()))
        cells |= {f"{name}_{short}": mean, f"{name}_{short}_sd": deviation}
    return cells


def gains_of(student: Network, baseline: Network, few: dict[str, Network]) -> dict[str, str]:
    """Points by which the student is ahead of its baseline, over the seeds that both have, and their intervals.

    ``few`` has the networks that are compared in low-shot protocols, if they are others than the baseline.
    """
    cells = {}
    for protocol in GAIN_PROTOCOLS:
        ours, theirs = student.accuracies.get(protocol, {}), baseline.accuracies.get(protocol, {})
        gains = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
        short, (mean, deviation) = PROTOCOLS[protocol], mean_and_deviation(gains)
        intervals = gain_intervals(student.evaluations, few.get(protocol, baseline).evaluations) if gains else {}
        low, high = (f"{100 * end:.1f}" for end in intervals[protocol]) if protocol in intervals else ("", "")
        cells |= {f"gain_{short}": mean, f"gain_{short}_low": low, f"gain_{short}_high": high}
        cells[f"gain_{short}_sd"] = deviation
        if protocol in LOW_SHOT:
            cells[f"seeds_{short}"] = str(len(gains)) if gains else ""
    return cells


def gain_intervals(student: Evaluations, baseline: Evaluations) -> dict[str, tuple[float, float]]:
    """Protocol to the ends of the gain's interval, over the seeds that both have; none without hits of single clips."""
    seeds = sorted(student.keys() & baseline.keys())
    if not seeds or not all(side[seed].get("test_videos") for side in (student, baseline) for seed in seeds):
        return {}
    ours, theirs = ([read_evaluation(side[seed]) for seed in seeds] for side in (student, baseline))
    gains = paired_gains(ours, theirs)
    return {protocol: gain.interval for protocol, gain in gains.items() if gain.interval is not None}


def rows_of(found: Runs, uses: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, str]]:
    """One row for each line of a rows file; lines whose run is missing are left out.

    ``run`` and ``baseline`` name runs. ``role``, ``baseline_role`` and ``teachers`` name roles other than the usual
    ones. A run from a cache does not evaluate its teacher: ``teacher_run`` names a run that does.
    """
    for use, lines in uses.items():
        for line in lines:
            by_role = found.get(line["run"], {})
            student = by_role.get(line.get("role", DISTILLED))
            if student is None:
                print(f"not run: {use}, {line['student']} from {line['teacher']}", file=sys.stderr)
                continue
            role = line.get("baseline_role", SUPERVISED)
            baseline = baseline_of(found, line["baseline"], role)
            student = compared(student, baseline)
            few = {name: few_shot(found, line["baseline"], name) for name in LOW_SHOT} if role == SUPERVISED else {}
            taught = found.get(line.get("teacher_run", line["run"]), {})
            teachers = [taught.get(role, Network()) for role in line.get("teachers", ["teacher"])]
            untrained = by_role.get("student, random", Network())
            # Means of other seeds would not differ by the gain.
            networks = [
                of_seeds(network, student.evaluations)
                for network in (*teachers, *[Network()] * (2 - len(teachers)), baseline, untrained, student)
            ]
            row = {"use": use, "student": line["student"], "teacher": line["teacher"]}
            for name, network in zip(NETWORKS, networks, strict=True):
                row |= columns_of(name, network)
            row |= gains_of(student, baseline, few) | {"seeds": str(len(student.evaluations))}
            row |= {"baseline_epochs": joined(baseline.epochs), "epochs": joined(student.epochs)}
            yield row | {"machine": joined(student.machines | baseline.machines)}


def joined(values: set[str]) -> str:
    """Everything that the seeds have, as one cell."""
    return " and ".join(sorted(values))


def without_empty(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Leave out the optional columns that no row fills."""
    empty = (
        {name for name in rows[0] if OPTIONAL.search(name) and not any(row[name] for row in rows)} if rows else set()
    )
    return [{name: cell for name, cell in row.items() if name not in empty} for row in rows]


def updated(old: list[dict[str, str]], new: list[dict[str, str]]) -> list[dict[str, str]]:
    """Put new rows into a table, in the place of those of the same student and teacher that have no more seeds."""
    rows = {(row["use"], row["student"], row["teacher"]): row for row in old}
    for row in new:
        key = (row["use"], row["student"], row["teacher"])
        if key not in rows or int(row["seeds"]) >= int(rows[key]["seeds"]):
            rows[key] = row
    names = list(dict.fromkeys(name for row in [*new[:1], *rows.values()] for name in row))
    return [{name: row.get(name, "") for name in names} for row in rows.values()]


def students_of(found: Runs) -> Iterator[dict[str, str]]:
    """One row for each distilled student, the best in linear accuracy first."""
    students = {run: by_role[DISTILLED] for run, by_role in found.items() if DISTILLED in by_role}
    for run, student in sorted(students.items(), key=lambda item: -linear_of(item[1])):
        yield {"run": run, **columns_of("distilled", student), "seeds": str(len(student.accuracies["linear"]))}


def linear_of(student: Network) -> float:
    """Mean linear accuracy over seeds."""
    return statistics.mean(student.accuracies["linear"].values())


def main() -> None:
    """Print the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="+", metavar="RUNS", help="folders of runs, and files that keep runs")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--students", action="store_true", help="distilled students only, the best first")
    what.add_argument("--rows", type=Path, help="YAML: use to lines of student, teacher, run, baseline")
    parser.add_argument("--update", type=Path, help="table into which rows are put")
    options = parser.parse_args()
    found = collect(options.paths)
    if not found:
        names = " and ".join(map(str, options.paths))
        raise SystemExit(f"{names} has no <run>-seed<n>/results.json: run one of scripts/reproduce_*.sh first")
    if options.rows is None:
        rows = list(students_of(found))
    else:
        rows = list(rows_of(found, yaml.safe_load(options.rows.read_text(encoding="utf-8"))))
    if options.update is not None:
        with open(options.update, encoding="utf-8", newline="") as file:
            rows = updated(list(csv.DictReader(file)), rows)
    if rows := without_empty(rows):
        with open(options.update or sys.stdout.fileno(), "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
