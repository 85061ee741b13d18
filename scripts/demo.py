"""The demo: a flow network learns from an RGB network without labels, in minutes on a laptop's CPU.

``make demo`` runs it. It prepares toyactions, trains an RGB teacher with labels, a flow student with
labels (the baseline), and a flow student without labels from the teacher; then it prints k-NN and
linear accuracy of all of them and of a random student, and keeps them as ``runs/demo/results.json``
and ``runs/demo/results.png``. Everything is resumable: run it again after an interruption to continue.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from crossdistill.errors import friendly_errors
from crossdistill.utils.environment import require_matched_torch

if __name__ == "__main__":  # before what follows imports a torchvision that perhaps cannot be
    friendly_errors(require_matched_torch)()

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from crossdistill.recipes.config import from_dict, load_yaml, merge, toyactions_preset
from crossdistill.recipes.final_evaluation import TABLE_PROTOCOLS, print_comparison
from crossdistill.recipes.run import run
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.console import console
from crossdistill.utils.environment import describe_environment
from crossdistill.utils.files import atomic_path, write_text_atomically
from data_prep.datasets.toyactions import ToyactionsOptions, prepare

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CLIPS_PER_CLASS = 200
ROLES = ("teacher", "student, supervised", "student, distilled", "student, random")


def train(name: str, folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Run one configuration (or resume it) and return its results by role."""
    place = {"machine": {"out": str(folder), "resume": True}}
    values = merge(toyactions_preset(), load_yaml(CONFIGS / f"{name}.yaml"), sections, place)
    run(from_dict(values, source=f"configs/{name}.yaml"))
    results: dict[str, Any] = json.loads(RunFolder(folder).results.read_text(encoding="utf-8"))
    return next(iter(results.values()))


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars: one group a protocol, one bar a network."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    colours = ("#4c566a", "#d08770", "#2e7d32", "#b0b7c3")
    for i, role in enumerate(ROLES):
        heights = [100 * results[role]["results"][protocol]["top1"] for protocol in TABLE_PROTOCOLS]
        label = f"{role} ({results[role]['encoder']})"
        bars = axes.bar(
            [x + 0.2 * (i - 1.5) for x in range(len(TABLE_PROTOCOLS))], heights, 0.19, label=label, color=colours[i]
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
    any_result = results[ROLES[0]]
    axes.set_xticks(range(len(TABLE_PROTOCOLS)), list(TABLE_PROTOCOLS.values()))
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_ylim(0, 128)  # room for the legend
    axes.set_yticks(range(0, 101, 20))
    axes.set_title(f"{any_result['dataset']}, split {any_result['split']}, {any_result['num_test']} test clips")
    axes.legend(loc="upper center", ncols=2, fontsize=9, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


@friendly_errors
def main() -> None:
    """Run the three trainings, compare, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all trainings (default: %(default)s)")
    options = parser.parse_args(sys.argv[1:])
    started = time.perf_counter()
    data = prepare(ToyactionsOptions(out=options.out / "data", clips_per_class=CLIPS_PER_CLASS)).root
    sections = {"machine": {"seed": options.seed}, "data": {"data": [str(data)]}}
    distilled = train("demo", options.out / "distilled", **sections)
    supervised = train("demo_supervised", options.out / "supervised", **sections)
    results = {**distilled, **supervised}
    seconds = round(time.perf_counter() - started, 1)
    report = {"seconds": seconds, "environment": describe_environment(), "results": results}
    path = options.out / "results.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if earlier.get("results") != results:  # else all was there already, and the seconds of the real work stay
        write_text_atomically(path, json.dumps(report, indent=2) + "\n")
    draw(results, options.out / "results.png")
    print_comparison("toyactions, top-1 on held-out clips", {role: results[role] for role in ROLES})
    console.print(f"{seconds:.0f} s; numbers: {path}; picture: {options.out}/results.png", soft_wrap=True)


if __name__ == "__main__":
    main()
