"""Runs independent jobs in parallel with a progress bar, and hands out results as they come.

The parallelism is joblib's: here, or on the machines of a Dask or Ray cluster.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import joblib
from joblib import Parallel, cpu_count, delayed

from crossdistill.errors import UserError, unknown_name
from crossdistill.utils.console import console, progress_bar

Job = TypeVar("Job")
Result = TypeVar("Result")

INTERRUPTED_EXIT_STATUS = 130
# How long a scheduler may take to answer, unless Dask's own setting says other than it does of itself.
DASK_TIMEOUT_SETTING, DASK_DEFAULT_TIMEOUT = "distributed.comm.timeouts.connect", "30s"
SCHEDULER_TIMEOUT = "10s"


@contextlib.contextmanager
def _processes(address: str | None) -> Iterator[None]:
    with joblib.parallel_config(backend="loky"):
        yield


@contextlib.contextmanager
def _threads(address: str | None) -> Iterator[None]:
    with joblib.parallel_config(backend="threading"):
        yield


@contextlib.contextmanager
def _dask(address: str | None) -> Iterator[None]:
    try:
        import dask.config
        from distributed import Client
    except ImportError as error:
        raise UserError("--engine dask needs Dask: pip install 'crossdistill[dask]'") from error
    if address is None:
        raise UserError("--engine dask needs --address, for example --address tcp://head-node:8786")
    timeout = dask.config.get(DASK_TIMEOUT_SETTING)
    try:
        client = Client(address, timeout=SCHEDULER_TIMEOUT if timeout == DASK_DEFAULT_TIMEOUT else timeout)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Dask scheduler answers at --address {address}: start one, or check it ({error})"
        ) from error
    with client, joblib.parallel_config(backend="dask"):
        yield


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[None]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'crossdistill[ray]'") from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no Ray cluster answers at --address {address}: start one, or check it ({error})") from error
    register_ray()
    with joblib.parallel_config(backend="ray"):
        yield


@dataclass(frozen=True)
class Backend:
    """One of joblib's backends."""

    enter: Callable[[str | None], Any]
    """From an address to a context in which joblib uses it."""
    is_cluster: bool = False
    chunk_size: int | None = None
    """Results come once per so many jobs, where the backend cannot hand out each as it is ready."""


ENGINES: dict[str, Backend] = {
    "processes": Backend(_processes),
    "threads": Backend(_threads),
    "dask": Backend(_dask, is_cluster=True),
    "ray": Backend(_ray, is_cluster=True, chunk_size=256),
}


@dataclass(frozen=True)
class Engine:
    """Where jobs run."""

    name: str = "processes"
    """One of ``ENGINES``."""
    address: str | None = None
    """Of a cluster."""
    workers: int | None = None
    """Jobs at a time; None takes one per core that this process may use, or all of a cluster."""

    @property
    def most_here(self) -> int:
        """Cores of this machine that this process may use."""
        return int(cpu_count())


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    engine: Engine | None = None,
    description: str = "preparing",
    unit: str = "files",
    on_result: Callable[[int, Result], None] = lambda position, result: None,
    after_stop: str = "the same command goes on from there",
) -> list[Result]:
    """Run ``function`` on every job, several at a time.

    A job should use one thread: the jobs are the parallelism. An exception in a job stops the rest
    and is raised here. Ctrl-C stops the workers and exits with status 130.

    Args:
        function: A function of an importable module.
        jobs: Its arguments; they and the results are sent between processes.
        engine: Where; processes of this machine, one per core, if None.
        description: What the progress bar says is being done.
        unit: What the progress bar counts.
        on_result: Called here with (position in ``jobs``, result) as results come, in any order.
        after_stop: What is said after Ctrl-C about the work that was done.

    Returns:
        The results, in the order of ``jobs``.
    """
    engine = engine or Engine()
    if engine.workers is not None and engine.workers < 1:
        raise UserError(f"--workers {engine.workers} cannot work: give 1 or more, or leave it out for one per core")
    if engine.name not in ENGINES:
        raise unknown_name("engine", engine.name, ENGINES)
    backend = ENGINES[engine.name]
    if engine.address is not None and not backend.is_cluster:
        raise UserError(
            f"--address {engine.address} is a cluster's, and without --engine dask or ray no cluster is used: "
            "add one of them, or leave --address out"
        )
    if not jobs:
        return []
    num_workers = engine.workers or (-1 if backend.is_cluster else engine.most_here)
    results: dict[int, Result] = {}
    try:
        with backend.enter(engine.address), progress_bar("rate", unit=unit) as bar:
            task = bar.add_task(description, total=len(jobs), rate="")
            for position, result in _results(function, jobs, num_workers, backend.chunk_size):
                results[position] = result
                on_result(position, result)
                bar.advance(task)
                elapsed_seconds = bar.tasks[task].elapsed or 0.0
                bar.update(task, rate=f"{len(results) / max(elapsed_seconds, 1e-3):.1f} {unit}/s")
    except KeyboardInterrupt:
        console.print(f"stopped after {len(results)} of {len(jobs)} {unit}: {after_stop}")
        raise SystemExit(INTERRUPTED_EXIT_STATUS) from None
    return [results[i] for i in range(len(jobs))]


def _results(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int, chunk_size: int | None
) -> Iterator[tuple[int, Result]]:
    calls = (delayed(_run_one)(function, i, job, os.getpid()) for i, job in enumerate(jobs))
    if chunk_size is None:
        yield from Parallel(n_jobs=num_workers, batch_size=1, return_as="generator_unordered")(calls)
        return
    while chunk := list(itertools.islice(calls, chunk_size)):
        yield from Parallel(n_jobs=num_workers, batch_size=1)(chunk)


def _run_one(function: Callable[[Job], Result], position: int, job: Job, owner_pid: int) -> tuple[int, Result]:
    if os.getpid() != owner_pid and threading.current_thread() is threading.main_thread():
        # A terminal sends Ctrl-C to every process: the owner alone reacts, and then stops its workers.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return position, function(job)
