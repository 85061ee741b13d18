"""When a clip's frames are, and which samples come in which order.

Everything is a pure function of (seed, epoch, sample), never of a worker or process: the same run
gives the same clips with any number of workers, on any number of processes, and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.decode import nearest_frames
from crossdistill.data.manifest import Stream
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec


@dataclass(frozen=True)
class SampleKey:
    """What a DataLoader asks a dataset for: a sample, as it looks in one epoch."""

    index: int
    epoch: int


def sample_generator(seed: int, key: SampleKey) -> np.random.Generator:
    """The generator for everything random about one sample in one epoch."""
    return np.random.default_rng([seed, key.epoch, key.index])


def frame_seconds(stream: Stream) -> float:
    """The usual distance between frames: the median, so that a pause in the video does not matter."""
    if stream.num_frames < 2:
        return 1.0
    return float(np.median(np.diff(stream.pts))) * float(stream.time_base)


def clip_frames(stream: Stream, view: ViewSpec, centre_seconds: float) -> NDArray[np.int64]:
    """Positions of a clip's frames in a stream, centred on a time.

    The first frame is put on the stream's own grid, then every wanted time takes the nearest frame.
    Where the clip reaches over an end of the video, the end frame repeats.
    """
    step_seconds = view.stride * frame_seconds(stream)
    start_seconds = centre_seconds - step_seconds * (view.num_frames - 1) / 2
    first, last = stream.times_seconds[0], stream.times_seconds[-1]
    if first <= start_seconds <= last:
        start_seconds = stream.times_seconds[nearest_frames(stream, np.asarray([start_seconds]))[0]]
    return nearest_frames(
        stream, np.float64(start_seconds) + step_seconds * np.arange(view.num_frames, dtype=np.float64)
    )


def centre_range_seconds(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> tuple[float, float]:
    """Earliest and latest centre at which every view lies inside its stream.

    If the video is too short for that, both are the middle of the time that all streams share.
    """
    earliest, latest, shared_start, shared_end = -np.inf, np.inf, -np.inf, np.inf
    for stream, view in zip(streams, views, strict=True):
        half_seconds = view.stride * frame_seconds(stream) * (view.num_frames - 1) / 2
        first, last = float(stream.times_seconds[0]), float(stream.times_seconds[-1])
        earliest, latest = max(earliest, first + half_seconds), min(latest, last - half_seconds)
        shared_start, shared_end = max(shared_start, first), min(shared_end, last)
    if earliest > latest:
        earliest = latest = (shared_start + shared_end) / 2
    return earliest, latest


class TrainingBatches:
    """The batches of a whole training run for one process, from any step on.

    Each epoch is one permutation drawn from (seed, epoch). Global batch ``n`` is the n-th slice of it,
    and process ``p`` takes the p-th part of the slice: so two processes with half the batch see what
    one process sees, in the same order. What does not fill a global batch is left to other epochs.

    Args:
        num_samples: Size of the dataset.
        batch_size: Samples per batch of one process.
        num_epochs: How often the dataset is walked through.
        seed: Seed of the permutations.
        num_processes: Processes that train together.
        process_index: Which of them this is.
        start_batch: How many batches of this process are already done.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        batch_size: int,
        num_epochs: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        start_batch: int = 0,
    ) -> None:
        self.batches_per_epoch = num_samples // (batch_size * num_processes)
        if self.batches_per_epoch == 0:
            raise UserError(
                f"a batch of {batch_size} on {num_processes} process(es) needs "
                f"{batch_size * num_processes} clips, but the data has {num_samples}: "
                f"choose --batch-size {max(1, num_samples // num_processes)} or less"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.num_epochs = num_epochs
        self.seed = seed
        self.num_processes = num_processes
        self.process_index = process_index
        self.start_batch = start_batch

    def __len__(self) -> int:
        return self.batches_per_epoch * self.num_epochs - self.start_batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        order_epoch = -1
        for batch in range(self.start_batch, self.batches_per_epoch * self.num_epochs):
            epoch, position = divmod(batch, self.batches_per_epoch)
            if epoch != order_epoch:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
                order_epoch = epoch
            start = (position * self.num_processes + self.process_index) * self.batch_size
            yield [SampleKey(int(i), epoch) for i in order[start : start + self.batch_size]]
