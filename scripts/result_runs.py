"""Finished runs, of folders and of files that keep what the tables need of them.

    python scripts/result_runs.py OUT docs/results/runs/utd_mhad.json    keep the runs of OUT in a file

A table with three seeds may take days: machines and evenings each train a part, and the file holds what has ended so
far. A run that it holds already is replaced. ``scripts/results_table.py`` reads such files and folders alike. A file
has the hits of single clips, so that the intervals of gains can be computed from it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RUN_NAME = re.compile(r"(?P<run>.+)-seed(?P<seed>\d+)")
DISTILLED, SUPERVISED = TRAINED = ("student, distilled", "student, supervised")
KEPT = ("encoder", "dataset", "split", "num_train", "num_test", "unreadable", "coverage")
KEPT_OF_PROTOCOL = ("protocol", "top1", "top5", "mean_class", "num_test", "coverage", "hits")
TEST_CLIPS = ("test_videos", "test_groups")


@dataclass
class Run:
    """What the tables need of one run."""

    run: str
    """Its name without the seed."""
    seed: int
    epochs: str
    """Passes over the training clips; empty if the run does not say so."""
    machines: list[str]
    """GPUs, or else the CPU."""
    evaluations: dict[str, dict[str, Any]]
    """Role to the JSON of its evaluation."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a file; an absent one is empty."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def runs_of(path: Path) -> Iterator[Run]:
    """The runs of a folder or of a file, by name."""
    if not path.exists():
        raise SystemExit(f"{path} is not there: give folders of runs, or files that scripts/result_runs.py has written")
    yield from runs_of_folder(path) if path.is_dir() else runs_of_file(path)


def runs_of_folder(folder: Path) -> Iterator[Run]:
    """Read ``results.json`` of every run; of several datasets the first one of ``--data`` counts.

    What another program trained has ``student`` and ``evaluation.json`` alone.
    """
    for path in sorted(folder.glob("*-seed*")):
        name = RUN_NAME.fullmatch(path.name)
        results, later, config, student = (
            read_json(path / file)
            for file in ("results.json", "evaluation.json", "config.json", "student/student.json")
        )
        if name is None or not (results or (later and student)):
            continue
        facts = student.get("training", {})
        trained = SUPERVISED if facts.get("supervised") else DISTILLED
        evaluations = dict(next(iter(results.values()))) if results else {trained: later}
        if later:
            evaluations |= {role: later for role in TRAINED if role in evaluations}
        epochs = str(config["configuration"]["optimization"]["epochs"] if config else facts.get("epochs", ""))
        machines = (config["environment"]["gpus"] or [config["environment"]["cpu"]]) if config else []
        yield Run(name["run"], int(name["seed"]), epochs, sorted(set(machines)), evaluations)


def runs_of_file(path: Path) -> Iterator[Run]:
    """Read what ``keep`` has written."""
    content = read_json(path)
    for line in content.get("runs", []):
        run = Run(**line)
        for evaluation in run.evaluations.values():
            evaluation |= dict(zip(TEST_CLIPS, content["tests"][evaluation.pop("test")], strict=True))
        yield run


def keep(path: Path, runs: Iterable[Run]) -> int:
    """Add runs to a file; return how many it holds then."""
    known = {(run.run, run.seed): run for run in runs_of_file(path)}
    known |= {(run.run, run.seed): run for run in runs}
    tests: list[list[list[str]]] = []
    lines = []
    for _, run in sorted(known.items()):
        run.evaluations = {role: slim(evaluation, tests) for role, evaluation in run.evaluations.items()}
        lines.append(json.dumps(asdict(run), ensure_ascii=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    joined = ",\n".join(lines)  # a run is a line, so that a difference of two versions can be read
    path.write_text(f'{{"tests": {json.dumps(tests)},\n"runs": [\n{joined}\n]}}\n', encoding="utf-8")
    return len(lines)


def slim(evaluation: dict[str, Any], tests: list[list[list[str]]]) -> dict[str, Any]:
    """Leave out what no table needs, and name the test clips by their place in ``tests``, to which they are added."""
    test = [evaluation.get(name, []) for name in TEST_CLIPS]
    if test not in tests:
        tests.append(test)
    results = {
        protocol: {name: result[name] for name in KEPT_OF_PROTOCOL if name in result}
        for protocol, result in evaluation["results"].items()
    }
    kept = {name: evaluation[name] for name in KEPT if name in evaluation}
    return {**kept, "results": results, "test": tests.index(test)}


def main() -> None:
    """Keep the runs of a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the runs, named <run>-seed<n>")
    parser.add_argument("file", type=Path, help="file that keeps them")
    options = parser.parse_args()
    runs = list(runs_of_folder(options.folder))
    if not runs:
        raise SystemExit(f"{options.folder} has no <run>-seed<n>/results.json: run one of scripts/reproduce_*.sh first")
    print(f"{options.file}: {len(runs)} runs of {options.folder}, {keep(options.file, runs)} in all")


if __name__ == "__main__":
    main()
