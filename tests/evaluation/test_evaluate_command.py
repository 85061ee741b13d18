"""``crossdistill evaluate`` on rendered videos: views, splits, several students, the feature store, and bad input."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from killing import PATIENCE_SECONDS
from safetensors.torch import load_file

import crossdistill as cd
from crossdistill.commands.main import main as cli
from crossdistill.data.dataset import PairedClips, entries_of
from crossdistill.data.manifest import Manifest, Video
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.distillation.student import save_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation import feature_store
from crossdistill.evaluation.clips import entries_of_part
from crossdistill.evaluation.evaluate import evaluate_encoder
from crossdistill.evaluation.feature_store import FeatureStore, feature_key, kept_features
from crossdistill.evaluation.features import extract_features
from crossdistill.evaluation.perturbations import Perturbation
from crossdistill.evaluation.results import read_evaluation
from crossdistill.evaluation.settings import ReadSettings
from crossdistill.evaluation.tables import gain_text
from crossdistill.evaluation.views import MultiViewClips, TestViews, spread_crops
from crossdistill.modalities import get_modality
from crossdistill.recipes import finetune
from crossdistill.recipes.config import MachineConfig, RunConfig


def make_encoder(name="rgb_tiny3d_8", *, seed=0, num_frames=3):
    torch.manual_seed(seed)
    return create_encoder(name, num_frames=num_frames, stride=1, size_px=32)


@pytest.fixture
def student(tmp_path):
    folder = tmp_path / "run" / "student"
    save_student(make_encoder(), folder, facts={"supervised": False})
    return folder.parent


@pytest.fixture(scope="module")
def small_folder(toy_folder, tmp_path_factory):
    """Four classes of toyactions. Split 2 swaps the parts of split 1, split 3 has no test clips, and in split 4 no
    training clip shows class 2."""
    folder = tmp_path_factory.mktemp("small") / "toy"
    folder.mkdir()
    for stream in ("rgb", "flow"):
        (folder / stream).symlink_to(toy_folder / stream)
    manifest = Manifest.load(toy_folder)
    swapped = {"train": "test", "test": "train"}
    videos = []
    for video in manifest.videos:
        part = video.splits["1"]
        one_class = part if video.label != 2 or part == "test" else "none"
        splits = {"1": part, "2": swapped[part], "3": "train", "4": one_class}
        streams = {name: video.streams[name] for name in ("rgb", "flow")}
        if video.label < 4:
            videos.append(replace(video, splits=splits, streams=streams))
    replace(manifest, root=folder, classes=manifest.classes[:4], videos=tuple(videos)).save()
    return folder


def execution_of(encoder):
    return Execution.choose(encoder, device=torch.device("cpu"), precision="fp32", layout="no")


def evaluate(*arguments):
    cli(["evaluate", *map(str, arguments), "--workers", "0", "--precision", "fp32"])


def numbers(path):
    values = json.loads(path.read_text())
    assert read_evaluation(values).to_json() == values  # it fits its schema
    return values


def error_of(capsys, *arguments):
    """The one sentence with which a command refuses."""
    with pytest.raises(SystemExit) as exit_info:
        evaluate(*arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_info.value.code == 2 and len(lines) == 1, lines
    return lines[0]


# Views


def test_views__are_clips_by_crops():
    assert TestViews.parse("10x3") == TestViews(10, 3) and str(TestViews(10, 3)) == "10x3"
    assert TestViews(10, 3).num_views == 30
    for text in ("10", "0x1", "x3", "10x", "3x-1"):
        with pytest.raises(UserError, match=rf"--views {text} is not CLIPSxCROPS"):
            TestViews.parse(text)


def test_spread_crops__reach_from_end_to_end_of_the_longer_side():
    wide = spread_crops(3, width_px=160, height_px=120)
    assert [(c.left, c.top, c.width, c.height) for c in wide] == [
        (0, 0, 0.75, 1),
        (0.125, 0, 0.75, 1),
        (0.25, 0, 0.75, 1),
    ]
    high = spread_crops(3, width_px=120, height_px=160, fraction=0.5)
    assert [(c.left, c.top) for c in high] == [(0.25, 0), (0.25, 0.3125), (0.25, 0.625)]


def test_one_view__is_the_clip_that_training_code_evaluates(toy_folder):
    manifest, view = Manifest.load(toy_folder), make_encoder().view
    entries = entries_of(manifest, range(5))
    keys = [SampleKey(i, 0) for i in range(5)]
    ours = MultiViewClips(entries, view=view, views=TestViews()).read_batch(keys)
    theirs = PairedClips(entries, student_view=view).read_batch(keys)
    assert torch.equal(ours.student.values, theirs.student.values)
    assert torch.equal(ours.sample_ids, theirs.sample_ids) and torch.equal(ours.labels, theirs.labels)


def test_several_views__are_embedded_one_by_one_and_averaged(toy_folder):
    manifest, encoder = Manifest.load(toy_folder), make_encoder().eval()
    entries = entries_of(manifest, range(4))
    views = TestViews(2, 3)
    settings = ReadSettings(views=views, num_workers=0)
    found = extract_features(
        encoder, entries, execution=execution_of(encoder), accelerator=Accelerator(), settings=settings
    )
    assert found.views_nvd.shape == (4, 6, encoder.embed_dim) and found.num_clips == 4
    batch = MultiViewClips(entries, view=encoder.view, views=views).read_batch([SampleKey(2, 0)])
    with torch.no_grad():
        rows = encoder(normalise(batch.student, encoder.view))
    torch.testing.assert_close(found.views_nvd[2], rows, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.features[2], rows.mean(0), atol=1e-5, rtol=0)
    assert batch.sample_keys.tolist() == [[2, v] for v in range(6)]
    assert not torch.equal(batch.student.values[0], batch.student.values[3])  # another moment


def test_views__crops_of_a_modality_without_pictures_are_refused():
    kind = next(name for name in ("skeleton",) if not get_modality(name).is_picture)
    view = replace(make_encoder().view, modality=kind)
    TestViews(10, 1).require_fit(view)
    with pytest.raises(UserError, match="is no picture, so 3 crops of it are equal: give --views 10x1"):
        TestViews(10, 3).require_fit(view)


# The command


def test_command__every_protocol_reports_interval_coverage_and_views(student, small_folder, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    protocols = ["knn", "linear", "linear-sweep", "cluster", "retrieval", "lowshot"]
    options = ["--shots", "1%", "2", "--draws", 2, "--views", "2x1", "--k", 1, 3, "--bootstrap", 50]
    evaluate(student, "--data", small_folder, "--protocols", *protocols, *options, "--json", path)
    values = numbers(path)
    names = ["1-nn", "3-nn", "linear", "linear-sweep", "cluster", "retrieval", "lowshot-1%", "lowshot-2"]
    assert list(values["results"]) == names
    printed = capsys.readouterr().out
    for bar, num_layers in (("linear-sweep", 18), ("lowshot-1%", 2), ("lowshot-2", 2)):
        assert re.search(rf", {bar} {num_layers}/{num_layers} layers", printed)
    for name in names:
        result = values["results"][name]
        assert result["num_test"] == values["num_test"] and result["coverage"] == 1 and result["views"] == "2x1"
        for measure in ("top1", "top5", "mean_class"):
            low, high = result["intervals"][measure]
            assert 0 <= low <= high <= 1
        assert name in printed and f"{result['top1']:.1%}" in printed
    assert set(values["results"]["retrieval"]["intervals"]) >= {"recall_at_10", "recall_at_20", "recall_at_50"}
    assert "R@50" in printed and "views 2x1" in printed and "95% interval" in printed
    assert values["bootstrap"]["num_draws"] == 50


def test_command__splits_and_their_mean_embed_each_video_once(student, small_folder, tmp_path, capsys, monkeypatch):
    embedded = []
    extract = feature_store.extract_features
    monkeypatch.setattr(
        feature_store,
        "extract_features",
        lambda encoder, entries, **o: embedded.append(len(entries)) or extract(encoder, entries, **o),
    )
    path, alone = tmp_path / "numbers.json", tmp_path / "alone.json"
    evaluate(student, "--data", small_folder, "--split", 1, 2, "--protocols", "knn", "--json", path)
    assert sum(embedded) == len(Manifest.load(small_folder).videos)
    values = numbers(path)
    assert values["split"] == "1 + 2" and list(values["splits"]) == ["1", "2"]
    mean = np.mean([values["splits"][split]["results"]["1-nn"]["top1"] for split in "12"])
    assert values["results"]["1-nn"]["top1"] == pytest.approx(mean, abs=1e-15)
    assert "split 1 + 2, views 1x1 (mean)" in capsys.readouterr().out
    evaluate(student, "--data", small_folder, "--split", 2, "--protocols", "knn", "--json", alone)
    assert numbers(alone) == values["splits"]["2"]
    assert sum(embedded) == len(Manifest.load(small_folder).videos)


def learned_from(folder, split, *, seed=0, dataset="toyactions", name="rgb_tiny3d_8"):
    """Write a run's folder whose student says that it was trained on a split's train part."""
    facts = {"supervised": False, "datasets": [dataset], "split": split}
    save_student(make_encoder(name, seed=seed), folder / "student", facts=facts)
    return folder


def test_command__test_clips_that_the_student_was_trained_on_are_counted_and_printed(small_folder, tmp_path, capsys):
    run, path = learned_from(tmp_path / "run", "1"), tmp_path / "numbers.json"
    evaluate(run, "--data", small_folder, "--split", 1, 2, "--protocols", "knn", "--json", path)
    values = numbers(path)
    num_seen = values["splits"]["2"]["num_test"]  # split 2 swaps the parts
    assert values["splits"]["1"]["num_test_seen"] == 0
    assert values["splits"]["2"]["num_test_seen"] == values["num_test_seen"] == num_seen > 0
    printed = capsys.readouterr().out
    assert printed.count("no test: the student was trained on") == 2  # of split 2, and of the mean
    assert f"was trained on {num_seen} of these test clips" in printed
    other = learned_from(tmp_path / "other", "1", dataset="kinetics")
    evaluate(other, "--data", small_folder, "--split", 2, "--protocols", "knn", "--json", path)
    assert numbers(path)["num_test_seen"] == 0 and "no test:" not in capsys.readouterr().out


def test_command__a_student_for_each_split(small_folder, tmp_path, capsys):
    """The mean of students that never saw a test clip: each is tested on its own split alone."""
    path = tmp_path / "numbers.json"
    runs = {split: learned_from(tmp_path / f"run-{split}", split, seed=int(split)) for split in "12"}
    options = ["--data", small_folder, "--protocols", "knn", "--json", path]
    evaluate(tmp_path / "run-{split}", "--split", 1, 2, *options)
    mean = numbers(path)
    assert mean["num_test_seen"] == 0 and "no test:" not in capsys.readouterr().out
    for split, run in runs.items():
        evaluate(run, "--split", split, *options)
        assert numbers(path) == mean["splits"][split]
    assert mean["splits"]["1"]["results"]["1-nn"]["top1"] != mean["splits"]["2"]["results"]["1-nn"]["top1"]
    assert (runs["1"] / "features").is_dir() and (runs["2"] / "features").is_dir()


def test_command__fuses_students_of_each_split(small_folder, tmp_path):
    path = tmp_path / "numbers.json"
    for split in "12":
        learned_from(tmp_path / f"rgb-{split}", split, seed=int(split))
        learned_from(tmp_path / f"flow-{split}", split, name="flow_tiny3d_8")
    names = [str(tmp_path / "rgb-{split}"), str(tmp_path / "flow-{split}")]
    evaluate(*names, "--data", small_folder, "--split", 1, 2, "--protocols", "fusion", "agreement", "--json", path)
    values = numbers(path)
    assert list(values["students"]) == names and list(values["splits"]) == ["1", "2"]
    assert values["num_test_seen"] == 0
    evaluate(tmp_path / "rgb-2", tmp_path / "flow-2", "--data", small_folder, "--split", 2, "--protocols", "fusion",
             "agreement", "--json", path)  # fmt: skip
    assert numbers(path)["results"] == values["splits"]["2"]["results"]


def test_command__students_of_each_split_are_one_network(small_folder, tmp_path, capsys):
    learned_from(tmp_path / "run-1", "1")
    learned_from(tmp_path / "run-2", "2", name="flow_tiny3d_8")
    error = error_of(capsys, tmp_path / "run-{split}", "--data", small_folder, "--split", 1, 2)
    assert "run-{split} stands for different networks (rgb_tiny3d_8, flow_tiny3d_8)" in error
    assert "run-3" in error_of(capsys, tmp_path / "run-{split}", "--data", small_folder, "--split", 3)


def test_command__two_students_are_fused_and_compared(student, small_folder, tmp_path, capsys):
    other, path = tmp_path / "other", tmp_path / "numbers.json"
    save_student(make_encoder("flow_tiny3d_8", seed=1), other / "student", facts={})
    evaluate(student, other, "--data", small_folder, "--protocols", "fusion", "agreement", "--k", 1, "--json", path)
    values = numbers(path)
    assert values["encoder"] == "rgb_tiny3d_8 + flow_tiny3d_8"
    assert list(values["results"]) == ["fusion-1-nn", "fusion-linear", "fusion-retrieval"]
    assert list(values["students"]) == [str(student), str(other)]
    assert list(values["students"][str(other)]["results"]) == ["1-nn", "linear", "retrieval"]
    (agreement,) = values["agreement"]
    assert 0 <= agreement["overlap"] < 1 and agreement["students"] == [str(student), str(other)]
    printed = capsys.readouterr().out
    assert "run – other" in printed and printed.count("test clips evaluated") == 3
    for title in ("run (rgb_tiny3d_8) on", "other (flow_tiny3d_8) on", "run + other (rgb_tiny3d_8 + flow_tiny3d_8)"):
        assert title in " ".join(printed.split())
    evaluate(student, other, "--data", small_folder, "--protocols", "agreement", "knn", "--k", 1)
    assert "features centred" in printed and capsys.readouterr().out.count("could not be read") == 3


def test_command__gains_over_the_first_student_have_paired_intervals(student, small_folder, tmp_path, capsys):
    """A cross-validation over training people: the intervals draw people, and test clips of split 1 are never read."""
    manifest, path = Manifest.load(small_folder), tmp_path / "numbers.json"
    train = manifest.select(split="1", part="train")
    person_of = {train[k]: f"s{k % 3}" for k in range(len(train))}
    videos = [replace(video, group=person_of.get(i, "x")) for i, video in enumerate(manifest.videos)]
    folder = tmp_path / "people"
    shutil.copytree(small_folder, folder, symlinks=True)
    replace(manifest, root=folder, videos=tuple(videos)).save()
    other, splits = learned_from(tmp_path / "other", "1@s1", seed=1), ["1@s0", "1@s1"]
    evaluate(student, other, "--data", folder, "--split", *splits, "--protocols", "knn", "--k", 1, "--json", path)
    values, printed = numbers(path), capsys.readouterr().out
    first, second = (read_evaluation(values["students"][str(name)]) for name in (student, other))
    gain = cd.paired_gains(second, first, names=(str(other), str(student)))["1-nn"]
    assert values["gains"] == [json.loads(json.dumps(gain.to_json()))]
    assert gain.gain == pytest.approx(second.top1 - first.top1, abs=1e-12)
    assert first.bootstrap == gain.bootstrap and (gain.bootstrap.unit, gain.bootstrap.num_units) == ("group", 2)
    tested = [second.splits[split].test_videos for split in splits]
    people = [{videos[i].name for i in train if person_of[i] == person} for person in ("s0", "s1")]
    assert [set(names) for names in tested] == people and gain.num_test == sum(map(len, people))
    assert [second.splits[split].num_test_seen for split in splits] == [len(people[0]), 0]  # learned all but s1
    assert "points of top-1 over run: toyactions" in printed and " ".join(gain_text(gain)) in " ".join(printed.split())
    rough = "drawn from 2 groups; intervals of so few units are rough, and rather too narrow"
    assert f"gains, with both students on the same draws: 2000 test sets {rough}" in printed


def test_command__fusion_shows_the_members_own_results_besides_those_asked_for(student, small_folder, tmp_path):
    other, path = tmp_path / "other", tmp_path / "numbers.json"
    save_student(make_encoder(seed=1), other / "student", facts={})
    options = ["--protocols", "cluster", "fusion", "--k", 1, "--bootstrap", 0]
    evaluate(student, other, "--data", small_folder, *options, "--json", path)
    assert list(numbers(path)["students"][str(other)]["results"]) == ["cluster", "1-nn", "linear", "retrieval"]


def test_command__finetune_changes_the_weights_and_reuses_a_finished_run(student, small_folder, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    options = ["--protocols", "finetune", "--finetune-epochs", 2, "--finetune-batch-size", 8, "--views", "2x1"]
    evaluate(student, "--data", small_folder, *options, "--json", path)
    first = numbers(path)
    result = first["results"]["finetune"]
    assert result["views"] == "2x1" and result["details"]["epochs"] == 2
    weights = student / result["details"]["run"] / "student" / "student.safetensors"
    start = load_file(student / "student" / "student.safetensors")
    assert any(not torch.equal(value, start[name]) for name, value in load_file(weights).items())
    written = weights.stat().st_mtime_ns
    evaluate(student, "--data", small_folder, *options, "--json", path)
    assert numbers(path) == first and weights.stat().st_mtime_ns == written


def test_command__names_classes_without_training_clips_before_it_starts(student, small_folder, tmp_path, capsys):
    name = Manifest.load(small_folder).classes[2]
    path = tmp_path / "numbers.json"
    evaluate(student, "--data", small_folder, "--split", 4, "--protocols", "lowshot", "--shots", 1, "--json", path)
    assert capsys.readouterr().out.startswith(f"no training clip of split 4 shows {name}: test clips of this class")
    assert numbers(path)["results"]["lowshot-1"]["details"]["classes_without_training_clips"] == [2]


def test_fine_tune__errors_name_the_options_of_evaluate(monkeypatch):
    def run(config, accelerator, *, is_common):
        raise UserError("needs 50 clips: choose --batch-size 24 or less, or raise --epochs")

    monkeypatch.setattr(finetune, "run", run)
    monkeypatch.setattr(finetune, "decide_on_first", lambda *_: False)
    config = RunConfig(machine=MachineConfig(out=Path("x")))
    monkeypatch.setattr(finetune, "finetune_config", lambda *_, **__: config)
    with pytest.raises(UserError, match="choose --finetune-batch-size 24 or less, or raise --finetune-epochs"):
        finetune.fine_tune(None, Path("x"), data=Path("x"), split="1", accelerator=None)


def test_entries_of_part__dataset_without_test_clips_names_the_option_that_draws_them(tmp_path):
    manifest = Manifest(tmp_path, "folder", ("a",), (Video("a/1.mp4", 0, splits={"1": "train"}),))
    with pytest.raises(UserError, match=r"no test clips: prepare it again .* folder draws .* with --test-share 0\.2"):
        entries_of_part(manifest, "1", "test")


# Bad input: one sentence, before a weight is read


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(
        "crossdistill.evaluation.evaluate_students.load_student", lambda *_, **__: pytest.fail("too late")
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--split", "7"], "has no split '7': choose one of 1, 2, 3, 4"),
        (["--split", "3"], "split '3' of .* has no test clips: choose another --split, such as 1"),
        (["--split", "1", "1"], "--split 1 1: name one or more, each once"),
        (["--protocols", "fusion"], "--protocols fusion compares students, and one was given: name two or more"),
        (["--protocols", "knnn"], "unknown protocol 'knnn': .*did you mean 'knn'"),
        (["--views", "3"], "--views 3 is not CLIPSxCROPS"),
        (["--shots", "0"], "--shots 0 is neither a share nor a number"),
        (["--k", "0"], "--k is 0: give numbers of neighbours from 1 on"),
        (["--draws", "0"], "--draws is 0: give 1 or more"),
        (["--bootstrap", "-1"], r"--bootstrap is -1: give 0 \(no intervals\) or more"),
        (["--protocols"], "--protocols is empty: name one or more"),
        (["--finetune-epochs", "0"], "--finetune-epochs 0.* must be above 0"),
        (["--features", __file__], "is not a writable folder"),
    ],
)
def test_bad_options__are_one_sentence(student, small_folder, capsys, nothing_is_loaded, options, sentence):
    assert re.search(sentence, error_of(capsys, student, "--data", small_folder, *options))


def test_student_of_another_modality__is_one_sentence(small_folder, tmp_path, capsys, nothing_is_loaded):
    save_student(make_encoder("depth_tiny3d_8"), tmp_path / "deep", facts={})
    sentence = error_of(capsys, tmp_path / "deep", "--data", small_folder)
    assert "deep (depth_tiny3d_8) needs the stream 'depth'" in sentence and "has only flow, rgb" in sentence


def test_student_of_a_newer_version__is_one_sentence(student, toy_folder, capsys, nothing_is_loaded):
    path = student / "student" / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    assert "has format version 99, this crossdistill reads up to 1" in error_of(capsys, student, "--data", toy_folder)


def test_corrupt_weights__are_one_sentence(student, toy_folder, capsys):
    path = student / "student" / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "is not a complete safetensors file" in error_of(capsys, student, "--data", toy_folder)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickled_weights__are_refused_and_never_run(student, toy_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    assert "is a file, and a student is a folder" in error_of(capsys, path, "--data", toy_folder)
    shutil.copy(path, student / "student" / "student.safetensors")
    assert "could execute unknown code" in error_of(capsys, student, "--data", toy_folder)
    assert not (tmp_path / "exploded").exists()


# The feature store


def kept(encoder, manifest, folder, *, views=TestViews(), positions=range(6)):  # noqa: B008 - frozen
    return kept_features(
        encoder,
        entries_of(manifest, positions),
        folder=folder,
        dataset=manifest.dataset,
        execution=execution_of(encoder),
        accelerator=Accelerator(),
        settings=ReadSettings(views=views, num_workers=0),
    )


@pytest.fixture
def embedded(monkeypatch):
    """Names of the videos that were embedded."""
    names = []
    extract = feature_store.extract_features

    def counting(encoder, entries, **options):
        names.extend(entry.video.name for entry in entries)
        return extract(encoder, entries, **options)

    monkeypatch.setattr(feature_store, "extract_features", counting)
    return names


def test_store__embeds_each_video_once_for_each_key(toy_folder, tmp_path, embedded):
    manifest, encoder = Manifest.load(toy_folder), make_encoder().eval()
    first = kept(encoder, manifest, tmp_path)
    again = kept(encoder, manifest, tmp_path, positions=range(8))
    assert embedded == [video.name for video in manifest.videos[:8]]
    assert torch.equal(again.views_nvd[:6], first.views_nvd) and again.videos == tuple(embedded)
    fewer = kept(encoder, manifest, tmp_path, positions=[4, 1])
    assert torch.equal(fewer.views_nvd, first.views_nvd[[4, 1]]) and len(embedded) == 8
    kept(make_encoder(seed=1).eval(), manifest, tmp_path, positions=[0])
    kept(encoder, manifest, tmp_path, positions=[0], views=TestViews(2, 1))
    assert len(embedded) == 10 and len(list(tmp_path.iterdir())) == 3


def test_store__a_video_that_was_prepared_again_or_lost_is_read_again(toy_folder, tmp_path, embedded):
    manifest, encoder = Manifest.load(toy_folder), make_encoder().eval()
    kept(encoder, manifest, tmp_path)
    first, second, *rest = manifest.videos
    renewed = {"rgb": replace(first.streams["rgb"], sha256="00")}
    lost = {"rgb": second.streams["rgb"].at("rgb/nowhere.mp4")}
    videos = (replace(first, streams=renewed), replace(second, streams=lost), *rest)
    found = kept(encoder, replace(manifest, videos=videos), tmp_path)
    assert embedded[6:] == [first.name, second.name]
    assert found.num_clips == 5 and list(found.unreadable) == [f"{toy_folder}/{second.name}"]
    assert found.coverage == 5 / 6 and found.videos[0] == first.name


def test_store__a_damaged_or_foreign_file_is_replaced(toy_folder, tmp_path, embedded, capsys):
    manifest, encoder = Manifest.load(toy_folder), make_encoder().eval()
    whole = kept(encoder, manifest, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for damaged in (content[:-9], b"x", content.replace(b"rgb_tiny3d_8", b"rgb_tiny3d_9")):
        path.write_bytes(damaged)
        assert torch.equal(kept(encoder, manifest, tmp_path).views_nvd, whole.views_nvd)
        assert "cannot be used" in capsys.readouterr().out
    assert len(embedded) == 24


def test_store__key_differs_for_everything_that_changes_a_feature(toy_folder):
    encoder = make_encoder().eval()
    options = {"execution": execution_of(encoder), "dataset": "toy", "views": TestViews(), "short_clips": "repeat"}
    key = feature_key(encoder, **options)
    others = [
        feature_key(make_encoder(seed=1), **options),
        feature_key(make_encoder(num_frames=4), **options),
        feature_key(encoder, **{**options, "dataset": "other"}),
        feature_key(encoder, **{**options, "views": TestViews(2, 1)}),
        feature_key(encoder, **{**options, "short_clips": "loop"}),
        feature_key(encoder, **{**options, "decoder": "decord"}),
        feature_key(encoder, **{**options, "execution": replace(options["execution"], precision="bf16")}),
        feature_key(encoder, **{**options, "perturbation": Perturbation("jpeg", 1)}),
        feature_key(encoder, **{**options, "perturbation": Perturbation("jpeg", 2)}),
    ]
    assert feature_key(encoder, **{**options, "short_clips": "error"}) == key
    assert len({FeatureStore(toy_folder, each).path for each in (key, *others)}) == 10


# Processes


def test_evaluate_encoder__does_not_depend_on_how_batches_are_dealt_out(toy_folder, monkeypatch):
    """Two processes in turn, each with its own batches, give the rows of one to the bit."""
    manifest, encoder = Manifest.load(toy_folder), make_encoder().eval()
    entries = entries_of(manifest, range(9))
    options = {"execution": execution_of(encoder), "settings": ReadSettings(num_workers=0), "batch_size": 4}
    whole = extract_features(encoder, entries, accelerator=Accelerator(), **options)

    class Part:
        num_processes, is_main_process, device = 2, False, torch.device("cpu")

        def __init__(self, index):
            self.process_index = index

    monkeypatch.setattr("crossdistill.evaluation.features.gather_objects", lambda _, items: items)
    monkeypatch.setattr("crossdistill.evaluation.features.broadcast_buffers", lambda *_: None)
    parts = [extract_features(encoder, entries, accelerator=Part(i), **options) for i in range(2)]
    assert sorted(parts[0].videos + parts[1].videos) == sorted(whole.videos)
    rows = {name: row for part in parts for name, row in zip(part.videos, part.views_nvd, strict=True)}
    assert torch.equal(torch.stack([rows[name] for name in whole.videos]), whole.views_nvd)


@pytest.mark.slow
def test_two_processes__write_the_json_of_one(student, small_folder, tmp_path):
    shared = ["--data", small_folder, "--views", "2x1", "--workers", 1, "--precision", "fp32"]
    shared += ["--protocols", "knn", "linear", "retrieval", "cluster", "lowshot", "calibration", "robustness", "order"]
    shared += ["--shots", 2, "--families", "h264", "shot-noise", "--severities", 1]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    files = []
    for processes in (1, 2):
        files.append(tmp_path / f"{processes}.json")
        launcher = [sys.executable, "-W", "ignore", "-m"]
        if processes > 1:
            launcher += ["torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
            launcher += ["--rdzv_endpoint", "localhost:0", "-m"]
        command = [*launcher, "crossdistill", "evaluate", student, *shared, "--json", files[-1]]
        command += ["--features", tmp_path / f"features{processes}"]
        subprocess.run([str(word) for word in command], env=environment, check=True, timeout=PATIENCE_SECONDS)
    one, two = (path.read_text() for path in files)
    assert one == two and json.loads(one)["num_test"] > 10


def test_evaluate_encoder__without_labels_is_one_sentence(toy_folder):
    encoder = make_encoder()
    manifest = replace(Manifest.load(toy_folder), classes=())
    with pytest.raises(UserError, match="has no labels"):
        evaluate_encoder(
            encoder,
            manifest,
            split="1",
            execution=execution_of(encoder),
            accelerator=Accelerator(),
            reading=ReadSettings(num_workers=0),
        )
