"""Fill and verify a teacher cache: the embeddings of the training clips, for any number of students and runs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from crossdistill.data.dataset import PairedClips
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.teacher_cache import (
    DTYPES,
    MIN_COSINE,
    SHARDS_NAME,
    Shard,
    TeacherCache,
    cosines,
    describe_clips,
    describe_teacher,
    spread,
)
from crossdistill.distillation.teachers import CrossFittedTeacher
from crossdistill.encoders import Encoder, require_code_allowed
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.weights import weights_hash
from crossdistill.errors import SAME_COMMAND, OneProcessError, Stopped, UserError, require_at_least, require_num_workers
from crossdistill.evaluation.embedder import BatchEmbedder, EmbeddedBatches, Embedder, batches_of
from crossdistill.modalities import get_modality
from crossdistill.recipes.alignment import align_folds
from crossdistill.recipes.checks import check_configuration
from crossdistill.recipes.command_options import CacheOptions, VerifyOptions
from crossdistill.recipes.config import AUTO, SELF, DataConfig, MachineConfig, PairConfig, RunConfig, several
from crossdistill.recipes.context import RunContext, choose_execution
from crossdistill.recipes.data import count_training_clips, open_datasets, select_training_clips
from crossdistill.recipes.run import weights_finder
from crossdistill.recipes.sizes import fit_to_data
from crossdistill.recipes.student import create_student
from crossdistill.recipes.teachers import FoldedSource, create_only_teacher, teacher_sources
from crossdistill.recipes.training_features import TeacherEmbedder
from crossdistill.training.run_folder import RunFolder
from crossdistill.types import PairedBatch, ViewSpec
from crossdistill.utils.console import console, progress_bar
from crossdistill.utils.distributed import create_accelerator, decide_on_first, gather_objects, use_all_cores
from crossdistill.utils.locks import folder_lock
from crossdistill.utils.records import fingerprint

MAX_LISTED_UNREADABLE = 20


@dataclass(frozen=True)
class _Source:
    """A teacher and the training clips that it embeds."""

    embedder: BatchEmbedder
    encoder: Encoder
    """The teacher's network; the first one with folds."""
    execution: Execution
    """Device and precision of the network."""
    clips: PairedClips
    weights: tuple[str, ...]
    """Name of the weights of each network."""
    facts: dict[str, Any]
    """Properties that determine the embeddings, besides the fields that ``_describe`` adds; see ``teacher_cache``."""
    batch_size: int
    num_workers: int
    folded: CrossFittedTeacher | None = None
    """The networks of all folds, before ``aligned`` maps their features."""

    def aligned(self, folder: Path, accelerator: Accelerator) -> _Source:
        """With folds, map the features into one space; the maps are kept in a folder."""
        if self.folded is None:
            return self
        teacher = align_folds(
            self.folded,
            self.clips,
            accelerator=accelerator,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            folder=folder,
        )
        return replace(self, embedder=TeacherEmbedder(teacher, accelerator.device))

    def embed(self, batches: Sequence[list[SampleKey]]) -> EmbeddedBatches:
        """Embed the teacher's view of batches of clips."""
        is_cuda = self.execution.device.type == "cuda"
        return EmbeddedBatches(
            self.clips.of_teachers(),
            batches,
            [self.embedder],
            num_workers=self.num_workers,
            pin_memory=is_cuda and self.num_workers > 0,
        )


def fill_cache(config: RunConfig, options: CacheOptions, accelerator: Accelerator | None = None) -> Path:
    """Create a cache, or add the missing shards to an existing one.

    Args:
        config: Configuration of the training that will use the cache.
        options: Options of the cache.
        accelerator: Created here if None; its processes divide the shards among themselves.

    Returns:
        The cache's folder.

    Raises:
        UserError: The configuration has no single frozen teacher, the folder holds something else, or too many clips
            are unreadable.
    """
    _check(config, options)
    config = replace(config, machine=replace(config.machine, evaluate=False, knn_clips=0))
    check_configuration(config, teacher_sources(config))
    accelerator = accelerator or create_accelerator()
    use_all_cores(accelerator)
    manifests = open_datasets(config, accelerator)
    source = _open_source(
        config,
        manifests,
        student_view=create_student(config).view,
        batch_size=options.embed_batch_size,
        accelerator=accelerator,
        folder=options.out,
    )
    key = {
        **source.facts,
        "seed": config.machine.seed,
        "dtype": options.dtype,
        "precision": source.execution.precision,
        "decoder": config.data.decoder,
        "clips_per_shard": options.clips_per_shard,
    }

    with contextlib.ExitStack() as held:

        def create() -> list[Shard]:
            held.enter_context(folder_lock(options.out, advice="wait for its end, or choose another --out"))
            bytes_per_clip = source.embedder.embed_dim * DTYPES[options.dtype][1].itemsize
            _require_space(options.out, num_bytes=len(source.clips) * options.augmentations * bytes_per_clip)
            TeacherCache.create(
                options.out,
                key,
                num_augmentations=options.augmentations,
                # The classifiers of folds are several, and the cache does not say which clip is of which fold.
                classifier=source.encoder.classifier if source.folded is None else None,
                weights=source.weights,
            )
            return TeacherCache(options.out).missing()

        missing = decide_on_first(accelerator, create)
        cache = TeacherCache(options.out)
        decide_on_first(accelerator, lambda: _announce_work(cache, missing, accelerator.num_processes))
        mine = missing[accelerator.process_index :: accelerator.num_processes]
        try:
            source = source.aligned(options.out, accelerator)
            _write_shards(cache, source, mine, max_unreadable=config.data.max_unreadable, accelerator=accelerator)
        except KeyboardInterrupt as error:
            raise Stopped.by(error, f"finished files are kept in {options.out}, and {SAME_COMMAND}") from None
        gather_objects(accelerator, [])  # the folder is held until the last process has written
    if accelerator.is_main_process:
        _report(cache)
    return options.out


def _check(config: RunConfig, options: CacheOptions) -> None:
    require_at_least("--augmentations", options.augmentations, 1)
    require_at_least("--clips-per-shard", options.clips_per_shard, 1)
    require_at_least("--embed-batch-size", options.embed_batch_size, 1)
    if config.pair.teacher_cache is not None or config.pair.supervised or len(config.pair.teacher) != 1:
        raise UserError(
            "a cache holds the embeddings of one frozen teacher: give one --teacher, and no --teacher-cache"
        )
    if config.pair.proxy is not None:
        raise UserError("a cache holds the embeddings of one frozen teacher: give the trained proxy as --teacher")
    if config.data.shots is not None:
        raise UserError(f"a cache holds all training clips: remove --shots {config.data.shots}")
    if SELF in config.pair.teacher:
        raise UserError("--teacher self changes during training, so its embeddings cannot be cached: name an encoder")


def _open_source(
    config: RunConfig,
    manifests: list[Manifest],
    *,
    student_view: ViewSpec,
    batch_size: int,
    accelerator: Accelerator,
    folder: Path,
) -> _Source:
    folded: CrossFittedTeacher | None = None
    if config.pair.folds is None:
        teacher, name = create_only_teacher(config, student_view)
        weights: tuple[str, ...] = (name,)
        hashes = [weights_hash(teacher)]
        execution = choose_execution(config, teacher, accelerator)
    else:
        folded, weights = _open_folds(config, manifests, student_view, RunFolder(folder), accelerator)
        teacher, hashes, execution = folded.encoder, folded.identity[1:], folded.members[0].execution
    clips = select_training_clips(
        config,
        manifests,
        student_view=student_view,
        teacher_views=[teacher.view],
        uses_labels=False,
        accelerator=accelerator,
    )
    facts = {
        **describe_teacher(teacher, weights=weights, weights_hashes=hashes),
        **describe_clips(clips, split=config.data.split),
    }
    if folded is not None:
        clips = folded.select_clips(clips)
        facts["folds"] = fingerprint(folded.folds_n.tolist())
    embedder = Embedder(teacher.eval(), execution, teacher=0)
    return _Source(
        embedder, teacher, execution, clips, weights, facts, batch_size, config.machine.workers, folded=folded
    )


def _open_folds(
    config: RunConfig, manifests: list[Manifest], student_view: ViewSpec, folder: RunFolder, accelerator: Accelerator
) -> tuple[CrossFittedTeacher, tuple[str, ...]]:
    """Load the networks of all folds, and train those without weights first; also return the names of the weights."""
    num_clips = count_training_clips(config, manifests, uses_labels=False)
    config, batches = fit_to_data(config, num_clips, folder, accelerator)
    run = RunContext(config, manifests, folder, accelerator, batches)
    (source,) = teacher_sources(config)
    source.check_data(config, manifests)
    found = source.with_weights(weights_finder(run))
    assert isinstance(found, FoldedSource)
    return found.load(run, student_view, number=0), found.weights


def _announce_work(cache: TeacherCache, missing: Sequence[Shard], num_processes: int) -> None:
    shards = cache.shards()
    num_left = sum(shard.num_clips for shard in missing)
    total = cache.num_clips * cache.num_augmentations
    console.print(
        f"{cache.num_clips} clips × {cache.num_augmentations} augmentations of {cache.key['teacher']} "
        f"({cache.embed_dim} features, {cache.key['dtype']}): {_size(total * cache.bytes_per_clip)} in {len(shards)} "
        f"shards; {len(shards) - len(missing)} are finished, {num_left} clips "
        f"({_size(num_left * cache.bytes_per_clip)}) are left for {num_processes} "
        f"process{'es' if num_processes > 1 else ''}",
        highlight=False,
    )


def _require_space(folder: Path, *, num_bytes: int) -> None:
    """Raise a ``UserError`` before anything is written if the disk has no room for the rest of a cache."""
    num_left = num_bytes - sum(path.stat().st_size for path in (folder / SHARDS_NAME).glob("*"))
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if num_left > free:
        raise UserError(
            f"the teacher cache needs {_size(num_left)} more in {folder}, and {_size(free)} are free there: free "
            "space, or choose fewer --augmentations, --dtype fp16 or another --out"
        )


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"


def _write_shards(
    cache: TeacherCache,
    source: _Source,
    shards: Sequence[Shard],
    *,
    max_unreadable: float,
    accelerator: Accelerator,
) -> None:
    """Embed shard after shard. Batches end where shards end, and one loader reads them all."""
    by_shard = [
        batches_of([SampleKey(i, s.augmentation) for i in range(s.start, s.stop)], source.batch_size) for s in shards
    ]
    embedded = iter(source.embed([batch for batches in by_shard for batch in batches]))
    num_clips = sum(shard.num_clips for shard in shards)
    bar = progress_bar(unit="clips", is_shown=accelerator.is_main_process)
    with bar:
        task = bar.add_task(cache.key["teacher"], total=num_clips)
        for shard, batches in zip(shards, by_shard, strict=True):
            features = torch.zeros(shard.num_clips, cache.embed_dim)
            unreadable: dict[int, str] = {}
            for keys in batches:
                batch, (rows,) = next(embedded)
                features[batch.sample_ids - shard.start] = rows
                unreadable |= _unreadable_samples(keys, batch, source.clips)
                bar.update(task, advance=len(keys))
            _require_readable(shard, unreadable, max_unreadable)
            cache.write(shard, features, unreadable)


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


def _report(cache: TeacherCache) -> None:
    num_missing = len(cache.missing())
    if num_missing:
        console.print(f"{num_missing} shards are left to other processes")
    samples = {sample: reason for (sample, _), reason in sorted(cache.unreadable().items())}
    if samples:
        console.print(
            f"{len(samples)} videos could not be read; in training other videos replace them:", style="yellow"
        )
        for sample, reason in list(samples.items())[:MAX_LISTED_UNREADABLE]:
            console.print(f"  sample {sample}: {reason}", highlight=False)
    console.print(f"the cache is {cache.folder}: crossdistill train --teacher-cache {cache.folder} …", highlight=False)


def verify_cache(options: VerifyOptions) -> None:
    """Compare a sample of a cache with the live teacher.

    Raises:
        UserError: The cache is of something else, or an embedding is not what the teacher computes.
    """
    require_at_least("--clips", options.clips, 1)
    require_num_workers(options.workers)
    cache = TeacherCache(options.cache)
    cache.require_complete()
    if options.teacher is None:
        named_by = f"the teacher of the cache {cache.folder}"
        require_code_allowed(cache.key["teacher"], named_by=named_by, allow_code=options.allow_code)
    config = _config_of(cache, options)
    accelerator = create_accelerator()
    stored = cache.key["student_view"]
    kind = get_modality(stored["modality"])
    student_view = ViewSpec(**stored, size_px=1, mean=kind.mean, std=kind.std)  # the student's pictures are not read
    source = _open_source(
        config,
        open_datasets(config, accelerator),
        student_view=student_view,
        batch_size=options.embed_batch_size,
        accelerator=accelerator,
        folder=cache.folder,
    )
    # The weights may be a copy of the file, or have another name: their values are compared.
    expected = {name: value for name, value in source.facts.items() if name != "teacher_weights"}
    cache.require(expected, wanted_by="this command")
    source = source.aligned(cache.folder, accelerator)
    known = cache.unreadable()
    drawn = spread(cache.shards(), num_clips=options.clips, seed=0)
    keys = [SampleKey(sample, number) for sample, number in drawn if (sample, number) not in known]
    measured = [torch.empty(0)]
    for batch, (rows,) in source.embed(batches_of(keys, options.embed_batch_size)):
        assert batch.sample_keys is not None
        measured.append(cosines(cache.read(batch.sample_keys), rows))
    found = torch.cat(measured)
    if not len(found):
        raise UserError(f"none of the {len(drawn)} clips could be read: check --data with python -m data_prep verify")
    text = f"{len(found)} clips of {cache.folder}: cosine to the live teacher at least {found.min():.6f}"
    if found.min() < MIN_COSINE:
        raise UserError(f"{text}, which is below {MIN_COSINE}: make the cache again")
    console.print(f"{text}, mean {found.mean():.6f}", highlight=False)


def _config_of(cache: TeacherCache, options: VerifyOptions) -> RunConfig:
    """Return the configuration of the training that a cache was made for, with the teacher's view as it was."""
    key, view = cache.key, cache.teacher_view
    pair = PairConfig(
        teacher=several(options.teacher or key["teacher"]),
        teacher_weights=cache.weights if options.teacher_weights == AUTO else several(options.teacher_weights),
        folds=len(cache.weights) if len(cache.weights) > 1 else None,
        teacher_frames=(view.num_frames,),
        teacher_stride=(view.stride,),
        teacher_size=(view.size_px,),
    )
    data = DataConfig(
        data=options.data,
        split=key["split"],
        crop_area_min=key["crop_area_min"],
        mirror="yes" if key["mirror"] else "no",
        decoder=options.decoder,
        short_clips=key["short_clips"],
    )
    machine = MachineConfig(
        seed=cache.seed, precision=key["precision"], workers=options.workers, evaluate=False, knn_clips=0
    )
    return RunConfig(pair=pair, data=data, machine=machine)
