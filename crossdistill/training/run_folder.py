"""The folder of a run: the paths of its files, its configuration and its curves.

Other modules add files: ``standardize-*.safetensors`` and ``folds-*.safetensors`` (recipes), ``finetune-*`` (evaluate),
``export.*`` and ``report.html``.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdistill.distillation.student import find_student, locate_student
from crossdistill.errors import UserError
from crossdistill.training.checkpoint import Checkpoints
from crossdistill.training.trackers import open_tracker
from crossdistill.utils import hub
from crossdistill.utils.environment import describe_environment
from crossdistill.utils.files import write_text_atomically
from crossdistill.utils.locks import LOCK_NAME, folder_lock
from crossdistill.utils.records import first_difference, without

RUNS_FOLDER = Path("runs")
"""Folder of the runs, in the working directory, where the user names none."""
# A user's own files in the folder of a run: logs, configurations, notes.
_FILES_BESIDE = (".log", ".out", ".err", ".txt", ".md", ".yaml", ".yml", ".sh")

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. No file has to exist yet.

    Example:
        >>> RunFolder(Path("runs/flow")).results.as_posix()
        'runs/flow/results.json'
    """

    path: Path

    @staticmethod
    def of_student(path: str | Path) -> RunFolder:
        """Return the folder for a student's features, exports and fine-tuned versions.

        This is the run's folder. A student folder that was copied out of its run keeps them itself. For a student of
        the hub it is a folder of ``runs``, because the hub's cache belongs to huggingface_hub.

        Args:
            path: A run's folder, a folder with ``student.json``, or a repository of the hub.
        """
        folder = locate_student(path) or Path(path)
        repository = hub.cached_repository(folder)
        if repository is not None:
            return RunFolder(RUNS_FOLDER / repository)
        # A parent that holds a student itself is no run.
        is_in_run = folder.name == "student" and find_student(folder.parent) in (folder, None)
        return RunFolder(folder.parent if is_in_run else folder)

    @property
    def config(self) -> Path:
        """The configuration and the environment, written before anything starts."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """The curves: one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """The evaluation of teacher, random student and trained student."""
        return self.path / "results.json"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        """The folder of the trained student."""
        return self.path / "student"

    @property
    def proxy(self) -> RunFolder:
        """The folder of the proxy teacher's own run (``--proxy``)."""
        return RunFolder(self.path / "proxy")

    @property
    def features(self) -> Path:
        """The folder of the feature store."""
        return self.path / "features"

    def round(self, number: int) -> RunFolder:
        """Folder of one round of self-distillation, counted from 1."""
        return RunFolder(self.path / f"round-{number}")

    @property
    def is_started(self) -> bool:
        """Whether a run left a checkpoint or a student here, which only ``--resume`` continues."""
        return any(path.exists() for path in (self.checkpoints, self.student, self.proxy.path, self.round(1).path))

    def lock(self, on_wait: Callable[[str], None] | None = None) -> AbstractContextManager[None]:
        """Hold the folder, so that no other run writes into it; see ``folder_lock``."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: choose a folder for --out")
        return folder_lock(self.path, advice="wait for its end, or choose another --out", on_wait=on_wait)

    def claim(
        self,
        configuration: dict[str, Any],
        *,
        num_processes: int = 1,
        contents: dict[str, Any] | None = None,
        resume: bool,
        may_grow: str = "",
        upgrade: Upgrade = lambda written: written,
    ) -> None:
        """Create the folder and write configuration and environment into it.

        A folder in which an earlier start left neither a checkpoint nor a student is taken over.

        Args:
            configuration: What a resumed run must have in common with the run that it continues.
            num_processes: Number of processes at the run's start, which a resumed run may change.
            contents: Dotted name of an option that names files, to a digest of what they hold. Two values of such an
                option are equal if the digests are.
            resume: Whether a run in the folder may be continued.
            may_grow: Dotted name of a number that may be higher than at the start: the run then continues for longer.
            upgrade: Turns a configuration that a former version wrote into one of this version.

        Raises:
            UserError: The folder holds other files, or a run and ``resume`` is false, or it was started with another
                configuration; the sentence names the first key that differs.
        """
        self._require_own_folder()
        content = {
            "configuration": configuration,
            "num_processes": num_processes,
            "contents": contents or {},
            "environment": describe_environment(),
        }
        if self.is_started:
            if not self.config.is_file():
                raise UserError(
                    f"{self.path} holds checkpoints or a student but no {self.config.name}, so their options are "
                    "unknown: put the file back, or choose another --out"
                )
            if not resume:
                raise UserError(
                    f"{self.path} already holds a run: add --resume to continue it, or choose another --out"
                )
            written = self.read_config()
            grows = self._require_same(written, content, may_grow, upgrade)
            if not written.get("contents"):  # of version 0.1: its paths are compared again next time
                if grows:
                    section, name = may_grow.split(".")
                    written["configuration"][section][name] = configuration[section][name]
                content = {**written, "num_processes": num_processes}
            content["environment"] = written["environment"]  # of the start; only paths may be new
        write_text_atomically(self.config, json.dumps(content, indent=2) + "\n")

    def require_same_but(
        self, names: Sequence[str], configuration: dict[str, Any], *, contents: Mapping[str, Any], upgrade: Upgrade
    ) -> None:
        """Raise a ``UserError`` if the folder's run has another value of an option that is not among ``names``."""

        def others(values: Mapping[str, Any]) -> dict[str, Any]:
            return functools.reduce(without, names, dict(values))

        content = {"configuration": others(configuration), "contents": dict(contents)}
        self._require_same(self.read_config(), content, "", lambda written: others(upgrade(written)))

    def read_config(self) -> dict[str, Any]:
        """Read ``config.json``; raise a ``UserError`` if it is damaged."""
        try:
            written: dict[str, Any] = json.loads(self.config.read_text(encoding="utf-8"))
        except ValueError as error:  # no JSON, or no text
            raise UserError(
                f"{self.config} is damaged ({error}): bring it back from a copy, or choose another --out"
            ) from error
        return written

    def _require_own_folder(self) -> None:
        """Raise a ``UserError`` if the folder holds files that are no run's; logs and configurations may lie in it."""
        if self.config.is_file() or self.is_started or not self.path.is_dir():
            return
        others = [
            path.name
            for path in sorted(self.path.iterdir())
            if not path.name.startswith(".") and path.suffix not in _FILES_BESIDE and path != self.features
        ]
        if others:
            raise UserError(
                f"{self.path} holds other files than a run's (first: {others[0]}): give a new folder as --out"
            )

    def _require_same(self, written: dict[str, Any], content: dict[str, Any], may_grow: str, upgrade: Upgrade) -> bool:
        """Raise a ``UserError`` if the run was started otherwise; return whether ``may_grow`` is higher now."""
        before, now = upgrade(written["configuration"]), content["configuration"]
        # A run of a former version has no digests: its paths are compared.
        for name, digest in content["contents"].items():
            if name not in written.get("contents", {}):
                continue
            if written["contents"][name] != digest:
                section, key = name.split(".")
                had, has = _as_typed(before[section][key]), _as_typed(now[section][key])
                raise UserError(
                    f"{self.path} was started with other files for {_option(name)} ({had}, now {has}, whose content "
                    "differs): resume with the files of its start, or choose another --out"
                )
            before, now = without(before, name), without(now, name)
        difference = first_difference(before, now)
        grows = difference is not None and difference[0] == may_grow and difference[2] > difference[1]
        if grows:
            difference = first_difference(without(before, may_grow), without(now, may_grow))
        if difference is not None:
            name, had, has = difference
            raise UserError(
                f"{self.path} was started with another {_option(name)} ({_as_typed(had)}, now {_as_typed(has)}): "
                "resume with the options of its start, or choose another --out"
            )
        if grows:
            self._require_whole_checkpoint(may_grow)
        return grows

    def _require_whole_checkpoint(self, name: str) -> None:
        """Raise a ``UserError`` if the run has ended and only its weights remain."""
        found = Checkpoints(self.checkpoints).load_newest()
        if found is not None and "optimizer" not in found[1]:
            raise UserError(
                f"{self.path} has ended and keeps its weights alone, so that --resume cannot raise "
                f"--{name.split('.')[1]}: start another run with --student-weights {self.path}; "
                "--keep-checkpoints keeps what --resume needs"
            )

    def release(self) -> None:
        """Remove the folder again if the run ended before it wrote anything besides its configuration."""
        lock = self.path / LOCK_NAME
        if self.path.is_dir() and set(self.path.iterdir()) - {lock} == {self.config}:
            self.config.unlink()
            lock.unlink(missing_ok=True)
            self.path.rmdir()


def _option(name: str) -> str:
    """Return the option of a field: of ``data.data`` it is ``--data``."""
    return "--" + name.split(".")[1].replace("_", "-") if "." in name else name


def _as_typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class MetricsLog:
    """The curves of a run: one JSON object per line, and a tracker if one was chosen.

    Args:
        folder: The run's folder.
        start_step: Lines of this step and of later steps are dropped: a run that was killed left them.
        tracker: One of ``trackers.TRACKERS``.
    """

    starts_evaluated = False
    """Whether there is an evaluation of the step before ``start_step``."""

    def __init__(self, folder: RunFolder, *, start_step: int, tracker: str) -> None:
        if folder.metrics.is_file():
            lines = folder.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) < start_step]
            # Lines of training have a loss.
            self.starts_evaluated = any(
                _step_of(line) == start_step - 1 and "loss" not in json.loads(line) for line in kept
            )
            write_text_atomically(folder.metrics, "".join(line + "\n" for line in kept))
        self._file = folder.metrics.open("a", encoding="utf-8")
        self._tracker = open_tracker(tracker, folder.path, purge_step=start_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of one step. An ``OSError`` names the file: the disk may be full."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            if self._tracker is not None:
                self._tracker.log(values, step=step)
        except OSError as error:
            error.filename = error.filename or self._file.name
            raise

    def close(self) -> None:
        """Close the file and the tracker."""
        with contextlib.suppress(OSError):  # of a line that write() could not write
            self._file.close()
        if self._tracker is not None:
            self._tracker.finish()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return float("inf")  # cut short by a kill, or damaged
