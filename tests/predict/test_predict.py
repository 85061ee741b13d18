"""Predictions: the clips that are read from a file, their scores, cameras, and error texts."""

import dataclasses
import functools
import inspect
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import write_picture
from video_files import decode_everything, moving_frames, truncate, write_video

from crossdistill.commands.main import main as cli
from crossdistill.commands.predict import Options
from crossdistill.data.dataset import PairedClips, entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.distillation.student import FACTS_NAME, WEIGHTS_NAME, load_student, save_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.export.formats import export_student
from crossdistill.predict import exported, predictor, runtimes, scorers
from crossdistill.predict.camera import open_camera, record, recordings
from crossdistill.predict.predictor import files_of, predict_files
from crossdistill.predict.results import ClassScore, Prediction, Scores, print_prediction
from crossdistill.predict.scorers import ClassifierScorer, NeighbourScorer
from crossdistill.predict.video_clips import read_video_clips, recipe_for, require_source
from crossdistill.quantization.quantize import noise_clips
from crossdistill.types import ViewSpec

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
    """Frames whose brightness encodes their position."""
    return np.stack([np.full((height, width, 3), 20 + 5 * t, dtype=np.uint8) for t in range(num_frames)])


def positions(path, clips):
    """Return the positions [clips, frames] of a ramp's frames, found by their brightness in the file."""
    pictures = decode_everything(path)[1]
    known = torch.tensor([pictures[t].mean() for t in range(len(pictures))])
    seen = clips.view.values.double().mean(dim=(1, 3, 4))
    return (seen[..., None] - known).abs().argmin(dim=-1).tolist()


def test_clips__spread_evenly_from_first_to_last_frame(tmp_path):
    path = write_video(tmp_path / "a.mp4", ramp(40), codec="libx264")
    view = make_view()
    read = functools.partial(read_video_clips, path, view, recipe=recipe_for(view, None))
    assert positions(path, read(num_clips=3)) == [[0, 2, 4, 6], [16, 18, 20, 22], [33, 35, 37, 39]]
    assert positions(path, read(num_clips=1)) == [[16, 18, 20, 22]]


def test_clips__video_shorter_than_a_clip_has_one(tmp_path):
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
def test_clips__unusable_file_names_the_reason(tmp_path, make, says):
    view, path = make_view(), tmp_path / "a.mp4"
    make(path)
    with pytest.raises(UnreadableVideoError, match=says):
        read_video_clips(path, view, num_clips=1, recipe=recipe_for(view, None))


def test_clips__flow_is_computed_from_colour(tmp_path):
    """A texture that moves by (2, -1) pixels a frame, at a view of the video's own size."""
    path = write_video(tmp_path / "a.mp4", moving_frames(12, height=64, width=64, step_xy=(2, -1)), codec="libx264")
    view = make_view("flow", num_frames=8, stride=1, size_px=64)
    clips = read_video_clips(path, view, num_clips=1, recipe=recipe_for(view, None))
    flow_px = normalise(clips.view, view) * 2  # the deviation of flow is 2 pixels
    middle = flow_px[0, :, :, 16:48, 16:48].flatten(1).median(dim=1).values
    torch.testing.assert_close(middle, torch.tensor([2.0, -1.0]), atol=0.2, rtol=0)


@pytest.mark.parametrize("modality", ["rgb", "depth", "flow"])
def test_clips__stored_stream_equals_clips_of_evaluation(toy_folder, modality):
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
def test_source__modality_that_colour_cannot_give_is_refused(tmp_path, modality):
    view = make_view(modality, size_px=20)
    with pytest.raises(UserError, match=f"holds rgb, but this student sees {modality}, which cannot be computed"):
        require_source(tmp_path / "a.mp4", view, recipe_for(view, None))


def test_classifier__averages_probabilities_of_clips():
    logits = torch.tensor([[math.log(8.0), 0.0, 0.0], [0.0, 0.0, math.log(2.0)]])  # 0.8 0.1 0.1 and 0.25 0.25 0.5
    classes = ClassifierScorer(("a", "b")).score({"logits": logits}, top=2).classes
    assert [score.name for score in classes] == ["a", "class 2"]
    assert [score.share for score in classes] == pytest.approx([0.525, 0.3])


def test_neighbours__class_of_nearest_clip_wins_a_tie():
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [-1.0, 0.0]])
    scorer = NeighbourScorer(gallery, [0, 0, 1, 1, -1], list("vwxyz"), ("a", "b"), k=4)
    found = scorer.score({"embeddings": torch.tensor([[1.0, 2.0], [2.0, 4.0]])}, top=3)
    assert [(score.name, score.share) for score in found.classes] == [("b", 0.5), ("a", 0.5)]
    assert [clip.name for clip in found.nearest] == ["y", "x", "w"]
    assert found.nearest[1].similarity == pytest.approx(2 / math.sqrt(5))
    assert scorer.score({"embeddings": torch.tensor([[-1.0, 0.0]])}, top=1).nearest[0].class_name is None


def test_command__continues_after_bad_file_and_reports_their_number(tmp_path, capsys):
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


def test_command__onnx_matches_pytorch_without_loading_the_student(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    encoder = make_student(tmp_path / "student")
    export_student(encoder, tmp_path / "a.onnx", noise_clips(encoder, 2), classes=CLASSES)
    video, outs = write_video(tmp_path / "a.mp4", moving_frames(30)), [tmp_path / "1.json", tmp_path / "2.json"]
    cli(["predict", str(tmp_path), str(video), "--json", str(outs[0])])
    monkeypatch.setattr(runtimes, "load_student", None)
    cli(["predict", "--onnx", str(tmp_path / "a.onnx"), str(video), "--json", str(outs[1])])
    torch_says, onnx_says = ([a["classes"] for a in json.loads(out.read_text())["answers"]] for out in outs)
    assert [c["name"] for c in torch_says[0]] == [c["name"] for c in onnx_says[0]]
    assert [c["share"] for c in torch_says[0]] == pytest.approx([c["share"] for c in onnx_says[0]], abs=1e-4)


def test_command__student_without_classes_shows_nearest_training_clips(tmp_path, toy_folder, capsys, monkeypatch):
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
    assert "was trained without labels and has no classes: give --data" in capsys.readouterr().err


@pytest.fixture
def clips_run(monkeypatch):
    """Number of clips in each call of the ONNX file."""
    pytest.importorskip("onnxruntime")
    run, counts = exported.ExportedRuntime.run, []

    def counting(self, view):
        counts.append(len(view.values))
        return run(self, view)

    monkeypatch.setattr(exported.ExportedRuntime, "run", counting)
    return counts


def test_command__onnx_embeds_each_training_clip_once_per_file(tmp_path, toy_folder, capsys, clips_run):
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
    assert sum(clips_run) == len(parts["2"] - parts["1"]) + 1  # both splits share the features of a clip
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


def test_command__onnx_in_read_only_folder_stores_nothing(tmp_path, toy_folder, monkeypatch, clips_run):
    encoder = make_student(tmp_path / "student", num_classes=0)
    export_student(encoder, tmp_path / "a.onnx", noise_clips(encoder, 2))
    video = write_video(tmp_path / "a.mp4", moving_frames(30))
    monkeypatch.setattr(predictor, "is_writable", lambda _: False)
    before = sorted(tmp_path.iterdir())
    cli(["predict", str(video), "--onnx", str(tmp_path / "a.onnx"), "--data", str(toy_folder), "--workers", "0"])
    assert sorted(tmp_path.iterdir()) == before and len(clips_run) > 1


def test_command__missing_file_or_camera_is_an_error_before_embedding(tmp_path, toy_folder, capsys, monkeypatch):
    make_student(tmp_path / "student", num_classes=0)
    monkeypatch.setattr(scorers, "embed_gallery", lambda *_, **__: pytest.fail("too late"))
    camera = FakeCamera(0)
    camera.isOpened = lambda: False
    watch(monkeypatch, camera)
    given = {("missing.mp4",): "the video missing.mp4 does not exist", ("--camera", "0"): "camera 0 cannot be opened"}
    for arguments, expected in given.items():
        with pytest.raises(SystemExit):
            cli(["predict", str(tmp_path), *arguments, "--data", str(toy_folder)])
        assert expected in capsys.readouterr().err


def test_command__unknown_class_names_are_noted_once(tmp_path, capsys):
    make_student(tmp_path / "student", classes=())
    video = write_video(tmp_path / "a.mp4", moving_frames(30))
    cli(["predict", str(tmp_path), str(video), str(video), "--clips", "1"])
    said = capsys.readouterr().out
    assert said.count("the names of the 3 classes of rgb_tiny3d_8 are unknown") == 1 and "class 2" in said


class FakeCamera:
    """Shows a ramp in BGR. After some frames it is unplugged, or raises what Ctrl-C raises."""

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
    monkeypatch.setattr(predictor, "open_camera", functools.partial(open_camera, capture=lambda index: camera))
    monkeypatch.setattr(predictor, "recordings", functools.partial(recordings, clock=ticking()))


def test_camera__frames_keep_their_arrival_times(tmp_path):
    camera = FakeCamera(20)
    assert record(camera, tmp_path / "a.mp4", seconds=0.5, clock=ticking()) == 12
    view = make_view()
    clips = read_video_clips(tmp_path / "a.mp4", view, num_clips=1, recipe=recipe_for(view, None))
    assert positions(tmp_path / "a.mp4", clips)[0] in ([2, 4, 6, 8], [3, 5, 7, 9])


@pytest.mark.parametrize(("ends_with", "last"), [(None, "gives no more pictures"), (KeyboardInterrupt, "camera 0 (")])
def test_camera__predicts_until_ctrl_c_or_unplugged(tmp_path, monkeypatch, capsys, ends_with, last):
    make_student(tmp_path / "student")
    camera, out = FakeCamera(48, ends_with=ends_with), tmp_path / "out.json"
    watch(monkeypatch, camera)
    cli(["predict", str(tmp_path), "--camera", "0", "--seconds", "0.9", "--clips", "1", "--json", str(out)])
    said = capsys.readouterr().out
    assert last in said and camera.is_released
    answers = json.loads(out.read_text())["answers"]
    assert len(answers) >= 2 and all(answer["num_clips"] == 1 for answer in answers[:2])


def test_camera__absent_or_blank_is_one_sentence(tmp_path, monkeypatch, capsys):
    make_student(tmp_path / "student")
    camera = FakeCamera(0)
    watch(monkeypatch, camera)
    for expected in ("camera 0 gives no picture", "camera 0 cannot be opened"):
        with pytest.raises(SystemExit):
            cli(["predict", str(tmp_path), "--camera", "0"])
        assert expected in capsys.readouterr().err
        camera.isOpened = lambda: False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "no video was given"),
        ({"paths": ["v"], "camera": 0}, "give one or the other"),
        ({"paths": ["v"]}, "the video v does not exist"),
        ({"camera": 0, "clips": 0}, "--clips is 0"),
        ({"camera": 0, "k": 0}, "--k is 0"),
        ({"camera": 0, "workers": -1}, "--workers is -1"),
        ({"camera": 0, "features": Path(__file__)}, "is not a writable folder"),
        ({"camera": 0, "seconds": 0.0}, "--seconds is 0"),
        ({"camera": 0}, "no student was given"),
    ],
)
def test_arguments__invalid_value_is_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        predict_files(None, **arguments)


def test_predict_files__same_predictions_and_defaults_as_command(tmp_path):
    make_student(tmp_path / "student")
    video, outs = write_video(tmp_path / "a.mp4", moving_frames(30)), [tmp_path / "1.json", tmp_path / "2.json"]
    cli(["predict", str(tmp_path), str(video), "--json", str(outs[0])])
    (prediction,) = predict_files(tmp_path, [str(video)], json=outs[1])
    assert json.loads(outs[0].read_text()) == json.loads(outs[1].read_text())
    assert prediction.to_json() == json.loads(outs[0].read_text())["answers"][0]
    of_streams = ("stream", "every")
    options = {one.name: one.default for one in dataclasses.fields(Options) if one.name not in ("paths", *of_streams)}
    parameters = inspect.signature(predict_files).parameters
    assert {name: parameters[name].default for name in options} == options
    assert parameters.keys() - options.keys() == {"student", "paths", "on_prediction"}


def test_student__file_instead_of_folder_is_refused(tmp_path, capsys):
    video = write_video(tmp_path / "a.mp4", ramp(8))
    with pytest.raises(SystemExit):
        cli(["predict", str(video), str(video)])
    assert "is a file: give the student's folder or exported file first" in capsys.readouterr().err


def newer(folder):
    facts = folder / FACTS_NAME
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "version": 99}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: truncate(folder / WEIGHTS_NAME, 0.5), "is not a complete safetensors file"),
        (lambda folder: torch.save({"a": print}, folder / WEIGHTS_NAME), "contains more than tensors"),
        (lambda folder: (folder / WEIGHTS_NAME).unlink(), "there is no weight file"),
        (newer, "has format version 99, this crossdistill reads up to 1: update crossdistill"),
        (lambda folder: truncate(folder / FACTS_NAME, 0.5), "is damaged"),
    ],
)
def test_student__damaged_folder_is_one_sentence(tmp_path, damage, says):
    make_student(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=says) as raised:
        load_student(tmp_path)
    assert "\n" not in str(raised.value)


def test_print__names_are_not_markup(capsys):
    print_prediction(Prediction("[a].mp4", Scores("votes", classes=(ClassScore("[red]x[/red]", 0.5),)), num_clips=1))
    assert capsys.readouterr().out == "[a].mp4 (1 clip, votes)\n   50.0%  [red]x[/red]\n"


def test_pictures_and_folders__are_read_like_files(tmp_path):
    view = ViewSpec("image", num_frames=1, stride=1, size_px=16, mean=(0.5,) * 3, std=(0.5,) * 3)
    picture = write_picture(tmp_path / "folder" / "b" / "1.png")
    video = write_video(tmp_path / "folder" / "a.mp4", ramp(9))
    (tmp_path / "folder" / "notes.txt").touch()
    assert files_of(tmp_path / "folder") == [video, picture] and files_of(picture) == [picture]
    clips = read_video_clips(picture, view, num_clips=5, recipe=recipe_for(view, None))
    assert clips.view.values.shape == (1, 3, 1, 16, 16) and not clips.note
    as_clip = read_video_clips(picture, make_view("rgb"), num_clips=5, recipe=recipe_for(view, None))
    assert as_clip.note == "a still picture, which repeats" and len(as_clip.view.values) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no video and no picture"):
        files_of(tmp_path / "empty")
    with pytest.raises(UserError, match="is a still picture, and this student sees flow"):
        require_source(picture, make_view("flow"), recipe_for(view, None))
