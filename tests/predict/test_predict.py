"""Predictions: which clips of a file are looked at, what is said of them, and what people read when it goes wrong."""

import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from video_files import decode_everything, moving_frames, truncate, write_video

from crossdistill.commands.main import main as cli
from crossdistill.data.dataset import PairedClips, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.distillation.student import FACTS_NAME, WEIGHTS_NAME, load_student, save_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.export import export_student
from crossdistill.predict import predict
from crossdistill.predict.camera import open_camera, record, recordings
from crossdistill.predict.predict import Answer, Options, lines_of
from crossdistill.predict.predictor import ByClassifier, ByNeighbours, Guess, Prediction
from crossdistill.predict.video_clips import read_video_clips, recipe_for, require_source
from crossdistill.quantization.quantize import noise_clips

CLASSES = ("clap", "wave", "jump")


def make_view(modality="rgb", *, num_frames=4, stride=2, size_px=32):
    name = f"{modality}_tiny3d_8"
    return create_encoder(name, num_frames=num_frames, stride=stride, size_px=size_px).view


def make_student(folder, *, name="rgb_tiny3d_8", num_classes=3, classes=CLASSES):
    torch.manual_seed(0)
    encoder = create_encoder(name, num_frames=16, size_px=16, stride=1).eval()
    if num_classes:
        encoder.classifier = Classifier(torch.randn(num_classes, encoder.embed_dim), torch.randn(num_classes))
    save_student(encoder, folder, facts={})
    facts = folder / FACTS_NAME
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "classes": classes}))
    return encoder


def ramp(num_frames, *, height=32, width=48):
    """Frames that tell their position by their brightness."""
    return np.stack([np.full((height, width, 3), 20 + 5 * t, dtype=np.uint8) for t in range(num_frames)])


def positions(path, clips):
    """[clips, frames]: which frames of a ramp in a file were read, by the brightness that the file gave them."""
    pictures = decode_everything(path)[1]
    known = torch.tensor([pictures[t].mean() for t in range(len(pictures))])
    seen = clips.view.values.double().mean(dim=(1, 3, 4))
    return (seen[..., None] - known).abs().argmin(dim=-1).tolist()


def test_clips__are_spread_evenly_from_the_first_frame_to_the_last(tmp_path):
    path = write_video(tmp_path / "a.mp4", ramp(40), codec="libx264")
    view = make_view()
    read = functools.partial(read_video_clips, path, view, recipe=recipe_for(view, None))
    assert positions(path, read(num_clips=3)) == [[0, 2, 4, 6], [16, 18, 20, 22], [33, 35, 37, 39]]
    assert positions(path, read(num_clips=1)) == [[16, 18, 20, 22]]


def test_clips__a_video_that_is_no_longer_than_one_has_one(tmp_path):
    view = make_view()
    path = write_video(tmp_path / "a.mp4", ramp(5), codec="libx264")
    clips = read_video_clips(path, view, num_clips=10, recipe=recipe_for(view, None))
    assert positions(path, clips) == [[0, 1, 3, 4]]  # it would take -1, 1, 3 and 5
    assert clips.note == "shorter than a clip, so its end frames repeat"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: write_video(path, ramp(3)), "too short: 3 frames, fewer than 4"),
        (lambda path: path.write_bytes(b"nonsense" * 99), "cannot be opened"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: None, "there is no such file"),
    ],
)
def test_clips__of_a_file_that_cannot_serve_say_why(tmp_path, make, says):
    view, path = make_view(), tmp_path / "a.mp4"
    make(path)
    with pytest.raises(UnreadableVideoError, match=says):
        read_video_clips(path, view, num_clips=1, recipe=recipe_for(view, None))


def test_clips__of_flow_are_computed_from_colour(tmp_path):
    """A texture that moves by (2, -1) pixels a frame, at a view of the video's own size."""
    path = write_video(tmp_path / "a.mp4", moving_frames(12, height=64, width=64, step_xy=(2, -1)), codec="libx264")
    view = make_view("flow", num_frames=8, stride=1, size_px=64)
    clips = read_video_clips(path, view, num_clips=1, recipe=recipe_for(view, None))
    flow_px = normalise(clips.view, view) * 2  # the deviation of flow is 2 pixels
    middle = flow_px[0, :, :, 16:48, 16:48].flatten(1).median(dim=1).values
    torch.testing.assert_close(middle, torch.tensor([2.0, -1.0]), atol=0.2, rtol=0)


@pytest.mark.parametrize("modality", ["rgb", "depth", "flow"])
def test_clips__of_a_stored_stream_are_those_of_evaluation(toy_folder, modality):
    manifest, view = Manifest.load(toy_folder), make_view(modality)
    entries = entries_of(manifest, [0])
    expected = PairedClips(entries, student_view=view).read_batch([SampleKey(0, epoch=0)]).student
    path = manifest.root / entries[0].video.streams[view.kind.stream].path
    clips = read_video_clips(path, view, num_clips=1, recipe=recipe_for(view, manifest))
    assert torch.equal(clips.view.values, expected.values)
    assert torch.equal(clips.view.channel_scale, expected.channel_scale)


def test_recipe__is_that_of_the_training_data(toy_folder):
    manifest = Manifest(toy_folder, "d", (), (), facts={"recipe": {"short_side_px": 128, "flow": "farneback", "x": 1}})
    recipe = recipe_for(make_view("flow", num_frames=16), manifest)
    assert (recipe.short_side_px, recipe.flow, recipe.min_frames) == (128, "farneback", 8)


@pytest.mark.parametrize("modality", ["depth", "skeleton"])
def test_source__what_colour_cannot_give_is_one_sentence(tmp_path, modality):
    view = make_view(modality, size_px=20)
    with pytest.raises(UserError, match=f"holds rgb, from which the {modality} that this student sees cannot be had"):
        require_source(tmp_path / "a.mp4", view, recipe_for(view, None))


def test_classifier__averages_probabilities_of_clips():
    logits = torch.tensor([[math.log(8.0), 0.0, 0.0], [0.0, 0.0, math.log(2.0)]])  # 0.8 0.1 0.1 and 0.25 0.25 0.5
    guesses = ByClassifier(("a", "b")).predict({"logits": logits}, top=2).classes
    assert [guess.name for guess in guesses] == ["a", "class 2"]
    assert [guess.share for guess in guesses] == pytest.approx([0.525, 0.3])


def test_neighbours__vote_and_the_nearer_class_wins_a_tie():
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [-1.0, 0.0]])
    judge = ByNeighbours(gallery, [0, 0, 1, 1, -1], list("vwxyz"), ("a", "b"), k=4)
    found = judge.predict({"embeddings": torch.tensor([[1.0, 2.0], [2.0, 4.0]])}, top=3)
    assert [(guess.name, guess.share) for guess in found.classes] == [("b", 0.5), ("a", 0.5)]
    assert [clip.name for clip in found.nearest] == ["y", "x", "w"]
    assert found.nearest[1].similarity == pytest.approx(2 / math.sqrt(5))
    assert judge.predict({"embeddings": torch.tensor([[-1.0, 0.0]])}, top=1).nearest[0].class_name is None


def test_command__goes_on_after_bad_files_and_ends_with_their_number(tmp_path, capsys):
    make_student(tmp_path / "student")
    good = write_video(tmp_path / "[good].mp4", moving_frames(30))
    half = truncate(write_video(tmp_path / "half.avi", moving_frames(30)), 0.02)
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit) as ended:
        cli(["predict", str(tmp_path), str(half), str(good), "--clips", "2", "--top", "2", "--json", str(out)])
    said = capsys.readouterr()
    assert ended.value.code == 2 and "1 of 2 videos could not be read" in said.err
    assert f"{half}: cannot be read (unreadable: " in said.out and f"{good} (2 clips, " in said.out
    bad, fine = json.loads(out.read_text())["answers"]
    assert "unreadable" in bad["error"] and fine["num_clips"] == 2
    assert len(fine["classes"]) == 2 and {c["name"] for c in fine["classes"]} <= set(CLASSES)


def test_command__onnx_says_the_same_without_a_network_of_pytorch(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    encoder = make_student(tmp_path / "student")
    export_student(encoder, tmp_path / "a.onnx", noise_clips(encoder, 2), classes=CLASSES)
    video, outs = write_video(tmp_path / "a.mp4", moving_frames(30)), [tmp_path / "1.json", tmp_path / "2.json"]
    cli(["predict", str(tmp_path), str(video), "--json", str(outs[0])])
    monkeypatch.setattr(predict, "load_student", None)
    cli(["predict", "--onnx", str(tmp_path / "a.onnx"), str(video), "--json", str(outs[1])])
    torch_says, onnx_says = ([a["classes"] for a in json.loads(out.read_text())["answers"]] for out in outs)
    assert [c["name"] for c in torch_says[0]] == [c["name"] for c in onnx_says[0]]
    assert [c["share"] for c in torch_says[0]] == pytest.approx([c["share"] for c in onnx_says[0]], abs=1e-4)


def test_command__a_student_without_classes_names_the_nearest_training_clips(tmp_path, toy_folder, capsys, monkeypatch):
    make_student(tmp_path / "student", num_classes=0)
    manifest = Manifest.load(toy_folder)
    video = manifest.videos[manifest.select(split="1", part="train")[0]]
    arguments = [
        "predict",
        str(tmp_path),
        str(toy_folder / video.streams["rgb"].path),
        "--clips",
        "1",
        "--workers",
        "0",
    ]
    cli([*arguments, "--data", str(toy_folder), "--k", "1"])
    said = capsys.readouterr().out
    assert f"1.000  near {video.name} ({manifest.classes[video.label]})" in said and "100.0%" in said
    assert len(list((tmp_path / "features").iterdir())) == 1
    monkeypatch.setattr(
        "crossdistill.evaluation.feature_store.extract_features", lambda *_, **__: pytest.fail("embeds again")
    )
    cli([*arguments, "--data", str(toy_folder), "--k", "1"])
    assert f"1.000  near {video.name} (" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli(arguments)
    assert "learned without labels and names no classes: give --data" in capsys.readouterr().err


@pytest.fixture
def clips_run(monkeypatch):
    """How many clips each call of the ONNX file was given."""
    pytest.importorskip("onnxruntime")
    run, counts = predict.OnnxNetwork.run, []

    def counting(self, view):
        counts.append(len(view.values))
        return run(self, view)

    monkeypatch.setattr(predict.OnnxNetwork, "run", counting)
    return counts


def test_command__onnx_embeds_each_training_clip_once_for_a_file(tmp_path, toy_folder, capsys, clips_run):
    encoder = make_student(tmp_path / "run" / "student", num_classes=0)
    onnx = tmp_path / "files" / "a.onnx"
    onnx.parent.mkdir()
    export_student(encoder, onnx, noise_clips(encoder, 2))
    manifest = Manifest.load(toy_folder)
    parts = {split: set(manifest.select(split=split, part="train")) for split in "12"}
    video = toy_folder / manifest.videos[min(parts["1"])].streams["rgb"].path
    common = ["--onnx", str(onnx), "--data", str(toy_folder), "--clips", "1", "--workers", "0"]

    def predicted(*arguments):
        clips_run.clear()
        cli(["predict", *map(str, arguments), *common])
        return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("clips of")]

    first = predicted(video)
    assert sum(clips_run) == len(parts["1"]) + 1 and f"near {manifest.videos[min(parts['1'])].name}" in "".join(first)
    (kept,) = (tmp_path / "files" / "features").iterdir()
    assert predicted(video) == first and clips_run == [1]
    cli(["predict", str(video), *common])
    assert f": features read from {kept}\n" in capsys.readouterr().out
    predicted(video, "--split", "2")
    assert sum(clips_run) == len(parts["2"] - parts["1"]) + 1  # whichever split a clip is of, it is the same clip
    assert predicted(tmp_path / "run", video) == first  # the file's features, beside the student
    assert sum(clips_run) == len(parts["1"]) + 1 and len(list((tmp_path / "run" / "features").iterdir())) == 1
    assert predicted(tmp_path / "run", video, "--features", tmp_path / "files" / "features") == first
    assert clips_run == [1]
    with torch.no_grad():
        next(encoder.body.parameters()).mul_(2)
    onnx.unlink()
    export_student(encoder, onnx, noise_clips(encoder, 2))
    predicted(video)
    assert sum(clips_run) == len(parts["1"]) + 1  # another file of the same name
    assert len(list((tmp_path / "files" / "features").iterdir())) == 2


def test_command__onnx_in_a_folder_that_cannot_be_written_keeps_nothing(tmp_path, toy_folder, monkeypatch, clips_run):
    encoder = make_student(tmp_path / "student", num_classes=0)
    export_student(encoder, tmp_path / "a.onnx", noise_clips(encoder, 2))
    video = write_video(tmp_path / "a.mp4", moving_frames(30))
    monkeypatch.setattr(predict.os, "access", lambda path, _: False)
    before = sorted(tmp_path.iterdir())
    cli(["predict", str(video), "--onnx", str(tmp_path / "a.onnx"), "--data", str(toy_folder), "--workers", "0"])
    assert sorted(tmp_path.iterdir()) == before and len(clips_run) > 1


def test_command__missing_files_and_cameras_are_named_before_the_gallery_is_embedded(
    tmp_path, toy_folder, capsys, monkeypatch
):
    make_student(tmp_path / "student", num_classes=0)
    monkeypatch.setattr(predict, "embed_gallery", lambda *_, **__: pytest.fail("too late"))
    camera = FakeCamera(0)
    camera.isOpened = lambda: False
    watch(monkeypatch, camera)
    given = {("missing.mp4",): "the video missing.mp4 is not there", ("--camera", "0"): "camera 0 cannot be opened"}
    for arguments, expected in given.items():
        with pytest.raises(SystemExit):
            cli(["predict", str(tmp_path), *arguments, "--data", str(toy_folder)])
        assert expected in capsys.readouterr().err


def test_command__says_once_that_classes_have_no_names(tmp_path, capsys):
    make_student(tmp_path / "student", classes=())
    video = write_video(tmp_path / "a.mp4", moving_frames(30))
    cli(["predict", str(tmp_path), str(video), str(video), "--clips", "1"])
    said = capsys.readouterr().out
    assert said.count("nothing names the 3 classes of rgb_tiny3d_8") == 1 and "class 2" in said


class FakeCamera:
    """Shows a ramp in blue, green, red and is unplugged, or the person presses Ctrl-C, after some frames."""

    def __init__(self, num_frames, *, ends_with=None):
        self.frames = iter(ramp(max(1, num_frames), height=33)[:num_frames])
        self.ends_with, self.is_released = ends_with, False

    def isOpened(self):
        return True

    def read(self):
        frame = next(self.frames, None)
        if frame is None and self.ends_with is not None:
            raise self.ends_with
        return frame is not None, frame

    def release(self):
        self.is_released = True


def ticking():
    """A clock of 25 frames a second."""
    return functools.partial(next, itertools.count(0, 0.04))


def watch(monkeypatch, camera):
    monkeypatch.setattr(predict, "open_camera", functools.partial(open_camera, capture=lambda index: camera))
    monkeypatch.setattr(predict, "recordings", functools.partial(recordings, clock=ticking()))


def test_camera__frames_are_stored_at_the_times_at_which_they_came(tmp_path):
    camera = FakeCamera(20)
    assert record(camera, tmp_path / "a.mp4", seconds=0.5, clock=ticking()) == 12
    view = make_view()
    clips = read_video_clips(tmp_path / "a.mp4", view, num_clips=1, recipe=recipe_for(view, None))
    assert positions(tmp_path / "a.mp4", clips)[0] in ([2, 4, 6, 8], [3, 5, 7, 9])


@pytest.mark.parametrize(("ends_with", "last"), [(None, "gives no more pictures"), (KeyboardInterrupt, "camera 0 (")])
def test_camera__answers_until_ctrl_c_or_its_end(tmp_path, monkeypatch, capsys, ends_with, last):
    make_student(tmp_path / "student")
    camera, out = FakeCamera(48, ends_with=ends_with), tmp_path / "out.json"
    watch(monkeypatch, camera)
    cli(["predict", str(tmp_path), "--camera", "0", "--seconds", "0.9", "--clips", "1", "--json", str(out)])
    said = capsys.readouterr().out
    assert last in said and camera.is_released
    answers = json.loads(out.read_text())["answers"]
    assert len(answers) >= 2 and all(answer["num_clips"] == 1 for answer in answers[:2])


def test_camera__without_a_picture_or_not_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    make_student(tmp_path / "student")
    camera = FakeCamera(0)
    watch(monkeypatch, camera)
    for expected in ("camera 0 gives no picture", "camera 0 cannot be opened"):
        with pytest.raises(SystemExit):
            cli(["predict", str(tmp_path), "--camera", "0"])
        assert expected in capsys.readouterr().err
        camera.isOpened = lambda: False


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"paths": ()}, "there is no video"),
        ({"paths": ("s",)}, "there is no video"),
        ({"paths": ("s", "v"), "camera": 0}, "give one or the other"),
        ({"paths": ("s", "v"), "clips": 0}, "--clips is 0"),
        ({"paths": ("s", "v"), "workers": -1}, "--workers is -1"),
        ({"paths": ("s", "v"), "features": Path(__file__)}, "is no folder that you may write to"),
        ({"paths": ("s",), "camera": 0, "seconds": 0.0}, "--seconds is 0"),
    ],
)
def test_options__that_cannot_be_are_refused(tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        Options(**{**options, "paths": tuple(tmp_path / name for name in options["paths"])}).check()


def test_student__a_file_in_its_place_is_named(tmp_path, capsys):
    video = write_video(tmp_path / "a.mp4", ramp(8))
    with pytest.raises(SystemExit):
        cli(["predict", str(video), str(video)])
    assert "is a file: give the student's folder first" in capsys.readouterr().err


def newer(folder):
    facts = folder / FACTS_NAME
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "version": 99}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: truncate(folder / WEIGHTS_NAME, 0.5), "is not a whole safetensors file"),
        (lambda folder: torch.save({"a": print}, folder / WEIGHTS_NAME), "is not a whole safetensors file"),
        (lambda folder: (folder / WEIGHTS_NAME).unlink(), "there is no weight file"),
        (newer, "has format version 99, this crossdistill reads up to 1: update it"),
        (lambda folder: truncate(folder / FACTS_NAME, 0.5), "is damaged"),
    ],
)
def test_student__bad_folders_are_one_sentence(tmp_path, damage, says):
    make_student(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=says) as raised:
        load_student(tmp_path)
    assert "\n" not in str(raised.value)


def test_lines__show_names_as_they_are():
    prediction = Prediction("votes", classes=(Guess("[red]x[/red]", 0.5),))
    assert list(lines_of(Answer("[a].mp4", prediction, num_clips=1)))[1] == "   50.0%  [red]x[/red]"
