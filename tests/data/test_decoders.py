"""All decoders return the same frames at the same times."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from killing import PATIENCE_SECONDS
from test_decode import BROKEN_MEDIA, constant_h264, matroska, mpeg4_avi, rotated, variable_h264
from video_files import moving_frames, write_video

import crossdistill
from crossdistill.data import decode
from crossdistill.data.dataset import PairedClips, entries_of, make_loader
from crossdistill.data.decode import index_any_video, index_video, nearest_frames, read_clip, read_frames
from crossdistill.data.decoders import DECODERS, CannotServeError, get_decoder, pyav, torchcodec, torchcodec_cuda
from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Manifest, Stream
from crossdistill.data.sampling import SampleKey
from crossdistill.data.streams import StreamWriter, get_stream_format
from crossdistill.encoders import create_encoder
from crossdistill.errors import UnreadableVideoError, UserError

TESTS = Path(__file__).resolve().parents[1]
# Mean difference in levels of 255. 8-bit pictures with even sides are equal up to rounding. For 10 bits and odd sides
# the libraries interpolate chroma differently, which is visible at the sharp edges of test pictures.
MAX_LEVELS = 5.0

ANOTHER_COUNT = "its number of frames is not the number that can be decoded"
FAILS = "it fails on the file"
OUT_OF_ORDER = "the timestamps in the file are out of order"
LEADING = "some of its keyframes are followed by frames that are shown before them"
OTHER_TIMES = "its timestamps are not those of the file"
# Files of the media folder that a decoder cannot read exactly, with the reason. PyAV reads them instead.
CANNOT = {
    "pyav": {},
    "decord": {
        "S001C001P001R001A001_rgb.avi": OUT_OF_ORDER,
        "av1_video.mkv": FAILS,  # the FFmpeg inside its wheel is older than AV1
        "discard_first_keyframe.mp4": ANOTHER_COUNT,  # it shows frames that the edit list removes
        "h265_video.mp4": LEADING,  # after a seek it is a frame off
        "no_duration.webm": FAILS,  # refuses files without a duration
        "sine_stereo_mp2.mpg": OTHER_TIMES,  # reads missing timestamps as numbers
        "test.avi": OUT_OF_ORDER,
    },
    "torchcodec": {
        "S001C001P001R001A001_rgb.avi": OUT_OF_ORDER,
        "no_duration.webm": FAILS,  # with the manifest's timestamps it needs a duration in the header
        "sine_stereo_mp2.mpg": OTHER_TIMES,  # invents timestamps if the file has none
        "test.avi": OUT_OF_ORDER,
    },
}
CANNOT["torchcodec-cuda"] = CANNOT["torchcodec"]  # it opens files by the same code
# The same for files that these tests write.
CANNOT_MADE = {
    "pyav": {},
    "decord": {
        "mpeg4.avi": LEADING,
        "open_gop.mp4": LEADING,
        "rotated.mp4": FAILS,  # "The size must exactly match": its rows are padded after rotation
    },
    "torchcodec": {},
    "torchcodec-cuda": {},
}


@pytest.fixture(params=list(DECODERS))
def decoder(request) -> str:
    """Name of each decoder that works on this machine."""
    try:
        return get_decoder(request.param).name
    except UserError as error:
        pytest.skip(str(error))


def gop_250(path: Path) -> Path:
    frames = moving_frames(70, step_xy=(2, 1))
    return write_video(path / "gop250.mp4", frames, codec="libx264", options={"g": "250", "bf": "3"})


def gop_16(path: Path) -> Path:
    options = {"g": "16", "bf": "0", "tune": "fastdecode"}
    return write_video(path / "gop16.mp4", moving_frames(70), codec="libx264", options=options)


def odd_size(path: Path) -> Path:
    frames = moving_frames(40, height=51, width=77)
    return write_video(path / "odd.webm", frames, codec="libvpx-vp9", options={"deadline": "realtime"})


def late_start(path: Path) -> Path:
    pts = [700 + n for n in range(50)]
    return write_video(path / "late.mp4", moving_frames(50), codec="libx264", pts=pts, options={"g": "12", "bf": "2"})


def open_gop(path: Path) -> Path:
    options = {"g": "12", "bf": "3", "b_strategy": "0", "x264-params": "open-gop=1"}
    return write_video(path / "open_gop.mp4", moving_frames(50), codec="libx264", options=options)


def turned(path: Path) -> Path:
    return rotated(path / "turned").rename(path / "rotated.mp4")


MAKERS = [
    constant_h264,
    variable_h264,
    mpeg4_avi,
    matroska,
    gop_250,
    gop_16,
    odd_size,
    late_start,
    open_gop,
    turned,
]


def agreements(decoder: str, paths: list[Path]) -> dict[str, dict]:
    """Run ``decoder_agreement.py`` on each file in a child process with a time limit, and return its output."""
    command = [sys.executable, str(TESTS / "decoder_agreement.py"), decoder, *map(str, paths)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, cwd=TESTS.parent, env=child_environment()
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(paths), f"after {len(lines)} files: {done.stderr[-2000:]}"
    return {Path(line.pop("file")).name: line for line in lines}


def child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "data")))}


def assert_right_frames(answers: dict[str, dict]) -> None:
    for name, answer in answers.items():
        assert answer["wrong"] == [], f"{name}: (asked for, given) {answer['wrong']}"
        assert answer["worst"] <= MAX_LEVELS, f"{name}: {answer['worst']:.2f} levels off"


def test_made_files__every_decoder_gives_the_right_frames(tmp_path, decoder):
    answers = agreements(decoder, [make(tmp_path) for make in MAKERS])
    assert {name: answer["reason"] for name, answer in answers.items() if answer["reason"]} == CANNOT_MADE[decoder]
    assert_right_frames({name: answer for name, answer in answers.items() if not answer["reason"]})


def test_shared_media__every_decoder_gives_the_right_frames(shared_folder, decoder):
    if decoder == "pyav":
        pytest.skip("test_decode.py compares it pixel by pixel")
    paths = [path for path in sorted((shared_folder / "media").iterdir()) if path.name not in BROKEN_MEDIA]
    assert len(paths) >= 20
    answers = agreements(decoder, paths)
    assert {name: answer["reason"] for name, answer in answers.items() if answer["reason"]} == CANNOT[decoder]
    assert_right_frames({name: answer for name, answer in answers.items() if not answer["reason"]})


def test_shared_media__pyav_reads_what_decoder_cannot(shared_folder, decoder):
    for name in sorted(CANNOT[decoder]):
        stream = index_video(shared_folder / "media" / name)
        frames = [5, 3, 3]
        expected = read_frames(shared_folder / "media", stream, frames)
        found = read_frames(shared_folder / "media", stream, frames, decoder=decoder)
        np.testing.assert_array_equal(found, expected)


def test_position_times_rate__is_detected(tmp_path):
    """The comparison detects a reader that computes positions from the average rate."""
    path = variable_h264(tmp_path)
    stream = index_video(path)
    even = dataclasses.replace(stream, pts=np.linspace(stream.pts[0], stream.pts[-1], 70).astype(np.int64))
    for name in ("decord", "torchcodec"):
        try:
            read = get_decoder(name).read_pictures
        except UserError:
            continue
        with pytest.raises(CannotServeError, match=OTHER_TIMES):
            read(FileRange(path), even, [10, 20, 60], get_stream_format("rgb"))
    with pytest.raises(UnreadableVideoError, match="3 of 3 frames that the manifest names are not in the file"):
        read_frames(tmp_path, even, [10, 20, 60])


def test_other_frame_count__is_refused_before_decoding(tmp_path, decoder):
    path = gop_16(tmp_path)
    whole = index_video(path)
    fewer = dataclasses.replace(whole, pts=whole.pts[:-2])
    if decoder == "decord":  # torchcodec finds frames by the manifest's timestamps, as PyAV does
        with pytest.raises(CannotServeError, match=ANOTHER_COUNT):
            get_decoder(decoder).read_pictures(FileRange(path), fewer, [5], get_stream_format("rgb"))
    found = read_frames(tmp_path, fewer, [5, 60], decoder=decoder)
    np.testing.assert_array_equal(found, read_frames(tmp_path, whole, [5, 60]))


TRUNCATED = """
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from test_decode import mpeg4_avi
from video_files import truncate
from crossdistill.data.decode import index_video, read_frames
from crossdistill.errors import UnreadableVideoError
path = mpeg4_avi(Path(sys.argv[1]))
stream = index_video(path)
truncate(path, 0.5)
for decoder in sys.argv[2:]:
    try:
        read_frames(path.parent, stream, [0, 69], decoder=decoder)
    except UnreadableVideoError as error:
        print(decoder, error, flush=True)
"""


def run_child(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        cwd=TESTS,
        env=child_environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def usable_decoders() -> list[str]:
    usable = []
    for name in DECODERS:
        with contextlib.suppress(UserError):
            usable.append(get_decoder(name).name)
    return usable


def test_truncated_after_indexing__raises_unreadable_and_returns(tmp_path):
    lines = run_child(TRUNCATED, str(tmp_path), *usable_decoders()).splitlines()
    reason = f"{tmp_path / 'mpeg4.avi'}: 1 of 2 frames that the manifest names are not in the file"
    assert lines == [f"{name} {reason}" for name in usable_decoders()]


def test_missing_file__raises_unreadable(tmp_path, decoder):
    stream = index_video(gop_16(tmp_path)).at("nothing.mp4")
    with pytest.raises(UnreadableVideoError, match=r"nothing\.mp4: cannot be opened"):
        read_frames(tmp_path, stream, [0], decoder=decoder)


def test_changing_picture_size__raises_unreadable(tmp_path):
    small, large = (
        write_video(tmp_path / f"{side}.mpg", moving_frames(30, height=side, width=side), codec="mpeg2video")
        for side in (48, 64)
    )
    (tmp_path / "both.mpg").write_bytes(small.read_bytes() + large.read_bytes())
    stream, _ = index_any_video(tmp_path / "both.mpg")
    # Manifests of early versions do not say that a file changes the size of its pictures.
    stream = dataclasses.replace(stream, is_plain=True)
    with pytest.raises(UnreadableVideoError, match="the size of its pictures changes"):
        read_frames(tmp_path, stream, [0, stream.num_frames - 1])


LEVELS_PER_SECOND = 75


def write_stream(root: Path, name: str, pts: list[int], time_base: Fraction, start: int) -> Stream:
    """Write a stream in which the brightness of a frame is its time."""
    stream_format = get_stream_format(name)
    channels = {"rgb24": 3, "gray": 2, "gray16le": 1}[stream_format.picture_format]
    dtype = np.uint16 if "16" in stream_format.picture_format else np.uint8
    with StreamWriter(root / f"{name}.mp4", stream_format, time_base=time_base) as writer:
        for one in pts:
            level = round(float((start + one) * time_base) * LEVELS_PER_SECOND)
            writer.write(np.full((32, 48, channels), level, dtype=dtype), start + one)
    return index_video(root / f"{name}.mp4", stream_format=stream_format)


def streams_of_three_clocks(root: Path) -> dict[str, Stream]:
    return {
        "rgb": write_stream(root, "rgb", list(range(50)), Fraction(1, 25), 0),
        "flow": write_stream(root, "flow", [n * 2 + n % 2 for n in range(40)], Fraction(1, 25), 0),
        "depth": write_stream(root, "depth", list(range(45)), Fraction(1, 30), 6),
    }


def test_read_clip__pairs_streams_by_time(tmp_path, decoder):
    streams = streams_of_three_clocks(tmp_path)
    times = np.array([0.41, 1.33, 0.41, 0.9, 1.21])
    clip = crossdistill.read_clip(tmp_path, streams, times, decoder=decoder)
    assert list(clip) == ["rgb", "flow", "depth"]
    assert {name: (pictures.shape, pictures.dtype) for name, pictures in clip.items()} == {
        "rgb": ((5, 32, 48, 3), np.uint8),
        "flow": ((5, 32, 48, 2), np.uint8),
        "depth": ((5, 32, 48, 1), np.uint16),
    }
    for name, pictures in clip.items():
        shown = streams[name].times_seconds[nearest_frames(streams[name], times)]
        assert np.abs(shown - times).max() <= {"rgb": 0.021, "flow": 0.06, "depth": 0.018}[name]
        found = pictures.reshape(5, -1).mean(axis=1) / LEVELS_PER_SECOND
        # H.264 may differ by one or two levels; the others are lossless.
        np.testing.assert_allclose(found, shown, atol=0.03 if name == "rgb" else 0.5 / LEVELS_PER_SECOND + 1e-9)


def test_read_clip__times_outside_give_end_frames(tmp_path, decoder):
    streams = streams_of_three_clocks(tmp_path)
    clip = read_clip(tmp_path, streams, [-3.0, 99.0], decoder=decoder)
    for name, stream in streams.items():
        expected = read_frames(tmp_path, stream, [0, stream.num_frames - 1], stream_name=name)
        np.testing.assert_array_equal(clip[name], expected)


def test_read_clip__prepared_streams_are_equal_with_every_decoder(toy_folder, decoder):
    manifest = Manifest.load(toy_folder)
    for video in manifest.videos[:4]:
        times = np.random.default_rng(0).uniform(0, video.streams["rgb"].times_seconds[-1], 6)
        expected = read_clip(manifest.root, video.streams, times)
        found = read_clip(manifest.root, video.streams, times, decoder=decoder)
        for name in ("rgb", "flow", "depth"):
            assert found[name].dtype == expected[name].dtype
            np.testing.assert_allclose(found[name].astype(int), expected[name], atol=2 if name == "rgb" else 0)


def test_16_bit_streams__are_read_by_pyav_and_logged_once(tmp_path, caplog):
    assert {name: set(entry.cannot) for name, entry in DECODERS.items()} == {
        "pyav": set(),
        "decord": {"gray16le"},
        "torchcodec": {"gray16le"},
        "torchcodec-cuda": {"gray16le"},
    }
    decode._log_once.cache_clear()
    stream = write_stream(tmp_path, "depth", list(range(10)), Fraction(1, 30), 0)
    try:
        get_decoder("decord")
    except UserError as error:
        pytest.skip(str(error))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            read_frames(tmp_path, stream, [4], stream_name="depth", decoder="decord")
    assert [record.message for record in caplog.records] == [
        "PyAV reads some .mp4 files in place of decord: it returns 8 bits a channel, and the stream has 16"
    ]


def test_unknown_decoder__error_lists_known_ones():
    with pytest.raises(
        UserError,
        match=r"unknown decoder 'decor': choose one of decord, pyav, torchcodec, torchcodec-cuda; did you mean",
    ):
        get_decoder("decor")


@pytest.fixture
def fresh_decoders():
    get_decoder.cache_clear()
    yield
    get_decoder.cache_clear()


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_missing_library__error_says_what_to_install(monkeypatch, fresh_decoders, toy_folder, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.decoders", None)
    manifest = Manifest.load(toy_folder)
    view = create_encoder("rgb_r3d10", num_frames=4, stride=1, size_px=32).view
    with pytest.raises(UserError, match=rf"the decoder {name} does not work here .*pip install .*, or choose") as error:
        PairedClips(entries_of(manifest, [0]), student_view=view, decoder=name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [RuntimeError("Could not load libtorchcodec.\nLikely causes:\n1. FFmpeg"), OSError()])
def test_torchcodec_without_ffmpeg__error_says_what_to_install(monkeypatch, fresh_decoders, error):
    decoders = pytest.importorskip("crossdistill.data.decoders.torchcodec")

    def fail() -> None:
        raise error

    monkeypatch.setattr(decoders, "check", fail)
    with pytest.raises(
        UserError, match=r"does not work here \((Could not load libtorchcodec|OSError)\).*apt-get install"
    ):
        get_decoder("torchcodec")


def test_torchcodec__without_timestamps_is_an_error_at_once(monkeypatch, fresh_decoders):
    class OldDecoder:
        def __init__(self, source, *, dimension_order, num_ffmpeg_threads=1, device="cpu"):
            raise AssertionError("not used")

    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", SimpleNamespace(VideoDecoder=OldDecoder))
    with pytest.raises(UserError, match=r"does not work here \(torchcodec is older than 0\.7.*pip install"):
        get_decoder("torchcodec")


def test_torchcodec__failed_self_test_is_an_error(monkeypatch, fresh_decoders):
    try:
        get_decoder("torchcodec")
    except UserError as error:
        pytest.skip(str(error))
    import crossdistill.data.decoders.torchcodec as module

    get_decoder.cache_clear()
    monkeypatch.setattr(module, "_one_frame_file", lambda: b"no video")
    with pytest.raises(UserError, match="the decoder torchcodec does not work here"):
        get_decoder("torchcodec")


def test_torchcodec_cuda__without_a_gpu_is_an_error_that_says_so(fresh_decoders):
    pytest.importorskip("crossdistill.data.decoders.torchcodec")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(
        UserError, match=r"torchcodec-cuda does not work here \(torch sees no NVIDIA GPU\): .*--decoder pyav"
    ):
        get_decoder("torchcodec-cuda")


@pytest.mark.parametrize(("rank", "device"), [(None, "cuda:0"), ("3", "cuda:3"), ("9", "cuda:1")])
def test_torchcodec_cuda__each_process_decodes_on_its_own_gpu(monkeypatch, rank, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8 if rank != "9" else 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert torchcodec_cuda.device_of_process() == device


def test_frame_mappings__are_the_timestamps_of_the_manifest():
    pts, keyframes = np.array([0, 2, 4, 9]), np.array([0, 3])
    stream = Stream("a.mp4", 64, 48, Fraction(1, 10), pts=pts, keyframes=keyframes)
    frames = json.loads(torchcodec.frame_mappings(stream))["frames"]
    assert [(frame["pts"], frame["duration"], frame["key_frame"]) for frame in frames] == [
        (0, 2, 1),
        (2, 2, 0),
        (4, 5, 0),
        (9, 5, 1),
    ]
    (alone,) = json.loads(torchcodec.frame_mappings(dataclasses.replace(stream, pts=pts[:1], keyframes=keyframes[:1])))[
        "frames"
    ]
    assert alone == {"pts": 0, "duration": 1, "key_frame": 1}


def test_torchcodec_cuda__decodes_on_its_device_and_returns_pictures_of_the_cpu(tmp_path, monkeypatch):
    try:
        get_decoder("torchcodec")
    except UserError as error:
        pytest.skip(str(error))
    import torchcodec.decoders

    asked = []

    class Recorded(torchcodec.decoders.VideoDecoder):
        def __init__(self, *args, device, **options):
            asked.append(device)
            super().__init__(*args, device="cpu", **options)

    monkeypatch.setattr(torchcodec.decoders, "VideoDecoder", Recorded)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    path = gop_16(tmp_path)
    stream = index_video(path)
    torchcodec_cuda.check()
    found = torchcodec_cuda.read_pictures(FileRange(path), stream, [40, 3], get_stream_format("rgb"))
    np.testing.assert_array_equal(found, read_frames(tmp_path, stream, [40, 3], decoder="torchcodec"))
    assert asked == ["cuda:0", "cuda:0", "cpu"]


def test_decoder_on_a_gpu__loader_workers_are_spawned_and_read_the_same(toy_folder, monkeypatch):
    # CUDA cannot be used in a forked process. PyAV stands in for the decoder, so that this runs without a GPU.
    monkeypatch.setitem(DECODERS, "pyav", dataclasses.replace(DECODERS["pyav"], uses_gpu=True))
    view = create_encoder("rgb_r3d10", num_frames=4, stride=1, size_px=32).view
    clips = PairedClips(entries_of(Manifest.load(toy_folder), [0, 1]), student_view=view)
    batches = [[SampleKey(0, 0)], [SampleKey(1, 0)]]
    loader = make_loader(clips, batches, num_workers=1)
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    for found, expected in zip(loader, make_loader(clips, batches, num_workers=0), strict=True):
        torch.testing.assert_close(found.student, expected.student, rtol=0, atol=0)


def test_dataset__two_views_of_one_stream_equal_each_alone(toy_folder, decoder):
    manifest = Manifest.load(toy_folder)
    entries = entries_of(manifest, range(3))
    wide, narrow = (create_encoder("rgb_r3d10", num_frames=n, stride=1, size_px=s).view for n, s in ((6, 32), (3, 16)))
    both = PairedClips(entries, student_view=wide, teacher_views=[narrow], decoder=decoder)
    for index in range(3):
        views = both[SampleKey(index, 0)].views
        assert [tuple(view.values.shape) for view in views] == [(3, 6, 32, 32), (3, 3, 16, 16)]
    alone = PairedClips(entries, student_view=wide, decoder=decoder)[SampleKey(0, 0)].views[0].values
    twice = PairedClips(entries, student_view=wide, teacher_views=[wide], decoder=decoder)[SampleKey(0, 0)].views
    for view in twice:
        np.testing.assert_array_equal(view.values, alone)


LOADER = """
import sys
from crossdistill.data.dataset import PairedClips, entries_of, make_loader, make_loader
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.encoders import create_encoder
manifest = Manifest.load(sys.argv[1])
views = [create_encoder(name, num_frames=4, stride=1, size_px=32).view for name in ("rgb_r3d10", "depth_r3d10")]
for decoder in sys.argv[2:]:
    entries = entries_of(manifest, range(4))
    clips = PairedClips(entries, student_view=views[0], teacher_views=[views[1]], decoder=decoder)
    here = [clips[SampleKey(i, 0)].views for i in range(4)]
    for number, batch in enumerate(make_loader(clips, [[SampleKey(i, 0)] for i in range(4)], num_workers=2)):
        assert not batch.unreadable
        for view, clip in zip((batch.student, *batch.teachers), here[number]):
            assert (view.values[0] == clip.values).all()
    print(decoder)
"""


def test_loader__workers_and_main_process_give_equal_batches(toy_folder):
    assert run_child(LOADER, str(toy_folder), *usable_decoders()).splitlines() == usable_decoders()


def count_decoded(monkeypatch, root: Path, stream: Stream, frames: list[int]) -> int:
    offered = []
    original = pyav._Clip.offer
    monkeypatch.setattr(pyav._Clip, "offer", lambda clip, frame, pts: (offered.append(pts), original(clip, frame, pts)))
    read_frames(root, stream, frames)
    monkeypatch.setattr(pyav._Clip, "offer", original)
    return len(offered)


def test_pyav__skips_unreferenced_frames(tmp_path, monkeypatch):
    path = write_video(
        tmp_path / "b.mp4", moving_frames(70), codec="libx264", options={"g": "250", "bf": "1", "b_strategy": "0"}
    )
    stream = index_video(path)
    few = count_decoded(monkeypatch, tmp_path, stream, [60])
    skipped = read_frames(tmp_path, stream, list(range(0, 70, 7)))
    monkeypatch.setattr(pyav, "SKIPPING_CODECS", ())
    assert count_decoded(monkeypatch, tmp_path, stream, [60]) >= 60 > 40 > few
    np.testing.assert_array_equal(skipped, read_frames(tmp_path, stream, list(range(0, 70, 7))))


def test_plan_runs__seeks_only_if_it_saves_frames():
    stream = Stream("x", 2, 2, Fraction(1, 25), 10 * np.arange(64), np.arange(0, 64, 16))
    cases = {
        (0, 4, 8): [(0, [0, 4, 8])],
        (14, 17): [(0, [14, 17])],  # seeking saves one frame, which is less than its cost
        (12, 17): [(0, [12]), (160, [17])],
        (20, 60): [(160, [20]), (480, [60])],
        (15, 16, 31): [(0, [15, 16, 31])],
        (63,): [(480, [63])],
    }
    for wanted, runs in cases.items():
        expected = [(start, [10 * position for position in run]) for start, run in runs]
        assert pyav.plan_runs(stream, [10 * position for position in wanted]) == expected


MEMORY = """
import sys
import numpy as np
from pathlib import Path
from types import ModuleType, SimpleNamespace
from crossdistill.data.decode import index_video, read_frames
def rss_kib():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS")).split()[1])
path = Path(sys.argv[1])
stream = index_video(path)
generator = np.random.default_rng(0)
sizes = []
for n in range(200):
    read_frames(path.parent, stream, generator.integers(0, stream.num_frames, 3).tolist())
    sizes.append(rss_kib())
print(sizes[-1] - sizes[49])
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the size of a process from /proc")
def test_pyav__memory_is_constant_over_150_clips(tmp_path):
    path = write_video(
        tmp_path / "large.mp4", moving_frames(40, height=240, width=320), codec="libx264", options={"g": "8", "bf": "0"}
    )
    growth_kib = int(run_child(MEMORY, str(path)))
    # A leak of one frame per clip would be 150 × 225 KiB = 33 MiB.
    assert growth_kib < 8 * 1024
