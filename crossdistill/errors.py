"""Errors that are the person's to mend, and how they are shown."""

from __future__ import annotations

import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable

USER_ERROR_EXIT_STATUS = 2
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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


class UnreadableVideoError(Exception):
    """One video cannot be decoded. Counted and reported by whoever walks over many videos."""


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a closed list, with the nearest names first."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(given, allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {given!r}: choose one of {', '.join(allowed)}{hint}")


def friendly_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command's ``main`` so that a ``UserError`` becomes one sentence and status 2.

    With ``CROSSDISTILL_TRACEBACK=1`` the stack trace is shown as well.
    """

    @functools.wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            if os.environ.get("CROSSDISTILL_TRACEBACK") == "1":
                raise
            print(f"crossdistill: error: {error}", file=sys.stderr)
            sys.exit(USER_ERROR_EXIT_STATUS)
        except OSError as error:
            if error.errno not in FULL_DISK_ERRORS or os.environ.get("CROSSDISTILL_TRACEBACK") == "1":
                raise
            where = f" ({error.filename})" if error.filename else ""
            print(
                f"crossdistill: error: the disk is full{where}: free space and start again; finished work is kept, "
                "and a training goes on with --resume",
                file=sys.stderr,
            )
            sys.exit(USER_ERROR_EXIT_STATUS)

    return wrapped
