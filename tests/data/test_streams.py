"""Streams on disk: errors of the codecs, exact timestamps, atomic writes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from video_files import moving_frames

from crossdistill.data.decode import index_video, read_frames
from crossdistill.data.streams import STREAM_FORMATS, StreamWriter, get_stream_format, quantise_flow
from crossdistill.errors import UserError
from crossdistill.modalities import FLOW, FLOW_BOUND_PX

TIME_BASE = Fraction(1, 90000)
PTS = [9000, 12003, 15001, 30000, 30001, 99999]


def random_frames(name: str, num_frames: int = len(PTS), height: int = 36, width: int = 52):
    rng = np.random.default_rng(0)
    if name == "rgb":
        return moving_frames(num_frames, height=height, width=width)
    if name == "flow":
        return rng.integers(0, 256, (num_frames, height, width, 2), dtype=np.uint8)
    return rng.integers(0, 65536, (num_frames, height, width, 1), dtype=np.uint16)


def write_stream(path: Path, name: str, frames, pts=PTS, time_base=TIME_BASE) -> Path:
    with StreamWriter(path, STREAM_FORMATS[name], time_base=time_base) as writer:
        for frame, at in zip(frames, pts, strict=True):
            writer.write(frame, at)
    return path


@pytest.mark.parametrize("name", ["flow", "depth"])
@pytest.mark.parametrize("size", [(36, 52), (35, 51)])
def test_round_trip__depth_is_lossless_and_flow_error_is_bounded(tmp_path, name, size):
    frames = random_frames(name, height=size[0], width=size[1])
    path = write_stream(tmp_path / "a.mp4", name, frames)
    stream = index_video(path, stream_format=STREAM_FORMATS[name])
    assert (stream.height_px, stream.width_px) == size
    order = [3, 0, 5, 5, 1, 2, 4]
    found = read_frames(tmp_path, stream, order, stream_name=name)
    assert found.dtype == frames.dtype
    # White noise over all bytes is the hardest input for the codec of flow.
    allowed = {"flow": 6, "depth": 0}[name]
    assert np.abs(found.astype(int) - frames[order]).max() <= allowed


def test_flow__mean_error_is_below_0_045_px(tmp_path):
    """Error of quantiser and codec together, for smooth motion with edges on a static background."""
    y, x = np.mgrid[0:120, 0:160].astype(np.float32)
    frames = []
    for t in range(12):
        flow = np.stack([0.03 * (x - 80) + np.sin(y / 9 + t), 0.05 * (y - 60)], axis=2)
        flow[(x - 60 - t) ** 2 + (y - 50) ** 2 < 900] = (7.3, -4.1)
        flow[:, 120:] = 0
        frames.append(flow.astype(np.float32))
    path = write_stream(tmp_path / "a.mp4", "flow", [quantise_flow(f) for f in frames], pts=range(12))
    stream = index_video(path, stream_format=STREAM_FORMATS["flow"])
    found = read_frames(tmp_path, stream, range(12), stream_name="flow")
    restored = found * FLOW.value_scale + FLOW.value_offset
    assert np.abs(restored - np.stack(frames)).mean() <= 0.045
    assert np.abs(restored - np.stack(frames)).max() < 1.0


def test_rgb__is_close_and_has_a_keyframe_every_16_frames(tmp_path):
    # Gray, because chroma has half the resolution, which changes a fine coloured texture more than the codec does.
    frames = random_frames("rgb", 40)[..., :1].repeat(3, axis=-1)
    path = write_stream(tmp_path / "a.mp4", "rgb", frames, pts=range(40), time_base=Fraction(1, 25))
    stream = index_video(path, stream_format=STREAM_FORMATS["rgb"])
    assert stream.keyframes.tolist() == [0, 16, 32]
    found = read_frames(tmp_path, stream, range(40))
    error = np.abs(found.astype(int) - frames).mean()
    next_frame_error = np.abs(found[:-1].astype(int) - frames[1:]).mean()
    assert error < 4
    assert next_frame_error > 4 * error


@pytest.mark.parametrize("name", sorted(STREAM_FORMATS))
@pytest.mark.parametrize("time_base", [Fraction(1, 90000), Fraction(1, 25), Fraction(1001, 30000), Fraction(1, 16)])
@pytest.mark.parametrize("first_pts", [0, 1, 7, 1_000_003])
def test_timestamps__are_exact_in_seconds(tmp_path, name, time_base, first_pts):
    pts = [first_pts + step for step in (0, 1, 2, 5, 6, 40)]
    path = write_stream(tmp_path / "a.mp4", name, random_frames(name), pts=pts, time_base=time_base)
    stream = index_video(path, stream_format=STREAM_FORMATS[name])
    times = [int(p) * stream.time_base for p in stream.pts]
    assert times == [p * time_base for p in pts]
    # The timestamps of packets and of decoded frames agree.
    assert index_video(path).pts.tolist() == stream.pts.tolist()


def test_negative_timestamp__is_refused(tmp_path):
    with pytest.raises(ValueError, match="the timestamp -3 is negative"):
        write_stream(tmp_path / "a.mp4", "flow", random_frames("flow"), pts=[-3, 0, 1, 2, 3, 4])


@pytest.mark.parametrize("name", sorted(STREAM_FORMATS))
def test_equal_frames__give_equal_bytes(tmp_path, name):
    """Repeated for small files: with x264's mbtree, one of twenty files of 42x32 pixels had other bytes."""
    frames = random_frames(name, 17, height=32, width=42)
    first = write_stream(tmp_path / "a.mp4", name, frames, pts=range(17)).read_bytes()
    for _ in range(60):
        assert write_stream(tmp_path / "deeper" / "b.mp4", name, frames, pts=range(17)).read_bytes() == first


def test_quantise_flow__error_is_bounded():
    flow = np.linspace(-FLOW_BOUND_PX, FLOW_BOUND_PX, 100_001, dtype=np.float32)
    restored = quantise_flow(flow) * FLOW.value_scale + FLOW.value_offset
    # Levels are 20/127 px apart: the error is at most half of that, and a quarter on average.
    assert np.abs(restored - flow).max() <= 10 / 127 + 1e-5
    assert np.abs(restored - flow).mean() == pytest.approx(5 / 127, rel=0.01)


def test_quantise_flow__keeps_zero_and_clips_at_bound():
    coded = quantise_flow(np.array([0.0, 20.0, -20.0, 1e6, -1e6], dtype=np.float32))
    assert coded.tolist() == [128, 255, 1, 255, 1]
    restored = coded[:3] * FLOW.value_scale + FLOW.value_offset
    assert restored.tolist() == [0.0, pytest.approx(20), pytest.approx(-20)]


def test_mirrored_flow__is_exactly_negated():
    coded = np.arange(1, 256)
    restored = coded * FLOW.value_scale + FLOW.value_offset
    mirrored = (2 * FLOW.stored_zero - coded) * FLOW.value_scale + FLOW.value_offset
    np.testing.assert_allclose(mirrored, -restored, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_written", [0, 1, 3])
def test_exception_in_the_block__leaves_no_file(tmp_path, num_written):
    frames = random_frames("rgb")
    writing = StreamWriter(tmp_path / "a.mp4", STREAM_FORMATS["rgb"], time_base=TIME_BASE)
    with pytest.raises(RuntimeError, match="stop"), writing as writer:
        for i in range(num_written):
            writer.write(frames[i], PTS[i])
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_exception_in_the_block__keeps_older_file(tmp_path):
    path = write_stream(tmp_path / "a.mp4", "flow", random_frames("flow"))
    before = path.read_bytes()
    writing = StreamWriter(path, STREAM_FORMATS["flow"], time_base=TIME_BASE)
    with pytest.raises(RuntimeError, match="stop"), writing as writer:
        writer.write(random_frames("flow")[0], 0)
        raise RuntimeError("stop")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_odd_size__is_an_error_for_h264(tmp_path):
    with pytest.raises(UserError, match="even sides, not 51x36"):
        write_stream(tmp_path / "a.mp4", "rgb", random_frames("rgb", width=51))
    assert list(tmp_path.iterdir()) == []


def test_unknown_stream__error_lists_known_ones():
    with pytest.raises(UserError, match="choose one of depth, flow, rgb, skeleton; did you mean 'flow'"):
        get_stream_format("flows")
