"""Runs independent jobs in parallel with a progress bar, and gives their results in order.

The parallelism is joblib's: processes of this machine unless the caller entered
``joblib.parallel_config(backend=...)`` for another backend.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed

from crossdistill.console import console, progress_bar
from crossdistill.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

INTERRUPTED_EXIT_STATUS = 130


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int | None = None,
    description: str = "preparing",
    unit: str = "files",
) -> list[Result]:
    """Run ``function`` on every job, several at a time.

    A job should use one thread: the jobs are the parallelism. An exception in a job stops the rest
    and is raised here. Ctrl-C stops the workers and exits with status 130.

    Args:
        function: A function of an importable module.
        jobs: Its arguments; they and the results are pickled.
        workers: How many run at a time; None takes one per core that this process may use.
        description: What the progress bar says is being done.
        unit: What the progress bar counts.

    Returns:
        The results, in the order of ``jobs``.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers {workers} cannot work: give 1 or more, or leave it out for one per core")
    if not jobs:
        return []
    parallel = Parallel(n_jobs=min(workers or cpu_count(), len(jobs)), batch_size=1, return_as="generator_unordered")
    results: dict[int, Result] = {}
    try:
        with progress_bar(unit=unit) as bar:
            task = bar.add_task(description, total=len(jobs))
            calls = (delayed(_run_one)(function, i, job, os.getpid()) for i, job in enumerate(jobs))
            for position, result in parallel(calls):
                results[position] = result
                bar.advance(task)
    except KeyboardInterrupt:
        console.print(f"stopped after {len(results)} of {len(jobs)} {unit}: the same command goes on from there")
        raise SystemExit(INTERRUPTED_EXIT_STATUS) from None
    return [results[i] for i in range(len(jobs))]


def _run_one(function: Callable[[Job], Result], position: int, job: Job, owner_pid: int) -> tuple[int, Result]:
    if os.getpid() != owner_pid and threading.current_thread() is threading.main_thread():
        # A terminal sends Ctrl-C to every process: the owner alone reacts, and then stops its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return position, function(job)
