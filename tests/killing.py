"""Kill a process and all its descendants."""

import contextlib
import subprocess

import psutil

PATIENCE_SECONDS = 1800
"""How long a test waits for a process that must end: a busy machine is no reason to fail."""


def kill_tree(process: subprocess.Popen) -> None:
    """Send SIGKILL to a process and its descendants, and wait for their end.

    Killing the process group is not enough, because torchrun starts its workers in sessions of their own.
    """
    children = psutil.Process(process.pid).children(recursive=True)
    for each in (psutil.Process(process.pid), *children):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in children)
