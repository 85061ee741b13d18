"""Prepare the videos of a dataset and write its manifest: the entry point of the pipeline for all datasets."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from crossdistill.data.manifest import MANIFEST_NAME, Manifest, Video, require_unique_names
from crossdistill.data.videos import LazyVideos, Row
from crossdistill.errors import UserError
from crossdistill.utils.console import console
from data_prep.pipeline.claim import check_datasets, check_streams
from data_prep.pipeline.dry_run import print_estimate
from data_prep.pipeline.executor import Engine, run_jobs
from data_prep.pipeline.guard import stop_children
from data_prep.pipeline.jobs import StopError, run_job
from data_prep.pipeline.journal import JournalEntry, open_journal, read_journal, read_journals
from data_prep.pipeline.options import PictureOptions, PrepareOptions, RunOptions, check_out_is_apart
from data_prep.pipeline.resume import (
    entries_without_source,
    finished_entries,
    kept_entries,
    merge_outcomes,
    remaining_job,
    remove_temporary_files,
)
from data_prep.pipeline.segments import cut, segments_of, sources_to_prepare
from data_prep.pipeline.shards import POSITIONS, Shard
from data_prep.pipeline.summary import check_share_of_bad, print_summary
from data_prep.pipeline.tasks import (
    SourceVideo,
    Task,
    TaskMaker,
    check_no_source_is_overwritten,
    facts_of_recipe,
    method_of,
)
from data_prep.recipe import MISSING, Outcome

__all__ = ["PictureOptions", "PrepareOptions", "RunOptions", "SourceVideo", "check_out_is_apart", "prepare_videos"]


def prepare_videos(
    dataset: str,
    sources: Sequence[SourceVideo],
    *,
    classes: Sequence[str],
    options: RunOptions,
    flip_keeps_label: bool = True,
) -> Manifest:
    """Prepare videos or pictures in parallel and write the manifest. Streams that an earlier run finished are kept.

    Args:
        dataset: Name of the dataset.
        sources: All videos that the lists name, in the order of the manifest. Videos without a file count as missing.
            Those with a ``segment`` share the streams of a longer video, which is prepared once.
        classes: Class names, indexed by ``SourceVideo.label``. Empty without classes.
        options: The options of the command. With ``dry_run``, nothing is written, and all returned videos are missing.
        flip_keeps_label: Whether a horizontally flipped video has the same class.

    Raises:
        UserError: An option is invalid, the folder holds other videos or streams made otherwise, or more files than
            ``max_bad`` allows are unusable. The manifest is written in the last case.
    """
    options.check()
    to_prepare = sources_to_prepare(sources)
    # A run that was killed left the names of long videos, a finished one those of their segments.
    check_datasets(dataset, {source.name for source in [*sources, *to_prepare]}, options)
    shard = Shard.parse(options.shard) if options.shard is not None else None
    positions: Sequence[int] | None = None
    if shard is not None:
        to_prepare, has_segments = shard.select(to_prepare), to_prepare is not sources
        positions = segments_of(to_prepare, sources) if has_segments else None
        sources = to_prepare if positions is None else [sources[i] for i in positions]
    recipe_facts = facts_of_recipe(options.recipe)
    require_unique_names([source.name for source in sources])
    manifest = Manifest(
        root=options.out,
        dataset=dataset,
        classes=tuple(classes),
        videos=_PreparedVideos(sources, {}),
        flip_keeps_label=flip_keeps_label,
        # No paths and no dates: the same work gives the same bytes.
        facts={
            "recipe": recipe_facts,
            "versions": {name: importlib.metadata.version(name) for name in options.libraries},
            **({} if positions is None else {POSITIONS: positions}),
        },
    )
    # Videos without inputs are missing: they have no task and stay in the manifest as skipped.
    options.check_inputs([source.inputs for source in to_prepare if source.inputs])
    make_task = TaskMaker(options, recipe_facts)
    tasks = [make_task(source) for source in to_prepare if source.inputs]
    if options.recipe.writes_files:
        check_no_source_is_overwritten(tasks, options.out)
    if options.dry_run:
        print_estimate(tasks, num_listed=len(to_prepare), options=options)
        return manifest
    away = {source.name for source in to_prepare if not source.inputs}
    outcomes = _run_tasks(dataset, tasks, away, options, shard)
    name = shard.manifest_name if shard else MANIFEST_NAME
    min_frames = options.min_frames if isinstance(options, PrepareOptions) else 1
    dataclasses.replace(manifest, videos=_PreparedVideos(sources, outcomes, min_frames)).save(name)
    manifest = Manifest.load(options.out, name)
    print_summary(manifest)
    if shard:
        console.print(
            f"when all {shard.total} parts are done, run: python -m data_prep merge {options.out}", soft_wrap=True
        )
    check_share_of_bad(manifest, options.max_bad)
    return manifest


def _run_tasks(
    dataset: str, tasks: Sequence[Task], away: Collection[str], options: RunOptions, shard: Shard | None
) -> dict[str, Outcome]:
    """Run what earlier runs did not finish, with a record in the journal; return all outcomes by video name.

    ``away`` are the listed videos without a source.
    """
    with open_journal(options.out, shard) as journal:
        journals = read_journals(options.out)
        check_streams(tasks, journals, options)
        remove_temporary_files(tasks, options.out)
        finished = finished_entries(tasks, journals, options.out, retry=options.retry)
        recipe_facts = facts_of_recipe(options.recipe)
        methods = {name: method_of(name, recipe_facts) for name in options.streams}
        without_source = entries_without_source(away, journals, options.out, methods=methods)
        entries = finished | without_source
        remaining = [job for task in tasks if (job := remaining_job(task, finished.get(task.job.name))) is not None]
        keys = {task.job.name: task.keys for task in tasks}
        if len(remaining) < len(tasks):
            console.print(f"{len(tasks) - len(remaining)} of {len(tasks)} {options.noun} are already prepared")
        if without_source:
            console.print(
                f"{len(without_source)} more {options.noun} are prepared, source away: their streams are used"
            )

        def record(position: int, outcome: Outcome) -> None:
            name = remaining[position].name
            entry = JournalEntry(name, keys[name], outcome)
            if name in finished:  # the job made the missing streams only
                earlier = finished[name]
                entry = JournalEntry(name, {**earlier.keys, **keys[name]}, merge_outcomes([outcome, earlier.outcome]))
            entries[name] = entry
            journal.append(entry)

        # Threads suffice on this machine, because each waits for a child process of its own.
        engine = Engine("threads" if options.engine == "local" else options.engine, options.address, options.workers)
        try:
            run_jobs(run_job, remaining, engine=engine, description=dataset, unit=options.noun, on_result=record)
        except StopError as error:
            raise UserError(f"{error}: fix it and give the same command again; finished files are kept") from error
        finally:
            stop_children()
            remove_temporary_files(tasks, options.out)
        kept = kept_entries(read_journal(journal.path, without=entries), away, options.out)
        journal.compact([*entries.values(), *kept])
    return {name: entry.outcome for name, entry in entries.items()}


@dataclass(frozen=True)
class _PreparedVideos(LazyVideos):
    """The videos of the manifest. A video without an outcome is missing."""

    sources: Sequence[SourceVideo]
    outcomes: Mapping[str, Outcome]
    min_frames: int = 1
    """Fewest frames of a segment. Those of a whole video were counted when it was prepared."""

    def row(self, position: int) -> Row:
        source = self.sources[position]
        found = self.outcomes.get(source.prepared_as, Outcome("skipped", MISSING))
        if source.segment is not None:
            found = cut(found, source.segment, min_frames=self.min_frames)
        video = Video(source.name, source.label, source.group, source.splits, found.status, found.reason, found.streams)
        return video.to_json()

    def __len__(self) -> int:
        return len(self.sources)
