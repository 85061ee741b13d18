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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from crossdistill.data.manifest import Stream
from crossdistill.errors import UserError
from crossdistill.files import write_text_atomically
from data_prep.recipe import Outcome

JOURNAL_NAME = "journal.jsonl"
NO_FOLDER_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def journal_name(shard: tuple[int, int] | None) -> str:
    """The file's name; every shard of a job array writes its own."""
    return f"journal.{shard[0]}-of-{shard[1]}.jsonl" if shard else JOURNAL_NAME


def _line(name: str, key: dict[str, Any], outcome: Outcome) -> str:
    row = {
        "name": name,
        "key": key,
        "status": outcome.status,
        "reason": outcome.reason,
        "streams": {stream: made.to_json() for stream, made in outcome.streams.items()},
    }
    return json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn by a kill or damaged by the disk: that video is prepared again
            if isinstance(row, dict) and {"name", "key", "status", "reason", "streams"} <= row.keys():
                yield row


def read_journals(root: Path) -> dict[str, tuple[dict[str, Any], Outcome]]:
    """All journals of a folder, shards included, as name to (key, outcome)."""
    finished = {}
    for path in sorted(root.glob("journal*.jsonl")):
        for row in _rows(path):
            streams = {name: Stream.from_json(stream) for name, stream in row["streams"].items()}
            finished[row["name"]] = (row["key"], Outcome(row["status"], row["reason"], streams))
    return finished


class Journal:
    """An open journal; see ``open_journal``."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self._file = path, file

    def append(self, name: str, key: dict[str, Any], outcome: Outcome) -> None:
        """Record a finished video; on disk when this returns."""
        self._file.write(_line(name, key, outcome))
        self._file.flush()

    def compact(self, rows: Iterable[tuple[str, dict[str, Any], Outcome]]) -> None:
        """Write the journal anew with these rows alone, sorted by name."""
        write_text_atomically(self.path, "".join(_line(*row) for row in sorted(rows, key=lambda row: row[0])))


@contextmanager
def open_journal(root: Path, shard: tuple[int, int] | None) -> Iterator[Journal]:
    """Open a folder's journal for appending; a second run on the same folder is refused.

    Raises:
        UserError: Another run holds the journal, or the folder cannot be written.
    """
    path = root / journal_name(shard)
    lock = root / f".{path.name}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(lock, "w", encoding="utf-8") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"another run is preparing {root}: wait for it, or share the work with --shard i/N"
                ) from error
            with open(path, "a", encoding="utf-8") as file:
                if file.tell() and not _ends_with_newline(path):
                    file.write("\n")  # closes a torn line, so that the next one is whole
                yield Journal(path, file)
            lock.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in NO_FOLDER_ERRORS:
            raise
        raise UserError(
            f"{root} cannot be written ({error.strerror}): give --out a folder that you may write"
        ) from error


def _ends_with_newline(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
