"""``crossdistill cache``: embed the training clips with a teacher once, for any number of students and runs.

``accelerate launch -m crossdistill.recipes.cache`` shares the work among processes. A command that was killed goes on
when it is started again. ``crossdistill cache verify`` compares a cache with the live teacher.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crossdistill.errors import friendly_errors
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.environment import require_matched_torch

if __name__ == "__main__":  # before what follows imports a torchvision that perhaps cannot be
    friendly_errors(require_matched_torch)()

import shutil

import torch
import tyro
from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import PairedClips, make_loader
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
from crossdistill.distillation.teachers import FrozenTeacher
from crossdistill.errors import OneProcessError, UserError
from crossdistill.modalities import get_modality
from crossdistill.recipes import build
from crossdistill.recipes.config import DataConfig, MachineConfig, PairConfig, RunConfig, from_dict, several, to_dict
from crossdistill.types import PairedBatch, ViewSpec
from crossdistill.utils.console import console, progress_bar
from crossdistill.utils.distributed import create_accelerator, decide_on_first, use_all_cores

# Batches after which the time is estimated; the first of them, which starts workers, is not counted.
NUM_TIMED_BATCHES = 4
MANY_UNREADABLE = 20

Decoder = Literal["pyav", "decord", "torchcodec"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Options:
    """Embed the training clips with a teacher once; train.py --teacher-cache then needs neither it nor its stream."""

    teacher: str
    """Frozen encoder, for example rgb_r3d50, or path/to/file.py:function; see `crossdistill encoders`."""
    student: str
    """Encoder that will be trained: both views decide which moments of a video can be drawn."""
    data: tuple[Path, ...]
    """Prepared datasets (see python -m data_prep), in the order in which training will be given them."""
    views: int
    """How many augmented views of every clip; training epoch e shows view e modulo this number."""
    out: Path
    """The cache's folder; one that is there is gone on with."""
    teacher_weights: str = "auto"
    """A weight file, published weights by name, a run's student folder, own, or auto: the published ones."""
    teacher_frames: int | None = None
    """As for training, and so for the next five; an encoder's own if absent."""
    teacher_stride: int | None = None
    teacher_size: int | None = None
    student_frames: int | None = None
    student_stride: int | None = None
    split: str = "1"
    """Which official split's train part."""
    crop_area_min: float = 0.2
    """Smallest share of the picture that a random crop keeps."""
    mirror: Literal["auto", "yes", "no"] = "auto"
    """Mirror half of the clips; auto: yes."""
    short_clips: Literal["repeat", "loop", "error"] = "repeat"
    """As for training."""
    seed: int = 0
    """Of moments, crops and mirroring; a training's own --seed then decides the order and the weights."""
    dtype: Literal["fp16", "fp32"] = "fp16"
    """How embeddings are stored."""
    clips_per_shard: int = 1024
    """Clips of one file; as many are embedded again after a kill, at most."""
    batch_size: int = 32
    """Clips that the teacher embeds at a time."""
    workers: int = 2
    """Processes that decode, per process."""
    decoder: Decoder = "pyav"
    """Which library reads the videos."""
    mixed_precision: Precision = "auto"
    """In which the teacher runs; as in training."""
    max_unreadable: float = 0.05
    """Share of the clips of a file that may turn out unreadable before the command stops."""

    def check(self) -> None:
        """Raise a ``UserError`` for values that cannot work; after parsing, which would put its own words around it."""
        least = {"views": 1, "clips_per_shard": 1, "batch_size": 1, "workers": 0, "seed": 0}
        _require_at_least(self, least)
        if self.teacher == build.SELF:
            raise UserError(
                "--teacher self changes while it trains, so that there is nothing to keep: name a frozen encoder, or "
                "train with --teacher self and without a cache"
            )

    def run_config(self) -> RunConfig:
        """The training whose clips these are, as far as it matters to them."""
        config = RunConfig(
            pair=PairConfig(
                teacher=several(self.teacher),
                student=self.student,
                teacher_weights=several(self.teacher_weights),
                teacher_frames=several(self.teacher_frames),
                teacher_stride=several(self.teacher_stride),
                teacher_size=several(self.teacher_size),
                student_frames=self.student_frames,
                student_stride=self.student_stride,
            ),
            data=DataConfig(
                data=self.data,
                split=self.split,
                crop_area_min=self.crop_area_min,
                mirror=self.mirror,
                decoder=self.decoder,
                short_clips=self.short_clips,
                max_unreadable=self.max_unreadable,
            ),
            machine=_machine(seed=self.seed, mixed_precision=self.mixed_precision),
        )
        return from_dict(to_dict(config), source="the command line")  # which validates


@dataclass(frozen=True)
class VerifyOptions:
    """Embed a sample of a cache's clips anew and compare: the command fails if a cosine is below 0.9999."""

    cache: tyro.conf.Positional[Path]
    """The cache's folder."""
    data: tuple[Path, ...]
    """The datasets that it was made of, in the same order."""
    teacher: str | None = None
    """The teacher that it should be of; the cache's if absent."""
    teacher_weights: str = "auto"
    """Where its weights are, as for making the cache."""
    clips: int = 64
    """How many clips are embedded anew."""
    batch_size: int = 32
    """Clips that the teacher embeds at a time."""
    workers: int = 2
    """Processes that decode."""
    decoder: Decoder = "pyav"
    """Which library reads the videos."""

    def check(self) -> None:
        """Raise a ``UserError`` for values that cannot work; after parsing, which would put its own words around it."""
        _require_at_least(self, {"clips": 1, "batch_size": 1, "workers": 0})


def _require_at_least(options: Options | VerifyOptions, least: dict[str, int]) -> None:
    for name, smallest in least.items():
        if getattr(options, name) < smallest:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {getattr(options, name)} cannot work: give {smallest} or more")


def _machine(*, seed: int, mixed_precision: Precision) -> MachineConfig:
    """That of a run that evaluates nothing."""
    return MachineConfig(seed=seed, mixed_precision=mixed_precision, evaluate=False, knn_clips=0)


@friendly_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    require_matched_torch()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    prog = "crossdistill cache"
    if arguments[:1] == ["verify"]:
        options = parse_options(VerifyOptions, arguments[1:], prog=f"{prog} verify")
        options.check()
        verify(options)
        return
    about = f"{Options.__doc__} `crossdistill cache verify --help` is about checking a cache."
    to_fill = parse_options(Options, arguments, prog=prog, description=about)
    to_fill.check()
    fill(to_fill)


@dataclass(frozen=True)
class Source:
    """Where embeddings come from: a teacher, and clips of which it sees its own view."""

    teacher: FrozenTeacher
    clips: PairedClips
    batch_size: int
    num_workers: int

    def embed(self, batches: Sequence[list[SampleKey]]) -> Iterator[tuple[PairedBatch, Tensor]]:
        """Batches as they were read, with embeddings [b, E] of the clips that could be."""
        device = self.teacher.execution.device
        loader = make_loader(
            self.clips, batches, num_workers=self.num_workers, pin_memory=device.type == "cuda" and self.num_workers > 0
        )
        for batch in loader:
            if len(batch) == 0:
                yield batch, torch.empty(0, self.teacher.encoder.embed_dim)
            else:
                yield batch, self.teacher.embed(batch.to(device))["features"].cpu()

    def batches_of(self, keys: Sequence[SampleKey]) -> list[list[SampleKey]]:
        """Keys in batches of the size that was asked for."""
        return [list(keys[i : i + self.batch_size]) for i in range(0, len(keys), self.batch_size)]


def fill(options: Options, accelerator: Accelerator | None = None) -> Path:
    """Make a cache, or what is missing of it.

    Args:
        options: The command's.
        accelerator: Made here if None; its processes take shards in turn.

    Returns:
        The cache's folder.
    """
    config = options.run_config()
    build.check_pair(config)
    accelerator = accelerator or create_accelerator()
    use_all_cores(accelerator)
    manifests = build.open_datasets(config, accelerator)
    source, clips, weights = _open_source(
        config, manifests, options, student_view=build.create_student(config).view, accelerator=accelerator
    )
    key: dict[str, Any] = {
        **describe_teacher(source.teacher.encoder, weights=weights, weights_sha256=source.teacher.identity[1]),
        **describe_clips(clips, split=options.split),
        "seed": options.seed,
        "dtype": options.dtype,
        "precision": "bf16" if source.teacher.execution.is_bf16 else "fp32",
        "clips_per_shard": options.clips_per_shard,
    }

    def open_cache() -> list[Shard]:
        bytes_per_clip = source.teacher.encoder.embed_dim * DTYPES[options.dtype][1].itemsize
        _require_space(options.out, num_bytes=len(clips) * options.views * bytes_per_clip)  # before anything is written
        TeacherCache.create(options.out, key, num_views=options.views, teacher=source.teacher.encoder)
        return TeacherCache(options.out).missing()

    missing = decide_on_first(accelerator, open_cache)  # before any process writes
    cache = TeacherCache(options.out)
    decide_on_first(accelerator, lambda: _announce_work(cache, missing, accelerator.num_processes))
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    _write_shards(cache, source, mine, max_unreadable=options.max_unreadable, accelerator=accelerator)
    if accelerator.is_main_process:
        _report(cache)
    return options.out


def _open_source(
    config: RunConfig,
    manifests: list[Manifest],
    options: Options | VerifyOptions,
    *,
    student_view: ViewSpec,
    accelerator: Accelerator,
) -> tuple[Source, PairedClips, str]:
    """The teacher with its clips, the clips of the training that they belong to, and the name of its weights."""
    (chosen,) = build.chosen_teachers(config)
    chosen = build.with_published_weights(chosen)
    teacher = build.create_teacher(chosen, student_view)
    clips = build.training_set(
        config, manifests, student_view=student_view, teacher_views=[teacher.view], accelerator=accelerator
    )
    frozen = FrozenTeacher(teacher, build.choose_execution(config, teacher, accelerator))
    return Source(frozen, clips.of_teachers(), options.batch_size, options.workers), clips, chosen.weights


def _announce_work(cache: TeacherCache, missing: Sequence[Shard], num_processes: int) -> None:
    """Say how much there is to do."""
    shards = cache.shards()
    num_left = sum(shard.num_clips for shard in missing)
    num_bytes = num_left * cache.bytes_per_clip
    total = cache.num_clips * cache.num_views
    console.print(
        f"{cache.num_clips} clips × {cache.num_views} views of {cache.key['teacher']} ({cache.embed_dim} features, "
        f"{cache.key['dtype']}): {_size(total * cache.bytes_per_clip)} in {len(shards)} shards; "
        f"{len(shards) - len(missing)} are there, {num_left} clips ({_size(num_bytes)}) are left for "
        f"{num_processes} process{'es' if num_processes > 1 else ''}",
        highlight=False,
    )


def _require_space(folder: Path, *, num_bytes: int) -> None:
    """Raise a ``UserError`` if the disk has no room for what a cache of so many bytes still lacks."""
    num_left = num_bytes - sum(path.stat().st_size for path in (folder / SHARDS_NAME).glob("*"))
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if num_left > free:
        raise UserError(
            f"the teacher cache needs {_size(num_left)} more in {folder}, and {_size(free)} are free there: "
            "make room, or choose fewer --views, --dtype fp16 or another --out"
        )


def _size(num_bytes: float) -> str:
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"


def _write_shards(
    cache: TeacherCache,
    source: Source,
    shards: Sequence[Shard],
    *,
    max_unreadable: float,
    accelerator: Accelerator,
) -> None:
    """Embed shard after shard; batches end where shards end, and one loader reads them all."""
    by_shard = [source.batches_of([SampleKey(i, s.view) for i in range(s.start, s.stop)]) for s in shards]
    stream = source.embed([batch for batches in by_shard for batch in batches])
    num_clips = sum(shard.num_clips for shard in shards)
    clock = _Clock(num_clips, is_shown=accelerator.is_main_process)
    bar = progress_bar(unit="clips", is_shown=accelerator.is_main_process)
    with bar:
        task = bar.add_task(cache.key["teacher"], total=num_clips)
        for shard, batches in zip(shards, by_shard, strict=True):
            features = torch.zeros(shard.num_clips, cache.embed_dim)
            unreadable: dict[int, str] = {}
            for keys in batches:
                batch, embedded = next(stream)
                features[batch.sample_ids - shard.start] = embedded
                unreadable |= _left_out(keys, batch, source.clips)
                clock.add(len(keys))
                bar.update(task, advance=len(keys))
            _require_readable(shard, unreadable, max_unreadable)
            cache.write(shard, features, unreadable)


def _left_out(keys: Sequence[SampleKey], batch: PairedBatch, clips: PairedClips) -> dict[int, str]:
    """Samples that were asked for and not read, with the reason."""
    reasons = dict(batch.unreadable)
    read = set(batch.sample_ids.tolist())
    return {key.index: reasons[clips.entries[key.index].key] for key in keys if key.index not in read}


def _require_readable(shard: Shard, unreadable: dict[int, str], max_unreadable: float) -> None:
    """Stop before a shard is kept that a disk which is not there has emptied; one clip in a shard is always allowed."""
    if len(unreadable) > max(1, max_unreadable * shard.num_clips):
        sample, reason = next(iter(unreadable.items()))
        raise OneProcessError(
            f"{len(unreadable)} of {shard.num_clips} clips could not be read (over --max-unreadable {max_unreadable}; "
            f"sample {sample}: {reason}): repair the data or raise the limit, and start again: finished shards are kept"
        )


class _Clock:
    """Says after a few batches how long the rest will take.

    Args:
        num_clips: Of this process.
        is_shown: Whether to print it.
    """

    def __init__(self, num_clips: int, *, is_shown: bool) -> None:
        self.num_left, self.is_shown = num_clips, is_shown
        self.num_batches, self.num_timed = 0, 0
        self.started = time.perf_counter()

    def add(self, num_clips: int) -> None:
        """A batch is done."""
        self.num_left -= num_clips
        self.num_batches += 1
        if self.num_batches == 1:
            self.started = time.perf_counter()
            return
        self.num_timed += num_clips
        if self.is_shown and self.num_batches == NUM_TIMED_BATCHES:
            rate = self.num_timed / (time.perf_counter() - self.started)
            minutes = self.num_left / rate / 60
            left = f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"
            console.print(f"{rate:.1f} clips/s in this process, so about {left} left", highlight=False)


def _report(cache: TeacherCache) -> None:
    """What is there, and which videos are not."""
    num_missing = len(cache.missing())
    if num_missing:
        console.print(f"{num_missing} shards are left to other processes")
    unreadable = cache.unreadable()
    if unreadable:
        samples = {sample: reason for (sample, _), reason in sorted(unreadable.items())}
        console.print(f"{len(samples)} videos could not be read; in training others stand in for them:", style="yellow")
        for sample, reason in list(samples.items())[:MANY_UNREADABLE]:
            console.print(f"  sample {sample}: {reason}", highlight=False)
    console.print(f"the cache is {cache.folder}: train.py --teacher-cache {cache.folder} …", highlight=False)


def verify(options: VerifyOptions) -> None:
    """Compare a sample of a cache with the live teacher.

    Raises:
        UserError: The cache is of something else, or an embedding is not what the teacher gives.
    """
    cache = TeacherCache(options.cache)
    cache.require_complete()
    config = _cached_config(cache, options)
    accelerator = create_accelerator()
    seen = cache.key["student_view"]
    kind = get_modality(seen["modality"])
    student_view = ViewSpec(**seen, size_px=1, mean=kind.mean, std=kind.std)  # its pictures are never read
    manifests = build.open_datasets(config, accelerator)
    source, clips, weights = _open_source(
        config, manifests, options, student_view=student_view, accelerator=accelerator
    )
    live = describe_teacher(source.teacher.encoder, weights=weights, weights_sha256=source.teacher.identity[1])
    del live["teacher_weights"]  # a copy of the file, or another way to name it: the values are compared
    cache.require({**live, **describe_clips(clips, split=cache.key["split"])}, wanted_by="this command")
    known = cache.unreadable()
    drawn = spread(cache.shards(), num_clips=options.clips, seed=0)
    keys = [SampleKey(sample, view) for sample, view in drawn if (sample, view) not in known]
    measured = [torch.empty(0)]
    for batch, embedded in source.embed(source.batches_of(keys)):
        assert batch.sample_keys is not None
        measured.append(cosines(cache.read(batch.sample_keys), embedded))
    found = torch.cat(measured)
    if not len(found):
        raise UserError(f"none of the {len(drawn)} clips could be read: look at --data")
    text = f"{len(found)} clips of {cache.folder}: cosine to the live teacher at least {found.min():.6f}"
    if found.min() < MIN_COSINE:
        raise UserError(f"{text}, which is below {MIN_COSINE}: make the cache again")
    console.print(f"{text}, mean {found.mean():.6f}", highlight=False)


def _cached_config(cache: TeacherCache, options: VerifyOptions) -> RunConfig:
    """The training that a cache was made for, with the teacher's own view as it was."""
    key, view = cache.key, cache.teacher_view
    pair = PairConfig(
        teacher=several(options.teacher or key["teacher"]),
        teacher_weights=several(options.teacher_weights),
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
    return RunConfig(pair=pair, data=data, machine=_machine(seed=cache.seed, mixed_precision=key["precision"]))


if __name__ == "__main__":
    main()
