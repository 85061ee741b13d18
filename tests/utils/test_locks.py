"""Locks on folders between real processes."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from crossdistill.errors import UserError
from crossdistill.utils import locks
from crossdistill.utils.locks import LOCK_NAME, folder_lock

HOLD = """
import os, sys, time
from pathlib import Path
from crossdistill.utils.locks import folder_lock
with folder_lock(Path(sys.argv[1]), advice=""):
    if "fork" in sys.argv and os.fork() == 0:
        sys.stdin.read()  # as a process that decodes, which its parent's death surprises
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(folder, *options):
    """Yield a process that holds the folder until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.stdin.close()
        process.kill()
        process.wait()


def test_folder_lock__second_process_is_refused_with_the_holder(tmp_path):
    folder = tmp_path / "run"
    with held_by_another_process(folder) as process:
        with pytest.raises(UserError) as info, folder_lock(folder, advice="choose another"):
            pytest.fail("two processes hold one folder")
        start = f"{folder} is in use by process {process.pid} on {socket.gethostname()} since 20"
        assert str(info.value).startswith(start) and str(info.value).endswith(": choose another")
        process.stdin.close()
        process.wait()
    assert not (folder / LOCK_NAME).exists()


@pytest.mark.parametrize("options", [(), ("fork",)], ids=["alone", "with a child that lives"])
def test_folder_lock__of_a_killed_process_is_taken_over(tmp_path, options):
    with held_by_another_process(tmp_path, *options) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == process.pid
        with folder_lock(tmp_path, advice=""):
            assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_folder_lock__waits_and_says_so_once(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.01)
    said = []
    with held_by_another_process(tmp_path) as process:

        def end_the_other(holder):
            said.append(holder)
            process.stdin.close()

        with folder_lock(tmp_path, advice="", on_wait=end_the_other):
            assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert len(said) == 1 and f"process {process.pid}" in said[0]


def test_folder_lock__drive_without_locks_is_used_without_one(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(locks.NO_LOCKS_ERRORS[0], "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", unsupported)
    with folder_lock(tmp_path, advice=""):
        pass
