"""Frames of a clip, what happens to videos shorter than a clip (``--short-clips``), and the order of samples.

Everything random is a function of (seed, epoch, sample), and not of a worker or process: a run draws the same clips
with any number of workers, on any number of processes, and after a resume.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.decode import nearest_frames
from crossdistill.data.manifest import Stream
from crossdistill.errors import UserError, unknown_name
from crossdistill.types import ViewSpec

SHORT_CLIPS = {
    "repeat": "the video's first and last frame repeat",
    "loop": "the clip starts at the video's start, and the video starts again at its end",
    "error": "the command stops before it starts",
}
"""Policies for clips that are longer than their video, with what each does."""
# A clip that is longer than its video by less than this share of a frame still fits, because timestamps are rounded.
FORGIVEN_FRAMES = 0.5


@dataclass(frozen=True)
class SampleKey:
    """Key that a DataLoader passes to the dataset: a sample, and the epoch whose random draws it gets."""

    index: int
    epoch: int


def sample_generator(seed: int, key: SampleKey) -> np.random.Generator:
    """Return the generator of all random draws for one sample in one epoch."""
    # NumPy hashes the list, so neighbouring keys have independent generators.
    return np.random.default_rng([seed, key.epoch, key.index])


@dataclass(frozen=True)
class Loop:
    """A video that starts again at its end.

    The loop covers the time that all streams of the video share. So streams that are read through one loop stay paired.
    """

    start_seconds: float
    """First moment that all streams have."""
    period_seconds: float
    """Duration of one round: the shared time and the distance of one frame."""
    frame_seconds: float
    """Distance between frames of the stream with the lowest frame rate."""
    centre_seconds: float
    """Centre of every clip. The longest view then starts at ``start_seconds``."""

    def wrap(self, times_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map times [T] of any round to the first, which begins half a frame before ``start_seconds``."""
        # A round begins between two frames. If it began at a frame, rounding would decide in which round the frame is.
        begin_seconds = self.start_seconds - self.frame_seconds / 2
        return np.asarray(begin_seconds + np.mod(times_seconds - begin_seconds, self.period_seconds), dtype=np.float64)


def clip_frames(
    stream: Stream,
    view: ViewSpec,
    centre_seconds: float,
    *,
    loop: Loop | None = None,
    steps: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Return the positions of a clip's frames in its stream.

    The clip starts at the frame nearest to its first time. Every later time takes its nearest frame. Without a loop,
    the first and last frame repeat beyond the ends of the video. ``steps`` [T] are the moments of the frames after the
    start, in distances of two frames of the clip; None for 0, 1, 2, …

    Example:
        >>> from fractions import Fraction
        >>> pts = np.arange(10)
        >>> video = Stream("a.mp4", 64, 48, Fraction(1, 10), pts=pts, keyframes=pts[:1])
        >>> view = ViewSpec("rgb", num_frames=4, stride=2, size_px=48, mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> clip_frames(video, view, centre_seconds=0.4).tolist()
        [1, 3, 5, 7]
        >>> clip_frames(video, view, centre_seconds=0.8).tolist()
        [5, 7, 9, 9]
    """
    if stream.num_frames == 1:
        return np.zeros(view.num_frames, dtype=np.int64)
    step_seconds = view.stride * stream.frame_seconds
    start_seconds = centre_seconds - step_seconds * (view.num_frames - 1) / 2
    if loop is not None:
        start_seconds = float(loop.wrap(np.asarray([start_seconds]))[0])
    # Starting at the time of a frame keeps later times near frames too; between two frames, rounding would decide.
    first, last = stream.times_seconds[0], stream.times_seconds[-1]
    if first <= start_seconds <= last:
        start_seconds = stream.times_seconds[nearest_frames(stream, np.asarray([start_seconds]))[0]]
    steps = np.arange(view.num_frames, dtype=np.float64) if steps is None else steps
    times_seconds = np.float64(start_seconds) + step_seconds * steps
    return nearest_frames(stream, times_seconds if loop is None else loop.wrap(times_seconds))


def centre_range_seconds(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> tuple[float, float]:
    """Return the earliest and the latest centre with which every view lies inside its stream, in seconds.

    If the video is too short, both are the middle of the time that all streams share.
    """
    if not any(stream.is_video for stream in streams):
        return 0.0, 0.0  # the time of still pictures
    earliest, latest = _centres_inside(streams, views)
    middle = sum(_shared_seconds(streams)) / 2
    return (earliest, latest) if earliest <= latest else (middle, middle)


def missing_seconds(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> float:
    """Return how much longer a video would have to be for all views of one moment; 0.0 if it is long enough."""
    earliest, latest = _centres_inside(streams, views)
    forgiven_seconds = FORGIVEN_FRAMES * min(stream.frame_seconds for stream in streams)
    return earliest - latest if earliest - latest > forgiven_seconds else 0.0


def video_loop(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> Loop | None:
    """Return the loop of a video that is shorter than its views; None if it is long enough."""
    if not missing_seconds(streams, views):
        return None
    start_seconds, end_seconds = _shared_seconds(streams)
    # The last frame is shown for one frame's time before the first one is shown again.
    step_seconds = max(stream.frame_seconds for stream in streams)
    return Loop(
        start_seconds=start_seconds,
        period_seconds=max(0.0, end_seconds - start_seconds) + step_seconds,
        frame_seconds=step_seconds,
        centre_seconds=start_seconds + max(_span_seconds(s, v) for s, v in zip(streams, views, strict=True)) / 2,
    )


def check_short_clips(policy: str, videos: Iterable[tuple[str, Sequence[Stream]]], views: Sequence[ViewSpec]) -> None:
    """Raise a ``UserError`` if a policy is not in ``SHORT_CLIPS``, or is ``error`` and a video is too short.

    A video is given by its name and the stream of each view.
    """
    if policy not in SHORT_CLIPS:
        raise unknown_name("--short-clips", policy, SHORT_CLIPS)
    if policy != "error":
        return
    num_videos, short = 0, []
    for name, streams in videos:  # there may be millions
        num_videos += 1
        if missing_seconds(streams, views):
            short.append((name, streams))
    if short:
        name, streams = short[0]
        raise UserError(
            f"{len(short)} of {num_videos} videos are shorter than a clip, which --short-clips error refuses: the "
            f"first, {name}, {_length_and_need(streams, views)}; remove these videos, choose fewer frames or a smaller "
            "stride, or choose --short-clips repeat or loop"
        )


def _length_and_need(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> str:
    """Say how many frames a video has and how many are needed, for the view that lacks most."""
    lacking = [missing_seconds([stream], [view]) for stream, view in zip(streams, views, strict=True)]
    position = int(np.argmax(lacking))
    stream, view = streams[position], views[position]
    frame = stream.frame_seconds
    num_needed = view.stride * (view.num_frames - 1) + 1
    # If streams begin or end at different times, each view may fit alone, but not all around one moment.
    num_frames = num_needed - round(missing_seconds(streams, views) / frame)
    return (
        f"has {num_frames} frames ({num_frames * frame:.2f} s) where {view.num_frames} {view.modality} frames with "
        f"stride {view.stride} need {num_needed} ({num_needed * frame:.2f} s)"
    )


def _span_seconds(stream: Stream, view: ViewSpec) -> float:
    """Time between the first and the last frame of a clip."""
    return view.stride * stream.frame_seconds * (view.num_frames - 1)


def _shared_seconds(streams: Sequence[Stream]) -> tuple[float, float]:
    """First and last moment that all streams have; the first is later than the last if there is none."""
    first = max(float(stream.times_seconds[0]) for stream in streams)
    return first, min(float(stream.times_seconds[-1]) for stream in streams)


def _centres_inside(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> tuple[float, float]:
    """Earliest and latest centre with every view inside its stream; the earliest is later if there is none."""
    earliest, latest = -np.inf, np.inf
    for stream, view in zip(streams, views, strict=True):
        half_seconds = _span_seconds(stream, view) / 2
        earliest = max(earliest, float(stream.times_seconds[0]) + half_seconds)
        latest = min(latest, float(stream.times_seconds[-1]) - half_seconds)
    return earliest, latest


def require_full_batch(num_samples: int, batch_size: int, num_processes: int, multiple: int | None = None) -> None:
    """Raise a ``UserError`` if the samples do not fill one batch of every process (or ``multiple`` in its place)."""
    if num_samples < (multiple or batch_size * num_processes):
        raise UserError(
            f"a batch of {batch_size} on {num_processes} process(es) needs {batch_size * num_processes} clips, but the "
            f"data has {num_samples}: choose --batch-size {max(1, num_samples // num_processes)} or less"
        )


@dataclass(frozen=True, kw_only=True)
class TrainingBatches:
    """Batch sampler of a whole training run for one process; it can start at any batch.

    Each epoch is one permutation drawn from (seed, epoch), and the run is one sequence of these. Global batch n is its
    n-th slice, and process p takes the p-th part of the slice. So two processes with half the batch size see the same
    samples in the same order as one process. Samples at the end of an epoch that do not fill ``epoch_multiple`` are
    skipped in that epoch.

    Example:
        >>> batches = TrainingBatches(num_samples=7, batch_size=2, num_epochs=2, seed=0)
        >>> len(batches)
        6
        >>> [[key.epoch for key in batch] for batch in batches]
        [[0, 0], [0, 0], [0, 0], [1, 1], [1, 1], [1, 1]]
    """

    num_samples: int
    """Number of samples in the dataset; a ``UserError`` if they do not fill one global batch."""
    batch_size: int
    """Samples per batch of one process."""
    num_epochs: int
    seed: int
    num_processes: int = 1
    process_index: int = 0
    start_batch: int = 0
    """Number of batches that this process has finished before a resume."""
    epoch_multiple: int | None = None
    """An epoch has as many samples as a multiple of this number allows; one global batch if None. A run that is resumed
    with another global batch gives that of its start, and so keeps its sequence."""

    def __post_init__(self) -> None:
        require_full_batch(self.num_samples, self.batch_size, self.num_processes, self.epoch_multiple)

    @property
    def samples_per_epoch(self) -> int:
        """Number of samples that all processes together draw in one epoch."""
        multiple = self.epoch_multiple or self.batch_size * self.num_processes
        return self.num_samples // multiple * multiple

    def __len__(self) -> int:
        return self._num_batches - self.start_batch

    @property
    def _num_batches(self) -> int:
        """Number of batches of one process in the whole run."""
        return self.samples_per_epoch * self.num_epochs // (self.batch_size * self.num_processes)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        order_epoch = -1
        for batch in range(self.start_batch, self._num_batches):
            start = (batch * self.num_processes + self.process_index) * self.batch_size
            keys: list[SampleKey] = []
            for position in range(start, start + self.batch_size):
                epoch, index = divmod(position, self.samples_per_epoch)
                if epoch != order_epoch:
                    # Every process draws the same permutation, so that the processes need not communicate.
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.num_samples)
                    order_epoch = epoch
                keys.append(SampleKey(int(order[index]), epoch))
            yield keys
