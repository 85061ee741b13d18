"""Table of scripts/compare_methods.sh: every way to teach on every pair, and its gain over the default.

    python scripts/method_table.py skeleton-depth flow-flow … --runs OUT OUT2 …

Each OUT is one seed. It holds one file for each pair and method, "<pair> <method>.json", as ``crossdistill evaluate
--json`` wrote it. Gains are points of accuracy over the method ``default`` on the same clips, over the seeds that both
have, with the 95 % interval of a paired bootstrap over the held-out people. Ways that were not tried on all pairs have
no mean. The CSV goes to the standard output.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

from crossdistill import Evaluation, paired_gains, read_evaluation

MEASURES = {"1-nn": "1nn", "linear": "linear"}
REFERENCE = "default"
Methods = dict[str, dict[str, dict[Path, Evaluation]]]
"""Method to pair to folder to evaluation."""


def read_methods(folders: list[Path], pairs: list[str]) -> Methods:
    """Method to pair to its evaluations, one for each folder that has both the method and the default."""
    found: Methods = {}
    for pair in pairs:
        for folder in folders:
            files = {path.stem.removeprefix(f"{pair} "): path for path in sorted(folder.glob(f"{pair} *.json"))}
            for method, path in files.items() if REFERENCE in files else ():
                evaluation = read_evaluation(json.loads(path.read_text(encoding="utf-8")))
                found.setdefault(method, {}).setdefault(pair, {})[folder] = evaluation
    return found


def rows_of(methods: Methods, pairs: list[str]) -> list[dict[str, str]]:
    """One row for each method, the best in the mean of all gains first; those without a mean come last."""
    rows = []
    for method, by_pair in methods.items():
        row, gains = {"method": method}, []
        for pair, by_seed in by_pair.items():
            evaluations = list(by_seed.values())
            compared = paired_gains(evaluations, [methods[REFERENCE][pair][seed] for seed in by_seed])
            row[f"{pair}_seeds"] = str(len(evaluations))
            for measure, short in MEASURES.items():
                gain = compared[measure]
                gains.append(100 * gain.gain)
                top1 = statistics.mean(evaluation.results[measure].top1 for evaluation in evaluations)
                row |= {f"{pair}_{short}": f"{100 * top1:.1f}"}
                row |= {f"{pair}_{short}_gain": f"{gains[-1]:.1f}"}
                if gain.interval is not None:
                    low, high = gain.interval
                    row |= {f"{pair}_{short}_low": f"{100 * low:.1f}", f"{pair}_{short}_high": f"{100 * high:.1f}"}
        if by_pair.keys() >= set(pairs):
            row["mean_gain"] = f"{statistics.mean(gains):.2f}"
        rows.append(row)
    return sorted(rows, key=lambda row: -float(row.get("mean_gain", "-inf")))


def main() -> None:
    """Print the CSV file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="PAIR")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, metavar="OUT", help="one folder for each seed")
    given = parser.parse_args()
    methods = read_methods(given.runs, given.pairs)
    missing = [pair for pair in given.pairs if pair not in methods.get(REFERENCE, {})]
    if missing:
        raise SystemExit(
            f"{given.runs[0]} has no '{missing[0]} {REFERENCE}.json': run scripts/compare_methods.sh first"
        )
    rows = rows_of(methods, given.pairs)
    columns = list(dict.fromkeys(["method", "mean_gain", *(name for row in rows for name in row)]))
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
