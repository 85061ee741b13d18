"""A proxy teacher: several teachers teach a large student, and that one teaches the small student."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_process import cache, check_configuration
from in_process import train as main
from safetensors.torch import load_file

import crossdistill
from crossdistill.data.manifest import Manifest
from crossdistill.encoders.weights import weights_hash
from crossdistill.recipes.config import parse
from crossdistill.recipes.identity import choose_folder, identity
from crossdistill.recipes.proxy import proxy_stage, student_stage
from crossdistill.recipes.teachers import teacher_sources
from crossdistill.report.facts import headline
from crossdistill.report.record import read_run
from crossdistill.training.run_folder import MetricsLog, RunFolder

FIXED = ["--epochs", 1, "--batch-size", 8, "--workers", 0, "--tracker", "none", "--knn-clips", 0]
FIXED += ["--log-every-steps", 1, "--objective", "compress-1q", "--bank-size", 30]
STUDENT = ["--student", "depth_tiny3d_8", "--student-frames", 4, "--student-size", 16]
PROXY = ["--proxy", "rgb_tiny3d_16", "--proxy-frames", 5, "--proxy-stride", 1, "--proxy-size", 24]
TWO = ["--teacher", "rgb_tiny3d_8", "flow_tiny3d_8", "--teacher-frames", 4, "--teacher-size", 16]


@pytest.fixture(scope="module")
def taught_by(tmp_path_factory):
    """Options of two teachers whose weights are in folders."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in enumerate(("rgb_tiny3d_8", "flow_tiny3d_8")):
        torch.manual_seed(seed)
        teacher = crossdistill.create_encoder(name, num_frames=4, size_px=16)
        crossdistill.save_student(teacher, folder / name / "student", facts={})
    return [*TWO, "--teacher-weights", folder / "rgb_tiny3d_8", folder / "flow_tiny3d_8"]


@pytest.fixture(scope="module")
def finished(taught_by, toy_folder, tmp_path_factory):
    """A finished run through a proxy, whose objective standardises and leaves out teachers."""
    out = tmp_path_factory.mktemp("runs") / "run"
    more = ["--objective", "compress-1q", "smooth-l1", "--standardize", "mean-variance", "--teacher-drop", 0.3]
    train(*taught_by, *PROXY, *more, "--data", toy_folder, "--out", out, "--keep-checkpoints")
    return out


def train(*options):
    main([*FIXED, *STUDENT, *options])


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def facts_of(folder):
    return json.loads((folder / "student" / "student.json").read_text())


def weights(folder):
    return load_file(folder / "student" / "student.safetensors")


def test_proxy__learns_from_all_teachers_and_the_student_from_it_alone(finished, taught_by):
    proxy, student = facts_of(finished / "proxy"), facts_of(finished)
    assert proxy["encoder"] == "rgb_tiny3d_16" and not proxy["training"]["supervised"]
    assert {key: proxy["view"][key] for key in ("num_frames", "stride", "size_px")} == {
        "num_frames": 5,
        "stride": 1,
        "size_px": 24,
    }
    assert proxy["training"]["teacher"] == "rgb_tiny3d_8 and flow_tiny3d_8"
    assert [one["weights"] for one in proxy["training"]["teachers"]] == [str(path) for path in taught_by[-2:]]
    assert {"compress-1q@1", "compress-1q@2"} <= metrics(finished / "proxy")[0].keys()
    assert student["training"]["teacher"] == "rgb_tiny3d_16"
    taught = weights_hash(crossdistill.load_student(finished / "proxy"))
    assert student["training"]["teacher_weights_sha256"] == taught
    assert student["training"]["teachers_of_proxy"] == proxy["training"]["teachers"]
    assert "compress-1q" in metrics(finished)[0] and "compress-1q@1" not in metrics(finished)[0]


def test_proxy__is_a_row_of_its_own_beside_its_teachers(finished):
    (by_role,) = json.loads((finished / "results.json").read_text()).values()
    assert {role: evaluation["encoder"] for role, evaluation in by_role.items()} == {
        "teacher 1": "rgb_tiny3d_8",
        "teacher 2": "flow_tiny3d_8",
        "proxy": "rgb_tiny3d_16",
        "student, random": "depth_tiny3d_8",
        "student, distilled": "depth_tiny3d_8",
    }
    assert not (finished / "proxy" / "results.json").exists()


def test_proxy__can_be_evaluated_as_a_run(finished, toy_folder):
    (by_role,) = json.loads((finished / "results.json").read_text()).values()
    found = crossdistill.Run(finished / "proxy").evaluate(protocols=["knn"], workers=0, bootstrap=0)
    assert found.top1 == by_role["proxy"]["results"]["1-nn"]["top1"]


def test_report__names_the_proxy_and_finds_it_in_a_moved_run(finished, tmp_path):
    moved = shutil.copytree(finished, tmp_path / "moved")
    record_of_start = facts_of(moved)["training"]["teachers"][0]["weights"]
    text = json.dumps(facts_of(moved)).replace(record_of_start, str(tmp_path / "gone"))
    (moved / "student" / "student.json").write_text(text)
    named = "rgb_tiny3d_16, the proxy of rgb_tiny3d_8 and flow_tiny3d_8"
    assert headline(read_run(moved)) == f"depth_tiny3d_8, distilled on toyactions from {named}."
    page = crossdistill.Run(moved).report(workers=0, clips=24, gallery=2).read_text()
    assert named in page and "the network cannot be loaded" not in page
    cost = page[page.index('id="cost"') :]
    assert "rgb_tiny3d_16" in cost and "depth_tiny3d_8" in cost


def test_resume__evaluates_again_and_refuses_another_proxy(
    finished, taught_by, toy_folder, tmp_path, capsys, monkeypatch
):
    copy = shutil.copytree(finished, tmp_path / "run")
    more = ["--objective", "compress-1q", "smooth-l1", "--standardize", "mean-variance", "--teacher-drop", 0.3]
    options = [*taught_by, *PROXY, *more, "--data", toy_folder, "--out", copy]
    before = (copy / "results.json").read_text()
    (copy / "results.json").unlink()
    assert "already holds a run: add --resume" in wrong(capsys, *options)
    kept = (copy / "proxy" / "student" / "student.safetensors").stat().st_mtime_ns
    train(*options, "--resume", "--keep-checkpoints")
    assert (copy / "results.json").read_text() == before
    assert (copy / "proxy" / "student" / "student.safetensors").stat().st_mtime_ns == kept, "it is not trained again"
    assert "another --proxy-size (24, now 16)" in wrong(capsys, *options, "--resume", "--proxy-size", 16)
    assert "another --epochs (1, now 2)" in wrong(capsys, *options, "--resume", "--epochs", 2)


def test_proxy__works_from_python_with_mixed_clips_and_rounds(taught_by, toy_folder, tmp_path):
    names = {"student": "depth_tiny3d_8", "student_frames": 4, "student_size": 16, "data": toy_folder, "epochs": 1}
    few = {"batch_size": 8, "workers": 0, "tracker": "none", "knn_clips": 0, "bank_size": 30, "mix": True}
    teachers = {"teacher": TWO[1:3], "teacher_weights": taught_by[-2:], "teacher_frames": 4, "teacher_size": 16}
    proxy = {"proxy": "rgb_tiny3d_16", "proxy_frames": 4, "proxy_size": 16}
    run = crossdistill.distill(**names, **few, **teachers, **proxy, rounds=2, out=tmp_path / "run")
    (by_role,) = run.results.values()
    assert list(by_role) == [
        *("teacher 1", "teacher 2", "proxy", "student, random"),
        *("student, distilled, round 1", "student, distilled, round 2"),
    ]
    assert facts_of(tmp_path / "run" / "round-1")["training"]["teacher"] == "rgb_tiny3d_16"
    assert facts_of(tmp_path / "run" / "round-2")["training"]["teacher"] == "depth_tiny3d_8"
    assert not (tmp_path / "run" / "round-2" / "proxy").exists()


def test_proxy__without_labels_is_compared_with_its_teachers_and_the_student_with_all(taught_by, toy_folder, tmp_path):
    folder = shutil.copytree(toy_folder, tmp_path / "pile")
    manifest = Manifest.load(folder)
    videos = tuple(replace(video, label=None, splits={}, group=None) for video in manifest.videos[::3])
    replace(manifest, classes=(), videos=videos).save()
    train(*taught_by[:2], *taught_by[3:-1], *PROXY, "--data", folder, "--out", tmp_path / "run")
    (by_role,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    compared = {role: [pair["students"][1] for pair in one["agreement"]] for role, one in by_role.items()}
    assert compared == {  # one teacher needs no number
        "teacher": [],
        "proxy": ["teacher"],
        "student, random": ["proxy", "teacher"],
        "student, distilled": ["proxy", "teacher"],
    }


def wrong(capsys, *options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        train(*options)
    assert exit_info.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([*PROXY, "--supervised"], "--proxy rgb_tiny3d_16 learns from teachers and --supervised learns from labels"),
        ([*PROXY, "--teacher", "self"], "--proxy rgb_tiny3d_16 learns from frozen teachers, and --teacher self"),
        ([*TWO, *PROXY, "--objective", "kd"], "--proxy needs a classifier of the proxy, and --objective kd leaves"),
        ([*TWO, *PROXY[2:4]], "--proxy-frames 5 has no effect without --proxy: name the proxy, or remove it"),
        ([*TWO, "--proxy", "rgb_tiny3d_61"], "unknown encoder 'rgb_tiny3d_61'"),
        ([*TWO, *PROXY, "--student", "nothing"], "nothing"),
        (PROXY, "no teacher was given"),
        ([*TWO, *PROXY, "--teacher-weights", "nowhere"], "nowhere does not exist"),
        # Of the student's stage, which comes second.
        ([*TWO, *PROXY, "--student-weights", "nowhere"], "--student-weights nowhere does not exist"),
        (
            [*TWO, *PROXY, "--short-clips", "error", "--student-frames", 20],
            "72 of 72 videos are shorter than a clip, which --short-clips error refuses",
        ),
        ([*TWO, *PROXY, "--bank-size", 10**12, "--epochs", 10**12], "a bank of 1000000000000 anchors needs"),
    ],
)
def test_wrong_options__are_named_before_anything_is_made(options, sentence, toy_folder, tmp_path, capsys):
    found = wrong(capsys, "--data", toy_folder, "--out", tmp_path / "run", *options)
    assert sentence in found, found
    assert list(tmp_path.iterdir()) == []


# Cached teachers.

CACHED = ["--objective", "compress-1q", "smooth-l1", "--teacher-drop", 0.3, "--precision", "fp32", "--lr", 0.002]
CACHED += ["--epochs", 2, "--no-evaluate"]
LIVE_PROXY = [each.replace("--proxy", "--student") if isinstance(each, str) else each for each in PROXY]


@pytest.fixture(scope="module")
def cached(taught_by, data_folder, tmp_path_factory):
    """A cache of what both teachers say about the clips of the proxy. One training video has no colour."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    options = ["--data", data_folder, "--workers", 0, "--precision", "fp32", "--augmentations", 2, "--dtype", "fp32"]
    cache([*LIVE_PROXY, *taught_by, *options, "--out", folder])
    return folder


@pytest.fixture(scope="module")
def from_cache(cached, data_folder, tmp_path_factory):
    """A finished run through a proxy that learned from the cache."""
    out = tmp_path_factory.mktemp("runs") / "cached"
    train("--teacher-cache", cached, *PROXY, *CACHED, "--data", data_folder, "--out", out)
    return out


def losses(folder):
    return [line["loss"] for line in metrics(folder)]


@pytest.mark.parametrize("standardize", ["auto", "mean-variance"])
def test_proxy__of_cached_teachers_is_that_of_live_ones(
    taught_by, cached, from_cache, data_folder, tmp_path, standardize
):
    options = [*CACHED, "--standardize", standardize, "--data", data_folder]
    train(*taught_by, *PROXY, *options, "--out", tmp_path / "live")
    if standardize != "auto":
        from_cache = tmp_path / "cached"
        train("--teacher-cache", cached, *PROXY, *options, "--out", from_cache)
    for stage in ("proxy", "."):
        expected, found = losses(tmp_path / "live" / stage), losses(from_cache / stage)
        assert len(found) >= 8 and found == pytest.approx(expected, rel=1e-3)
        assert max(found) - min(found) > 1e-3
        for name, values in weights(tmp_path / "live" / stage).items():
            torch.testing.assert_close(weights(from_cache / stage)[name], values, rtol=1e-3, atol=1e-3)
    assert {"compress-1q@1", "smooth-l1@2"} <= metrics(from_cache / "proxy")[0].keys()
    proxy, student = facts_of(from_cache / "proxy")["training"], facts_of(from_cache)["training"]
    assert proxy["num_unreadable"] == 1 and proxy["teacher"] == "rgb_tiny3d_8 and flow_tiny3d_8"
    assert student["teacher"] == "rgb_tiny3d_16" and student["teachers_of_proxy"] == proxy["teachers"]
    assert [one["weights"] for one in proxy["teachers"]] == [str(path) for path in taught_by[-2:]]


def test_proxy__of_cached_teachers_is_resumed_in_either_stage(
    taught_by, cached, from_cache, data_folder, tmp_path, monkeypatch
):
    """The bits are those of the run that nobody stopped, although the weights of the teachers are gone."""
    out, write = tmp_path / "killed", MetricsLog.write
    options = ["--teacher-cache", cached, *PROXY, *CACHED, "--data", data_folder, "--out", out, "--resume"]
    options += ["--checkpoint-every-steps", 2]

    class Killed(BaseException):
        pass

    for name in taught_by[-2:]:
        name.rename(name.with_name(f"{name.name}-away"))
    try:
        for stage in (out / "proxy", out):

            def write_and_die(log, step, values, stage=stage):
                write(log, step, values)
                if log._file.name == str(stage / "metrics.jsonl") and step == 5:
                    raise Killed

            monkeypatch.setattr(MetricsLog, "write", write_and_die)
            with pytest.raises(Killed):
                train(*options)
            assert len(losses(stage)) == 5 and (stage == out) == (out / "metrics.jsonl").exists()
        monkeypatch.setattr(MetricsLog, "write", write)
        train(*options)
    finally:
        for name in taught_by[-2:]:
            name.with_name(f"{name.name}-away").rename(name)
    for stage in ("proxy", "."):
        assert losses(out / stage) == losses(from_cache / stage)
        found, expected = (folder / stage / "student" / "student.safetensors" for folder in (out, from_cache))
        assert found.read_bytes() == expected.read_bytes()


def test_cache__of_the_proxy_teaches_the_student_as_the_proxy_does(from_cache, data_folder, tmp_path):
    options = ["--data", data_folder, "--workers", 0, "--precision", "fp32"]
    view = ["--teacher-frames", 5, "--teacher-stride", 1, "--teacher-size", 24]
    proxy = ["--teacher", "rgb_tiny3d_16", "--teacher-weights", from_cache / "proxy", *view]
    folder = tmp_path / "cache"
    cache([*STUDENT, *proxy, *options, "--augmentations", 2, "--dtype", "fp32", "--out", folder])
    train("--teacher-cache", folder, *CACHED[:3], *CACHED[5:], "--data", data_folder, "--out", tmp_path / "run")
    assert losses(tmp_path / "run") == pytest.approx(losses(from_cache), rel=1e-3)


def test_cached_teachers__of_a_proxy_are_compared_where_there_are_no_labels(taught_by, toy_folder, tmp_path):
    folder = shutil.copytree(toy_folder, tmp_path / "pile")
    manifest = Manifest.load(folder)
    videos = tuple(replace(video, label=None, splits={}, group=None) for video in manifest.videos[::3])
    replace(manifest, classes=(), videos=videos).save()
    cache([*LIVE_PROXY, *taught_by, "--data", folder, "--workers", 0, "--augmentations", 1, "--out", tmp_path / "c"])
    train("--teacher-cache", tmp_path / "c", *PROXY, "--data", folder, "--out", tmp_path / "run")
    (by_role,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    encoders = {role: one["encoder"] for role, one in by_role.items()}
    assert encoders == {
        "teacher 1": "rgb_tiny3d_8",
        "teacher 2": "flow_tiny3d_8",
        "proxy": "rgb_tiny3d_16",
        "student, random": "depth_tiny3d_8",
        "student, distilled": "depth_tiny3d_8",
    }
    compared = {role: [pair["students"][1] for pair in one["agreement"]] for role, one in by_role.items()}
    assert compared["proxy"] == ["teacher 1", "teacher 2"]
    assert compared["student, distilled"] == ["proxy", "teacher 1", "teacher 2"]


def test_cached_teachers__say_for_whom_they_were_cached(cached, data_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cache([*STUDENT, *TWO, *PROXY, "--data", data_folder, "--augmentations", 1, "--out", tmp_path / "cache"])
    assert "give rgb_tiny3d_16 as --student of its teachers, or" in " ".join(capsys.readouterr().err.split())
    run = ["--teacher-cache", cached, *PROXY, "--data", data_folder, "--out", tmp_path / "run"]
    assert "has student_view.num_frames 5, but this run needs 3" in wrong(capsys, *run, "--proxy-frames", 3)


def test_sharding__is_for_the_proxy_where_its_teachers_are_cached(cached):
    config = parse([str(each) for each in (*STUDENT, *PROXY, "--teacher-cache", cached, "--teacher-sharding")])
    check_configuration(config)
    assert not proxy_stage(config, RunFolder(Path("run")), ("auto",)).machine.teacher_sharding
    assert student_stage(config, "p").machine.teacher_sharding


def test_stages__divide_the_options(toy_folder):
    options = [*FIXED, *STUDENT, *TWO, *PROXY, "--data", toy_folder, "--bits", "w4a8", "--student-weights", "s"]
    config = parse([str(option) for option in (*options, "--teacher-drop", 0.5, "--out", "runs/x", "--seed", 3)])
    first, second = proxy_stage(config, RunFolder(config.machine.out), ("a", "b")), student_stage(config, "p")
    assert (first.pair.student, first.pair.bits, first.pair.student_weights) == ("rgb_tiny3d_16", None, None)
    assert first.pair.student_view == {"num_frames": 5, "stride": 1, "size_px": 24}
    assert first.pair.teacher == config.pair.teacher and first.pair.teacher_weights == ("a", "b")
    assert first.objective.teacher_drop == 0.5 and first.machine.out == RunFolder(config.machine.out).proxy.path
    assert (second.pair.student, second.pair.bits, second.pair.student_weights) == ("depth_tiny3d_8", "w4a8", "s")
    assert second.pair.teacher == ("rgb_tiny3d_16",) and second.pair.teacher_size == (24,)
    assert second.objective.teacher_drop == 0 and second.machine == config.machine
    assert first.machine.seed == second.machine.seed == 3
    assert first.pair.proxy is second.pair.proxy is second.pair.proxy_size is None


def test_preset__has_a_view_of_the_proxy_where_there_is_one():
    pair = ["--teacher", "rgb_r3d10", "flow_r3d10", "--student", "flow_r3d10"]
    assert parse([*pair, "--proxy", "rgb_r3d18"]).pair.proxy_frames == 6
    assert parse(pair).pair.proxy_frames is None
    assert "proxy" not in str(identity(parse(pair))), "runs from before this option are known again"
    assert identity(parse([*pair, "--proxy", "rgb_r3d18"]))["pair"]["proxy"] == "rgb_r3d18"


def test_folder_without_out__names_the_proxy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse(["--teacher", "rgb_r3d10", "flow_r3d10", "--student", "flow_r3d10", "--proxy", "rgb_r3d18"])
    folder = choose_folder(config, teacher_sources(config))
    assert folder.name == "flow_r3d10-from-rgb_r3d10-and-flow_r3d10-through-rgb_r3d18"
