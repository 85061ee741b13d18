"""Order of samples and positions of frames: reproducible, complete over processes, exact in time."""

from fractions import Fraction

import numpy as np
import pytest

from crossdistill.data.manifest import Stream
from crossdistill.data.sampling import (
    TrainingBatches,
    centre_range_seconds,
    check_short_clips,
    clip_frames,
    missing_seconds,
    video_loop,
)
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec


def stream(pts, time_base=Fraction(1, 100)):
    return Stream("x.mp4", 64, 64, time_base, np.asarray(pts, dtype=np.int64), np.asarray([0]))


def view(num_frames, stride=1):
    return ViewSpec("depth", num_frames, stride, 64, mean=(0.0,), std=(1.0,))


def test_frame_seconds__ignores_rounding_and_pauses():
    thirtieths = [round(1000 * i / 30) for i in range(200)]  # rounded to milliseconds, as Matroska stores them
    assert stream(thirtieths, Fraction(1, 1000)).frame_seconds == pytest.approx(1 / 30, rel=1e-4)
    paused = [*range(50), *range(150, 200)]
    assert stream(paused, Fraction(1, 25)).frame_seconds == 1 / 25


@pytest.mark.parametrize("num_frames", [2, 3, 8, 9])
def test_frame_seconds__is_numpys_median_where_the_rate_changes(num_frames):
    pts = np.random.default_rng(0).integers(1, 1000, num_frames).cumsum() ** 2
    median = np.median(np.diff(pts))
    expected = np.diff(pts).mean() if num_frames == 2 else median  # of one step they are the same
    assert stream(pts, Fraction(1, 7)).frame_seconds == pytest.approx(expected / 7, rel=1e-12)


def test_clip_frames__rounded_timestamps_keep_stride():
    """13 frames of stride 6 span 2.4 s, in which a third of a millisecond per frame adds up to most of a frame."""
    thirtieths = stream([round(1000 * i / 30) for i in range(73)], Fraction(1, 1000))
    earliest, latest = centre_range_seconds([thirtieths], [view(13, stride=6)])
    assert clip_frames(thirtieths, view(13, stride=6), (earliest + latest) / 2).tolist() == list(range(0, 73, 6))


def test_training_batches__two_processes_with_half_the_batch_equal_one():
    options = {"num_samples": 23, "num_epochs": 3, "seed": 5}
    one = list(TrainingBatches(batch_size=6, **options))
    two = [list(TrainingBatches(batch_size=3, num_processes=2, process_index=i, **options)) for i in range(2)]
    assert one == [first + second for first, second in zip(*two, strict=True)]


def test_training_batches__each_epoch_is_a_new_permutation():
    batches = list(TrainingBatches(num_samples=12, batch_size=4, num_epochs=2, seed=0))
    epochs = [[key.index for batch in batches[i : i + 3] for key in batch] for i in (0, 3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [key.epoch for batch in batches for key in batch] == [0] * 12 + [1] * 12


@pytest.mark.parametrize("start", [0, 1, 5, 6, 14, 15])
def test_training_batches__resumed_run_continues_the_same_sequence(start):
    options = {"num_samples": 23, "batch_size": 4, "num_epochs": 3, "seed": 1}
    whole = list(TrainingBatches(**options))
    rest = TrainingBatches(start_batch=start, **options)
    assert list(rest) == whole[start:]
    assert len(rest) == len(whole) - start == 15 - start


@pytest.mark.parametrize(("num_processes", "batch_size", "accumulate"), [(2, 3, 4), (3, 2, 4), (1, 24, 1), (2, 4, 3)])
def test_training_batches__steps_of_24_have_the_same_samples_however_they_are_divided(
    num_processes, batch_size, accumulate
):
    """The run began with 4 processes x 3 x 2 batches: 36 of 43 samples an epoch, so that steps span epochs."""
    options = {"num_samples": 43, "num_epochs": 5, "seed": 3}

    def steps(num_processes, batch_size, accumulate, start):
        sizes = {"batch_size": batch_size, "num_processes": num_processes, "start_batch": start * accumulate}
        each = [
            list(TrainingBatches(**options, **sizes, process_index=i, epoch_multiple=12)) for i in range(num_processes)
        ]
        samples = [key for batches in zip(*each, strict=True) for batch in batches for key in batch]
        return [samples[i : i + 24] for i in range(0, len(samples) // 24 * 24, 24)]

    order = [(int(i), epoch) for epoch in range(5) for i in np.random.default_rng([3, epoch]).permutation(43)[:36]]
    whole = steps(4, 3, 2, 0)
    assert [(key.index, key.epoch) for step in whole for key in step] == order[: 7 * 24]
    assert steps(num_processes, batch_size, accumulate, 2) == whole[2:]


def test_training_batches__error_for_too_few_clips_names_batch_size():
    with pytest.raises(UserError, match="--batch-size 5"):
        TrainingBatches(num_samples=10, batch_size=6, num_epochs=1, seed=0, num_processes=2)


@pytest.mark.parametrize(
    ("num_frames", "stride", "expected"),
    [
        (4, 1, [3, 4, 5, 6]),
        (3, 2, [2, 4, 6]),
        (1, 1, [4]),
        (10, 1, list(range(10))),
        (12, 1, [0, 0, *range(1, 10), 9]),
    ],
)
def test_clip_frames__centred_clip_of_a_constant_frame_rate(num_frames, stride, expected):
    video = stream([4 * i for i in range(10)])
    frames = clip_frames(video, view(num_frames, stride), centre_seconds=0.18).tolist()
    assert len(frames) == num_frames and frames[0] >= 0 and frames[-1] <= 9
    if num_frames <= 10:
        assert frames in (expected, [i + 1 for i in expected])
        assert np.diff(frames).tolist() == [stride] * (num_frames - 1)
    else:
        assert frames[0] == 0 and frames[-1] == 9 and set(frames) == set(range(10))


def test_clip_frames__flow_and_colour_of_one_moment_are_paired_by_time():
    colour, flow = stream([4 * i for i in range(20)]), stream([4 * i for i in range(19)])
    for centre in np.linspace(0.3, 0.4, 23):
        times = [s.times_seconds[clip_frames(s, view(8), centre)] for s in (colour, flow)]
        np.testing.assert_allclose(times[0], times[1])


def test_clip_frames__variable_frame_rate_follows_time_not_position():
    video = stream([0, 4, 8, 12, 16, 40, 44, 48, 52])  # a pause between 0.16 and 0.40 s
    frames = clip_frames(video, view(5), centre_seconds=0.28)
    assert video.pts[frames].tolist() == [16, 16, 40, 40, 40] or video.pts[frames].tolist() == [16, 16, 16, 40, 40]


def test_centre_range__keeps_both_views_inside_their_streams():
    colour, flow = stream([4 * i for i in range(20)]), stream([4 * i for i in range(19)])
    earliest, latest = centre_range_seconds([colour, flow], [view(8), view(16)])
    assert earliest == pytest.approx(0.30) and latest == pytest.approx(0.72 - 0.30)
    for centre in (earliest, latest):
        for s, v in ((colour, view(8)), (flow, view(16))):
            assert np.diff(clip_frames(s, v, centre)).tolist() == [1] * (v.num_frames - 1)


def test_centre_range__short_video_gives_its_middle():
    video = stream([4 * i for i in range(5)])
    earliest, latest = centre_range_seconds([video], [view(16)])
    assert earliest == latest == pytest.approx(0.08)


def looped(streams, views):
    loop = video_loop(streams, views)
    return [clip_frames(s, v, loop.centre_seconds, loop=loop).tolist() for s, v in zip(streams, views, strict=True)]


@pytest.mark.parametrize(
    ("num_frames", "stride", "expected"),
    [
        (7, 1, [0, 1, 2, 3, 4, 0, 1]),
        (12, 1, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]),
        (4, 2, [0, 2, 4, 1]),
        (3, 7, [0, 2, 4]),
    ],
)
@pytest.mark.parametrize("start", [0, 123_457])
def test_loop__restarts_at_the_end_of_the_video(num_frames, stride, expected, start):
    video = stream([start + 1001 * i for i in range(5)], Fraction(1, 30_000))
    assert looped([video], [view(num_frames, stride)]) == [expected]


def test_loop__flow_and_colour_stay_paired_by_time():
    """Flow lacks the last moment, so the loop of RGB leaves it out too; both clips have the same centre."""
    colour, flow = stream([4 * i for i in range(6)]), stream([4 * i for i in range(5)])
    clips = looped([flow, colour], [view(8), view(8)])
    assert clips == [[0, 1, 2, 3, 4, 0, 1, 2]] * 2
    clips = looped([flow, colour], [view(9), view(3)])
    assert clips == [[0, 1, 2, 3, 4, 0, 1, 2, 3], [3, 4, 0]]
    late = stream([4 * i for i in range(2, 9)])
    clips = looped([colour, late], [view(7), view(7)])
    assert clips == [[2, 3, 4, 5, 2, 3, 4], [0, 1, 2, 3, 0, 1, 2]]


def test_loop__streams_with_other_rates_show_the_same_moments():
    fast, slow = stream([2 * i for i in range(12)]), stream([4 * i for i in range(6)])
    fast_frames, slow_frames = looped([fast, slow], [view(18), view(9)])
    assert slow_frames == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    seconds = fast.times_seconds[fast_frames[::2]] - slow.times_seconds[slow_frames]
    assert np.abs(seconds).max() <= 0.02 + 1e-9


def test_video_loop__is_none_for_long_videos():
    for num_frames in (5, 6, 30):
        video = stream([4 * i for i in range(num_frames)])
        assert video_loop([video], [view(num_frames)]) is None
        assert video_loop([video], [view(num_frames + 1)]) is not None
    rounded = stream([0, 42, 83, 125, 167, 209, 250, 292, 334], Fraction(1, 1000))  # 23.976 Hz
    assert video_loop([rounded], [view(9)]) is None
    assert missing_seconds([rounded], [view(10)]) == pytest.approx(0.334 / 8)


def test_short_clips__error_counts_videos_and_names_the_first():
    flow, colour = stream([4 * i for i in range(11)]), stream([4 * i for i in range(12)])
    long = stream([4 * i for i in range(60)])
    videos = [("long", [long, long]), ("a/short", [flow, colour]), ("b", [flow, colour])]
    views = [view(16, 2), view(4)]
    with pytest.raises(UserError) as raised:
        check_short_clips("error", videos, views)
    said = str(raised.value)
    assert said.startswith("2 of 3 videos are shorter than a clip")
    assert "the first, a/short, has 11 frames (0.44 s) where 16 depth frames with stride 2 need 31 (1.24 s);" in said
    check_short_clips("error", videos[:1], views)
    check_short_clips("error", videos, [view(6, 2), view(4)])
    for policy in ("repeat", "loop"):
        check_short_clips(policy, videos, views)
    with pytest.raises(UserError, match=r"repaet.*repeat"):
        check_short_clips("repaet", [], views)
