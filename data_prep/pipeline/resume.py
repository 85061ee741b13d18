"""Resuming: which streams earlier runs finished, and which remain to be made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from crossdistill.data.manifest import Stream
from crossdistill.utils.files import temporary_stem
from data_prep.pipeline.jobs import Job
from data_prep.pipeline.journal import JournalEntry, read_journals
from data_prep.pipeline.tasks import Task
from data_prep.recipe import Outcome


def finished_entries(tasks: Iterable[Task], root: Path, *, retry: bool) -> dict[str, JournalEntry]:
    """Find what the journals of a prepared dataset hold of the same sources and options.

    Returns:
        Video name to an entry with the streams that are still valid, or with the reason why the video was skipped.
        Videos of which nothing is finished are absent, and with ``retry`` also those that an earlier run skipped.
    """
    journals = read_journals(root)
    finished = {}
    for task in tasks:
        name = task.job.name
        entries = journals.get(name, [])
        skipped = [entry for entry in entries if entry.outcome.status == "skipped" and entry.keys == task.keys]
        # Runs for different modalities leave several entries, each with some of the streams.
        partial = [valid for entry in entries if (valid := _still_valid(entry, task, root)).outcome.streams]
        if partial:
            keys = {stream: key for entry in reversed(partial) for stream, key in entry.keys.items()}
            finished[name] = JournalEntry(name, keys, merge_outcomes([entry.outcome for entry in partial]))
        elif skipped and not retry:
            finished[name] = skipped[0]
    return finished


def _still_valid(entry: JournalEntry, task: Task, root: Path) -> JournalEntry:
    """Keep the streams with unchanged files and the same key, or the same source if this run does not make them."""
    sources = [key["source"] for key in task.keys.values()]

    def is_valid(name: str, stream: Stream) -> bool:
        key = entry.keys.get(name)
        is_current = key == task.keys[name] if name in task.keys else key is not None and key["source"] in sources
        path = root / stream.path
        return is_current and path.is_file() and stream.fits(path.stat().st_size)

    streams = {name: stream for name, stream in entry.outcome.streams.items() if is_valid(name, stream)}
    keys = {name: key for name, key in entry.keys.items() if name in streams}
    return JournalEntry(entry.name, keys, dataclasses.replace(entry.outcome, streams=streams))


def merge_outcomes(outcomes: Sequence[Outcome]) -> Outcome:
    """Merge the outcomes of one video, the latest first. If the latest is skipped, the video has no streams."""
    if outcomes[0].status == "skipped":
        return outcomes[0]
    reasons = list(dict.fromkeys(outcome.reason for outcome in outcomes if outcome.reason))
    streams = {name: stream for outcome in reversed(outcomes) for name, stream in outcome.streams.items()}
    return Outcome("repaired" if reasons else "ok", "; ".join(reasons), dict(sorted(streams.items())))


def remaining_job(task: Task, finished: JournalEntry | None) -> Job | None:
    """Return the job that makes the missing streams, or None if nothing remains."""
    if finished is None:
        return task.job
    if finished.outcome.status == "skipped":
        return None
    missing = {name: path for name, path in task.job.stream_paths.items() if name not in finished.outcome.streams}
    return dataclasses.replace(task.job, stream_paths=missing) if missing else None


def remove_temporary_files(tasks: Iterable[Task], root: Path) -> None:
    """Remove the temporary files of a killed run. Files of other videos stay: another shard may be writing them."""
    targets = [root / path for task in tasks for path in task.job.stream_paths.values()]
    stems = {target.with_name(temporary_stem(target)) for target in targets}
    for path in root.rglob(".*.tmp"):
        # StreamWriter names its temporary file ".<stem>.<random>.tmp".
        if path.with_name(path.name[1:].rsplit(".", 2)[0]) in stems:
            path.unlink(missing_ok=True)
