"""A run's folder: what was asked for, on which machine, and the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crossdistill.errors import UserError
from crossdistill.training.trackers import open_tracker
from crossdistill.utils.environment import describe_environment
from crossdistill.utils.files import write_text_atomically

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"


def claim(folder: Path, configuration: dict[str, Any], *, resume: bool) -> None:
    """Make a run's folder and write configuration and environment into it, before anything starts.

    A folder in which an earlier start left neither checkpoint nor student is taken over.

    Raises:
        UserError: The folder holds a run already and ``resume`` is false, or that run's configuration
            is lost or another one; the sentence names the first key that differs.
    """
    path = folder / CONFIG_NAME
    has_work = any((folder / name).exists() for name in ("checkpoints", "student", "round-1"))
    if has_work:
        if not path.is_file():
            raise UserError(
                f"{folder} holds checkpoints or a student but no {CONFIG_NAME}, so nobody knows which options they are "
                "of: put the file back, or choose another --out"
            )
        if not resume:
            raise UserError(f"{folder} holds a run already: add --resume to go on with it, or choose another --out")
        earlier = json.loads(path.read_text(encoding="utf-8"))["configuration"]
        key = _first_difference(earlier, configuration)
        if key is not None:
            raise UserError(
                f"{folder} was started with another {key}: resume with the options it was started with, "
                "or choose another --out"
            )
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose a folder for --out")
    content = {"configuration": configuration, "environment": describe_environment()}
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")


def release(folder: Path) -> None:
    """Undo ``claim`` for a run that ended before it left anything else, so that its folder's name is free again."""
    if folder.is_dir() and [path.name for path in folder.iterdir()] == [CONFIG_NAME]:
        (folder / CONFIG_NAME).unlink()
        folder.rmdir()


def _first_difference(earlier: dict[str, Any], now: dict[str, Any], path: str = "") -> str | None:
    for key in sorted(earlier.keys() | now.keys()):
        before, after = earlier.get(key), now.get(key)
        here = f"{path}.{key}" if path else key
        if isinstance(before, dict) and isinstance(after, dict):
            found = _first_difference(before, after, here)
            if found is not None:
                return found
        elif before != after:
            return f"{here} ({before!r}, now {after!r})"
    return None


class MetricsLog:
    """Curves of a run: one JSON object a line, and a tracker if asked for.

    Args:
        folder: The run's folder.
        start_step: Lines of this step and later, left by a run that was killed, are dropped.
        tracker: See ``trackers.open_tracker``.
    """

    def __init__(self, folder: Path, *, start_step: int, tracker: str) -> None:
        self.path = folder / METRICS_NAME
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) < start_step]
            write_text_atomically(self.path, "".join(line + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._tracker = open_tracker(tracker, folder, purge_step=start_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of one step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        if self._tracker is not None:
            self._tracker.log(values, step=step)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._tracker is not None:
            self._tracker.finish()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut short by a kill
