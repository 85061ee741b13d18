"""When a clip's frames are, and which samples come in which order.

Everything is a pure function of (seed, epoch, sample), never of a worker or process: the same run
gives the same clips with any number of workers, on any number of processes, and after a resume.
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
    "loop": "the clip starts at the video's start, and where the video ends it starts again",
    "error": "nothing starts",
}
"""What becomes of clips that reach over the ends of their video."""
# A clip that is longer than its video by less than this share of a frame still has every frame once.
FORGIVEN_FRAMES = 0.5


@dataclass(frozen=True)
class SampleKey:
    """What a DataLoader asks a dataset for: a sample, as it looks in one epoch."""

    index: int
    epoch: int


def sample_generator(seed: int, key: SampleKey) -> np.random.Generator:
    """The generator for everything random about one sample in one epoch."""
    return np.random.default_rng([seed, key.epoch, key.index])


# The most by which rounded timestamps change the distance between frames.
ROUNDING_SHARE = 0.05


def frame_seconds(stream: Stream) -> float:
    """The usual distance between frames: the median, so that a pause in the video does not matter.

    Containers that round timestamps (Matroska: to milliseconds) round the median with them, and over a long clip that
    adds up to whole frames; the mean knows better, and is taken where rounding explains the difference.
    """
    if stream.num_frames < 2:
        return 1.0
    median = float(np.median(np.diff(stream.pts)))
    mean = float(stream.pts[-1] - stream.pts[0]) / (stream.num_frames - 1)
    is_rounding = abs(mean - median) <= min(1, ROUNDING_SHARE * median)
    return (mean if is_rounding else median) * float(stream.time_base)


@dataclass(frozen=True)
class Loop:
    """A video that starts again where it ends: the time that all its streams share, with one frame's distance after it.

    Streams that are read through the same loop stay paired: a moment that one of them lacks is in neither.
    """

    start_seconds: float
    period_seconds: float
    frame_seconds: float
    centre_seconds: float
    """Where clips are centred: the longest then begins at the start."""

    def wrap(self, times_seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Any times to those of the first round, of which the first begins half a frame early.

        So what is meant to be a frame's own time is nowhere near the seam, where rounding would decide.
        """
        begin_seconds = self.start_seconds - self.frame_seconds / 2
        return np.asarray(begin_seconds + np.mod(times_seconds - begin_seconds, self.period_seconds), dtype=np.float64)


def clip_frames(
    stream: Stream, view: ViewSpec, centre_seconds: float, *, loop: Loop | None = None
) -> NDArray[np.int64]:
    """Positions of a clip's frames in a stream, centred on a time.

    The first frame is put on the stream's own grid, then every wanted time takes the nearest frame.
    Where the clip reaches over an end of the video, the end frame repeats, or with a loop the video starts again.
    """
    step_seconds = view.stride * frame_seconds(stream)
    start_seconds = centre_seconds - step_seconds * (view.num_frames - 1) / 2
    if loop is not None:
        start_seconds = float(loop.wrap(np.asarray([start_seconds]))[0])
    first, last = stream.times_seconds[0], stream.times_seconds[-1]
    if first <= start_seconds <= last:
        start_seconds = stream.times_seconds[nearest_frames(stream, np.asarray([start_seconds]))[0]]
    times_seconds = np.float64(start_seconds) + step_seconds * np.arange(view.num_frames, dtype=np.float64)
    return nearest_frames(stream, times_seconds if loop is None else loop.wrap(times_seconds))


def centre_range_seconds(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> tuple[float, float]:
    """Earliest and latest centre at which every view lies inside its stream.

    If the video is too short for that, both are the middle of the time that all streams share.
    """
    earliest, latest = _centres_inside(streams, views)
    if earliest > latest:
        shared_start, shared_end = _shared_seconds(streams)
        earliest = latest = (shared_start + shared_end) / 2
    return earliest, latest


def missing_seconds(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> float:
    """By how much a video is too short for every view to lie inside its stream around one centre; 0 if it is not."""
    earliest, latest = _centres_inside(streams, views)
    forgiven_seconds = FORGIVEN_FRAMES * min(frame_seconds(stream) for stream in streams)
    return earliest - latest if earliest - latest > forgiven_seconds else 0.0


def video_loop(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> Loop | None:
    """How a video starts again for views that are longer than it; None if every view lies inside its stream."""
    if not missing_seconds(streams, views):
        return None
    start_seconds, end_seconds = _shared_seconds(streams)
    step_seconds = max(frame_seconds(stream) for stream in streams)
    return Loop(
        start_seconds=start_seconds,
        period_seconds=max(0.0, end_seconds - start_seconds) + step_seconds,
        frame_seconds=step_seconds,
        centre_seconds=start_seconds + max(_span_seconds(s, v) for s, v in zip(streams, views, strict=True)) / 2,
    )


def check_short_clips(policy: str, videos: Iterable[tuple[str, Sequence[Stream]]], views: Sequence[ViewSpec]) -> None:
    """Refuse videos that are too short, before anything starts.

    Args:
        policy: One of ``SHORT_CLIPS``; all but ``error`` let everything pass.
        videos: Name, and the stream of each view.
        views: What is to be seen of every video at one moment.

    Raises:
        UserError: There is no such policy, or with ``error`` a video is too short.
    """
    if policy not in SHORT_CLIPS:
        raise unknown_name("--short-clips", policy, SHORT_CLIPS)
    if policy != "error":
        return
    named = list(videos)
    short = [(name, streams) for name, streams in named if missing_seconds(streams, views)]
    if short:
        name, streams = short[0]
        raise UserError(
            f"{len(short)} of {len(named)} videos are shorter than a clip, which --short-clips error refuses: the "
            f"first, {name}, {_length_and_need(streams, views)}; leave such videos out, let the view have fewer "
            "frames or a smaller stride, or choose --short-clips repeat or loop"
        )


def _length_and_need(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> str:
    """What a video that is too short has for the view that lacks most, and what that view needs."""
    lacking = [missing_seconds([stream], [view]) for stream, view in zip(streams, views, strict=True)]
    position = int(np.argmax(lacking))
    stream, view = streams[position], views[position]
    frame = frame_seconds(stream)
    num_needed = view.stride * (view.num_frames - 1) + 1
    # Each view alone may fit, but not both around one moment, where streams begin or end at different times.
    num_frames = num_needed - round(missing_seconds(streams, views) / frame)
    return (
        f"has {num_frames} frames ({num_frames * frame:.2f} s) where {view.num_frames} {view.modality} frames with "
        f"stride {view.stride} need {num_needed} ({num_needed * frame:.2f} s)"
    )


def _span_seconds(stream: Stream, view: ViewSpec) -> float:
    """From a clip's first frame to its last."""
    return view.stride * frame_seconds(stream) * (view.num_frames - 1)


def _shared_seconds(streams: Sequence[Stream]) -> tuple[float, float]:
    """The first and the last moment that all streams have; in the wrong order if there is none."""
    first = max(float(stream.times_seconds[0]) for stream in streams)
    return first, min(float(stream.times_seconds[-1]) for stream in streams)


def _centres_inside(streams: Sequence[Stream], views: Sequence[ViewSpec]) -> tuple[float, float]:
    """Earliest and latest centre at which every view lies inside its stream; in the wrong order if there is none."""
    earliest, latest = -np.inf, np.inf
    for stream, view in zip(streams, views, strict=True):
        half_seconds = _span_seconds(stream, view) / 2
        earliest = max(earliest, float(stream.times_seconds[0]) + half_seconds)
        latest = min(latest, float(stream.times_seconds[-1]) - half_seconds)
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
