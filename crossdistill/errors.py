"""Errors that are the person's to mend, and how they are shown."""

from __future__ import annotations

import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable

USER_ERROR_EXIT_STATUS = 2
CLOSED_OUTPUT_EXIT_STATUS = 128 + 13  # SIGPIPE
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How PyTorch's RuntimeError begins where the machine's memory is used up.
CPU_MEMORY_ERROR = "DefaultCPUAllocator"
# What no further file can mend, in words.
STOPPING_ERRORS = {
    **dict.fromkeys(FULL_DISK_ERRORS, "the disk is full"),
    errno.EROFS: "the disk is read-only",
}


class UserError(ValueError):
    """What the person gave cannot work.

    The message is one sentence that says what was given, what is allowed and what to do. Command
    lines print it without a stack trace and exit with status 2.
    """


class OneProcessError(UserError):
    """A ``UserError`` that one of several processes met alone, so that it has to say it itself."""


class UnreadableVideoError(Exception):
    """One video cannot be decoded. Counted and reported by whoever walks over many videos."""


def unknown_name(kind: str, given: str, allowed: Iterable[str], *, listed_by: str = "") -> UserError:
    """Build the error for a name that is not in a closed list.

    Args:
        kind: What was named, for example ``objective``.
        given: The name.
        allowed: All that there are.
        listed_by: The command that lists them, where they are too many for a sentence; only like ones are named then.
    """
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=5 if listed_by else 1)
    if listed_by:
        like = f"names like it are {', '.join(near)}; " if near else ""
        return UserError(f"unknown {kind} {given!r}: {like}{listed_by} lists all")
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {given!r}: choose one of {', '.join(allowed)}{hint}")


def friendly_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command's ``main`` so that what a person can mend becomes one sentence and status 2.

    That is a ``UserError``, a full disk and memory that is not enough. With ``CROSSDISTILL_TRACEBACK=1`` the stack
    trace is shown as well. Of several processes on a machine the first one speaks for all, unless the error is a
    ``OneProcessError`` or out of memory. Where nobody reads the output any longer (``| head``) it ends quietly, with
    the status of a program that SIGPIPE has ended.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            _run_and_flush(main, *args, **kwargs)
        except BrokenPipeError:
            if not _is_output_closed():
                raise
            # What is left in the buffer has to go somewhere when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(CLOSED_OUTPUT_EXIT_STATUS)
        except (UserError, OSError, RuntimeError, MemoryError) as error:
            sentence = _sentence(error)
            if sentence is None or os.environ.get("CROSSDISTILL_TRACEBACK") == "1":
                raise
            if not isinstance(error, UserError | OSError) or isinstance(error, OneProcessError) or _is_first_process():
                print(f"crossdistill: error: {sentence}", file=sys.stderr)
            sys.exit(USER_ERROR_EXIT_STATUS)

    return wrapped


def _run_and_flush(main: Callable[..., None], *args: object, **kwargs: object) -> None:
    """Flush what was printed while errors can still be caught, also where ``--help`` ends the program."""
    try:
        main(*args, **kwargs)
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _is_output_closed() -> bool:
    """Whether it was the standard output that broke, and not a pipe between processes."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher started on this machine, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _sentence(error: BaseException) -> str | None:
    """What to tell the person; None for an error that is ours to mend."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRORS:
        where = f" ({error.filename})" if error.filename else ""
        return (
            f"the disk is full{where}: free space and start again; finished work is kept, and a training goes on with "
            "--resume"
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename} cannot be read or written ({error.strerror.lower()}): give another path"
    # By name: this module is imported before it is known whether torch can be. The CPU's allocator has no type.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or CPU_MEMORY_ERROR in str(error):
        reason = str(error).partition("\n")[0]
        return (
            f"there is not enough memory ({reason}): lower --batch-size (and raise --accumulate by as much), the size "
            "or number of frames, or --workers"
        )
    return None
