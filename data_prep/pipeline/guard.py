"""A child process that answers requests, killed when an answer takes too long.

Decoders are native code, and a damaged file can make them crash or never return. So whatever decodes
runs in a child that its keeper kills when the time is over, and whose death costs one answer. Requests
and answers are JSON, a line each, over the child's standard input and output. The child is no
``multiprocessing`` process: the workers of clusters may not have such children.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
from typing import Any

import av

from crossdistill.errors import UserError

# Importing the libraries takes seconds on a laptop and longer from a busy network disk.
START_LIMIT_SECONDS = 300.0
# A child that nobody asks any more goes: the workers of a cluster live longer than the jobs that they were given.
IDLE_LIMIT_SECONDS = 300.0
PR_SET_PDEATHSIG = 1


class TookTooLong(Exception):
    """The time limit was over; the child was killed."""


class Crashed(Exception):
    """The child died; the text says of what."""


class Guard:
    """Keeps one child process, which stays for the next request.

    Args:
        module: Its function ``answer(request) -> answer``, both dictionaries that JSON can hold, runs in the child.
    """

    def __init__(self, module: str) -> None:
        self.module = module
        self._child: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any], *, time_limit_seconds: float) -> dict[str, Any]:
        """Have the child answer.

        Raises:
            TookTooLong: The answer took longer than the limit.
            Crashed: The child died, of a signal or of an error that the function did not catch.
            UserError: The child did not start.
        """
        child = self._running_child()
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
        line = _wait(child, time_limit_seconds)
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
            if _wait(self._child, START_LIMIT_SECONDS) != "ready\n":
                self.stop()
                raise UserError("a worker process did not start: mend what its message above says, and start again")
        return self._child

    def stop(self) -> None:
        """Kill the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _start_child(module: str) -> subprocess.Popen[str]:
    # A session of its own: Ctrl-C in a terminal reaches the keeper alone, which then stops its children.
    return subprocess.Popen(
        [sys.executable, "-m", "data_prep.pipeline.guard", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"},
    )


def _wait(child: subprocess.Popen[str], seconds: float) -> str | None:
    """The child's next line; empty or cut off if it died; None if the time is over."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        return child.stdout.readline() if selector.select(timeout=seconds) else None


_guards = threading.local()
_all_guards: list[Guard] = []


def ask(module: str, request: dict[str, Any], *, time_limit_seconds: float) -> dict[str, Any]:
    """Have this thread's own child answer; see ``Guard.ask``."""
    mine: Guard | None = getattr(_guards, "mine", None)
    if mine is None or mine.module != module or mine not in _all_guards:
        mine = _guards.mine = Guard(module)
        _all_guards.append(mine)
    return mine.ask(request, time_limit_seconds=time_limit_seconds)


def stop_children() -> None:
    """Kill the children of all threads of this process."""
    while _all_guards:
        _all_guards.pop().stop()


def _serve(module: str) -> None:
    """The child's loop, until its keeper is gone. The first line says that it is ready."""
    _die_with_keeper()
    answer = importlib.import_module(module).answer
    # Libraries may print: their output must not come between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    av.logging.set_level(av.logging.PANIC)  # what decoders say about damage stands in the answer instead
    print("ready", file=answers, flush=True)
    while select.select([sys.stdin], [], [], IDLE_LIMIT_SECONDS)[0] and (line := sys.stdin.readline()):
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def _die_with_keeper() -> None:
    """Where Linux offers it: a keeper that was killed must leave no child that goes on writing files."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    _serve(sys.argv[1])
