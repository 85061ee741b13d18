"""Collect runs into a table: mean ± standard deviation over seeds of every role's 1-NN and linear accuracy.

python scripts/results_table.py OUT

OUT holds one folder for each run, named ``<row>-seed<n>``, as ``scripts/reproduce_utd_mhad.sh`` makes them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

RUN_NAME = re.compile(r"(?P<row>.+)-seed(?P<seed>\d+)")
PROTOCOLS = ("1-nn", "linear")
Key = tuple[str, str, str]
"""Row, role, encoder."""


def collect(folder: Path) -> dict[Key, dict[str, list[float]]]:
    """Row, role and encoder to protocol to one accuracy for each seed."""
    found: dict[Key, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*/results.json")):
        name = RUN_NAME.fullmatch(path.parent.name)
        if name is None:
            continue
        for by_role in json.loads(path.read_text(encoding="utf-8")).values():
            for role, evaluation in by_role.items():
                key = (name["row"], role, evaluation["encoder"])
                for protocol in PROTOCOLS:
                    found[key][protocol].append(evaluation["results"][protocol]["top1"])
    return found


def cell(values: list[float]) -> str:
    """Mean and sample deviation in percent, and over how many seeds where it is one."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean} (1 seed)"


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the runs")
    found = collect(parser.parse_args().folder)
    if not found:
        raise SystemExit(
            "no run named <row>-seed<n> with results.json is there: run scripts/reproduce_utd_mhad.sh first"
        )
    print("| run | network | encoder | 1-NN | linear | seeds |")
    print("|---|---|---|---|---|---|")
    for (row, role, encoder), by_protocol in sorted(found.items()):
        cells = " | ".join(cell(by_protocol[protocol]) for protocol in PROTOCOLS)
        print(f"| {row} | {role} | {encoder} | {cells} | {len(by_protocol['linear'])} |")


if __name__ == "__main__":
    main()
