"""The demo: a flow network learns from an RGB network without labels, in minutes on a laptop's CPU.

``make demo`` runs it. It renders toyactions, of which 5 clips a class count as labelled, and compares five networks:
the RGB teacher, the flow student with all labels, the same with 5 labels a class, the student that learnt from the
teacher without labels and then gets the same 5 labels a class, and a random student. The numbers are kept as
``runs/demo/results.json`` and ``runs/demo/results.png``. Run it again after an interruption to continue.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.errors import friendly_errors
from crossdistill.utils.environment import require_matched_torch

if __name__ == "__main__":  # before what follows imports a torchvision that perhaps cannot be
    friendly_errors(require_matched_torch)()

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from crossdistill.api import Run, distill
from crossdistill.data.manifest import Manifest
from crossdistill.evaluation.results import TOP1
from crossdistill.evaluation.tables import accuracy_text
from crossdistill.predict.results import print_prediction
from crossdistill.utils.console import console, print_table
from crossdistill.utils.environment import describe_environment
from crossdistill.utils.files import atomic_path, write_text_atomically
from data_prep.datasets.toyactions import ToyactionsOptions, prepare

CLIPS_PER_CLASS = 200
SHOTS = 5
STUDENT = {"student": "flow_r3d10", "student_frames": 6, "student_stride": 3, "student_size": 32, "crop_area_min": 0.6}
TEACHER = {"teacher": "rgb_r3d10", "teacher_frames": 6, "teacher_stride": 3, "teacher_size": 32}
TRAINING = {"batch_size": 32, "optimizer": "adamw", "lr": 0.002, "weight_decay": 0.05, "schedule": "cosine"}
RESUMABLE = {"resume": True, "knn_clips": 100}


@dataclass(frozen=True)
class Row:
    """One network of the table."""

    network: str
    labels: str
    """The labels that the network and its linear layer saw."""
    result: dict[str, Any]
    """Top-1 accuracy on test clips and its interval, as ``results.json`` holds them."""


def train(out: Path, data: Path, seed: int) -> dict[str, Run]:
    """Train (or resume) the distilled student, and the same network with all labels and with few."""
    common = {**STUDENT, **TRAINING, **RESUMABLE, "data": [data], "seed": seed}
    distillation = {"objective": ["compress-1q"], "bank_size": 512, "teacher_epochs": 8, "teacher_lr": 0.003}
    return {
        "distilled": distill(out=out / "distilled", epochs=8, **TEACHER, **distillation, **common),
        "all": distill(out=out / "supervised", epochs=8, supervised=True, **common),
        # As many steps as the others, of which each epoch has two.
        "few": distill(out=out / "few_labels", epochs=200, supervised=True, shots=SHOTS, **common),
    }


def compare(runs: dict[str, Run], seed: int) -> list[Row]:
    """Return the accuracy of a linear layer on each network's features, trained on the labels of its row."""
    distilled = next(iter(runs["distilled"].results.values()))
    supervised = next(iter(runs["all"].results.values()))

    def with_few_labels(run: Run) -> dict[str, Any]:  # a draw with the run's seed takes the clips that it saw
        results = run.evaluate(["lowshot"], shots=(str(SHOTS),), draws=1, seed=seed).to_json()["results"]
        return dict(results[f"lowshot-{SHOTS}"])

    few = f"{SHOTS} a class"
    return [
        Row("teacher, RGB", "all", distilled["teacher"]["results"]["linear"]),
        Row("student, flow, supervised", "all", supervised["student, supervised"]["results"]["linear"]),
        Row("student, flow, supervised", few, with_few_labels(runs["few"])),
        Row("student, flow, distilled without labels", few, with_few_labels(runs["distilled"])),
        Row("student, flow, random", "all", distilled["student, random"]["results"]["linear"]),
    ]


def draw(rows: list[Row], path: Path) -> None:
    """Bars: one a row, the distilled student in green."""
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    names = [f"{row.network}\nlabels: {row.labels}" for row in rows]
    colours = ["#2e7d32" if "distilled" in row.network else "#8f9bb3" for row in rows]
    bars = axes.barh(names, [100 * row.result["top1"] for row in rows], color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("top-1 accuracy on test clips, %")
    axes.set_title("toyactions: what a student learns without labels")
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)


def predict_one(student: Run, data: Path) -> None:
    """Predict the class of the first test clip, by the nearest training clips."""
    manifest = Manifest.load(data)
    video = manifest.videos[manifest.select(split="1", part="test")[0]]
    path = data / video.streams["flow"].path
    console.print(f"\nA clip of {manifest.classes[video.label or 0]}, as the distilled student sees it:")
    for prediction in student.predict(path, clips=1, top=3):
        print_prediction(prediction)


@friendly_errors
def main() -> None:
    """Train, compare, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all trainings (default: %(default)s)")
    options = parser.parse_args(sys.argv[1:])
    started = time.perf_counter()
    data = prepare(ToyactionsOptions(out=options.out / "data", clips_per_class=CLIPS_PER_CLASS)).root
    runs = train(options.out, data, options.seed)
    rows = compare(runs, options.seed)
    page = runs["distilled"].report()
    seconds = round(time.perf_counter() - started, 1)
    path = options.out / "results.json"
    results = [{"network": row.network, "labels": row.labels, **row.result} for row in rows]
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if earlier.get("results") != results:  # else all was there already, and the seconds of the real work stay
        report = {"seconds": seconds, "environment": describe_environment(), "results": results}
        write_text_atomically(path, json.dumps(report, indent=2) + "\n")
    draw(rows, options.out / "results.png")
    predict_one(runs["distilled"], data)
    print_table(
        "toyactions: a linear layer on frozen features, top-1 on held-out clips in % ± half of the 95 % interval",
        ("network", "labels", "top-1"),
        [
            (row.network, row.labels, accuracy_text(row.result["top1"], row.result["intervals"].get(TOP1)))
            for row in rows
        ],
    )
    console.print(
        f"{seconds:.0f} s; numbers: {path}; picture: {options.out}/results.png; report: {page}", soft_wrap=True
    )


if __name__ == "__main__":
    main()
