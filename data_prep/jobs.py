"""One job: one video. As a child process sees it, and as its keeper sees the child.

Decoders are native code, and a damaged file can make them crash or never return. So every job runs in
a child process that its keeper kills when the time limit is over, and whose death costs one file.
Requests and answers are lines of JSON over the child's standard input and output.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter

from crossdistill.data.manifest import Stream
from crossdistill.errors import STOPPING_ERRORS, UserError
from data_prep.readers import Input
from data_prep.recipe import Outcome, Recipe
from data_prep.transcode import transcode


@dataclass(frozen=True)
class Job:
    """One video to prepare: everything that a worker on any machine needs."""

    name: str
    inputs: dict[str, Input]
    """Modality to source."""
    stream_paths: dict[str, str]
    """Streams still to be made, to their paths under ``root``."""
    root: str
    recipe: Recipe
    time_limit_seconds: float


# Importing the libraries takes seconds on a laptop and longer from a busy network disk.
START_LIMIT_SECONDS = 300.0


class StopError(Exception):
    """What ends the whole run: a full disk, a folder that cannot be written, a person's mistake."""


_JOB = TypeAdapter(Job)


def _answer(job: Job) -> dict[str, Any]:
    """Do the job; whatever goes wrong with the file becomes its outcome."""
    try:
        outcome = transcode(job.inputs, job.stream_paths, root=Path(job.root), recipe=job.recipe)
    except UserError as error:
        return {"stop": str(error)}
    except OSError as error:
        if error.errno in STOPPING_ERRORS:
            return {
                "stop": f"{STOPPING_ERRORS[error.errno]} ({error.filename or job.root}): {os.strerror(error.errno)}"
            }
        outcome = Outcome("skipped", f"failed: {type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 (one odd file among 650,000 must not end the run; it is counted as bad)
        outcome = Outcome("skipped", f"failed: {type(error).__name__}: {error}")
    streams = {name: stream.to_json() for name, stream in outcome.streams.items()}
    return {"status": outcome.status, "reason": outcome.reason, "streams": streams}


def serve(requests: IO[str], answers: IO[str]) -> None:
    """The child's loop: a job a line, until the keeper is gone. The first line says that it is ready."""
    answers.write("ready\n")
    answers.flush()
    for line in requests:
        answers.write(json.dumps(_answer(_JOB.validate_json(line))) + "\n")
        answers.flush()


class Keeper:
    """Keeps one child process and gives it jobs, one at a time."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def run(self, job: Job) -> Outcome:
        """Do a job in the child; a job that crashes it or takes too long is skipped with that reason."""
        child = self._child
        if child is None or child.poll() is not None:
            child = self._child = _start_child()
            if self._wait(child, START_LIMIT_SECONDS) != "ready\n":
                self.stop()
                raise StopError("a worker process did not start (its message stands above)")
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(_JOB.dump_json(job).decode() + "\n")
            child.stdin.flush()
        line = self._wait(child, job.time_limit_seconds)
        if line is None:
            self.stop()
            _remove_leftovers(job)
            return Outcome("skipped", f"time limit: took longer than {job.time_limit_seconds:g} s")
        if not line.endswith("\n"):
            status = child.wait()
            _remove_leftovers(job)
            cause = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            return Outcome("skipped", f"crashed: the decoder ended with {cause}")
        answer = json.loads(line)
        if "stop" in answer:
            raise StopError(answer["stop"])
        streams = {name: Stream.from_json(stream) for name, stream in answer["streams"].items()}
        return Outcome(answer["status"], answer["reason"], streams)

    @staticmethod
    def _wait(child: subprocess.Popen[str], seconds: float) -> str | None:
        """The child's answer; empty if it died; None if the time is over."""
        with selectors.DefaultSelector() as selector:
            assert child.stdout is not None
            selector.register(child.stdout, selectors.EVENT_READ)
            return child.stdout.readline() if selector.select(timeout=seconds) else None

    def stop(self) -> None:
        """Kill the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _start_child() -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C in a terminal reaches the keeper alone, which then stops its children.
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep.jobs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"},
    )


def _remove_leftovers(job: Job) -> None:
    """Remove what a killed child had begun to write."""
    for path in job.stream_paths.values():
        target = Path(job.root, path)
        for begun in target.parent.glob(f".{_escape(target.name)}.*.tmp"):
            begun.unlink(missing_ok=True)


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


_keepers = threading.local()
_all_keepers: list[Keeper] = []


def run_job(job: Job) -> Outcome:
    """Do a job in the child process of this thread, which stays for the next job."""
    if not hasattr(_keepers, "mine"):
        _keepers.mine = Keeper()
        _all_keepers.append(_keepers.mine)
    keeper: Keeper = _keepers.mine
    return keeper.run(job)


def stop_children() -> None:
    """Kill the children of all threads of this process."""
    while _all_keepers:
        _all_keepers.pop().stop()


if __name__ == "__main__":
    # Libraries may print: their output must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)
