"""Predictions along a stream: equal to passes over clips, over damage, from a camera, and error texts."""

import itertools
import json
import signal
import threading

import pytest
import torch
from video_files import decode_everything, moving_frames, truncate, write_video

from crossdistill.commands.main import main as cli
from crossdistill.data.transforms import centre_crop, cut_view, normalise
from crossdistill.distillation.student import save_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import Stopped
from crossdistill.export.metadata import LOGITS
from crossdistill.predict import stream
from crossdistill.predict.clip_runners import SingleFrames, WholeClips, choose_runner
from crossdistill.predict.frames import ClipWindow, read_ahead
from crossdistill.predict.runtimes import TorchRuntime
from crossdistill.predict.stream import predict_stream
from crossdistill.types import View

SIZE_PX = 32


def make_student(folder, name="rgb_tiny3d_8", *, num_frames=4, stride=2, num_classes=3):
    torch.manual_seed(0)
    encoder = create_encoder(name, num_frames=num_frames, size_px=SIZE_PX, stride=stride).eval()
    if num_classes:
        encoder.classifier = Classifier(torch.randn(num_classes, encoder.embed_dim), torch.randn(num_classes))
    save_student(encoder, folder, facts={})
    return encoder


def make_video(tmp_path, num_frames=40):
    return write_video(tmp_path / "a.mp4", moving_frames(num_frames, height=48, width=64), codec="libx264")


def logits_of(encoder, pictures):
    """Pass over one clip of the given pictures."""
    height, width, _ = pictures[0].shape
    crop = centre_crop(width_px=width, height_px=height, fraction=encoder.view.centre_fraction)
    cut = cut_view(pictures, crop, modality=encoder.view.kind, size_px=SIZE_PX)
    view = View(cut.values[None], torch.from_numpy(cut.channel_scale)[None])
    with torch.no_grad():
        return encoder(normalise(view, encoder.view)) @ encoder.classifier.weight.T + encoder.classifier.bias


def shares(moment):
    return {int(score.name.removeprefix("class ")): score.share for score in moment.scores.classes}


@pytest.mark.parametrize("name", ["rgb_tiny3d_8", "rgb_resnet18", "image_resnet18"])
@pytest.mark.parametrize(("stride", "every"), [(2, 4), (2, 3), (3, 2), (1, 5), (2, None)])
def test_stream__predicts_as_passes_over_clips(tmp_path, name, stride, every):
    """Whole clips and single frames alike, for distances that are multiples of the stride and others."""
    num_frames = 1 if name.startswith("image") else 4
    encoder = make_student(tmp_path / "student", name, num_frames=num_frames, stride=stride)
    video, moments = make_video(tmp_path, 20), []
    predict_stream(tmp_path / "student", video, every=every, top=3, on_moment=moments.append)

    pictures = decode_everything(video)[1]
    first, expected = (num_frames - 1) * stride, {}
    for end in range(first, 20, every or max(1, num_frames // 2) * stride):
        clip = [pictures[n] for n in range(end - first, end + 1, stride)]
        expected[end] = logits_of(encoder, clip)[0].softmax(0)
    assert [round(moment.seconds * 25) for moment in moments] == list(expected)
    assert len(moments) >= 3
    for moment, probabilities in zip(moments, expected.values(), strict=True):
        assert shares(moment) == pytest.approx(dict(enumerate(probabilities.tolist())), abs=1e-4)


def test_online_tsm__each_frame_equals_a_pass_over_all_frames_before(tmp_path, monkeypatch):
    """Channels of the past are held from the first frame on; the first clip is an ordinary pass."""
    encoder = make_student(tmp_path / "student", "rgb_tsm_online_mobilenet_v2")
    video, moments = make_video(tmp_path, 24), []
    monkeypatch.setattr(WholeClips, "of_clip", None)  # frames are run one at a time
    predict_stream(tmp_path / "student", video, every=2, top=3, on_moment=moments.append)

    pictures = list(decode_everything(video)[1].values())[::2]
    assert len(moments) == len(pictures) - 3
    first = logits_of(encoder, pictures[:4])[0].softmax(0)
    assert shares(moments[0]) == pytest.approx(dict(enumerate(first.tolist())), abs=1e-4)

    kept = {}
    encoder.body.map.register_forward_hook(lambda module, inputs, output: kept.update(map=output))
    logits_of(encoder, pictures)
    features = kept["map"].mean(dim=(3, 4))[0].T  # [frames, D]
    for end, moment in enumerate(moments, start=4):
        logits = features[end - 4 : end].mean(0) @ encoder.classifier.weight.T + encoder.classifier.bias
        assert shares(moment) == pytest.approx(dict(enumerate(logits.softmax(0).tolist())), abs=1e-4)


def test_runner__single_frames_for_networks_that_allow_it():
    kinds = {
        name: type(choose_runner(TorchRuntime(create_encoder(name, num_frames=4, size_px=32, stride=1)), every=1))
        for name in ("rgb_tiny3d_8", "rgb_resnet18", "rgb_tsm_mobilenet_v2", "rgb_tsm_online_mobilenet_v2")
    }
    assert kinds == {
        "rgb_tiny3d_8": WholeClips,
        "rgb_resnet18": SingleFrames,
        "rgb_tsm_mobilenet_v2": WholeClips,  # its frames take channels from the next one
        "rgb_tsm_online_mobilenet_v2": SingleFrames,
    }


def test_single_frames__run_the_network_once_per_frame(tmp_path):
    runtime = TorchRuntime(make_student(tmp_path, "rgb_resnet18", num_frames=4, stride=1))
    calls = []
    runtime.embedder.encoder.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape[2]))
    runner, window = choose_runner(runtime, every=1), ClipWindow(num_frames=4, stride=1, every=1)
    frame = View(torch.zeros(1, 3, 1, SIZE_PX, SIZE_PX, dtype=torch.uint8), torch.ones(1, 3))
    clips = [clip for n in range(10) if (clip := window.push(n, runner.of_frame(frame)))]
    assert calls == [1] * 10
    assert runner.of_clip(clips[0])[LOGITS].shape == (1, 3)
    assert len(clips) == 7


@pytest.mark.parametrize(("num_frames", "stride", "every"), list(itertools.product((1, 3), (1, 2, 3), (1, 2, 4, 6))))
def test_window__clips_are_those_of_slices(num_frames, stride, every):
    window, found = ClipWindow(num_frames=num_frames, stride=stride, every=every), {}
    for n in range(30):
        if window.wants(n) and (clip := window.push(n, n)):
            found[n] = clip
    first = (num_frames - 1) * stride
    assert found == {end: list(range(end - first, end + 1, stride)) for end in range(first, 30, every)}


def test_read_ahead__keeps_order_and_forwards_errors():
    def numbers():
        yield from range(20)
        raise ValueError("the end")

    seen = []
    with pytest.raises(ValueError, match="the end"):
        seen.extend(read_ahead(numbers()))
    assert len(seen) in range(0, 21)
    num_threads = threading.active_count()
    assert list(itertools.islice(read_ahead(itertools.count()), 5)) == [0, 1, 2, 3, 4]
    assert threading.active_count() == num_threads  # an early end stops the thread


def test_command__prints_moments_and_costs_and_writes_lines(tmp_path, capsys):
    make_student(tmp_path / "student")
    video, lines = make_video(tmp_path, 40), tmp_path / "moments.jsonl"
    cli(["predict", str(tmp_path / "student"), str(video), "--stream", "--every", "8", "--json", str(lines)])
    printed = capsys.readouterr().out.splitlines()
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(written) == 5 and [round(each["seconds"] * 25) for each in written] == [6, 14, 22, 30, 38]
    assert {"seconds", "latency_seconds", "basis", "classes", "nearest"} == set(written[0])
    assert sum(" s  " in line and "%" in line for line in printed) == 5
    assert printed[-1].startswith("40 frames in ") and "5 predictions, latency" in printed[-1]


def test_command__damaged_video_is_predicted_as_far_as_it_goes(tmp_path, capsys):
    make_student(tmp_path / "student")
    video = write_video(tmp_path / "a.ts", moving_frames(60, height=48, width=64), codec="mpeg4")
    truncate(video, 0.5)
    summary = predict_stream(tmp_path / "student", video)
    assert 0 < summary.num_frames < 60
    assert summary.latencies_seconds


class FakeCamera:
    """Gives frames, then Ctrl-C or nothing more."""

    def __init__(self, num_frames, ends_with):
        self.frames = iter(moving_frames(num_frames, height=48, width=64))
        self.ends_with = ends_with

    def isOpened(self):
        return True

    def read(self):
        frame = next(self.frames, None)
        if frame is None and self.ends_with:
            raise self.ends_with
        return frame is not None, frame

    def release(self):
        pass


@pytest.mark.parametrize("ends_with", [None, KeyboardInterrupt()])
def test_camera__predicts_until_ctrl_c_or_unplugged(tmp_path, monkeypatch, capsys, ends_with):
    make_student(tmp_path / "student")
    camera = FakeCamera(30, ends_with)
    opened = stream.open_camera
    monkeypatch.setattr(stream, "open_camera", lambda index: opened(index, capture=lambda _: camera))
    cli(["predict", str(tmp_path / "student"), "--camera", "0", "--stream", "--every", "6"])
    assert "30 frames" in (printed := capsys.readouterr().out) and "4 predictions" in printed


def test_camera__another_signal_than_ctrl_c_stops_the_command(tmp_path, monkeypatch, capsys):
    make_student(tmp_path / "student")
    camera = FakeCamera(30, Stopped("start again", signal_number=signal.SIGTERM))
    opened = stream.open_camera
    monkeypatch.setattr(stream, "open_camera", lambda index: opened(index, capture=lambda _: camera))
    with pytest.raises(SystemExit) as ended:
        cli(["predict", str(tmp_path / "student"), "--camera", "0", "--stream", "--every", "6"])
    assert ended.value.code == 143 and "stopped: start again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{student}", "--stream"], "neither a video nor --camera was given"),
        (["{student}", "{video}", "--stream", "--camera", "0"], "--camera 0 and"),
        (["{student}", "{video}", "{video}", "--stream"], "2 videos were given"),
        (["{student}", "{student}/student.json", "--stream", "--every", "0"], "--every"),
        (["{student}", "nowhere.mp4", "--stream"], "nowhere.mp4 is no video file"),
        (["{student}", "{video}", "--every", "4"], "without --stream"),
        (["{student}", "{video}", "--stream", "--clips", "3"], "--clips has no effect with --stream"),
        (["{student}", "{video}", "--stream", "--seconds", "1"], "--seconds has no effect with --stream"),
        (["{flow}", "{video}", "--stream"], "sees flow"),
        (["{online}", "{video}", "--stream", "--every", "3"], "--every 3 is no multiple of 2"),
        (["{long}", "{video}", "--stream"], "the stream has 40 frames, and a clip of this student spans 121"),
    ],
)
def test_command__error_is_one_sentence(tmp_path, capsys, arguments, says):
    folders = {name: tmp_path / name for name in ("student", "flow", "online", "long")}
    make_student(folders["student"])
    make_student(folders["flow"], "flow_tiny3d_8")
    make_student(folders["online"], "rgb_tsm_online_mobilenet_v2")
    make_student(folders["long"], num_frames=4, stride=40)
    values = {**folders, "video": make_video(tmp_path)}
    with pytest.raises(SystemExit):
        cli(["predict", *(argument.format(**values) for argument in arguments)])
    assert says in capsys.readouterr().err
