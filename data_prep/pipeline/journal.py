"""The journal: one JSON line per finished video, appended as jobs end. A later run resumes from it.

A run that is killed leaves complete lines and at most one incomplete line, which is ignored. If a video has several
lines, the last one counts. At its end, a run rewrites the journal sorted by name, so that the same work gives the
same bytes in whatever order the jobs ended.
"""

from __future__ import annotations

import errno
import fcntl
import json
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from crossdistill.data.manifest import Stream
from crossdistill.errors import UserError
from crossdistill.utils.files import write_lines_atomically
from crossdistill.utils.locks import is_same_file
from data_prep.pipeline.shards import Shard
from data_prep.recipe import Outcome

JOURNAL_NAME = "journal.jsonl"
# OSErrors by which --out is a wrong choice. Others, such as a full disk, are raised as they are.
UNUSABLE_FOLDER_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One line of the journal: a video, its outcome, and what its streams were made from."""

    name: str
    keys: dict[str, dict[str, Any]]
    """Stream to its key: the source, the options that affect it, the version of the recipe."""
    outcome: Outcome

    def to_line(self) -> str:
        """Return a line of JSON that ``from_json`` reads back."""
        data = {
            "name": self.name,
            "keys": self.keys,
            "status": self.outcome.status,
            "reason": self.outcome.reason,
            "streams": {name: stream.to_json() for name, stream in self.outcome.streams.items()},
        }
        return json.dumps(data, sort_keys=True, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(data: dict[str, Any]) -> JournalEntry:
        """Read the object that ``to_line`` wrote."""
        streams = {name: Stream.from_json(stream) for name, stream in data["streams"].items()}
        return JournalEntry(data["name"], data["keys"], Outcome(data["status"], data["reason"], streams))


def read_journals(root: Path) -> dict[str, list[JournalEntry]]:
    """Read all journals of a folder, with those of shards: video name to entries, the latest of a journal first."""
    entries: dict[str, list[JournalEntry]] = {}
    for path in sorted(root.glob("journal*.jsonl")):
        for entry in read_journal(path):
            entries.setdefault(entry.name, []).insert(0, entry)
    return entries


def read_journal(path: Path, *, without: Container[str] = ()) -> Iterator[JournalEntry]:
    """Yield the entries of one journal in the order of its lines, except those of the videos ``without``."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                data = json.loads(line)
                if data["name"] not in without:
                    yield JournalEntry.from_json(data)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut by a kill or damaged on disk: the video is prepared again


class Journal:
    """An open journal. Use ``open_journal`` to open one."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self._file = path, file

    def append(self, entry: JournalEntry) -> None:
        """Append the entry of a finished video. It survives a kill of this process once the method returns."""
        self._file.write(entry.to_line())
        self._file.flush()

    def compact(self, entries: Iterable[JournalEntry]) -> None:
        """Replace the content by these entries, sorted by name."""
        ordered = sorted(entries, key=lambda entry: entry.name)
        write_lines_atomically(self.path, (entry.to_line().rstrip("\n") for entry in ordered))


def _hold(path: Path) -> IO[str]:
    """Open and lock a file; ``BlockingIOError`` if another run holds it."""
    while True:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115 (the caller closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
        if is_same_file(file, path):
            return file
        file.close()  # its holder has ended meanwhile and removed it


@contextmanager
def open_journal(root: Path, shard: Shard | None) -> Iterator[Journal]:
    """Open the journal of a folder for appending; raise a ``UserError`` if another run holds it or it is read-only."""
    path = root / (shard.journal_name if shard else JOURNAL_NAME)
    lock_path = root / f".{path.name}.lock"
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_hold(lock_path))
            file = stack.enter_context(open(path, "a", encoding="utf-8"))
        except BlockingIOError as error:
            raise UserError(f"another run is preparing {root}: wait for its end, or use --shard I/N") from error
        except OSError as error:
            if error.errno not in UNUSABLE_FOLDER_ERRORS:
                raise
            raise UserError(f"--out {root} is not writable ({error.strerror}): give a writable folder") from error
        if file.tell():
            with open(path, "rb") as written:
                written.seek(-1, 2)
                if written.read(1) != b"\n":
                    file.write("\n")  # ends the incomplete line of a killed run
        try:
            yield Journal(path, file)
        finally:
            lock_path.unlink(missing_ok=True)
