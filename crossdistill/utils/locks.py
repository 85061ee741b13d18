"""Locks on folders: one process of all machines that share a drive holds a folder at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

from crossdistill.errors import UserError

LOCK_NAME = ".lock"
POLL_SECONDS = 1.0
HELD_ERRORS = (errno.EACCES, errno.EAGAIN)
# Drives without locks: a run there starts without one.
NO_LOCKS_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def folder_lock(folder: Path, *, advice: str, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a folder inside the block. The folder is made if it does not exist.

    The operating system releases the lock of a process that dies, so that the next one takes it over. The file of the
    lock says who holds it. Hold a folder once: POSIX lets a process take its own lock again, and the inner block's end
    would release it.

    Args:
        folder: The folder.
        advice: What the user can do if another process holds it, for the error.
        on_wait: Called with a description of the holder before this process waits for it; None to raise instead.

    Raises:
        UserError: Another process holds the folder, and ``on_wait`` is None.
    """
    path, is_told = folder / LOCK_NAME, False
    while (file := _try_to_lock(path)) is None:
        holder = f"{folder} is in use by {_holder(path)}"
        if on_wait is None:
            raise UserError(f"{holder}: {advice}")
        if not is_told:
            on_wait(holder)
            is_told = True
        time.sleep(POLL_SECONDS)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _try_to_lock(path: Path) -> IO[str] | None:
    """Return the locked file, or None if another process holds the lock."""
    # POSIX locks: a child, such as a process that decodes, does not keep the lock of a parent that was killed.
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (the caller closes it)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_same_file(file, path):  # the holder has removed it meanwhile
            file.close()
            return _try_to_lock(path)
    except OSError as error:
        if error.errno not in NO_LOCKS_ERRORS:
            file.close()
            if error.errno in HELD_ERRORS:
                return None
            raise
    file.truncate(0)
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}) + "\n")
    file.flush()
    return file


def is_same_file(file: IO[str], path: Path) -> bool:
    """Whether a path still leads to an open file, and not to a new one of the same name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return f"process {facts['pid']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # which is writing the file, or has just ended
