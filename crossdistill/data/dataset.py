"""The map-style dataset of clips, with one view for the student and one for each teacher, and its DataLoader.

Shapes: B batch, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, get_worker_info

from crossdistill.data.clip_policy import ClipPolicy
from crossdistill.data.clip_reader import ClipReader, ReadingPlan
from crossdistill.data.decoded import DecodedVideos
from crossdistill.data.decoders import DECODERS, DEFAULT_DECODER, get_decoder
from crossdistill.data.entries import Entries, Entry, entries_of, root_of
from crossdistill.data.manifest import Stream
from crossdistill.data.sampling import SampleKey, check_short_clips, sample_generator
from crossdistill.data.stores import find_store, read_ahead
from crossdistill.data.streams import Picture
from crossdistill.data.transforms import Augmentation, Crop, CutClip, centre_crop
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.types import PairedBatch, View, ViewSpec

__all__ = ["Entries", "Entry", "Item", "PairedClips", "Replay", "check_entries", "collate", "entries_of", "make_loader"]

# Number of other samples that are tried in place of an unreadable one.
MAX_REPLACEMENTS = 8
# Samples that are drawn in a row before the first of them is decoded. Decoding would push this code out of the
# processor's caches; small pictures take an eighth less time this way. The timestamps of 32 hours of video are 58 MB.
DRAWN_IN_A_ROW = 32


def check_entries(entries: Iterable[Entry], views: Sequence[ViewSpec], *, short_clips: str) -> None:
    """Raise a ``UserError`` if ``--short-clips error`` is set and a usable video is too short for the views."""
    usable = (entry for entry in entries if entry.video.is_usable)
    videos = ((entry.key, [entry.video.streams[view.kind.stream] for view in views]) for entry in usable)
    check_short_clips(short_clips, videos, views)


@dataclass(frozen=True)
class Item:
    """One sample before batching."""

    index: int
    """Position of the video in the dataset."""
    label: int
    views: tuple[CutClip | None, ...] | None
    """The student's view, then the teachers'. A view that was not requested is None. None if no video could be read."""
    unreadable: tuple[tuple[str, str], ...] = ()
    """(dataset/video, reason) of each video that could not be read."""
    epoch: int = 0
    """Epoch whose random draws the sample has."""


@dataclass(frozen=True)
class _Draw:
    """All random draws of one sample, made before anything is decoded."""

    index: int
    epoch: int
    entry: Entry
    plan: ReadingPlan | str
    """What is read: one clip of each view that is requested. Or the reason why the sample cannot be read."""
    policy_seed: int | None = None
    """Seed of the policy's changes; None without a policy."""


@dataclass(frozen=True)
class Replay:
    """Random draws that repeat, because a teacher cache holds the embeddings of the augmented clips.

    Epoch e has the draws of epoch e modulo ``num_augmentations``.
    """

    seed: int
    num_augmentations: int
    unreadable: Mapping[tuple[int, int], str]
    """(sample, augmentation) to the reason why the cache has no embedding for it."""


class PairedClips(Dataset[Item]):
    """Clips of videos, one view for the student and one for each of its teachers.

    Args:
        entries: Videos to draw clips from; a ``UserError`` if there are none.
        student_view: View of the student.
        teacher_views: Views of the teachers; empty if there is none.
        augmentation: Distribution of crop and mirroring; the time is uniform. None for the middle of each video and
            picture.
        teacher_augmentation: Distribution of the teachers' own crop and mirroring, for self-distillation from two views
            of one moment. If None, all views share one crop.
        policy: Changes of colour and geometry of what the student sees; None for none.
        seed: Seed of the draws. (seed, epoch, index) determines a sample.
        replace_unreadable: Whether another video replaces one that cannot be read (training). If not, the sample is
            left out and reported (evaluation).
        decoder: Decoding library: one of ``DECODERS``.
        short_clips: What happens if a clip is longer than its video: one of ``SHORT_CLIPS``. With ``error``, such a
            video is a ``UserError``.
        decoded: Where the process keeps decoded videos; None to decode every clip.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        student_view: ViewSpec,
        teacher_views: Sequence[ViewSpec] = (),
        augmentation: Augmentation | None = None,
        teacher_augmentation: Augmentation | None = None,
        policy: ClipPolicy | None = None,
        seed: int = 0,
        replace_unreadable: bool = False,
        decoder: str = DEFAULT_DECODER,
        short_clips: str = "repeat",
        decoded: DecodedVideos | None = None,
    ) -> None:
        if not entries:
            raise UserError("the data has no clips: check --data and --split")
        # Millions of entries are not turned into objects, of which every worker would have its own.
        self.entries: Sequence[Entry] = entries if isinstance(entries, Entries) else list(entries)
        self.views = [student_view, *teacher_views]
        self.augmentation = augmentation
        self.teacher_augmentation = teacher_augmentation
        self.policy = policy
        self.seed = seed
        self.replace_unreadable = replace_unreadable
        self.decoder = get_decoder(decoder).name  # a missing library is an error here, not in a worker
        self.short_clips = short_clips
        self.decoded = decoded
        self.replay: Replay | None = None
        self.is_read = (True,) * len(self.views)
        check_entries(self.entries, self.views, short_clips=short_clips)

    def __len__(self) -> int:
        return len(self.entries)

    def replayed(self, replay: Replay) -> PairedClips:
        """Return a copy that repeats the draws of a teacher cache and reads only the student's view."""
        clips = copy.copy(self)  # shallow, because the entries may be many
        clips.seed, clips.replay = replay.seed, replay
        clips.is_read = (True, *(False for _ in self.views[1:]))
        return clips

    def of_teachers(self) -> PairedClips:
        """Return a copy that reads only the teachers' views and replaces no unreadable video."""
        clips = copy.copy(self)
        clips.is_read = (False, *(True for _ in self.views[1:]))
        clips.replace_unreadable = False
        return clips

    def in_the_middle(self) -> PairedClips:
        """Return a copy without augmentation: the middle of each video and picture."""
        clips = copy.copy(self)
        clips.augmentation = clips.teacher_augmentation = clips.policy = None
        return clips

    def __getitem__(self, key: SampleKey) -> Item:
        """Read one sample with the draws of one epoch."""
        return self._item(self._draw(key))

    def read_batch(self, keys: Sequence[SampleKey]) -> PairedBatch:
        """Read samples into a batch. Samples that cannot be read are left out and reported in ``unreadable``."""
        read_ahead(self._streams_of(keys))
        return collate(self._read_in_order(keys), num_items=len(keys))

    # A DataLoader passes all keys of a batch to this method, if the dataset has it, instead of calling __getitem__.
    __getitems__ = read_batch

    def _streams_of(self, keys: Sequence[SampleKey]) -> Iterator[tuple[Path, Stream]]:
        """Yield the streams that some samples are read from, with the folders of their datasets."""
        names = {view.kind.stream for view, is_read in zip(self.views, self.is_read, strict=True) if is_read}
        # Most datasets are on the disk, and then no entry is built here.
        away = (key for key in keys if find_store(root_of(self.entries, key.index)) is not None)
        for entry in (self.entries[key.index] for key in away):
            if entry.video.is_usable:
                needed = ((entry.root, entry.video.streams[name]) for name in names)
                yield from (one for one in needed if self.decoded is None or not self.decoded.keeps(*one))

    def clip_reader(self, entry: Entry) -> ClipReader:
        """Return the reader of one video; raise ``UnreadableVideoError`` if its preparation failed."""
        video = entry.video
        if not video.is_usable:
            raise UnreadableVideoError(f"{video.name}: {video.reason}")
        return ClipReader(entry.root, video.streams, self.views, self.short_clips, self.decoder, decoded=self.decoded)

    def _read_in_order(self, keys: Sequence[SampleKey]) -> Iterator[Item]:
        for start in range(0, len(keys), DRAWN_IN_A_ROW):
            yield from map(self._item, [self._draw(key) for key in keys[start : start + DRAWN_IN_A_ROW]])

    def _item(self, draw: _Draw) -> Item:
        """Read a sample, or another one in its place."""
        first, unreadable = draw, list[tuple[str, str]]()
        replacements: np.random.Generator | None = None
        for left in reversed(range(1 + (MAX_REPLACEMENTS if self.replace_unreadable else 0))):
            try:
                return Item(draw.index, draw.entry.label, self._read(draw), tuple(unreadable), draw.epoch)
            except UnreadableVideoError as error:
                unreadable.append((draw.entry.key, str(error)))
            if left:
                # Made here, because a generator takes as long as decoding a small picture.
                replacements = replacements or sample_generator(self.seed, SampleKey(first.index, first.epoch))
                # The replacement has the draws of its own (sample, epoch), under which a teacher cache holds it.
                draw = self._draw(SampleKey(int(replacements.integers(len(self.entries))), first.epoch))
        return Item(first.index, first.entry.label, None, tuple(unreadable), first.epoch)

    def _draw(self, key: SampleKey) -> _Draw:
        """Draw all that is random of a sample, in an order that must not change: it decides what a seed gives."""
        epoch = key.epoch if self.replay is None else key.epoch % self.replay.num_augmentations
        entry = self.entries[key.index]
        try:
            reader = self.clip_reader(entry)
        except UnreadableVideoError as error:
            return _Draw(key.index, epoch, entry, str(error))
        if self.replay is not None and (key.index, epoch) in self.replay.unreadable:
            return _Draw(key.index, epoch, entry, self.replay.unreadable[key.index, epoch])
        generator = sample_generator(self.seed, SampleKey(key.index, epoch))
        (centre_seconds,) = reader.spread_centres(1)
        if self.augmentation is not None:
            centre_seconds = float(generator.uniform(*reader.centre_range_seconds))
        drawn = zip(self._crops(generator, *reader.picture_size_px), self.is_read, strict=True)
        plan = reader.plan([centre_seconds], [[crop] if is_read else [] for crop, is_read in drawn])
        return _Draw(key.index, epoch, entry, plan, None if self.policy is None else int(generator.integers(2**63)))

    def _read(self, draw: _Draw) -> tuple[CutClip | None, ...]:
        """Decode and cut the clip of each view; ``UnreadableVideoError`` if that fails."""
        if isinstance(draw.plan, str):
            raise UnreadableVideoError(draw.plan)
        student, *teachers = [clip[0] if clip else None for clip in draw.plan.read()]
        if self.policy is not None and student is not None:
            assert draw.policy_seed is not None
            student = self.policy(student, seed=draw.policy_seed)
        return student, *teachers

    def _crops(self, generator: np.random.Generator, width_px: int, height_px: int) -> list[Crop]:
        """Return one crop for each view."""
        if self.augmentation is None:
            fraction = self.views[0].centre_fraction
            return [centre_crop(width_px=width_px, height_px=height_px, fraction=fraction)] * len(self.views)
        students = teachers = self.augmentation.draw(generator, width_px=width_px, height_px=height_px)
        if self.teacher_augmentation is not None:
            teachers = self.teacher_augmentation.draw(generator, width_px=width_px, height_px=height_px)
        return [students, *(teachers for _ in self.views[1:])]


class _ViewBatch:
    """Collects the clips of one view of a batch in one array.

    Each clip is copied as soon as it is read, so that the memory of its decoded pictures is freed.

    Args:
        num_clips: Largest number of clips.
    """

    def __init__(self, num_clips: int) -> None:
        self._num_clips = num_clips
        self._values: Picture = np.empty(0, dtype=np.uint8)
        self._scales: NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self.num_added = 0

    def add(self, clip: CutClip) -> None:
        """Copy one clip. All clips have the same shape."""
        if not self.num_added:
            first = clip.frames[0]
            self._values = np.empty((self._num_clips, len(clip.frames), *first.shape), dtype=first.dtype)
            self._scales = np.empty((self._num_clips, *clip.channel_scale.shape), dtype=np.float32)
        for i, frame in enumerate(clip.frames):
            self._values[self.num_added, i] = frame
        self._scales[self.num_added] = clip.channel_scale
        self.num_added += 1

    def view(self) -> View:
        """Return [B, C, T, H, W] with channels last in memory, as they were decoded."""
        values = torch.from_numpy(self._values[: self.num_added]).permute(0, 4, 1, 2, 3)
        return View(values, torch.from_numpy(self._scales[: self.num_added]))


def collate(items: Iterable[Item], *, num_items: int) -> PairedBatch:
    """Stack at most ``num_items`` samples into a batch of views [B, C, T, H, W]; unreadable samples are skipped.

    The samples are requested one by one, so that only one is in memory at a time.
    """
    views: list[_ViewBatch] = []
    keys: list[tuple[int, int]] = []
    labels: list[int] = []
    unreadable: list[tuple[str, str]] = []
    for item in items:
        unreadable += item.unreadable
        if item.views is None:
            continue
        views = views or [_ViewBatch(num_items) for _ in item.views]
        for batch, clip in zip(views, item.views, strict=True):
            if clip is not None:
                batch.add(clip)
        keys.append((item.index, item.epoch))
        labels.append(item.label)
    empty = View(torch.empty(0, dtype=torch.uint8), torch.empty(0))
    sample_keys = torch.tensor(keys, dtype=torch.int64).reshape(-1, 2)
    return PairedBatch(
        student=views[0].view() if views and views[0].num_added else empty,
        teachers=tuple(batch.view() for batch in views[1:] if batch.num_added),
        sample_ids=sample_keys[:, 0].clone(),
        labels=torch.tensor(labels, dtype=torch.int64),
        unreadable=tuple(unreadable),
        sample_keys=sample_keys,
    )


def _as_it_is(batch: PairedBatch) -> PairedBatch:
    return batch


def _end_at_the_next(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)


def _set_up_worker(worker: int) -> None:
    """Set up a process that decodes."""
    # OpenCV and torch start no threads, because the workers already run in parallel.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # A terminal sends Ctrl-C to every process, SLURM SIGUSR1. The main process needs the batches of the step that it
    # finishes.
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # torchrun and SLURM send SIGTERM to every process as well. The second one ends the worker, because Python waits for
    # workers that it has told to end, and repeats that.
    signal.signal(signal.SIGTERM, _end_at_the_next)
    info = get_worker_info()
    if info is not None and isinstance(info.dataset, PairedClips) and info.dataset.decoded is not None:
        info.dataset.decoded.share_among(info.num_workers)


def make_loader(
    dataset: PairedClips, batches: Sequence[list[SampleKey]] | object, *, num_workers: int, pin_memory: bool = False
) -> DataLoader[Any]:
    """Return a DataLoader that yields a ``PairedBatch`` for each list of sample keys, for example ``TrainingBatches``.

    With ``num_workers`` 0 it decodes in this process. Pinned memory makes copies to a GPU faster.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        pin_memory=pin_memory,
        worker_init_fn=_set_up_worker,
        prefetch_factor=4 if num_workers else None,
        # CUDA cannot be used in a process that was forked from one that uses it.
        multiprocessing_context="spawn" if num_workers and DECODERS[dataset.decoder].uses_gpu else None,
        # Without its own generator, the DataLoader draws from torch's and so changes the dropout of a resumed run.
        generator=torch.Generator(),
    )
