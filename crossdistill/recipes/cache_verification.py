"""Verify a teacher cache: lengths and checksums of its files, and a sample of its rows against the live teachers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.cache_folders import open_caches
from crossdistill.distillation.cache_key import view_of_moment
from crossdistill.distillation.teacher_cache import FEATURES, TOKENS, TeacherCache, spread
from crossdistill.encoders import require_code_allowed
from crossdistill.errors import UserError, require_at_least, require_num_workers
from crossdistill.evaluation.embedder import batches_of
from crossdistill.recipes.cache_source import CacheInput, open_input
from crossdistill.recipes.command_options import VerifyOptions
from crossdistill.recipes.config import AUTO, DataConfig, MachineConfig, PairConfig, Precision, RunConfig
from crossdistill.recipes.data import open_datasets
from crossdistill.utils.console import console
from crossdistill.utils.distributed import create_accelerator


def verify_cache(options: VerifyOptions) -> None:
    """Check the files of a cache, and compare a sample of its rows with the live teachers.

    Raises:
        UserError: A file is damaged, the cache is of something else, or a row is not what the teacher computes.
    """
    require_at_least("--clips", options.clips, 1)
    require_num_workers(options.workers)
    caches = open_caches(options.cache)
    _require_whole(options.cache, caches)
    _check_files(options.cache, caches)
    for cache in caches:
        if not options.teacher:
            named_by = f"the teacher of the cache {cache.folder}"
            require_code_allowed(cache.key["teacher"], named_by=named_by, allow_code=options.allow_code)
    config = _config_of(caches, options)
    accelerator = create_accelerator()
    source = open_input(
        config,
        open_datasets(config, accelerator),
        student_view=view_of_moment(caches[0].key["student_view"]),
        batch_size=options.embed_batch_size,
        accelerator=accelerator,
        folder=options.cache,
    )
    for number, cache in enumerate(caches):
        # The weights may be a copy of the file, or have another name: their values are compared.
        expected = {name: value for name, value in source.facts(number).items() if name != "teacher_weights"}
        cache.require(expected, wanted_by="this command")
    measured = _compare(caches, source.aligned(options.cache), num_clips=options.clips)
    too_low = ""
    for cache, by_part in zip(caches, measured, strict=True):
        for name, found in by_part.items():
            what = "" if name == FEATURES else f"{name} of "
            text = (
                f"{what}{len(found)} {'clips' if name != TOKENS else 'places of clips'} of {cache.folder}: cosine to "
                f"the live teacher at least {found.min():.6f}"
            )
            if found.min() < cache.storage.min_cosine:
                too_low = too_low or f"{text}, which is below {cache.storage.min_cosine}: make the cache again"
            else:
                console.print(f"{text}, mean {found.mean():.6f}", highlight=False)
    if too_low:
        raise UserError(too_low)


def _require_whole(folder: Path, caches: Sequence[TeacherCache]) -> None:
    """Raise a ``UserError`` for the folder of one of several teachers, whose clips depend on all of them."""
    if len(caches[0].clip_views) != len(caches):
        raise UserError(
            f"{folder} holds one of {len(caches[0].clip_views)} teachers that were cached together: give the folder of "
            f"the whole cache, {folder.absolute().parent}"
        )


def _check_files(folder: Path, caches: Sequence[TeacherCache]) -> None:
    num_without = sum(cache.check_files() for cache in caches)
    num_shards = sum(len(cache.shards()) for cache in caches)
    note = f"; {num_without} of a former version have no checksum, and only their lengths were checked"
    console.print(
        f"{num_shards} shards of {folder} are as they were written{note if num_without else ''}", highlight=False
    )


def _compare(caches: Sequence[TeacherCache], source: CacheInput, *, num_clips: int) -> list[dict[str, Tensor]]:
    """Embed a sample of clips again; return for each teacher the cosines [n] of the rows of each part."""
    known = {key for cache in caches for key in cache.unreadable()}
    drawn = spread(caches[0].shards(), num_clips=num_clips, seed=0)
    keys = [SampleKey(*key) for key in drawn if key not in known]
    found: list[dict[str, list[Tensor]]] = [{name: [] for name in cache.parts} for cache in caches]
    with_tokens = any(TOKENS in cache.parts for cache in caches)
    for batch, outputs in source.embed(batches_of(keys, source.batch_size), with_tokens=with_tokens):
        assert batch.sample_keys is not None
        for cache, by_part, own in zip(caches, found, outputs, strict=False):
            for name, rows in cache.rows_of(own).items():
                stored = cache.read_rows(batch.sample_keys, name)
                by_part[name].append(cache.kept_cosines(name, stored, rows))
    if not found[0][FEATURES]:
        raise UserError(f"none of the {len(drawn)} clips could be read: check --data with python -m data_prep verify")
    return [{name: torch.cat(parts) for name, parts in by_part.items()} for by_part in found]


def _config_of(caches: Sequence[TeacherCache], options: VerifyOptions) -> RunConfig:
    """Return the configuration of the training that a cache was made for, with the teachers' views as they were."""
    key, views = caches[0].key, [cache.teacher_view for cache in caches]
    weights = tuple(name for cache in caches for name in cache.weights)
    pair = PairConfig(
        teacher=options.teacher or tuple(cache.key["teacher"] for cache in caches),
        teacher_weights=weights if options.teacher_weights == (AUTO,) else options.teacher_weights,
        folds=len(weights) if len(weights) > len(caches) else None,
        teacher_frames=tuple(view.num_frames for view in views),
        teacher_stride=tuple(view.stride for view in views),
        teacher_size=tuple(view.size_px for view in views),
    )
    data = DataConfig(
        data=options.data,
        split=key["split"],
        crop_area_min=key["crop_area_min"],
        mirror="yes" if key["mirror"] else "no",
        decoder=options.decoder,
        short_clips=key["short_clips"],
    )
    precisions = {cache.key["precision"] for cache in caches}  # auto chose several, and chooses them again
    precision: Precision = precisions.pop() if len(precisions) == 1 else "auto"
    machine = MachineConfig(
        seed=caches[0].seed,
        precision=precision,
        workers=options.workers,
        evaluate=False,
        knn_clips=0,
    )
    return RunConfig(pair=pair, data=data, machine=machine)
