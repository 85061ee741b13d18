"""Resuming: which streams earlier runs finished, and which remain to be made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from crossdistill.data.manifest import Stream
from crossdistill.utils.files import temporary_stem
from data_prep.pipeline.jobs import Job
from data_prep.pipeline.journal import JournalEntry
from data_prep.pipeline.tasks import Task, fits
from data_prep.recipe import Outcome

Journals = Mapping[str, Sequence[JournalEntry]]
"""Video name to its entries, the latest of a journal first."""


def finished_entries(tasks: Iterable[Task], journals: Journals, root: Path, *, retry: bool) -> dict[str, JournalEntry]:
    """Find what the journals of a prepared dataset hold of the same sources and options.

    Returns:
        Video name to an entry with the streams that are still valid, or with the reason why the video was skipped.
        Videos of which nothing is finished are absent, and with ``retry`` also those that an earlier run skipped.
    """
    finished = {}
    for task in tasks:
        name = task.job.name
        entries = journals.get(name, [])
        skipped = [entry for entry in entries if entry.outcome.status == "skipped" and entry.keys == task.keys]
        found = _merge_valid(name, entries, root, partial(_is_current, task))
        if found is not None:
            finished[name] = found
        elif skipped and not retry:
            finished[name] = skipped[0]
    return finished


def entries_without_source(
    names: Iterable[str], journals: Journals, root: Path, *, methods: Mapping[str, dict[str, Any]]
) -> dict[str, JournalEntry]:
    """Find the finished videos among those whose source is away, for example on a disk that is not mounted.

    Args:
        names: Listed videos whose source was not found.
        journals: All entries of the folder.
        root: Folder of the prepared dataset.
        methods: Every stream of this run to the part of its key that its options decide.

    Returns:
        Video name to an entry that has all streams of this run.
    """
    finished = {}
    for name in names:
        found = _merge_valid(
            name,
            journals.get(name, []),
            root,
            lambda stream, key: stream not in methods or fits(key, {**key, **methods[stream]}),
        )
        if found is not None and methods.keys() <= found.outcome.streams.keys():
            finished[name] = found
    return finished


def _is_current(task: Task, stream: str, key: dict[str, Any]) -> bool:
    """Whether a key is that of this run, or is of the same source if this run does not make the stream."""
    if stream in task.keys:
        return fits(key, task.keys[stream])
    return key["source"] in [own["source"] for own in task.keys.values()]


def _merge_valid(
    name: str, entries: Sequence[JournalEntry], root: Path, is_current: Callable[[str, dict[str, Any]], bool]
) -> JournalEntry | None:
    """Merge the streams with unchanged files and a current key into one entry; return None if there is none."""

    def is_valid(entry: JournalEntry, stream: str) -> bool:
        key = entry.keys.get(stream)
        return key is not None and is_current(stream, key) and is_there(root, entry.outcome.streams[stream])

    # Runs for different modalities leave several entries, each with some of the streams.
    parts = []
    for entry in entries:
        streams = {stream: made for stream, made in entry.outcome.streams.items() if is_valid(entry, stream)}
        if streams:
            keys = {stream: entry.keys[stream] for stream in streams}
            parts.append(JournalEntry(name, keys, dataclasses.replace(entry.outcome, streams=streams)))
    if not parts:
        return None
    keys = {stream: key for entry in reversed(parts) for stream, key in entry.keys.items()}
    return JournalEntry(name, keys, merge_outcomes([entry.outcome for entry in parts]))


def is_there(root: Path, stream: Stream) -> bool:
    """Whether the file of a stream exists and has the size that the journal notes."""
    path = root / stream.path
    return path.is_file() and stream.fits(path.stat().st_size)


def kept_entries(own: Iterable[JournalEntry], listed: Collection[str], root: Path) -> list[JournalEntry]:
    """Choose the lines of a run's own journal that it keeps although it did not prepare their videos.

    These are the videos whose source is away, and videos that are not listed but whose streams are there.
    """
    return [
        entry
        for entry in own
        if entry.name in listed or any(is_there(root, stream) for stream in entry.outcome.streams.values())
    ]


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
