"""Where curves and results go besides the run's own files, through Accelerate: TensorBoard, W&B, MLflow."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crossdistill.errors import UserError
from crossdistill.utils.console import console
from crossdistill.utils.files import is_writable, write_text_atomically

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TrackerName = Literal["tensorboard", "wandb", "mlflow", "none"]
PROJECT = "crossdistill"
# Holds the id of the MLflow run, which a resumed run continues.
MLFLOW_RUN_NAME = "mlflow_run_id.txt"
MEASURES = ("top1", "top5", "mean_class")
WRITES_INTO_RUN = ("tensorboard", "mlflow")
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
REMEDIES = {
    "wandb": "log in with the command wandb login, or set WANDB_MODE=offline",
    "mlflow": "correct MLFLOW_TRACKING_URI",
}
"""What to do if the package of a tracker raises an error of its own."""


def require_tracker(name: str) -> None:
    """Raise a ``UserError`` if a tracker's package is absent."""
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(
            f"--tracker {name} needs the package {package}: pip install {package}, or --tracker tensorboard"
        )


def open_tracker(name: str, folder: Path, *, purge_step: int | None = None) -> GeneralTracker | None:
    """Open the tracker of a run, or continue it when a run is resumed.

    Args:
        name: One of ``TrackerName``.
        folder: The run's folder. TensorBoard writes into it; the others take the run's name from it, and their location
            from their own settings (``WANDB_DIR``, ``MLFLOW_TRACKING_URI``).
        purge_step: First step that TensorBoard discards, because a killed run had written it and later steps.

    Returns:
        None for ``none``.
    """
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker  # imports torch

    require_tracker(name)
    tracker: GeneralTracker
    if name == "tensorboard":
        tracker = TensorBoardTracker("tensorboard", logging_dir=str(folder), purge_step=purge_step)
    elif name == "wandb":
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        tracker = WandBTracker(PROJECT, name=folder.name, id=identity, resume="allow")
    elif name == "mlflow":
        note = folder / MLFLOW_RUN_NAME
        run_id = note.read_text(encoding="utf-8").strip() if note.is_file() else None
        tracker = MLflowTracker(PROJECT, run_id=run_id, run_name=folder.name)
    else:
        return None
    _start(tracker, name)
    if name == "mlflow" and run_id is None:
        write_text_atomically(folder / MLFLOW_RUN_NAME, f"{tracker.tracker.info.run_id}\n")
    return tracker


def _start(tracker: GeneralTracker, name: str) -> None:
    """Start a tracker. What its package cannot do, such as log in without a key, is a ``UserError``."""
    try:
        tracker.start()
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in PACKAGES.values():
            raise
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--tracker {name} does not start ({reason}): {REMEDIES[name]}, or give --tracker tensorboard"
        ) from error


def flatten_results(by_role: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Accuracies of an evaluation, under names that trackers group.

    For example ``evaluation/ucf101 1/student distilled/linear top1``: dataset and split, role, protocol and measure.

    Args:
        by_role: Role to what ``Evaluation.to_json`` gives.
    """
    found: dict[str, float] = {}
    for role, evaluation in by_role.items():
        where = f"{evaluation['dataset']} {evaluation['split']}".strip()
        group = f"evaluation/{where}/{role}"
        for protocol, result in evaluation["results"].items():
            found |= {f"{group}/{_named(protocol, result)} {measure}": result[measure] for measure in MEASURES}
        for pair in evaluation["agreement"]:
            found |= {f"{group}/{measure} with {pair['students'][1]}": pair[measure] for measure in ("overlap", "cka")}
        for measure in ("effective_rank", "uniformity") if evaluation.get("spread") else ():
            found[f"{group}/{measure}"] = evaluation["spread"][measure]
    return {_allowed(name): float(value) for name, value in found.items()}


def _named(protocol: str, result: dict[str, Any]) -> str:
    return protocol if result["views"] == "1x1" else f"{protocol} {result['views']}"


def _allowed(name: str) -> str:
    """A name that every tracker takes."""
    return re.sub(r"[^\w ./-]", "", name)


def track_results(name: str, folder: Path, by_role: dict[str, dict[str, Any]], *, step: int) -> None:
    """Send the numbers of an evaluation to the tracker of a run; print a notice if its folder cannot be written.

    Args:
        name: One of ``TrackerName``.
        folder: The run's folder.
        by_role: See ``flatten_results``.
        step: Number of the run's last step.
    """
    if name in WRITES_INTO_RUN and not is_writable(folder):
        notice = f"the results are not sent to {name}, because {folder} cannot be written"
        console.print(notice, style="yellow", soft_wrap=True, highlight=False)
        return
    tracker = open_tracker(name, folder)
    if tracker is not None:
        tracker.log(flatten_results(by_role), step=step)
        tracker.finish()
