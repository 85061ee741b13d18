"""Jobs: one video or picture each, prepared in a child process with a time limit (``data_prep.pipeline.guard``).

``run_job`` is called in a worker and sends the job to the child. ``answer`` is called in the child.
"""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from crossdistill.data.manifest import Stream
from crossdistill.errors import STOPPING_ERRORS, UserError
from crossdistill.utils.files import temporary_stem
from data_prep.pipeline.guard import MEMORY_LIMIT_BYTES, Crashed, TookTooLong, ask
from data_prep.pipeline.pictures import store_picture
from data_prep.pipeline.readers import Input
from data_prep.pipeline.transcode import transcode
from data_prep.recipe import AnyRecipe, Outcome, PictureRecipe, Recipe


@dataclass(frozen=True, slots=True)
class Job:
    """One video or picture to prepare. It holds all that a worker on any machine needs, and JSON can represent it."""

    name: str
    inputs: dict[str, Input]
    stream_paths: dict[str, str]
    """Stream to make, to its path below ``root``."""
    root: str
    """Folder of the prepared dataset."""
    recipe: AnyRecipe
    time_limit_seconds: float


class StopError(Exception):
    """An error that ends the whole run, such as a full disk or invalid user input."""


_JOB = TypeAdapter(Job)
MAKERS: dict[type[AnyRecipe], Callable[..., Outcome]] = {Recipe: transcode, PictureRecipe: store_picture}
"""Kind of recipe to the function that makes the streams of one source."""


def run_job(job: Job) -> Outcome:
    """Run a job in the child process of this thread. If the child crashes or takes too long, the video is skipped.

    Raise a ``StopError`` if further jobs would fail for the same reason.
    """
    try:
        given = ask(
            __name__,
            _JOB.dump_python(job, mode="json"),
            time_limit_seconds=job.time_limit_seconds,
            memory_limit_bytes=None if job.recipe.uses_network else MEMORY_LIMIT_BYTES,
        )
    except TookTooLong:
        _remove_temporary_files(job)
        return Outcome("skipped", f"time limit: took longer than {job.time_limit_seconds:g} s")
    except Crashed as error:
        _remove_temporary_files(job)
        return Outcome("skipped", f"crashed: the decoder ended with {error}")
    if "stop" in given:  # exceptions do not cross the pipe
        raise StopError(given["stop"])
    streams = {name: Stream.from_json(stream) for name, stream in given["streams"].items()}
    return Outcome(given["status"], given["reason"], streams)


def _remove_temporary_files(job: Job) -> None:
    """Remove the files that a killed child was writing."""
    for path in job.stream_paths.values():
        target = Path(job.root, path)
        for temporary in target.parent.glob(f".{glob.escape(temporary_stem(target))}.*.tmp"):
            temporary.unlink(missing_ok=True)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run a job in the child; return the outcome as JSON, or ``{"stop": message}`` for an error that ends the run."""
    job = _JOB.validate_python(request)
    try:
        outcome = MAKERS[type(job.recipe)](job.inputs, job.stream_paths, root=Path(job.root), recipe=job.recipe)
    except UserError as error:  # an option or a missing library, the same for all videos
        return {"stop": str(error)}
    except OSError as error:
        if error.errno in STOPPING_ERRORS:
            where = error.filename or job.root
            return {"stop": f"{STOPPING_ERRORS[error.errno]} ({where}): {os.strerror(error.errno)}"}
        # A target without write permission ends the run; a source without read permission is one unusable video.
        if error.errno in (errno.EACCES, errno.EPERM) and Path(error.filename or "").is_relative_to(job.root):
            return {"stop": f"{error.filename} is not writable: {os.strerror(error.errno)}"}
        outcome = _failed(job, error)
    except MemoryError:
        _remove_streams(job)
        outcome = Outcome("skipped", f"memory limit: needs more than {MEMORY_LIMIT_BYTES / (1 << 30):g} GiB")
    except Exception as error:  # noqa: BLE001 (one odd file among 650,000 must not end the run; it counts as unusable)
        outcome = _failed(job, error)
    streams = {name: stream.to_json() for name, stream in outcome.streams.items()}
    return {"status": outcome.status, "reason": outcome.reason, "streams": streams}


def _failed(job: Job, error: Exception) -> Outcome:
    """The outcome of an unexpected error."""
    _remove_streams(job)
    return Outcome("skipped", f"failed: {type(error).__name__}: {error}")


def _remove_streams(job: Job) -> None:
    """Remove the streams that are already complete: a video has all or none."""
    for path in job.stream_paths.values():
        Path(job.root, path).unlink(missing_ok=True)
