"""The map-style dataset: views of the same moment of the same video for a student and its teachers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from crossdistill.data.clip_reader import ClipReader
from crossdistill.data.decoders import DEFAULT_DECODER, get_decoder
from crossdistill.data.manifest import Manifest, Video
from crossdistill.data.sampling import (
    SampleKey,
    check_short_clips,
    sample_generator,
)
from crossdistill.data.streams import Picture
from crossdistill.data.transforms import Augmentation, Crop, CutClip, centre_crop
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.types import PairedBatch, View, ViewSpec

# How many other samples are tried in place of an unreadable one before the batch is given up.
MAX_REPLACEMENTS = 8


@dataclass(frozen=True)
class Entry:
    """One video to draw clips from."""

    root: Path
    video: Video
    label: int
    """-1 if it has none."""

    @property
    def key(self) -> str:
        """Dataset and name: a name alone is unique in one dataset only."""
        return f"{self.root}/{self.video.name}"


def entries_of(manifest: Manifest, positions: Sequence[int]) -> list[Entry]:
    """The videos of a manifest at some positions."""
    return [
        Entry(manifest.root, video, -1 if video.label is None else video.label)
        for video in (manifest.videos[i] for i in positions)
    ]


def check_entries(entries: Iterable[Entry], views: Sequence[ViewSpec], *, short_clips: str) -> None:
    """Raise a ``UserError`` if ``--short-clips`` refuses one of these videos; unusable ones do not count."""
    usable = [entry for entry in entries if entry.video.is_usable]
    videos = ((entry.key, [entry.video.streams[view.kind.stream] for view in views]) for entry in usable)
    check_short_clips(short_clips, videos, views)


@dataclass(frozen=True)
class Item:
    """One sample before batching; ``views`` is None if it could not be read."""

    index: int
    label: int
    views: tuple[CutClip | None, ...] | None
    """The student's first; None in place of one that was not asked for."""
    unreadable: tuple[tuple[str, str], ...] = ()
    epoch: int = 0
    """In which it looks like this."""


@dataclass(frozen=True)
class Replay:
    """Draws that repeat, because the teacher's embeddings of them are kept: epoch e looks as e modulo the views."""

    seed: int
    num_augmentations: int
    unreadable: Mapping[tuple[int, int], str]
    """(sample, view) to the reason for which it has no embedding."""


class PairedClips(Dataset[Item]):
    """Clips of videos, one view for the student and one for each of its teachers.

    Args:
        entries: The videos.
        student_view: What the student sees.
        teacher_views: What the teachers see; empty when there is none.
        augmentation: How moment, crop and mirroring are drawn; None for the middle of each video.
        teacher_augmentation: How crop and mirroring of the teachers' views are drawn where they are not to be the
            student's: a network that learns from itself sees two views of one moment. All share one geometry if None.
        seed: With (epoch, index) it determines every draw.
        replace_unreadable: Whether another video steps in for one that cannot be read (training), or
            the sample is left out and reported (evaluation).
        decoder: Which library reads: one of ``DECODERS``.
        short_clips: What becomes of clips that are longer than their video: one of ``SHORT_CLIPS``.

    Raises:
        UserError: There is no entry, no such decoder or policy, or with ``error`` a video is too short.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        student_view: ViewSpec,
        teacher_views: Sequence[ViewSpec] = (),
        augmentation: Augmentation | None = None,
        teacher_augmentation: Augmentation | None = None,
        seed: int = 0,
        replace_unreadable: bool = False,
        decoder: str = DEFAULT_DECODER,
        short_clips: str = "repeat",
    ) -> None:
        if not entries:
            raise UserError("there are no clips in the data: check --data and --split")
        self.entries = list(entries)
        self.views = [student_view, *teacher_views]
        self.augmentation = augmentation
        self.teacher_augmentation = teacher_augmentation
        self.seed = seed
        self.replace_unreadable = replace_unreadable
        self.decoder = get_decoder(decoder).name  # a library that is absent is named here, not in a worker
        self.short_clips = short_clips
        self.replay: Replay | None = None
        self.is_read = (True,) * len(self.views)
        check_entries(self.entries, self.views, short_clips=short_clips)

    def __len__(self) -> int:
        return len(self.entries)

    def replayed(self, replay: Replay) -> PairedClips:
        """The same videos with repeated draws, of which only the student's view is read."""
        clips = copy.copy(self)
        clips.seed, clips.replay = replay.seed, replay
        clips.is_read = (True, *(False for _ in self.views[1:]))
        return clips

    def of_teachers(self) -> PairedClips:
        """The same draws, of which only the teachers' views are read; nothing stands in for what is unreadable."""
        clips = copy.copy(self)
        clips.is_read = (False, *(True for _ in self.views[1:]))
        clips.replace_unreadable = False
        return clips

    def __getitem__(self, key: SampleKey) -> Item:
        """Read one sample as it looks in one epoch."""
        if self.replay is not None:
            key = SampleKey(key.index, key.epoch % self.replay.num_augmentations)
        stand_ins = sample_generator(self.seed, key)
        drawn = key
        unreadable: list[tuple[str, str]] = []
        for _ in range(1 + (MAX_REPLACEMENTS if self.replace_unreadable else 0)):
            entry = self.entries[drawn.index]
            try:
                return Item(drawn.index, entry.label, self._read(drawn), tuple(unreadable), drawn.epoch)
            except UnreadableVideoError as error:
                unreadable.append((entry.key, str(error)))
                # It looks as it would in its own place: whoever knows (sample, epoch) knows the clip.
                drawn = SampleKey(int(stand_ins.integers(len(self.entries))), key.epoch)
        return Item(key.index, self.entries[key.index].label, None, tuple(unreadable), key.epoch)

    def read_batch(self, keys: Sequence[SampleKey]) -> PairedBatch:
        """Read samples one by one into a batch; those that cannot be read are left out and named."""
        return collate((self[key] for key in keys), num_items=len(keys))

    __getitems__ = read_batch  # what a DataLoader calls

    def clip_reader(self, entry: Entry) -> ClipReader:
        """Return the reader of one video; raise ``UnreadableVideoError`` if its preparation failed."""
        video = entry.video
        if not video.is_usable:
            raise UnreadableVideoError(f"{video.name}: {video.reason}")
        return ClipReader(entry.root, video.streams, self.views, self.short_clips, self.decoder)

    def _read(self, key: SampleKey) -> tuple[CutClip | None, ...]:
        reader = self.clip_reader(self.entries[key.index])
        if self.replay is not None and (key.index, key.epoch) in self.replay.unreadable:
            raise UnreadableVideoError(self.replay.unreadable[key.index, key.epoch])
        generator = sample_generator(self.seed, key)
        (centre_seconds,) = reader.spread_centres(1)
        if self.augmentation is not None:
            centre_seconds = float(generator.uniform(*reader.centre_range_seconds))
        width_px, height_px = reader.picture_size_px
        crops = self._crops(generator, width_px=width_px, height_px=height_px)
        clips = reader.read(
            [centre_seconds], [[crop] if is_read else [] for crop, is_read in zip(crops, self.is_read, strict=True)]
        )
        return tuple(clip[0] if clip else None for clip in clips)

    def _crops(self, generator: np.random.Generator, *, width_px: int, height_px: int) -> list[Crop]:
        """One for each view."""
        if self.augmentation is None:
            fraction = self.views[0].centre_fraction
            return [centre_crop(width_px=width_px, height_px=height_px, fraction=fraction)] * len(self.views)
        shared = self.augmentation.draw(generator, width_px=width_px, height_px=height_px)
        if self.teacher_augmentation is None:
            return [shared] * len(self.views)
        own = self.teacher_augmentation.draw(generator, width_px=width_px, height_px=height_px)
        return [shared, *(own for _ in self.views[1:])]


class _Rows:
    """The clips of one view of a batch, each copied as soon as it is read: once, and then its pictures are free.

    Args:
        num_clips: For how many there is room.
    """

    def __init__(self, num_clips: int) -> None:
        self._num_clips = num_clips
        self._values: Picture = np.empty(0, dtype=np.uint8)
        self._scales: list[NDArray[np.float32]] = []

    @property
    def is_empty(self) -> bool:
        """Whether no clip has been added."""
        return not self._scales

    def add(self, clip: CutClip) -> None:
        """Copy one clip; all have one shape."""
        if not self._scales:
            first = clip.frames[0]
            self._values = np.empty((self._num_clips, len(clip.frames), *first.shape), dtype=first.dtype)
        np.stack(clip.frames, out=self._values[len(self._scales)])
        self._scales.append(clip.channel_scale)

    def view(self) -> View:
        """[B, C, T, H, W] with channels last in memory, as decoders leave them: the device brings them to the front."""
        values = torch.from_numpy(self._values[: len(self._scales)]).permute(0, 4, 1, 2, 3)
        return View(values, torch.from_numpy(np.stack(self._scales)))


def collate(items: Iterable[Item], *, num_items: int) -> PairedBatch:
    """Make a batch of samples; unreadable ones are left out.

    Args:
        items: Asked for one by one.
        num_items: How many there are at most.
    """
    views: list[_Rows] = []
    keys: list[tuple[int, int]] = []
    labels: list[int] = []
    unreadable: list[tuple[str, str]] = []
    for item in items:
        unreadable += item.unreadable
        if item.views is None:
            continue
        views = views or [_Rows(num_items) for _ in item.views]
        for rows, clip in zip(views, item.views, strict=True):
            if clip is not None:
                rows.add(clip)
        keys.append((item.index, item.epoch))
        labels.append(item.label)
    empty = View(torch.empty(0), torch.empty(0))
    sample_keys = torch.tensor(keys, dtype=torch.int64).reshape(-1, 2)
    return PairedBatch(
        student=views[0].view() if views and not views[0].is_empty else empty,
        teachers=tuple(rows.view() for rows in views[1:] if not rows.is_empty),
        sample_ids=sample_keys[:, 0].clone(),
        labels=torch.tensor(labels, dtype=torch.int64),
        unreadable=tuple(unreadable),
        sample_keys=sample_keys,
    )


def _as_it_is(batch: PairedBatch) -> PairedBatch:
    return batch


def _use_one_thread(worker: int) -> None:
    """The workers are the parallelism: OpenCV and torch must not start threads of their own in each."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def make_loader(
    dataset: PairedClips, batches: Sequence[list[SampleKey]] | object, *, num_workers: int, pin_memory: bool = False
) -> DataLoader[Any]:
    """A DataLoader over batches of sample keys.

    Args:
        dataset: The clips.
        batches: Any iterable of lists of ``SampleKey``, for example ``TrainingBatches``.
        num_workers: Processes that decode; 0 decodes in this process.
        pin_memory: Whether batches go to a GPU.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        pin_memory=pin_memory,
        worker_init_fn=_use_one_thread,
        prefetch_factor=4 if num_workers else None,
        # Of its own: drawing from torch's generator would shift the dropout of a resumed run.
        generator=torch.Generator(),
    )
