"""Frames by timestamp equal those of a plain loop over the whole file."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from video_files import decode_everything, mark_rotated, moving_frames, truncate, write_video

from crossdistill.data.containers import open_video
from crossdistill.data.decode import index_video, nearest_frames, read_frames
from crossdistill.data.manifest import Stream
from crossdistill.data.sequential import decode_all
from crossdistill.errors import UnreadableVideoError

NUM_FRAMES = 70
X264 = {"g": "16", "keyint_min": "16", "sc_threshold": "0"}


def irregular_pts(num_frames: int = NUM_FRAMES) -> list[int]:
    """Timestamps in 1/90000 s: the first half at 50 fps, the second at 10 fps, with jitter."""
    jitter = np.random.default_rng(0).integers(-300, 300, num_frames)
    steps = np.where(np.arange(num_frames) < num_frames // 2, 1800, 9000) + jitter
    return (np.cumsum(steps) - steps[0]).tolist()


def constant_h264(path: Path) -> Path:
    return write_video(path / "cfr.mp4", moving_frames(NUM_FRAMES), codec="libx264", options={**X264, "bf": "0"})


def variable_h264(path: Path) -> Path:
    return write_video(
        path / "vfr.mp4",
        moving_frames(NUM_FRAMES),
        codec="libx264",
        pts=irregular_pts(),
        time_base=Fraction(1, 90000),
        options={**X264, "bf": "3", "b_strategy": "0"},
    )


def mpeg4_avi(path: Path) -> Path:
    return write_video(path / "mpeg4.avi", moving_frames(NUM_FRAMES), options={"g": "12", "bf": "2"})


def matroska(path: Path) -> Path:
    return write_video(path / "open.mkv", moving_frames(NUM_FRAMES), codec="libx264", options={"bf": "3"})


def rotated(path: Path) -> Path:
    mark_rotated(constant_h264(path))
    return path / "cfr.mp4"


MAKERS = [constant_h264, variable_h264, mpeg4_avi, matroska, rotated]


def assert_exact(path: Path, *, num_reads: int, seed: int = 0) -> Stream:
    """Check all timestamps, and frames in random order with repetition, against the plain loop."""
    stream = index_video(path)
    positions = np.random.default_rng(seed).integers(0, stream.num_frames, num_reads).tolist()
    expected_pts, expected = decode_everything(path, set(positions))
    assert stream.num_frames == len(expected_pts)
    assert (np.diff(stream.pts) > 0).all()
    if stream.is_seekable:
        assert stream.pts.tolist() == expected_pts
    found = read_frames(path.parent, stream, positions)
    assert found.shape[1:] == (stream.height_px, stream.width_px, 3)
    for position, picture in zip(positions, found, strict=True):
        np.testing.assert_array_equal(picture, expected[position], err_msg=f"{path.name} frame {position}")
    return stream


@pytest.mark.parametrize("maker", MAKERS)
def test_read_frames__equals_plain_loop(tmp_path, maker):
    assert assert_exact(maker(tmp_path), num_reads=40).is_seekable


@pytest.mark.parametrize("maker", MAKERS)
def test_read_frames__every_single_frame(tmp_path, maker):
    path = maker(tmp_path)
    stream = index_video(path)
    _, expected = decode_everything(path)
    for position in range(0, NUM_FRAMES, 3):
        np.testing.assert_array_equal(read_frames(tmp_path, stream, [position])[0], expected[position])


def test_index_video__keyframes_and_times(tmp_path):
    stream = index_video(variable_h264(tmp_path))
    assert stream.keyframes.tolist() == [0, 16, 32, 48, 64]
    scale = Fraction(1, 90000) / stream.time_base
    assert stream.pts.tolist() == [round(pts * scale) for pts in irregular_pts()]
    np.testing.assert_allclose(stream.times_seconds, np.array(irregular_pts()) / 90000, atol=1e-12)


def test_index_video__rotation_is_applied(tmp_path):
    upright = index_video(constant_h264(tmp_path))
    picture = read_frames(tmp_path, upright, [5])[0]
    mark_rotated(tmp_path / "cfr.mp4")
    turned = index_video(tmp_path / "cfr.mp4")
    assert (turned.width_px, turned.height_px) == (upright.height_px, upright.width_px) == (48, 64)
    # The picture is rotated clockwise: the left edge becomes the top edge.
    np.testing.assert_array_equal(read_frames(tmp_path, turned, [5])[0], np.rot90(picture, k=-1))


def test_decode_all__swapped_and_repeated_timestamps_are_repaired(shared_folder):
    raw, _ = decode_everything(shared_folder / "media" / "test.avi", set())
    assert any(a is None or b is None or b <= a for a, b in itertools.pairwise(raw))
    pts = [pts for pts, _, _ in decode_all(shared_folder / "media" / "test.avi", picture_format="gray")]
    assert len(pts) == len(raw)
    assert (np.diff(pts) > 0).all()


def test_decode_all__one_thread_gives_the_same(tmp_path):
    path = variable_h264(tmp_path)
    for (pts_a, base_a, a), (pts_b, base_b, b) in zip(decode_all(path), decode_all(path, num_threads=1), strict=True):
        assert (pts_a, base_a) == (pts_b, base_b)
        np.testing.assert_array_equal(a, b)


def share_of_wrong_frames(stream: Stream, rate: float) -> float:
    """Share of frames for which "time since the start times average rate" is not the frame that is shown."""
    guessed = np.rint((stream.times_seconds - stream.times_seconds[0]) * rate).astype(int)
    return float(np.mean(guessed != np.arange(stream.num_frames)))


def test_position_times_rate__is_wrong_on_variable_frame_rate(tmp_path):
    constant, variable = index_video(constant_h264(tmp_path)), index_video(variable_h264(tmp_path))
    rates = [(s.num_frames - 1) / (s.times_seconds[-1] - s.times_seconds[0]) for s in (constant, variable)]
    assert share_of_wrong_frames(constant, rates[0]) == 0
    assert share_of_wrong_frames(variable, rates[1]) > 0.8
    right = nearest_frames(variable, variable.times_seconds)
    np.testing.assert_array_equal(right, np.arange(variable.num_frames))
    # The wrong position has another picture, so the error is visible.
    guessed = round(20 / variable.num_frames * variable.times_seconds[-1] * rates[1])
    by_time = int(nearest_frames(variable, np.array([20 / rates[1]]))[0])
    assert guessed != by_time
    pictures = read_frames(tmp_path, variable, [guessed, by_time])
    assert np.abs(pictures[0].astype(int) - pictures[1]).mean() > 10


def test_nearest_frames__equals_argmin(tmp_path):
    stream = index_video(variable_h264(tmp_path))
    times = np.random.default_rng(1).uniform(-1, stream.times_seconds[-1] + 1, 500)
    naive = np.abs(times[:, None] - stream.times_seconds[None]).argmin(axis=1)
    np.testing.assert_array_equal(nearest_frames(stream, times), naive)


def test_nearest_frames__one_frame():
    stream = Stream("x", 2, 2, Fraction(1, 25), np.array([7]), np.array([0]))
    assert nearest_frames(stream, np.array([-1.0, 0.28, 9.0])).tolist() == [0, 0, 0]


def test_missing_file__error_names_it(tmp_path):
    with pytest.raises(UnreadableVideoError, match=r"nothing\.mp4: cannot be opened \(No such file"):
        index_video(tmp_path / "nothing.mp4")


def test_no_video_stream__error_names_file(tmp_path):
    (tmp_path / "text.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    with pytest.raises(UnreadableVideoError, match=r"text\.srt: is in no video format that is read"):
        index_video(tmp_path / "text.srt")


def test_text_file__is_refused_although_ffmpeg_opens_it(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("What was filmed on Monday.\n" * 400, encoding="utf-8")
    with av.open(str(path)) as container:
        assert container.streams.video  # if not, this test proves nothing
    with pytest.raises(UnreadableVideoError, match=r"notes\.txt: is in no video format that is read"):
        open_video(path)


def test_truncated_after_indexing__error_counts_missing_frames(tmp_path):
    path = mpeg4_avi(tmp_path)
    stream = index_video(path)
    truncate(path, 0.5)
    with pytest.raises(UnreadableVideoError, match=r"mpeg4\.avi: 1 of 2 frames that the manifest names are not"):
        read_frames(tmp_path, stream, [0, NUM_FRAMES - 1])


def test_truncated_mp4__cannot_be_opened(tmp_path):
    path = truncate(constant_h264(tmp_path), 0.5)  # the index was at the end of the file
    with pytest.raises(UnreadableVideoError, match=r"cfr\.mp4: cannot be opened"):
        index_video(path)


BROKEN_MEDIA = {
    "corrupted.mp4": "bad packets (Invalid data found when processing input): 1",
    "result.webm": "cannot be opened (Invalid data found when processing input)",
}


def test_shared_media__broken_file_error_names_reason(shared_folder):
    for name, reason in BROKEN_MEDIA.items():
        with pytest.raises(UnreadableVideoError) as error:
            index_video(shared_folder / "media" / name)
        assert str(error.value) == f"{shared_folder / 'media' / name}: {reason}"


def test_shared_media__all_others_are_exact(shared_folder):
    paths = [p for p in sorted((shared_folder / "media").iterdir()) if p.name not in BROKEN_MEDIA]
    assert len(paths) >= 20
    streams = {path.name: assert_exact(path, num_reads=8) for path in paths}
    assert {name for name, s in streams.items() if not s.is_seekable} == {"test.avi", "S001C001P001R001A001_rgb.avi"}
    fire = streams["fire2.mp4"]
    rate = (fire.num_frames - 1) / (fire.times_seconds[-1] - fire.times_seconds[0])
    assert share_of_wrong_frames(fire, rate) > 0
