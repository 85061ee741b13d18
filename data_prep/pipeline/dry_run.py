"""The dry run: how much there is to prepare, and an estimate of the time and the disk space."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from joblib import cpu_count

from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.claim import check_streams
from data_prep.pipeline.guard import stop_children
from data_prep.pipeline.jobs import StopError, run_job
from data_prep.pipeline.journal import read_journals
from data_prep.pipeline.options import RunOptions
from data_prep.pipeline.resume import finished_entries, remaining_job
from data_prep.pipeline.tasks import Task

SAMPLE_POSITIONS = (0.25, 0.5, 0.75)
"""Which files are tried, as relative positions in the list from the smallest to the largest file."""


def print_estimate(tasks: Sequence[Task], *, num_listed: int, options: RunOptions) -> None:
    """Print the number and size of the files, and an estimate of the time from a few files that are prepared."""
    num_bytes = sum(task.num_source_bytes for task in tasks)
    console.print(f"{num_listed} {options.noun} listed, {len(tasks)} found, {num_bytes / 1e9:.2f} GB", highlight=False)
    journals = read_journals(options.out)
    check_streams(tasks, journals, options)
    finished = finished_entries(tasks, journals, options.out, retry=options.retry)
    remaining = [task for task in tasks if remaining_job(task, finished.get(task.job.name)) is not None]
    remaining.sort(key=lambda task: task.num_source_bytes)
    console.print(f"{len(tasks) - len(remaining)} already prepared, {len(remaining)} remaining", highlight=False)
    if not remaining:
        return
    samples = [remaining[i] for i in sorted({round(p * (len(remaining) - 1)) for p in SAMPLE_POSITIONS})]
    seconds, made_bytes = _try_samples(samples, options.out)
    # Time and size are taken as proportional to the size of the source.
    factor = sum(task.num_source_bytes for task in remaining) / max(1, sum(task.num_source_bytes for task in samples))
    workers = options.workers or cpu_count()
    console.print(
        f"estimate: {seconds * factor / workers / 60:.1f} minutes with {workers} workers on this machine, "
        f"{made_bytes * factor / 1e9:.2f} GB in {options.out}; the dry run wrote nothing",
        highlight=False,
        soft_wrap=True,
    )


def _try_samples(samples: Sequence[Task], out: Path) -> tuple[float, int]:
    """Prepare some files into a temporary folder; return the seconds of all files together and the bytes written."""
    is_new, folder = not out.exists(), out / f".dry-run-{os.getpid()}"
    seconds = 0.0
    try:
        # The first file is prepared twice and timed once: at its first time, the child process has to start.
        for i, task in enumerate([samples[0], *samples]):
            started = time.perf_counter()
            outcome = run_job(dataclasses.replace(task.job, root=str(folder)))
            if i:
                seconds += time.perf_counter() - started
                console.print(f"  {task.job.name}: {outcome.status} {outcome.reason}".rstrip(), highlight=False)
        return seconds, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    except StopError as error:
        raise UserError(str(error)) from error
    finally:
        stop_children()
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # another run may have written into it
                out.rmdir()
