"""One job: one video, prepared in a child process with a time limit (see ``data_prep.pipeline.guard``)."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from crossdistill.data.manifest import Stream
from crossdistill.errors import STOPPING_ERRORS, UserError
from data_prep.pipeline.guard import Crashed, TookTooLong, ask
from data_prep.pipeline.readers import Input
from data_prep.pipeline.transcode import transcode
from data_prep.recipe import Outcome, Recipe


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


class StopError(Exception):
    """What ends the whole run: a full disk, a person's mistake."""


_JOB = TypeAdapter(Job)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do a job, in the child; whatever goes wrong with the file becomes its outcome."""
    job = _JOB.validate_python(request)
    try:
        outcome = transcode(job.inputs, job.stream_paths, root=Path(job.root), recipe=job.recipe)
    except UserError as error:
        return {"stop": str(error)}
    except OSError as error:
        if error.errno in STOPPING_ERRORS:
            what = STOPPING_ERRORS[error.errno]
            return {"stop": f"{what} ({error.filename or job.root}): {os.strerror(error.errno)}"}
        if error.errno in (errno.EACCES, errno.EPERM) and str(error.filename or "").startswith(job.root):
            return {"stop": f"{error.filename} cannot be written: {os.strerror(error.errno)}"}
        outcome = _failed(job, error)
    except Exception as error:  # noqa: BLE001 (one odd file among 650,000 must not end the run; it is counted as bad)
        outcome = _failed(job, error)
    streams = {name: stream.to_json() for name, stream in outcome.streams.items()}
    return {"status": outcome.status, "reason": outcome.reason, "streams": streams}


def _failed(job: Job, error: Exception) -> Outcome:
    """What no reader expected; streams that were finished before it are of no use by themselves."""
    for path in job.stream_paths.values():
        Path(job.root, path).unlink(missing_ok=True)
    return Outcome("skipped", f"failed: {type(error).__name__}: {error}")


def run_job(job: Job) -> Outcome:
    """Do a job in the child of this thread; one that crashes or takes too long is skipped with that reason.

    Raises:
        StopError: Further jobs would fail alike.
    """
    try:
        given = ask(__name__, _JOB.dump_python(job, mode="json"), time_limit_seconds=job.time_limit_seconds)
    except TookTooLong:
        _remove_leftovers(job)
        return Outcome("skipped", f"time limit: took longer than {job.time_limit_seconds:g} s")
    except Crashed as error:
        _remove_leftovers(job)
        return Outcome("skipped", f"crashed: the decoder ended with {error}")
    if "stop" in given:
        raise StopError(given["stop"])
    streams = {name: Stream.from_json(stream) for name, stream in given["streams"].items()}
    return Outcome(given["status"], given["reason"], streams)


def _remove_leftovers(job: Job) -> None:
    """Remove what a killed child had begun to write."""
    for path in job.stream_paths.values():
        target = Path(job.root, path)
        for begun in target.parent.glob(f".{_escape(target.name)}.*.tmp"):
            begun.unlink(missing_ok=True)


def _escape(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
