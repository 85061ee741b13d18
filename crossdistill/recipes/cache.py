"""Fill a teacher cache, or estimate it: what teachers say about the training clips, for any number of students."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import PairedClips
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.cache_folders import create_caches, folders_of, require_creatable
from crossdistill.distillation.cache_key import describe_parts
from crossdistill.distillation.cache_shards import Shard
from crossdistill.distillation.teacher_cache import FEATURES, SHARDS_NAME, TOKENS, TeacherCache, spread
from crossdistill.distillation.teachers import Targets
from crossdistill.errors import SAME_COMMAND, OneProcessError, Stopped, UserError, require_at_least
from crossdistill.evaluation.embedder import batches_of
from crossdistill.recipes.cache_source import CacheInput, open_input
from crossdistill.recipes.checks import check_configuration
from crossdistill.recipes.command_options import CacheOptions
from crossdistill.recipes.config import SELF, RunConfig
from crossdistill.recipes.data import open_datasets
from crossdistill.recipes.student import create_student
from crossdistill.recipes.teachers import teacher_sources
from crossdistill.types import PairedBatch
from crossdistill.utils.console import console, progress_bar
from crossdistill.utils.distributed import create_accelerator, decide_on_first, gather_objects, use_all_cores
from crossdistill.utils.files import bytes_text
from crossdistill.utils.locks import folder_lock

MAX_LISTED_UNREADABLE = 20
ESTIMATE_SECONDS = 10.0
"""How long ``--estimate`` embeds clips, after a first batch that is not counted."""
MAX_ESTIMATE_BATCHES = 64


def fill_cache(config: RunConfig, options: CacheOptions, accelerator: Accelerator | None = None) -> Path:
    """Create a cache, or add the missing shards to an existing one.

    All teachers see the same clips in one pass: each clip is decoded once.

    Args:
        config: Configuration of the training that will use the cache.
        options: Options of the cache.
        accelerator: Created here if None; its processes divide the shards among themselves.

    Returns:
        The cache's folder.

    Raises:
        UserError: The configuration has no frozen teachers, the folder holds something else, or too many clips are
            unreadable.
    """
    accelerator, source = _open(config, options, accelerator)
    caches = _plan(config, options, source)
    with contextlib.ExitStack() as held:

        def create() -> list[Shard]:
            held.enter_context(folder_lock(options.out, advice="wait for its end, or choose another --out"))
            _require_space(options.out, caches)
            create_caches(options.out, caches, [network.classifier for network in source.networks])
            return _missing(caches)

        missing = decide_on_first(accelerator, create)
        decide_on_first(accelerator, lambda: console.print(_work_text(caches, missing, accelerator), highlight=False))
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        try:
            source = source.aligned(options.out)
            _write_shards(caches, source, mine, max_unreadable=config.data.max_unreadable)
        except KeyboardInterrupt as error:
            raise Stopped.by(error, f"finished files are kept in {options.out}, and {SAME_COMMAND}") from None
        gather_objects(accelerator, [])  # the folder is held until the last process has written
        if accelerator.is_main_process:
            _report(options.out, caches)
    return options.out


def estimate_cache(config: RunConfig, options: CacheOptions, accelerator: Accelerator | None = None) -> None:
    """Print how large a cache will be and how long it will take, by a short measured start; nothing is written.

    Raises:
        UserError: As for ``fill_cache``.
    """
    accelerator, source = _open(config, options, accelerator)
    caches = _plan(config, options, source)
    require_creatable(options.out, caches)
    missing = _missing(caches)
    num_clips, seconds = _measure(caches, source, missing) if missing else (0, 0.0)
    measured = gather_objects(accelerator, [(num_clips, seconds)])
    if accelerator.is_main_process:
        console.print(f"estimate: {_work_text(caches, missing, accelerator)}", highlight=False)
        rate = sum(number / taken for number, taken in measured if taken)
        num_left = sum(shard.num_clips for shard in missing)
        if rate:
            total = sum(number for number, _ in measured)
            console.print(
                f"time: about {num_left / rate:.3g} seconds at {rate:.3g} clips/s, measured on {total} clips; nothing "
                "was written",
                highlight=False,
            )


def _open(config: RunConfig, options: CacheOptions, accelerator: Accelerator | None) -> tuple[Accelerator, CacheInput]:
    _check(config, options)
    config = replace(config, machine=replace(config.machine, evaluate=False, knn_clips=0))
    check_configuration(config, teacher_sources(config))
    accelerator = accelerator or create_accelerator()
    use_all_cores(accelerator)
    source = open_input(
        config,
        open_datasets(config, accelerator),
        student_view=create_student(config).view,
        batch_size=options.embed_batch_size,
        accelerator=accelerator,
        folder=options.out,
        trains_folds=not options.estimate,
    )
    return accelerator, source


def _check(config: RunConfig, options: CacheOptions) -> None:
    require_at_least("--augmentations", options.augmentations, 1)
    require_at_least("--clips-per-shard", options.clips_per_shard, 1)
    require_at_least("--embed-batch-size", options.embed_batch_size, 1)
    if config.pair.teacher_cache is not None or config.pair.supervised or not config.pair.teacher:
        raise UserError("a cache holds the outputs of frozen teachers: give --teacher, and no --teacher-cache")
    if config.pair.proxy is not None:
        raise UserError(
            f"a cache holds the outputs of frozen teachers: give {config.pair.proxy} as --student of its teachers, or "
            "when it is trained as --teacher"
        )
    if config.data.shots is not None:
        raise UserError(f"a cache holds all training clips: remove --shots {config.data.shots}")
    if SELF in config.pair.teacher:
        raise UserError("--teacher self changes during training, so its embeddings cannot be cached: name an encoder")
    if config.machine.teacher_sharding:
        raise UserError(
            "--teacher-sharding divides a teacher among processes that share each clip, and those of a "
            "cache share the clips: remove it"
        )


def _plan(config: RunConfig, options: CacheOptions, source: CacheInput) -> list[TeacherCache]:
    """Return the cache of each teacher as it will be."""
    caches = []
    for number, folder in enumerate(folders_of(options.out, len(source.networks))):
        network = source.networks[number]
        key = {
            **source.facts(number),
            **describe_parts(network.encoder, tokens=options.tokens, logits=options.logits),
            "seed": config.machine.seed,
            "dtype": options.dtype,
            "precision": network.precision,
            "decoder": config.data.decoder,
            "clips_per_shard": options.clips_per_shard,
        }
        planned = TeacherCache.planned(folder, key, num_augmentations=options.augmentations, weights=network.weights)
        caches.append(planned)
    return caches


def _missing(caches: Sequence[TeacherCache]) -> list[Shard]:
    """List the shards that are still to be made for one or more of the teachers."""
    lacking = {shard for cache in caches for shard in cache.missing()}
    return [shard for shard in caches[0].shards() if shard in lacking]


def _work_text(caches: Sequence[TeacherCache], missing: Sequence[Shard], accelerator: Accelerator) -> str:
    first, num_processes = caches[0], accelerator.num_processes
    num_shards = len(first.shards())
    num_left = sum(shard.num_clips for shard in missing)
    total = first.num_clips * first.num_augmentations
    bytes_per_clip = sum(cache.bytes_per_clip for cache in caches)
    held = " and ".join(f"{cache.key['teacher']} ({cache.content_text})" for cache in caches)
    return (
        f"{first.num_clips} clips × {first.num_augmentations} augmentations of {held}: "
        f"{bytes_text(total * bytes_per_clip)} in {num_shards} shards{' of each' if len(caches) > 1 else ''}; "
        f"{num_shards - len(missing)} are finished, {num_left} clips ({bytes_text(num_left * bytes_per_clip)}) are "
        f"left for {num_processes} process{'es' if num_processes > 1 else ''}"
    )


def _require_space(folder: Path, caches: Sequence[TeacherCache]) -> None:
    """Raise a ``UserError`` before anything is written if the disk has no room for the rest of a cache."""
    num_left = 0
    for cache in caches:
        num_left += cache.num_clips * cache.num_augmentations * cache.bytes_per_clip
        num_left -= sum(path.stat().st_size for path in (cache.folder / SHARDS_NAME).glob("*"))
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if num_left > free:
        raise UserError(
            f"the teacher cache needs {bytes_text(num_left)} more in {folder}, and {bytes_text(free)} are free there: "
            "free space, or choose fewer --augmentations, --dtype int8 or another --out"
        )


def _measure(caches: Sequence[TeacherCache], source: CacheInput, missing: Sequence[Shard]) -> tuple[int, float]:
    """Embed a few of the missing clips; return how many were embedded and in how many seconds."""
    num_drawn = MAX_ESTIMATE_BATCHES * source.batch_size
    # Every process measures other clips, as in the work itself.
    drawn = spread(missing, num_clips=num_drawn, seed=source.accelerator.process_index)
    batches = batches_of([SampleKey(*key) for key in drawn], source.batch_size)
    embedded = source.embed(batches, with_tokens=_with_tokens(caches))
    num_clips, start = 0, time.perf_counter()
    for number, (keys, (_, outputs)) in enumerate(zip(batches, embedded, strict=False)):
        _rows_of(caches, outputs)  # as in the work: on the CPU, tokens pooled
        seconds = time.perf_counter() - start
        if number == 0 and len(batches) > 1:
            start = time.perf_counter()  # the first batch waits for the processes that decode
            continue
        num_clips += len(keys)
        if seconds >= ESTIMATE_SECONDS:
            break
    return num_clips, time.perf_counter() - start


def _with_tokens(caches: Sequence[TeacherCache]) -> bool:
    return any(TOKENS in cache.parts for cache in caches)


def _rows_of(caches: Sequence[TeacherCache], outputs: Sequence[Targets]) -> list[dict[str, Tensor]]:
    """Return what each cache stores of its teacher's outputs; nothing of a batch without clips."""
    return [cache.rows_of(own) for cache, own in zip(caches, outputs, strict=False)]


def _write_shards(
    caches: Sequence[TeacherCache], source: CacheInput, shards: Sequence[Shard], *, max_unreadable: float
) -> None:
    """Embed shard after shard. Batches end where shards end, and one loader reads them all."""
    by_shard = [
        batches_of([SampleKey(i, s.augmentation) for i in range(s.start, s.stop)], source.batch_size) for s in shards
    ]
    batches = [batch for batches in by_shard for batch in batches]
    embedded = source.embed(batches, with_tokens=_with_tokens(caches))
    num_clips = sum(shard.num_clips for shard in shards)
    with progress_bar(unit="clips", is_shown=source.accelerator.is_main_process) as bar:
        task = bar.add_task(source.name, total=num_clips)
        for shard, own_batches in zip(shards, by_shard, strict=True):
            tables = [cache.no_rows(shard.num_clips) for cache in caches]
            unreadable: dict[int, str] = {}
            for keys in own_batches:
                batch, outputs = next(embedded)
                for table, rows in zip(tables, _rows_of(caches, outputs), strict=False):
                    for name, values in rows.items():
                        table[name][batch.sample_ids - shard.start] = values
                unreadable |= _unreadable_samples(keys, batch, source.clips)
                bar.update(task, advance=len(keys))
            _require_readable(shard, unreadable, max_unreadable)
            for cache, table in zip(caches, tables, strict=True):
                if not cache.path(shard).exists():  # a killed command may have written it for some teachers
                    cache.write(shard, table, unreadable)


def _unreadable_samples(keys: Sequence[SampleKey], batch: PairedBatch, clips: PairedClips) -> dict[int, str]:
    """Return the samples that a batch lacks, with the reasons."""
    reasons = dict(batch.unreadable)
    read = set(batch.sample_ids.tolist())
    return {key.index: reasons[clips.entries[key.index].key] for key in keys if key.index not in read}


def _require_readable(shard: Shard, unreadable: dict[int, str], max_unreadable: float) -> None:
    """Raise if a shard has too many unreadable clips, as on a lost disk. One per shard is always allowed."""
    if len(unreadable) > max(1, max_unreadable * shard.num_clips):
        sample, reason = next(iter(unreadable.items()))
        raise OneProcessError(
            f"{len(unreadable)} of {shard.num_clips} clips could not be read (over --max-unreadable {max_unreadable}; "
            f"sample {sample}: {reason}): repair the data or raise the limit, and start again: finished shards are kept"
        )


def _report(folder: Path, caches: Sequence[TeacherCache]) -> None:
    num_missing = len(_missing(caches))
    if num_missing:
        console.print(f"{num_missing} shards are left to other processes")
    samples = {sample: reason for (sample, _), reason in sorted(caches[0].unreadable().items())}
    if samples:
        console.print(
            f"{len(samples)} videos could not be read; in training other videos replace them:", style="yellow"
        )
        for sample, reason in list(samples.items())[:MAX_LISTED_UNREADABLE]:
            console.print(f"  sample {sample}: {reason}", highlight=False)
    for cache in caches:
        for name, found in cache.record_cosines().items():
            what = {FEATURES: "embeddings"}.get(name, name)
            console.print(
                f"{cache.key['dtype']} keeps the {what} of {cache.key['teacher']}: cosine to the originals at least "
                f"{found['min']:.6f}, mean {found['mean']:.6f}",
                highlight=False,
            )
    console.print(f"the cache is {folder}: crossdistill train --teacher-cache {folder} …", highlight=False)
