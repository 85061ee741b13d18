"""Run requests in a child process that is killed when it takes too long.

Decoders are native code: a damaged file can crash them, make them hang or use up the memory. So all decoding runs in a
child process.
If the child dies or exceeds a limit, one request is lost and the next one starts a new child.

Requests and answers are JSON, one line each, over the child's standard input and output. ``multiprocessing`` would
not do: the workers of Dask are daemonic processes, which it does not allow to have children.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import select
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av

from crossdistill.errors import UserError

# Importing the libraries takes seconds on a laptop, and longer from a busy network disk.
START_LIMIT_SECONDS = 300.0
# An idle child exits: the worker of a cluster lives longer than the run that started the child.
IDLE_LIMIT_SECONDS = 300.0
# Enough for 8K video: a decoder may hold 17 pictures of 100 MB, and flow needs two more.
MEMORY_LIMIT_BYTES = 4 << 30
# From <sys/prctl.h>: the signal that a process receives when its parent dies.
PR_SET_PDEATHSIG = 1
READY_LINE = "ready\n"


class TookTooLong(Exception):
    """The child exceeded the time limit and was killed."""


class Crashed(Exception):
    """The child died. The message is the signal or the exit status."""


class Guard:
    """One child process. It is started by the first request and serves further requests until it dies.

    Args:
        module: Name of a module whose function ``answer`` runs in the child. It maps one JSON dictionary to another.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._child: subprocess.Popen[str] | None = None

    def ask(
        self, request: dict[str, Any], *, time_limit_seconds: float, memory_limit_bytes: int | None = MEMORY_LIMIT_BYTES
    ) -> dict[str, Any]:
        """Send a request to the child and return its answer.

        Args:
            request: Argument of the function ``answer``.
            time_limit_seconds: After this time the child is killed.
            memory_limit_bytes: Memory that the child may allocate beyond what it has with its libraries imported. More
                is a ``MemoryError`` in the child. None for no limit.

        Raises:
            TookTooLong: The time limit was exceeded.
            Crashed: A signal, or an error that the function did not catch, ended the child.
            UserError: The child did not start.
        """
        child = self._running_child()
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the child is dead: reading its answer finds out why
            child.stdin.write(json.dumps([memory_limit_bytes, request]) + "\n")
            child.stdin.flush()
        line = _read_line(child, time_limit_seconds)
        if line is None:
            self.stop()
            raise TookTooLong
        if not line.endswith("\n"):
            status = child.wait()
            raise Crashed(signal.Signals(-status).name if status < 0 else f"exit status {status}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _running_child(self) -> subprocess.Popen[str]:
        if self._child is None or self._child.poll() is not None:
            self._child = _start_child(self.module)
            if _read_line(self._child, START_LIMIT_SECONDS) != READY_LINE:
                self.stop()
                raise UserError("a child process did not start: fix the error that it printed above, then start again")
        return self._child

    def stop(self) -> None:
        """Kill the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _start_child(module: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep.pipeline.guard", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C in a terminal reaches the parent only, which then kills its children
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"},
    )


def _read_line(child: subprocess.Popen[str], seconds: float) -> str | None:
    """Read a line of the child's output: empty or incomplete if the child died, None if it took too long."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        return child.stdout.readline() if selector.select(timeout=seconds) else None


_of_thread = threading.local()
_all_guards: list[Guard] = []


def ask(
    module: str,
    request: dict[str, Any],
    *,
    time_limit_seconds: float,
    memory_limit_bytes: int | None = MEMORY_LIMIT_BYTES,
) -> dict[str, Any]:
    """Send a request to the child process of the current thread; see ``Guard.ask``."""
    guard: Guard | None = getattr(_of_thread, "guard", None)
    if guard is None or guard.module != module or guard not in _all_guards:
        guard = _of_thread.guard = Guard(module)
        _all_guards.append(guard)
    return guard.ask(request, time_limit_seconds=time_limit_seconds, memory_limit_bytes=memory_limit_bytes)


def stop_children() -> None:
    """Kill the child processes of all threads."""
    while _all_guards:
        _all_guards.pop().stop()


def _serve(module: str) -> None:
    """Answer requests, in the child, until the parent closes the pipe or the child is idle for too long."""
    # Linux kills this process when its parent dies. Otherwise it would continue to write files.
    with contextlib.suppress(OSError, AttributeError):  # other systems have no prctl
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # SLURM sends it to every process; the parent kills this one
    answer = importlib.import_module(module).answer
    # Libraries may print to standard output. That must not mix with the answers, so it goes to standard error.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    av.logging.set_level(av.logging.PANIC)  # the answer holds what FFmpeg says about damage
    print(READY_LINE, end="", file=answers, flush=True)
    while select.select([sys.stdin], [], [], IDLE_LIMIT_SECONDS)[0] and (line := sys.stdin.readline()):
        memory_limit_bytes, request = json.loads(line)
        with _memory_limit(memory_limit_bytes):
            answered = answer(request)
        print(json.dumps(answered), file=answers, flush=True)


@contextlib.contextmanager
def _memory_limit(num_bytes: int | None) -> Iterator[None]:
    """Let this process allocate only so much more inside the block. Without /proc, as on macOS, there is no limit."""
    statistics = Path("/proc/self/statm")
    if num_bytes is None or not statistics.exists():
        yield
        return
    allocated = int(statistics.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = allocated + num_bytes
    allowed = min(limit for limit in (wanted, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


if __name__ == "__main__":
    _serve(sys.argv[1])
