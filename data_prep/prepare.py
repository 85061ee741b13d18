"""What all datasets share: options, resuming, shards, the table at the end, the manifest.

A dataset's own module reads its lists into ``SourceVideo`` entries and calls ``prepare_videos``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from crossdistill.console import console, print_table
from crossdistill.data.manifest import MANIFEST_NAME, Manifest, Video, unique_names
from crossdistill.errors import UserError
from data_prep.executor import Engine, run_jobs
from data_prep.flow import FLOW_PRESETS
from data_prep.jobs import Job, StopError, run_job, stop_children
from data_prep.journal import open_journal, read_journals
from data_prep.readers import MIN_SIDE_PX, Input
from data_prep.recipe import Outcome, Recipe
from data_prep.transcode import DERIVED, check_source

# Raise it when the same options begin to give other bytes: older streams are then made anew.
RECIPE_VERSION = 2
MISSING = "missing"
DRY_RUN_SAMPLES = 3


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
    """How optical flow is estimated; motion-vectors takes the codec's own, coarse and as quick as dis."""
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
    key: dict[str, Any]
    """What the streams depend on; a line of the journal with another key is out of date."""


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
    return _Task(
        job=Job(
            name=source.name,
            inputs={name: Input(str(path), source.frames_per_second) for name, path in source.inputs.items()},
            stream_paths={name: Path(name, f"{inner}.mp4").as_posix() for name in options.modalities},
            root=str(options.out),
            recipe=options.recipe,
            time_limit_seconds=options.time_limit,
        ),
        key={
            "sources": {name: _fingerprint(path) for name, path in sorted(source.inputs.items())},
            "recipe": recipe_facts,
            "version": RECIPE_VERSION,
        },
    )


def _fingerprint(path: Path) -> list[int]:
    """Size and time of a file, or number and latest time of a folder's files; changes when the source does."""
    if path.is_dir():
        files = [p.stat() for p in path.iterdir()]
        return [len(files), sum(f.st_size for f in files), max((f.st_mtime_ns for f in files), default=0)]
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _prepare_all(dataset: str, tasks: Sequence[_Task], options: PrepareOptions) -> dict[str, Outcome]:
    """Outcomes by name: those in the journal, and those of the jobs that were left."""
    with open_journal(options.out, options.part) as journal:
        _remove_leftovers(options.out, tasks)
        kept = _kept_outcomes(tasks, options)
        remaining = [job for task in tasks if (job := _remaining_job(task, kept.get(task.job.name))) is not None]
        outcomes = dict(kept)
        keys = {task.job.name: task.key for task in tasks}
        if len(remaining) < len(tasks):
            console.print(f"{len(tasks) - len(remaining)} of {len(tasks)} files are prepared already")

        def record(position: int, outcome: Outcome) -> None:
            name = remaining[position].name
            if outcome.status != "skipped" and name in kept:  # streams of an earlier run stay beside the new ones
                streams = dict(sorted({**kept[name].streams, **outcome.streams}.items()))
                outcome = dataclasses.replace(outcome, streams=streams)
            outcomes[name] = outcome
            journal.append(name, keys[name], outcome)

        engine = Engine(
            "threads" if options.engine == "local" else options.engine, options.address, workers=options.workers
        )
        try:
            run_jobs(run_job, remaining, engine=engine, description=dataset, on_result=record)
        except StopError as error:
            raise UserError(f"{error}: mend it and give the same command again; finished files are kept") from error
        finally:
            stop_children()
        journal.compact((name, keys[name], outcome) for name, outcome in outcomes.items())
    return outcomes


def _kept_outcomes(tasks: Iterable[_Task], options: PrepareOptions) -> dict[str, Outcome]:
    """What the journals hold of these very sources with these options, and whose streams are still there."""
    finished = read_journals(options.out)
    kept = {}
    for task in tasks:
        key, outcome = finished.get(task.job.name, (None, Outcome("skipped")))
        if key != task.key or (outcome.status == "skipped" and options.retry):
            continue
        present = {name: s for name, s in outcome.streams.items() if (options.out / s.path).is_file()}
        kept[task.job.name] = dataclasses.replace(outcome, streams=present)
    return kept


def _remaining_job(task: _Task, kept: Outcome | None) -> Job | None:
    """The job of the streams that are not there yet; None if nothing is left to do."""
    if kept is None:
        return task.job
    if kept.status == "skipped":
        return None
    missing = {name: path for name, path in task.job.stream_paths.items() if name not in kept.streams}
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
    sizes = [sum(f[-2] for f in task.key["sources"].values()) for task in tasks]
    console.print(f"{num_listed} videos listed, {len(tasks)} found, {sum(sizes) / 1e9:.2f} GB", highlight=False)
    if not tasks:
        return
    by_size = sorted(range(len(tasks)), key=lambda i: sizes[i])
    chosen = {by_size[round(share * (len(tasks) - 1))] for share in (0.25, 0.5, 0.75)[:DRY_RUN_SAMPLES]}
    is_new, folder = not options.out.exists(), options.out / ".dry-run"
    try:
        started = time.perf_counter()
        for i in chosen:
            outcome = run_job(dataclasses.replace(tasks[i].job, root=str(folder)))
            console.print(f"  {tasks[i].job.name}: {outcome.status} {outcome.reason}".rstrip(), highlight=False)
        seconds = time.perf_counter() - started
        made_bytes = sum(path.stat().st_size for path in folder.rglob("*.mp4"))
    finally:
        stop_children()
        shutil.rmtree(options.out if is_new else folder, ignore_errors=True)
    share = sum(sizes) / max(1, sum(sizes[i] for i in chosen))
    workers = options.workers or Engine().most_here
    console.print(
        f"about {seconds * share / workers / 60:.1f} minutes with {workers} at a time here, and "
        f"{made_bytes * share / 1e9:.2f} GB in {options.out}; nothing was kept",
        highlight=False,
        soft_wrap=True,
    )
