"""What all datasets share: options, resuming, shards, the table at the end, the manifest.

A dataset's own module reads its lists into ``SourceVideo`` entries and calls ``prepare_videos``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from crossdistill.data.manifest import MANIFEST_NAME, Manifest, Stream, Video, unique_names
from crossdistill.errors import UserError
from crossdistill.utils.console import console, print_table
from data_prep.flow import FLOW_PRESETS
from data_prep.pipeline.executor import Engine, run_jobs
from data_prep.pipeline.guard import stop_children
from data_prep.pipeline.jobs import Job, StopError, run_job
from data_prep.pipeline.journal import Row, open_journal, read_journals
from data_prep.pipeline.readers import MIN_SIDE_PX, Input
from data_prep.pipeline.transcode import DERIVED, check_source, source_of
from data_prep.recipe import Outcome, Recipe

# Raise it when the same options begin to give other bytes: older streams are then made anew.
RECIPE_VERSION = 2
MISSING = "missing"
DRY_RUN_SAMPLES = (0.25, 0.5, 0.75)
"""Which files are tried out: at these shares of the list from the smallest to the largest."""
# Options of datasets that name folders in which sources are looked for.
SOURCE_FOLDERS = ("videos", "depth", "skeleton", "replacement")
# Options that matter to one stream alone; the others matter to all.
STREAM_OPTIONS = {
    "rgb": ("keep_original",),
    "flow": ("flow", "flow_preset", "flow_weights"),
    "depth": ("depth_model",),
}


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """The options that every dataset has."""

    out: Path
    """Folder of the prepared dataset. Nothing is written outside it."""
    modalities: tuple[Literal["rgb", "flow", "depth"], ...] = ("rgb", "flow")
    """Streams to make. Streams that an earlier run made with the same options are kept."""
    short_side_px: Annotated[int, tyro.conf.arg(name="short-side", metavar="PX")] = 256
    """Short side of the pictures in pixels, even; smaller videos keep their size. 128 suits 112-pixel crops."""
    keep_original: bool = False
    """Do not re-encode colour: index the files where they are. Slower to read; moves with the originals."""
    flow: Literal["dis", "farneback", "tvl1", "raft", "motion-vectors"] = "dis"
    """How optical flow is estimated; motion-vectors takes the codec's own, coarse, in half the time of dis."""
    flow_preset: Literal["ultrafast", "fast", "medium"] = "fast"
    """Effort of --flow dis."""
    flow_weights: str | None = None
    """Weights of --flow raft: a file, or a name of torchvision's such as raft_small."""
    depth_model: str | None = None
    """Estimate --modalities depth from colour with this network of Hugging Face: its name or folder."""
    min_frames: int = 8
    """Videos with fewer readable frames are skipped."""
    max_bad: float = 0.05
    """Share of the files found that may turn out unusable before the command counts as failed."""
    time_limit: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 600.0
    """A file that takes longer is skipped: decoders can hang on damaged files."""
    retry: bool = False
    """Try files again that an earlier run skipped."""
    workers: int | None = None
    """Videos prepared at a time; one per core if not given, or as many as a cluster takes."""
    engine: Literal["local", "dask", "ray"] = "local"
    """Where videos are prepared: here, or on a cluster whose machines see the same folders."""
    address: str | None = None
    """Of the cluster's scheduler, for example tcp://head-node:8786."""
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None
    """Prepare part I of N, for job arrays; afterwards join the parts with python -m data_prep merge."""
    dry_run: bool = False
    """Say how many files and bytes there are and about how long they take, and do nothing."""

    @property
    def recipe(self) -> Recipe:
        """The options that decide what is in the streams; those without effect here are left at their defaults."""
        makes_flow, is_dis = "flow" in self.modalities, self.flow == "dis"
        return Recipe(
            short_side_px=self.short_side_px,
            min_frames=self.min_frames,
            keep_original=self.keep_original,
            flow=self.flow if makes_flow else Recipe.flow,
            flow_preset=self.flow_preset if makes_flow and is_dis else Recipe.flow_preset,
            flow_weights=self.flow_weights if makes_flow and self.flow == "raft" else None,
            depth_model=self.depth_model if "depth" in self.modalities else None,
        )

    @property
    def part(self) -> tuple[int, int] | None:
        """``--shard`` as (i, n), i from 1."""
        if self.shard is None:
            return None
        match = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard {self.shard} is no part: give I/N with I from 1 to N, for example 3/16")
        return int(match[1]), int(match[2])


@dataclass(frozen=True)
class SourceVideo:
    """One video as the dataset's lists describe it."""

    name: str
    """Unique in the dataset."""
    inputs: dict[str, Path]
    """Modality to the file or folder that holds it; empty where the lists name a file that is not there."""
    folder: str = ""
    """Folder inside each stream's folder, mostly the class."""
    label: int | None = None
    group: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    frames_per_second: float | None = None
    """Of inputs that do not say it themselves."""


@dataclass(frozen=True)
class _Task:
    """One video to prepare: its job, and what the journal needs to recognise it."""

    job: Job
    keys: dict[str, dict[str, Any]]
    """Stream to what it depends on; a line of the journal with another key is out of date."""
    num_bytes: int
    """Of the sources."""


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
    part = options.part
    sources = sources[part[0] - 1 :: part[1]] if part else sources
    manifest = Manifest(
        root=options.out,
        dataset=dataset,
        classes=tuple(classes),
        videos=tuple(_video(source, None) for source in sources),
        flip_keeps_label=flip_keeps_label,
        facts=_facts(options),
    )
    unique_names(manifest.videos)
    tasks = [_task(source, options, manifest.facts["recipe"]) for source in sources if source.inputs]
    if options.depth_model is not None and tasks and all("depth" in task.job.inputs for task in tasks):
        raise UserError(
            f"--depth-model {options.depth_model} does nothing here: all videos come with depth; leave it out"
        )
    _check_no_source_is_target(tasks, options.out)
    if options.dry_run:
        _describe_work(tasks, num_listed=len(sources), options=options)
        return manifest
    outcomes = _prepare_all(dataset, tasks, options)
    videos = tuple(_video(source, outcomes.get(source.name)) for source in sources)
    manifest = dataclasses.replace(manifest, videos=videos)
    manifest.save(name=shard_manifest_name(*part) if part else MANIFEST_NAME)
    report(manifest)
    if part:
        console.print(f"when all {part[1]} parts are done: python -m data_prep merge {options.out}", soft_wrap=True)
    _check_bad_share(manifest, options.max_bad)
    return manifest


def check_out_is_apart(options: PrepareOptions) -> None:
    """Raise a ``UserError`` if --out lies in a folder of sources: what is made would be found as a source."""
    for name in SOURCE_FOLDERS:
        given = getattr(options, name, None)
        if given is None or not given.is_dir() or given.resolve() == Path.cwd():
            continue
        if options.out.resolve().is_relative_to(given.resolve()):
            raise UserError(f"--out {options.out} is inside --{name} {given}: give a folder outside it")


def _check_no_source_is_target(tasks: Iterable[_Task], root: Path) -> None:
    """Raise a ``UserError`` before a source is written over."""
    root = root.resolve()
    for task in tasks:
        targets = {root / path for path in task.job.stream_paths.values()}
        for source in task.job.inputs.values():
            if Path(os.path.realpath(source.path)) in targets:
                raise UserError(f"{source.path} would be written over: give --out another folder")


def shard_manifest_name(i: int, n: int) -> str:
    """The manifest of one part of a job array."""
    return f"manifest.{i}-of-{n}.jsonl"


def _check_options(options: PrepareOptions) -> None:
    if options.short_side_px < MIN_SIDE_PX or options.short_side_px % 2:
        raise UserError(f"--short-side {options.short_side_px} cannot work: give an even number from {MIN_SIDE_PX} up")
    if options.min_frames < 2:
        raise UserError(f"--min-frames {options.min_frames} cannot work: give 2 or more (flow needs a pair)")
    if not options.modalities:
        raise UserError("--modalities is empty: give rgb, flow or both")
    if not 0 <= options.max_bad <= 1:
        raise UserError(f"--max-bad {options.max_bad} is no share: give a number from 0 to 1")
    if options.time_limit <= 0:
        raise UserError(f"--time-limit {options.time_limit:g} cannot work: give seconds, more than 0")
    if options.flow_preset not in FLOW_PRESETS:
        raise UserError(f"--flow-preset {options.flow_preset} is unknown: choose one of {', '.join(FLOW_PRESETS)}")
    _check_options_have_effect(options)
    for stream in options.modalities:
        if stream in DERIVED:
            DERIVED[stream].check(options.recipe)


def _check_options_have_effect(options: PrepareOptions) -> None:
    """An option that would do nothing was given by mistake."""
    default = PrepareOptions(out=options.out)
    needs_flow = {
        "--flow": (options.flow, default.flow),
        "--flow-preset": (options.flow_preset, default.flow_preset),
        "--flow-weights": (options.flow_weights, None),
    }
    for name, (given, usual) in needs_flow.items():
        if given != usual and "flow" not in options.modalities:
            raise UserError(f"{name} {given} does nothing without flow in --modalities: add flow, or leave {name} out")
    for name, method in {"--flow-preset": "dis", "--flow-weights": "raft"}.items():
        given, usual = needs_flow[name]
        if given != usual and options.flow != method:
            raise UserError(f"{name} {given} belongs to --flow {method}, not to {options.flow}: leave {name} out")
    if options.depth_model is not None and "depth" not in options.modalities:
        raise UserError(
            f"--depth-model {options.depth_model} does nothing without depth in --modalities: add depth, or leave "
            "--depth-model out"
        )


def _recipe_facts(recipe: Recipe) -> dict[str, Any]:
    """The recipe with the content of weights in place of their path: what the streams really depend on."""
    facts = dataclasses.asdict(recipe)
    for name in ("flow_weights", "depth_model"):
        path = Path(facts[name]) if facts[name] else None
        if path is not None and path.exists():
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            digest = hashlib.sha256()
            for file in files:
                with open(file, "rb") as opened:
                    while block := opened.read(1 << 24):
                        digest.update(block)
            facts[name] = f"sha256:{digest.hexdigest()}"
    return facts


def _task(source: SourceVideo, options: PrepareOptions, recipe_facts: dict[str, Any]) -> _Task:
    inner = Path(source.folder, source.name)
    for stream in options.modalities:
        check_source(stream, source.inputs, options.recipe)  # a sentence now instead of a failure per file
    job = Job(
        name=source.name,
        inputs={name: Input(str(path), source.frames_per_second) for name, path in source.inputs.items()},
        stream_paths={name: Path(name, f"{inner}.mp4").as_posix() for name in options.modalities},
        root=str(options.out),
        recipe=options.recipe,
        time_limit_seconds=options.time_limit,
    )
    prints = {name: _fingerprint(path) for name, path in source.inputs.items()}
    keys = {name: _key(name, prints[source_of(name, prints)], recipe_facts) for name in job.stream_paths}
    return _Task(job, keys, num_bytes=sum(size for size, _ in prints.values()))


def _key(stream: str, fingerprint: list[int], recipe_facts: dict[str, Any]) -> dict[str, Any]:
    """What one stream depends on: adding a stream, or another way to make one, leaves the others as they are."""
    own = STREAM_OPTIONS.get(stream, ())
    others = {name for names in STREAM_OPTIONS.values() for name in names} - set(own)
    recipe = {name: value for name, value in recipe_facts.items() if name not in others}
    return {"source": fingerprint, "recipe": recipe, "version": RECIPE_VERSION}


def _fingerprint(path: Path) -> list[int]:
    """Size and time of a file, or number of files and time of a folder; changes when the source does."""
    try:
        facts = path.stat()
        return [sum(1 for _ in path.iterdir()) if path.is_dir() else facts.st_size, facts.st_mtime_ns]
    except OSError:  # a link that leads nowhere: the job says so
        return [0, 0]


def _prepare_all(dataset: str, tasks: Sequence[_Task], options: PrepareOptions) -> dict[str, Outcome]:
    """Outcomes by name: those in the journal, and those of the jobs that were left."""
    with open_journal(options.out, options.part) as journal:
        _remove_leftovers(options.out, tasks)
        kept = _kept_outcomes(tasks, options)
        remaining = [job for task in tasks if (job := _remaining_job(task, kept.get(task.job.name))) is not None]
        outcomes = {name: row.outcome for name, row in kept.items()}
        keys = {task.job.name: {**_keys_of(kept.get(task.job.name)), **task.keys} for task in tasks}
        if len(remaining) < len(tasks):
            console.print(f"{len(tasks) - len(remaining)} of {len(tasks)} files are prepared already")

        def record(position: int, outcome: Outcome) -> None:
            name = remaining[position].name
            outcomes[name] = _joined([outcome, *([kept[name].outcome] if name in kept else [])])
            journal.append(Row(name, keys[name], outcomes[name]))

        engine = Engine(
            "threads" if options.engine == "local" else options.engine, options.address, workers=options.workers
        )
        try:
            run_jobs(run_job, remaining, engine=engine, description=dataset, on_result=record)
        except StopError as error:
            raise UserError(f"{error}: mend it and give the same command again; finished files are kept") from error
        finally:
            stop_children()
        journal.compact(Row(name, keys[name], outcome) for name, outcome in outcomes.items())
    return outcomes


def _keys_of(row: Row | None) -> dict[str, dict[str, Any]]:
    return {name: row.keys[name] for name in row.outcome.streams} if row is not None else {}


def _joined(outcomes: Sequence[Outcome]) -> Outcome:
    """The latest outcome with the streams that earlier ones left; a skipped video has none."""
    if outcomes[0].status == "skipped":
        return outcomes[0]
    reasons = list(dict.fromkeys(outcome.reason for outcome in outcomes if outcome.reason))
    streams = {name: stream for outcome in reversed(outcomes) for name, stream in outcome.streams.items()}
    return Outcome("repaired" if reasons else "ok", "; ".join(reasons), dict(sorted(streams.items())))


def _kept_outcomes(tasks: Iterable[_Task], options: PrepareOptions) -> dict[str, Row]:
    """What the journals hold of these very sources and options, as far as the files are still those."""
    journals = read_journals(options.out)
    kept = {}
    for task in tasks:
        rows = journals.get(task.job.name, [])
        skipped = [row for row in rows if row.outcome.status == "skipped" and row.keys == task.keys]
        parts = [row for row in (_still_valid(row, task, options.out) for row in rows) if row.outcome.streams]
        if parts:
            keys = {name: key for row in reversed(parts) for name, key in row.keys.items()}
            kept[task.job.name] = Row(task.job.name, keys, _joined([row.outcome for row in parts]))
        elif skipped and not options.retry:
            kept[task.job.name] = skipped[0]
    return kept


def _still_valid(row: Row, task: _Task, root: Path) -> Row:
    """The streams of a line that are not out of date: wanted ones by their key, others by their source."""
    sources = [key["source"] for key in task.keys.values()]

    def is_valid(name: str, stream: Stream) -> bool:
        key = row.keys.get(name)
        is_current = key == task.keys[name] if name in task.keys else key is not None and key["source"] in sources
        path = root / stream.path
        return is_current and path.is_file() and path.stat().st_size == stream.num_bytes

    streams = {name: stream for name, stream in row.outcome.streams.items() if is_valid(name, stream)}
    keys = {name: key for name, key in row.keys.items() if name in streams}
    return Row(row.name, keys, dataclasses.replace(row.outcome, streams=streams))


def _remaining_job(task: _Task, kept: Row | None) -> Job | None:
    """The job of the streams that are not there yet; None if nothing is left to do."""
    if kept is None:
        return task.job
    if kept.outcome.status == "skipped":
        return None
    missing = {name: path for name, path in task.job.stream_paths.items() if name not in kept.outcome.streams}
    return dataclasses.replace(task.job, stream_paths=missing) if missing else None


def _remove_leftovers(root: Path, tasks: Iterable[_Task]) -> None:
    """Remove the temporary files that a killed run left behind, of these videos and no others."""
    paths = {path for task in tasks for path in task.job.stream_paths.values()}
    for path in root.rglob(".*.tmp"):
        # ".<name>.<process>.tmp" stands for "<name>" in the same folder.
        final = path.with_name(path.name[1:].rsplit(".", 2)[0])
        if final.relative_to(root).as_posix() in paths:
            path.unlink(missing_ok=True)


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
    recipe = options.recipe
    libraries = ["av", "numpy", "opencv-contrib-python-headless"]
    libraries += ["torch", "torchvision"] if recipe.flow == "raft" else []
    libraries += ["torch", "transformers"] if recipe.depth_model else []
    return {
        "recipe": _recipe_facts(recipe),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }


def report(manifest: Manifest) -> None:
    """Print what became of the files, by reason, and what the streams hold."""
    counts: Counter[str] = Counter()
    for video in manifest.videos:
        counts[f"{video.status}: {video.reason.split(':')[0]}" if video.reason else video.status] += 1
    order = {"ok": 0, "repaired": 1, "skipped": 2}
    rows = sorted(counts.items(), key=lambda row: (order[row[0].split(":")[0]], row[0]))
    print_table(manifest.dataset, ("status", "files"), [*((n, str(c)) for n, c in rows), ("all", f"{counts.total()}")])
    usable = [video for video in manifest.videos if video.is_usable]
    for name in manifest.streams:
        streams = [video.streams[name] for video in usable]
        size_mb = sum((manifest.root / stream.path).stat().st_size for stream in streams) / 1e6
        console.print(f"{name}: {sum(stream.num_frames for stream in streams)} frames, {size_mb:.1f} MB")
    console.print(f"the dataset is in {manifest.root}", highlight=False, soft_wrap=True)


def _check_bad_share(manifest: Manifest, max_bad: float) -> None:
    """Missing files are no failures: half a download is a dataset too, and the table shows it."""
    found = [video for video in manifest.videos if video.reason != MISSING]
    bad = [video for video in found if not video.is_usable]
    if len(bad) > max_bad * len(found):
        raise UserError(
            f"{len(bad)} of {len(found)} files could not be prepared, more than --max-bad {max_bad:g} allows; "
            f"the first is {bad[0].name} ({bad[0].reason}). The manifest in {manifest.root} is written and lists "
            "them all: download them again and give --retry, or raise --max-bad to do without them"
        )


def _describe_work(tasks: Sequence[_Task], *, num_listed: int, options: PrepareOptions) -> None:
    """Say how much there is to do; the time is that of a few files, prepared into a folder that is removed again."""
    total_bytes = sum(task.num_bytes for task in tasks)
    console.print(f"{num_listed} videos listed, {len(tasks)} found, {total_bytes / 1e9:.2f} GB", highlight=False)
    kept = _kept_outcomes(tasks, options)
    left = sorted(
        (task for task in tasks if _remaining_job(task, kept.get(task.job.name)) is not None),
        key=lambda task: task.num_bytes,
    )
    console.print(f"{len(tasks) - len(left)} are prepared already, {len(left)} are left to do", highlight=False)
    if not left:
        return
    chosen = list({round(share * (len(left) - 1)): None for share in DRY_RUN_SAMPLES})
    seconds, made_bytes = _try_out([left[i] for i in chosen], options.out)
    share = sum(task.num_bytes for task in left) / max(1, sum(left[i].num_bytes for i in chosen))
    workers = options.workers or Engine().most_here
    console.print(
        f"about {seconds * share / workers / 60:.1f} minutes with {workers} at a time here, and "
        f"{made_bytes * share / 1e9:.2f} GB in {options.out}; nothing was kept",
        highlight=False,
        soft_wrap=True,
    )


def _try_out(tasks: Sequence[_Task], out: Path) -> tuple[float, int]:
    """Prepare some files into a folder of their own and remove it; give the seconds and the bytes made."""
    is_new, folder = not out.exists(), out / f".dry-run-{os.getpid()}"
    seconds = 0.0
    try:
        for i, task in enumerate([tasks[0], *tasks]):
            started = time.perf_counter()
            outcome = run_job(dataclasses.replace(task.job, root=str(folder)))
            if i:  # the first is done twice, because at first a child process has to start
                seconds += time.perf_counter() - started
                console.print(f"  {task.job.name}: {outcome.status} {outcome.reason}".rstrip(), highlight=False)
        return seconds, sum(path.stat().st_size for path in folder.rglob("*.mp4"))
    except StopError as error:
        raise UserError(str(error)) from error
    finally:
        stop_children()
        shutil.rmtree(folder, ignore_errors=True)
        if is_new:
            with contextlib.suppress(OSError):  # somebody has begun to prepare into it
                out.rmdir()
