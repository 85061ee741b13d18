"""The journal: what has been made of which source, one line per finished video, appended as work ends.

A run that was killed at any moment leaves whole lines and at most one torn one, which is left out. The
last line of a video counts. At the end of a run the journal is written anew in the order of the names,
so that the same work leaves the same bytes whatever the order in which jobs ended.
"""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from crossdistill.data.manifest import Stream
from crossdistill.errors import UserError
from crossdistill.utils.files import write_text_atomically
from data_prep.recipe import Outcome

JOURNAL_NAME = "journal.jsonl"
NO_FOLDER_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def journal_name(shard: tuple[int, int] | None) -> str:
    """The file's name; every shard of a job array writes its own."""
    return f"journal.{shard[0]}-of-{shard[1]}.jsonl" if shard else JOURNAL_NAME


@dataclass(frozen=True)
class Row:
    """One line: what became of one video, and what it was made of."""

    name: str
    keys: dict[str, dict[str, Any]]
    """Stream to what it depends on: its source, the options that matter to it, the version of the recipe."""
    outcome: Outcome

    def to_line(self) -> str:
        """A line of JSON that ``from_json`` reads back."""
        row = {
            "name": self.name,
            "keys": self.keys,
            "status": self.outcome.status,
            "reason": self.outcome.reason,
            "streams": {stream: made.to_json() for stream, made in self.outcome.streams.items()},
        }
        return json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(data: dict[str, Any]) -> Row:
        """Read what ``to_line`` wrote."""
        streams = {name: Stream.from_json(stream) for name, stream in data["streams"].items()}
        return Row(data["name"], data["keys"], Outcome(data["status"], data["reason"], streams))


def read_journals(root: Path) -> dict[str, list[Row]]:
    """All lines of all journals of a folder, shards included, by name; the latest of a file stand first."""
    rows: dict[str, list[Row]] = {}
    for path in sorted(root.glob("journal*.jsonl")):
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = Row.from_json(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue  # torn by a kill or damaged by the disk: that video is prepared again
                rows.setdefault(row.name, []).insert(0, row)
    return rows


class Journal:
    """An open journal; see ``open_journal``."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self._file = path, file

    def append(self, row: Row) -> None:
        """Record a finished video; handed to the system when this returns."""
        self._file.write(row.to_line())
        self._file.flush()

    def compact(self, rows: Iterable[Row]) -> None:
        """Write the journal anew with these rows alone, sorted by name."""
        write_text_atomically(self.path, "".join(row.to_line() for row in sorted(rows, key=lambda row: row.name)))


@contextmanager
def open_journal(root: Path, shard: tuple[int, int] | None) -> Iterator[Journal]:
    """Open a folder's journal for appending; a second run on the same folder is refused.

    Raises:
        UserError: Another run holds the journal, or the folder cannot be written.
    """
    path = root / journal_name(shard)
    lock = root / f".{path.name}.lock"
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(open(lock, "w", encoding="utf-8"))
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file = stack.enter_context(open(path, "a", encoding="utf-8"))
        except BlockingIOError as error:
            raise UserError(
                f"another run is preparing {root}: wait for it, or share the work with --shard i/N"
            ) from error
        except OSError as error:
            if error.errno not in NO_FOLDER_ERRORS:
                raise
            raise UserError(
                f"{root} cannot be written ({error.strerror}): give --out a folder that you may write"
            ) from error
        if file.tell() and not _ends_with_newline(path):
            file.write("\n")  # closes a torn line, so that the next one is whole
        yield Journal(path, file)
        lock.unlink(missing_ok=True)


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
