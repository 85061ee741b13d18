"""Run independent jobs in parallel with a progress bar, and report each result as it is ready.

joblib runs the jobs: in processes or threads of this machine, or on a Dask or Ray cluster.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import joblib
from joblib import Parallel, cpu_count, delayed

from crossdistill.errors import Stopped, UserError, unknown_name
from crossdistill.utils.console import progress_bar

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextlib.contextmanager
def _connect_to_dask(address: str | None) -> Iterator[None]:
    try:
        import dask.config
        from distributed import Client
    except ImportError as error:
        raise UserError("--engine dask needs Dask: pip install 'crossdistill[dask]'") from error
    if address is None:
        raise UserError("--engine dask needs --address, for example --address tcp://head-node:8786")
    timeout = dask.config.get("distributed.comm.timeouts.connect")
    try:
        client = Client(address, timeout="10s" if timeout == "30s" else timeout)  # 30s is Dask's default
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Dask scheduler at --address {address}: start it, or correct the address ({error})"
        ) from error
    with client:  # joblib uses the current client
        yield


@contextlib.contextmanager
def _connect_to_ray(address: str | None) -> Iterator[None]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise UserError("--engine ray needs Ray: pip install 'crossdistill[ray]'") from error
    try:
        ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"no Ray cluster at --address {address}: start it, or correct the address ({error})") from error
    register_ray()
    yield


@dataclass(frozen=True)
class Backend:
    """One backend of joblib."""

    joblib_name: str
    connect: Callable[[str | None], AbstractContextManager[None]] | None = None
    """Takes an address and returns a context with a connection to the cluster. None for this machine."""
    chunk_size: int | None = None
    """Number of jobs whose results arrive together. None if each result arrives as it is ready."""


ENGINES: dict[str, Backend] = {
    "processes": Backend("loky"),
    "threads": Backend("threading"),
    "dask": Backend("dask", _connect_to_dask),
    # joblib cannot return the results of Ray one by one. Without chunks, all would arrive at the end.
    "ray": Backend("ray", _connect_to_ray, chunk_size=256),
}


@dataclass(frozen=True)
class Engine:
    """Where jobs run."""

    name: str = "processes"
    """One of ``ENGINES``."""
    address: str | None = None
    workers: int | None = None
    """Number of jobs at a time. None: one per core that this process may use, or all workers of a cluster."""

    def backend(self) -> Backend:
        """Return the backend; raise a ``UserError`` if a field is invalid."""
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers} is invalid: give 1 or more, or remove it for one per core")
        if self.name not in ENGINES:
            raise unknown_name("engine", self.name, ENGINES)
        backend = ENGINES[self.name]
        if self.address is not None and backend.connect is None:
            raise UserError(
                f"--address {self.address} has no effect without a cluster: add --engine dask or ray, or remove it"
            )
        return backend


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    engine: Engine | None = None,
    description: str = "preparing",
    unit: str = "files",
    on_result: Callable[[int, Result], None] = lambda position, result: None,
    after_stop: str = "give the same command again to continue",
) -> list[Result]:
    """Run ``function`` on every job, several at a time, and return the results in the order of ``jobs``.

    A job should use one thread, because the jobs themselves run in parallel. An exception in a job stops the other
    jobs and is raised here. Ctrl-C, SIGTERM and SIGUSR1 stop the workers.

    Args:
        function: A function of an importable module.
        jobs: Arguments of ``function``. They and the results must be picklable.
        engine: Where the jobs run. Default: in processes of this machine, one per core.
        description: Title of the progress bar.
        unit: What the progress bar counts.
        on_result: Called with (position in ``jobs``, result) as results arrive, in any order.
        after_stop: Advice of the error that is raised after Ctrl-C.

    Raises:
        Stopped: Ctrl-C, SIGTERM or SIGUSR1.
        UserError: The engine is invalid or does not answer.
    """
    engine = engine or Engine()
    backend = engine.backend()
    if not jobs:
        return []
    num_workers = engine.workers or (cpu_count() if backend.connect is None else -1)
    connection = contextlib.nullcontext() if backend.connect is None else backend.connect(engine.address)
    results: dict[int, Result] = {}
    try:
        with connection, joblib.parallel_config(backend=backend.joblib_name), progress_bar("rate", unit=unit) as bar:
            task = bar.add_task(description, total=len(jobs), rate="")
            for position, result in _results(function, jobs, num_workers, backend.chunk_size):
                results[position] = result
                on_result(position, result)
                bar.advance(task)
                bar.update(task, rate=f"{len(results) / max(bar.tasks[task].elapsed or 0.0, 1e-3):.1f} {unit}/s")
    except KeyboardInterrupt as stop:
        raise Stopped.by(stop, f"{len(results)} of {len(jobs)} {unit} are done: {after_stop}") from None
    return [results[i] for i in range(len(jobs))]


def _results(
    function: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int, chunk_size: int | None
) -> Iterator[tuple[int, Result]]:
    # One job per batch: jobs take seconds, and a batch would delay the results of its first jobs.
    calls = (delayed(_run_one)(function, i, job, os.getpid()) for i, job in enumerate(jobs))
    if chunk_size is None:
        yield from Parallel(n_jobs=num_workers, batch_size=1, return_as="generator_unordered")(calls)
        return
    while chunk := list(itertools.islice(calls, chunk_size)):
        yield from Parallel(n_jobs=num_workers, batch_size=1)(chunk)


def _run_one(function: Callable[[Job], Result], position: int, job: Job, main_pid: int) -> tuple[int, Result]:
    if os.getpid() != main_pid and threading.current_thread() is threading.main_thread():
        # A terminal sends Ctrl-C to every process, SLURM SIGUSR1. Workers ignore them: the main process stops them.
        for number in (signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    return position, function(job)
