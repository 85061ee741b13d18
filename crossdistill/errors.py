"""Errors that the user can fix; ``friendly_errors`` prints every error of a command as one sentence."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import importlib
import io
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

USER_ERROR_EXIT_STATUS = 2
LOST_PROCESS_EXIT_STATUS = 1
LOST_PROCESS = "another process of this run has ended: see its message; --resume continues from the newest checkpoint"
CLOSED_OUTPUT_EXIT_STATUS = 128 + 13  # SIGPIPE
# Ctrl-C, what ends a job, and what SLURM (--signal=USR1@120) sends before it ends a job.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME_COMMAND = "start the same command again"
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Part of the RuntimeError that PyTorch raises if the machine's memory is used up.
CPU_MEMORY_ERROR = "DefaultCPUAllocator"
# Errors after which writing another file fails as well.
STOPPING_ERRORS = {**dict.fromkeys(FULL_DISK_ERRORS, "the disk is full"), errno.EROFS: "the disk is read-only"}


class UserError(ValueError):
    """Invalid user input.

    The message is one sentence that says what was given, what is allowed and what to do. Commands print it without a
    stack trace and exit with status 2.
    """


class OneProcessError(UserError):
    """A ``UserError`` of one process among several. Every process prints its own."""


class Stopped(KeyboardInterrupt):
    """The command was stopped by one of ``STOP_SIGNALS``, such as Ctrl-C. The message says how to continue.

    Commands print it without a stack trace and exit with 128 and the number of the signal.

    Args:
        advice: The message.
        signal_number: The signal.
        needs_resume: Whether the same command continues only with ``--resume``.
    """

    def __init__(self, advice: str, *, signal_number: int = signal.SIGINT, needs_resume: bool = False) -> None:
        super().__init__(advice)
        self.signal_number = signal_number
        self.needs_resume = needs_resume

    @staticmethod
    def by(error: KeyboardInterrupt, advice: str, *, needs_resume: bool = False) -> Stopped:
        """Return the error with another advice, and the signal of the first one."""
        number = getattr(error, "signal_number", signal.SIGINT)
        return Stopped(advice, signal_number=number, needs_resume=needs_resume)


class UnreadableVideoError(Exception):
    """One video cannot be decoded. Code that reads many videos counts and reports these errors and continues."""


@contextlib.contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """End the block at Ctrl-C and go on after it; other signals stop the command as everywhere."""
    try:
        yield
    except KeyboardInterrupt as error:
        if getattr(error, "signal_number", signal.SIGINT) != signal.SIGINT:
            raise


def first_line(error: BaseException) -> str:
    """Return the first line of an error without its full stop, to stand in brackets in a sentence."""
    first = str(error).strip().partition("\n")[0]
    return " ".join(first.split()).rstrip(".") or type(error).__name__


def unknown_name(kind: str, given: str, allowed: Iterable[str], *, listed_by: str = "") -> UserError:
    """Build the error for a name that is not in a list.

    Args:
        kind: Kind of thing that has the name, for example ``objective``.
        given: The unknown name.
        allowed: All allowed names.
        listed_by: Command that lists them, if they are too many for one sentence. Only similar names are listed then.

    Example:
        >>> str(unknown_name("decoder", "decor", ["pyav", "decord"]))
        "unknown decoder 'decor': choose one of decord, pyav; did you mean 'decord'?"
    """
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=5 if listed_by else 1)
    if listed_by:
        like = f"names like it are {', '.join(near)}; " if near else ""
        return UserError(f"unknown {kind} {given!r}: {like}{listed_by} lists all")
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {given!r}: choose one of {', '.join(allowed)}{hint}")


def require_at_least(option: str, number: int, least: int, *, note: str = "") -> None:
    """Raise a ``UserError`` if the number of an option is too low.

    Args:
        option: The option, for example ``--k``.
        number: What was given.
        least: The lowest allowed number.
        note: What the lowest number means, for example ``no intervals``.
    """
    if number < least:
        raise UserError(f"{option} is {number}: give {least}{f' ({note})' if note else ''} or more")


def require_num_workers(number: int) -> None:
    """Raise a ``UserError`` if ``--workers`` is negative."""
    require_at_least("--workers", number, 0, note="decode in this process")


def require_package(name: str, *, target: str, extra: str, least: str = "") -> Any:
    """Import a package that ``target`` needs, or raise a ``UserError`` that says which extra installs it.

    ``least`` is the oldest version that works, for a package whose older versions fail in ways that are hard to read.
    """
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{target} needs {name}, which cannot be imported ({error}): run pip install 'crossdistill[{extra}]'"
        ) from error
    if least and _numbers(package.__version__) < _numbers(least):
        raise UserError(
            f"{target} needs {name} {least} or newer, and {package.__version__} is installed: run pip install "
            f"--upgrade 'crossdistill[{extra}]'"
        )
    return package


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version; what follows them, such as ``-dev``, does not count."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def friendly_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command's ``main``: print errors that the user can fix as one sentence, and exit with status 2.

    These are ``UserError``, a full disk, a path that cannot be read or written, and too little memory. With
    ``CROSSDISTILL_TRACEBACK=1`` the error is raised with its stack trace instead. If several processes run on a
    machine, the first one alone prints an error that all have. Under ``torchrun`` it alone prints an ``OSError`` as
    well, because ``torchrun`` ends its own message with the sentence of the process that failed. If the reader of the
    output is gone (``| head``), the command exits without a message and with the status of SIGPIPE. Ctrl-C, SIGTERM and
    SIGUSR1 are one sentence as well; see ``Stopped``. Characters that the terminal cannot print are replaced.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        replace_unprintable_characters()
        try:
            with _stopped_by_signals(), _short_errors_of_threads():
                _run_and_flush(main, *args, **kwargs)
        except BrokenPipeError:
            if not _is_output_closed():
                raise
            # Python flushes the rest of the buffer at exit, which would fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(CLOSED_OUTPUT_EXIT_STATUS)
        except KeyboardInterrupt as error:
            stopped = Stopped.by(error, str(error) or SAME_COMMAND)
            if _is_first_process():
                print(f"crossdistill: stopped: {stopped}", file=sys.stderr)
            _tell_torchrun(f"crossdistill: stopped: {stopped}")
            sys.exit(128 + stopped.signal_number)
        except (UserError, OSError, RuntimeError, MemoryError) as error:
            if _is_of_lost_process(error) and os.environ.get("CROSSDISTILL_TRACEBACK") != "1":
                print(f"crossdistill: error: {LOST_PROCESS}", file=sys.stderr)
                sys.exit(LOST_PROCESS_EXIT_STATUS)
            sentence = _sentence(error)
            if sentence is None or os.environ.get("CROSSDISTILL_TRACEBACK") == "1":
                raise
            if _is_first_process() or not _have_others(error):
                print(f"crossdistill: error: {sentence}", file=sys.stderr)
            _tell_torchrun(f"crossdistill: error: {sentence}")
            sys.exit(USER_ERROR_EXIT_STATUS)

    return wrapped


def replace_unprintable_characters() -> None:
    """Let the standard streams print ``?`` for a character that their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _tell_torchrun(sentence: str) -> None:
    """Write the sentence into the file whose message ``torchrun`` prints last, if it started this process.

    The sentence was printed before, so that a file that cannot be written loses nothing.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        content = {"message": {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump(content, file)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise ``Stopped`` on SIGTERM and SIGUSR1 inside the block, so that it is cleaned up as after Ctrl-C."""

    def stop(signal_number: int, frame: object) -> None:
        signal.signal(signal_number, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise Stopped(SAME_COMMAND, signal_number=signal_number)

    is_main = threading.current_thread() is threading.main_thread()
    free = [number for number in STOP_SIGNALS[1:] if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


def _run_and_flush(main: Callable[..., None], *args: object, **kwargs: object) -> None:
    """Flush the output while a broken pipe can still be caught, also after ``--help``, which raises SystemExit."""
    try:
        main(*args, **kwargs)
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _is_output_closed() -> bool:
    """Whether the standard output is the broken pipe, and not a pipe between processes."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _have_others(error: BaseException) -> bool:
    """Whether the other processes of a command have the same error, or torchrun prints that of one of them."""
    if isinstance(error, OSError):
        return "TORCHELASTIC_ERROR_FILE" in os.environ
    return isinstance(error, UserError) and not isinstance(error, OneProcessError)


def _is_first_process() -> bool:
    """Whether this is the first process that a launcher started on this machine, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _without_trace(message: str) -> str:
    """Return the sentence of an error from a process of a DataLoader, which puts the stack trace before it."""
    if not message.startswith("Caught "):
        return message
    return message.rstrip().rpartition("\n")[2].partition(": ")[2]


@contextlib.contextmanager
def _short_errors_of_threads() -> Iterator[None]:
    """Print one line if a thread fails because a disk is full, instead of its stack trace.

    The libraries that write in threads (TensorBoard) raise the error again where they are called next.
    """
    before = threading.excepthook

    def report(failed: threading.ExceptHookArgs) -> None:
        error = failed.exc_value
        if isinstance(error, OSError) and error.errno in STOPPING_ERRORS:
            print(f"crossdistill: a thread cannot write: {STOPPING_ERRORS[error.errno]}", file=sys.stderr)
        else:
            before(failed)

    threading.excepthook = report
    try:
        yield
    finally:
        threading.excepthook = before


def _is_of_lost_process(error: BaseException) -> bool:
    """Whether gloo has lost the connection to another process, which has its own message."""
    text = str(error)
    return "gloo/transport" in text and any(way in text for way in ("by peer", "Read error", "Write error"))


def _sentence(error: BaseException) -> str | None:
    """Message for the user; None for an error that is a bug."""
    if isinstance(error, UserError):
        return _without_trace(str(error))
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRORS:
        where = f" ({error.filename})" if error.filename else ""
        return (
            f"the disk is full{where}: free space and start again; finished work is kept, and a training run continues "
            "with --resume"
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename} cannot be read or written ({error.strerror.lower()}): give another path"
    # By name, because this module must be importable without torch. The CPU allocator's error has no type of its own.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or CPU_MEMORY_ERROR in str(error):
        reason = str(error).partition("\n")[0]
        return (
            f"there is not enough memory ({reason}): lower --batch-size (and raise --accumulate by the same factor), "
            "the size or number of frames, or --workers"
        )
    return None
