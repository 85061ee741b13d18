"""SIGKILL for a process and all that it started."""

import contextlib
import subprocess

import psutil


def kill_tree(process: subprocess.Popen) -> None:
    """Kill a process and its descendants at once (torchrun's are in sessions of their own) and wait for their end."""
    children = psutil.Process(process.pid).children(recursive=True)
    for each in (psutil.Process(process.pid), *children):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=10)
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in children)
