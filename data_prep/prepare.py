"""What all datasets share: options, finding files, resuming, the table at the end, the manifest.

A dataset's own module reads its lists into ``SourceVideo`` entries and calls ``prepare_videos``.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from crossdistill.console import console, print_table
from crossdistill.data.manifest import Manifest, Stream, Video, unique_names
from crossdistill.errors import UserError
from crossdistill.files import write_text_atomically
from data_prep.executor import run_jobs
from data_prep.flow import MIN_SIDE_PX
from data_prep.transcode import Outcome, Recipe, transcode

RECORD_FOLDER = ".prepared"
# Raise it when the same options begin to give other bytes: older streams are then made anew.
RECIPE_VERSION = 1
MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The options that every dataset has."""

    out: Path
    """Folder of the prepared dataset. Nothing is written outside it."""
    modalities: tuple[Literal["rgb", "flow"], ...] = ("rgb", "flow")
    """Streams to make. Streams that an earlier run made with the same options are kept."""
    short_side_px: Annotated[int, tyro.conf.arg(name="short-side", metavar="PX")] = 256
    """Short side of the pictures in pixels, even; smaller videos keep their size. 128 suits 112-pixel crops."""
    flow_preset: Literal["ultrafast", "fast", "medium"] = "fast"
    """Effort of the optical flow (OpenCV's DIS)."""
    min_frames: int = 8
    """Videos with fewer readable frames are skipped."""
    max_bad: float = 0.05
    """Share of the files found that may turn out unusable before the command counts as failed."""
    workers: int | None = None
    """Videos prepared at a time; one per core if not given."""

    @property
    def recipe(self) -> Recipe:
        """The options that decide what is in the streams."""
        return Recipe(short_side_px=self.short_side_px, flow_preset=self.flow_preset, min_frames=self.min_frames)


@dataclass(frozen=True)
class SourceVideo:
    """One video as the dataset's lists describe it."""

    name: str
    """Unique in the dataset."""
    path: Path | None
    """None where the lists name a file that is not there."""
    folder: str = ""
    """Folder inside each stream's folder, mostly the class."""
    label: int | None = None
    group: str | None = None
    splits: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """One video to prepare: everything that a worker needs."""

    source: Path
    key: dict[str, Any]
    """What the streams depend on; a record with another key is out of date."""
    stream_paths: dict[str, str]
    record: str
    root: Path
    recipe: Recipe


def find_videos(folder: Path, *, suffix: str) -> dict[str, list[Path]]:
    """Find files by suffix in a folder and all below it, as stem in lower case to sorted paths.

    Raises:
        UserError: There is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the folder that holds the {suffix} files")
    found: dict[str, list[Path]] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() == suffix and not name.startswith("."):
                found.setdefault(path.stem.casefold(), []).append(path)
    return {stem: sorted(paths) for stem, paths in sorted(found.items())}


def prepare_videos(
    dataset: str,
    sources: Sequence[SourceVideo],
    *,
    classes: Sequence[str],
    options: PrepareOptions,
    flip_keeps_label: bool = True,
) -> Manifest:
    """Prepare videos in parallel and write the manifest; what an earlier run finished is kept.

    Raises:
        UserError: An option is out of range, or more files than ``max_bad`` allows are unusable (the
            manifest has been written by then).
    """
    _check_options(options)
    jobs = {source.name: _job(source, source.path, options) for source in sources if source.path is not None}
    _remove_leftovers(options.out, jobs.values())
    outcomes = {name: done for name, job in jobs.items() if (done := _finished(job)) is not None}
    if outcomes:
        console.print(f"{len(outcomes)} of {len(jobs)} files are prepared already")
    remaining = {name: job for name, job in jobs.items() if name not in outcomes}
    results = run_jobs(_prepare_one, list(remaining.values()), workers=options.workers, description=dataset)
    outcomes.update(zip(remaining, results, strict=True))
    manifest = Manifest(
        root=options.out,
        dataset=dataset,
        classes=tuple(classes),
        videos=tuple(_video(source, outcomes.get(source.name)) for source in sources),
        flip_keeps_label=flip_keeps_label,
        facts=_facts(options),
    )
    unique_names(manifest.videos)
    manifest.save()
    _report(manifest)
    _check_bad_share(manifest, options.max_bad)
    return manifest


def _check_options(options: PrepareOptions) -> None:
    if options.short_side_px < MIN_SIDE_PX or options.short_side_px % 2:
        raise UserError(f"--short-side {options.short_side_px} cannot work: give an even number from {MIN_SIDE_PX} up")
    if options.min_frames < 2:
        raise UserError(f"--min-frames {options.min_frames} cannot work: give 2 or more (flow needs a pair)")
    if not options.modalities:
        raise UserError("--modalities is empty: give rgb, flow or both")
    if not 0 <= options.max_bad <= 1:
        raise UserError(f"--max-bad {options.max_bad} is no share: give a number from 0 to 1")


def _job(source: SourceVideo, path: Path, options: PrepareOptions) -> _Job:
    facts = path.stat()
    inner = Path(source.folder, source.name)
    return _Job(
        source=path,
        key={
            "source": [facts.st_size, facts.st_mtime_ns],
            "recipe": dataclasses.asdict(options.recipe),
            "version": RECIPE_VERSION,
        },
        stream_paths={name: Path(name, f"{inner}.mp4").as_posix() for name in options.modalities},
        record=Path(RECORD_FOLDER, f"{inner}.json").as_posix(),
        root=options.out,
        recipe=options.recipe,
    )


def _remove_leftovers(root: Path, jobs: Iterable[_Job]) -> None:
    """Remove the temporary files that a killed run left behind, of these videos and no others."""
    stems = {path for job in jobs for path in (*job.stream_paths.values(), job.record)}
    for path in root.rglob(".*.tmp"):
        # ".<name>.<process>.tmp" stands for "<name>" in the same folder.
        final = path.with_name(path.name[1:].rsplit(".", 2)[0])
        if final.relative_to(root).as_posix() in stems:
            path.unlink(missing_ok=True)


def _recorded(job: _Job) -> Outcome | None:
    """What an earlier run with the same options made of this very file, with the streams still there."""
    path = job.root / job.record
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # damaged by the disk: the video is prepared again
    if data["key"] != job.key:
        return None
    streams = {name: Stream.from_json(stream) for name, stream in data["streams"].items()}
    present = {name: stream for name, stream in streams.items() if (job.root / stream.path).is_file()}
    return Outcome(data["status"], data["reason"], present)


def _finished(job: _Job) -> Outcome | None:
    outcome = _recorded(job)
    return outcome if outcome is not None and set(job.stream_paths) <= set(outcome.streams) else None


def _prepare_one(job: _Job) -> Outcome:
    """Make the streams that are not there yet, and leave a record when all are. Runs in a worker."""
    earlier = _recorded(job)
    kept = earlier.streams if earlier is not None else {}
    record = job.root / job.record
    record.unlink(missing_ok=True)  # first: a record must never stand beside streams of other options
    to_make = {name: path for name, path in job.stream_paths.items() if name not in kept}
    outcome = transcode(job.source, to_make, root=job.root, recipe=job.recipe)
    if outcome.status == "skipped":
        for path in job.stream_paths.values():
            (job.root / path).unlink(missing_ok=True)
        return outcome
    outcome = dataclasses.replace(outcome, streams=dict(sorted({**kept, **outcome.streams}.items())))
    data = {
        "key": job.key,
        "status": outcome.status,
        "reason": outcome.reason,
        "streams": {name: stream.to_json() for name, stream in outcome.streams.items()},
    }
    write_text_atomically(record, json.dumps(data, sort_keys=True) + "\n")
    return outcome


def _video(source: SourceVideo, outcome: Outcome | None) -> Video:
    outcome = outcome or Outcome("skipped", MISSING)
    return Video(
        name=source.name,
        label=source.label,
        group=source.group,
        splits=dict(sorted(source.splits.items())),
        status=outcome.status,
        reason=outcome.reason,
        streams=outcome.streams,
    )


def _facts(options: PrepareOptions) -> dict[str, Any]:
    """How the streams were made; no paths and no dates, so that the same work gives the same bytes."""
    return {
        "recipe": dataclasses.asdict(options.recipe),
        "versions": {name: importlib.metadata.version(name) for name in ("av", "numpy", "opencv-python-headless")},
    }


def _report(manifest: Manifest) -> None:
    counts: Counter[str] = Counter()
    for video in manifest.videos:
        counts[f"skipped: {video.reason.split(':')[0]}" if video.status == "skipped" else video.status] += 1
    rows = [(name, str(counts[name])) for name in ("ok", "repaired", *sorted(set(counts) - {"ok", "repaired"}))]
    print_table(manifest.dataset, ("status", "files"), [*rows, ("all", f"{counts.total()}")])
    for name in manifest.streams:
        paths = [video.streams[name].path for video in manifest.videos if video.is_usable]
        frames = sum(video.streams[name].num_frames for video in manifest.videos if video.is_usable)
        size_mb = sum((manifest.root / path).stat().st_size for path in paths) / 1e6
        console.print(f"{name}: {frames} frames, {size_mb:.1f} MB")
    console.print(f"the dataset is in {manifest.root}", highlight=False, soft_wrap=True)


def _check_bad_share(manifest: Manifest, max_bad: float) -> None:
    """Missing files are no failures: half a download is a dataset too, and the table shows it."""
    found = [video for video in manifest.videos if video.reason != MISSING]
    bad = [video for video in found if not video.is_usable]
    if len(bad) > max_bad * len(found):
        raise UserError(
            f"{len(bad)} of {len(found)} files could not be prepared, more than --max-bad {max_bad:g} allows; "
            f"the first is {bad[0].name} ({bad[0].reason}). The manifest in {manifest.root} is written and lists "
            "them all: download them again, or raise --max-bad to do without them"
        )
