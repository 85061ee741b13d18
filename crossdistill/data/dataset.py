"""The map-style dataset: two views of the same moment of the same video, under one geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from crossdistill.data.decode import read_frames
from crossdistill.data.decoders import DEFAULT_DECODER, get_decoder
from crossdistill.data.manifest import Manifest, Video
from crossdistill.data.sampling import SampleKey, centre_range_seconds, clip_frames, sample_generator
from crossdistill.data.streams import Picture
from crossdistill.data.transforms import Augmentation, Crop, centre_crop, cut_view
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


@dataclass(frozen=True)
class Item:
    """One sample before batching; ``views`` is None if it could not be read."""

    index: int
    label: int
    views: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None
    """Per view: values [C, T, H, W] and channel scale [C]; the student's first."""
    unreadable: tuple[tuple[str, str], ...] = ()


class PairedClips(Dataset[Item]):
    """Clips of videos, one view for the student and (if asked for) one for the teacher.

    Args:
        entries: The videos.
        student_view: What the student sees.
        teacher_view: What the teacher sees; None when there is no teacher.
        augmentation: How moment, crop and mirroring are drawn; None for the middle of each video.
        seed: With (epoch, index) it determines every draw.
        replace_unreadable: Whether another video steps in for one that cannot be read (training), or
            the sample is left out and reported (evaluation).
        decoder: Which library reads: one of ``DECODERS``.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        student_view: ViewSpec,
        teacher_view: ViewSpec | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        replace_unreadable: bool = False,
        decoder: str = DEFAULT_DECODER,
    ) -> None:
        if not entries:
            raise UserError("there are no clips in the data: check --data and --split")
        self.entries = list(entries)
        self.views = [view for view in (student_view, teacher_view) if view is not None]
        self.augmentation = augmentation
        self.seed = seed
        self.replace_unreadable = replace_unreadable
        self.decoder = get_decoder(decoder).name  # a library that is absent is named here, not in a worker

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: SampleKey) -> Item:
        """Read one sample as it looks in one epoch."""
        generator = sample_generator(self.seed, key)
        index = key.index
        unreadable: list[tuple[str, str]] = []
        for _ in range(1 + (MAX_REPLACEMENTS if self.replace_unreadable else 0)):
            entry = self.entries[index]
            try:
                return Item(index, entry.label, self._read(entry, generator), tuple(unreadable))
            except UnreadableVideoError as error:
                unreadable.append((entry.key, str(error)))
                index = int(generator.integers(len(self.entries)))
        return Item(key.index, self.entries[key.index].label, None, tuple(unreadable))

    def _read(self, entry: Entry, generator: np.random.Generator) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        video = entry.video
        if not video.is_usable:
            raise UnreadableVideoError(f"{video.name}: {video.reason}")
        streams = [video.streams[view.kind.stream] for view in self.views]
        earliest, latest = centre_range_seconds(streams, self.views)
        crop: Crop
        if self.augmentation is None:
            centre_seconds = (earliest + latest) / 2
            crop = centre_crop(width_px=streams[0].width_px, height_px=streams[0].height_px)
        else:
            centre_seconds = float(generator.uniform(earliest, latest))
            crop = self.augmentation.draw(generator, width_px=streams[0].width_px, height_px=streams[0].height_px)
        clips = [clip_frames(s, view, centre_seconds).tolist() for s, view in zip(streams, self.views, strict=True)]
        views = []
        for pictures, view in zip(self._read_pictures(entry, clips), self.views, strict=True):
            values, channel_scale = cut_view(pictures, crop, modality=view.kind, size_px=view.size_px)
            views.append((torch.from_numpy(values), torch.from_numpy(channel_scale)))
        return tuple(views)

    def _read_pictures(self, entry: Entry, clips: Sequence[list[int]]) -> list[Picture]:
        """The frames of each view; views of one stream are decoded together, which costs hardly more than one."""
        wanted: dict[str, list[int]] = {}
        parts = []
        for view, frames in zip(self.views, clips, strict=True):
            together = wanted.setdefault(view.kind.stream, [])
            parts.append((view.kind.stream, slice(len(together), len(together) + len(frames))))
            together += frames
        read = {
            name: read_frames(entry.root, entry.video.streams[name], frames, stream_name=name, decoder=self.decoder)
            for name, frames in wanted.items()
        }
        return [read[name][part] for name, part in parts]


def stack_clips(clips: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack clips [C, T, H, W] into [B, C, T, H, W] with channels last in memory, as decoders leave them.

    So every clip is copied once and as it lies; the device brings channels to the front.
    """
    channels, num_frames, height, width = clips[0].shape
    batch = torch.empty((len(clips), num_frames, height, width, channels), dtype=clips[0].dtype).permute(0, 4, 1, 2, 3)
    for target, clip in zip(batch, clips, strict=True):
        target.copy_(clip)
    return batch


def collate(items: list[Item]) -> PairedBatch:
    """Stack samples into a batch; unreadable ones are left out."""
    readable = [item for item in items if item.views is not None]
    unreadable = tuple(pair for item in items for pair in item.unreadable)
    if not readable:
        empty = View(torch.empty(0), torch.empty(0))
        no_ids = torch.empty(0, dtype=torch.int64)
        return PairedBatch(student=empty, teacher=None, sample_ids=no_ids, labels=no_ids, unreadable=unreadable)
    views = [
        View(values=stack_clips(values), channel_scale=torch.stack(scales))
        for values, scales in (
            zip(*pair, strict=True) for pair in zip(*(item.views or () for item in readable), strict=True)
        )
    ]
    return PairedBatch(
        student=views[0],
        teacher=views[1] if len(views) > 1 else None,
        sample_ids=torch.tensor([item.index for item in readable]),
        labels=torch.tensor([item.label for item in readable]),
        unreadable=unreadable,
    )


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
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_use_one_thread,
        prefetch_factor=4 if num_workers else None,
        # Of its own: drawing from torch's generator would shift the dropout of a resumed run.
        generator=torch.Generator(),
    )
