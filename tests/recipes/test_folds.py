"""``--folds``: teachers that have not seen the clips that they teach, from the options to the run's folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_process import cache as cache_command
from in_process import train as main
from killing import PATIENCE_SECONDS
from safetensors.torch import load_file

from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import load_student
from crossdistill.distillation.teacher_cache import TeacherCache
from crossdistill.distillation.teachers import CrossFittedTeacher
from crossdistill.recipes import folds as folds_module
from crossdistill.recipes.config import parse
from crossdistill.recipes.recorded_teachers import recorded_teachers
from crossdistill.report.networks import load_teachers
from crossdistill.report.options import ReportOptions
from crossdistill.report.record import read_run

PROJECT = Path(__file__).resolve().parents[2]
SHARED = [
    *("--epochs", 2, "--batch-size", 8, "--bank-size", 24, "--workers", 0, "--tracker", "none", "--knn-clips", 0),
    *("--precision", "fp32", "--log-every-steps", 1, "--lr", 0.002),
]
STUDENT = ["--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 16]
TEACHER = ["--teacher", "rgb_tiny3d_8", "--teacher-frames", 4, "--teacher-size", 16, "--teacher-epochs", 1]


def train(*options):
    main([*SHARED, *options])


def distil(*options):
    train(*TEACHER, *STUDENT, *options)


def facts(folder):
    return json.loads((folder / "student" / "student.json").read_text())["training"]


def weights(folder):
    return load_file(folder / "student" / "student.safetensors")


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def teachers(fold_teachers):
    return ["--teacher-weights", *fold_teachers, "--folds", 2]


@pytest.fixture
def assert_refused(capsys, toy_folder, tmp_path):
    def check(sentence, *options, command=distil):
        with pytest.raises(SystemExit) as stopped:
            command("--data", toy_folder, "--out", tmp_path / "refused", *options)
        error = " ".join(capsys.readouterr().err.split())
        assert stopped.value.code == 2 and re.search(sentence, error), error

    return check


def test_missing_teachers__are_trained_once_without_their_folds_and_teach_their_folds_alone(
    toy_folder, tmp_path, monkeypatch
):
    asked = []
    embed = CrossFittedTeacher.embed

    def watch(self, batch, **options):
        asked.append((self.folds_n[batch.sample_ids], batch.sample_ids, self.folds))
        return embed(self, batch, **options)

    monkeypatch.setattr(CrossFittedTeacher, "embed", watch)
    distil("--folds", 2, "--data", toy_folder, "--out", tmp_path / "run", "--keep-checkpoints")
    found = sorted((tmp_path / "teachers").iterdir(), key=lambda folder: facts(folder)["split"])
    assert [facts(folder)["split"] for folder in found] == ["1@1of2", "1@2of2"]
    manifest = Manifest.load(toy_folder)
    train_names = {f"{toy_folder}/{manifest.videos[i].name}" for i in manifest.select(split="1", part="train")}
    (mapping,) = {json.dumps(folds) for _, _, folds in asked}
    assert json.loads(mapping).keys() == train_names
    for number in (1, 2):
        of_fold = {name for name, fold in json.loads(mapping).items() if fold == number}
        held = {manifest.videos[i].name for i in manifest.select(split=f"1@{number}of2", part="test")}
        assert of_fold == {f"{toy_folder}/{name}" for name in held} and 0 < len(held) < len(train_names)
    assert all(bool((folds > 0).all()) for folds, _, _ in asked)
    (by_role,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    assert set(by_role) == {"teacher 1", "teacher 2", "student, random", "student, distilled"}
    recorded = recorded_teachers(facts(tmp_path / "run"))
    assert [Path(one.weights) for one in recorded] == [folder.absolute() for folder in found]
    assert facts(tmp_path / "run")["teacher"] == "rgb_tiny3d_8 and rgb_tiny3d_8"
    assert facts(tmp_path / "run")["folds"] == 2
    # Another student of the same teachers trains no teacher, and the report finds both.
    before = [(folder / "student" / "student.json").stat().st_mtime_ns for folder in found]
    distil("--folds", 2, "--data", toy_folder, "--out", tmp_path / "other", "--objective", "kd", "--no-evaluate")
    assert [(folder / "student" / "student.json").stat().st_mtime_ns for folder in found] == before
    assert not list((tmp_path / "other").glob("folds-*")), "class probabilities need no alignment"
    record = read_run(tmp_path / "run")
    loaded = list(load_teachers(record, load_student(tmp_path / "run"), manifest, ReportOptions()))
    assert [network.role for network in loaded] == ["teacher 1", "teacher 2"]


def test_resume__ends_with_the_same_bits_and_keeps_the_maps(teachers, toy_folder, tmp_path, monkeypatch):
    options = [*teachers, "--data", toy_folder, "--out", tmp_path / "run", "--keep-checkpoints", "--no-evaluate"]
    distil(*options, "--objective", "compress-1q", "simreg", "--standardize", "phi-s")
    expected = weights(tmp_path / "run")
    (maps,) = (tmp_path / "run").glob("folds-*.safetensors")
    assert set(load_file(maps)) == {f"{i}.{part}" for i in (0, 1) for part in ("mean", "rotation", "target_mean")}
    sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].unlink()
    monkeypatch.setattr("crossdistill.recipes.alignment.fit_alignments", None)  # the kept maps serve, not new ones
    distil(*options, "--objective", "compress-1q", "simreg", "--standardize", "phi-s", "--resume")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "run").items())


def test_folds__change_what_is_learned(teachers, fold_teachers, toy_folder, tmp_path):
    options = ["--data", toy_folder, "--no-evaluate", "--objective", "mse"]
    distil(*teachers, *options, "--out", tmp_path / "folds")
    distil("--teacher-weights", fold_teachers[0], *options, "--out", tmp_path / "one")
    assert losses(tmp_path / "folds") != losses(tmp_path / "one")


def unlabelled(toy_folder, folder):
    """A dataset of the test clips alone, without classes, labels and splits."""
    manifest = Manifest.load(toy_folder)
    chosen = [manifest.videos[i] for i in manifest.select(split="1", part="test")]
    folder.mkdir()
    for stream in manifest.streams:
        (folder / stream).symlink_to(toy_folder / stream)
    videos = tuple(replace(video, label=None, splits={}) for video in chosen)
    replace(manifest, root=folder, dataset="extra", classes=(), videos=videos).save()
    return folder


def test_clips_that_no_teacher_has_seen__have_the_mean_target(toy_folder, tmp_path, monkeypatch):
    extra = unlabelled(toy_folder, tmp_path / "extra")
    seen = []
    embed = CrossFittedTeacher.embed
    monkeypatch.setattr(
        CrossFittedTeacher, "embed", lambda self, batch, **o: seen.append(self) or embed(self, batch, **o)
    )
    distil("--folds", 2, "--data", extra, toy_folder, "--out", tmp_path / "run", "--no-evaluate")
    num_extra = len(Manifest.load(extra).videos)
    folds = seen[-1].folds_n
    assert not folds[:num_extra].any() and bool((folds[num_extra:] > 0).all()) and len(folds) > num_extra
    for folder in (tmp_path / "teachers").iterdir():
        assert facts(folder)["datasets"] == ["toyactions"]


def test_killed_between_two_teachers__continues_with_the_second(toy_folder, tmp_path):
    script = """
import os, signal, sys
from crossdistill.commands.main import main
from crossdistill.recipes import run
save = run.save_student
def save_and_die(*arguments, **options):
    save(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
run.save_student = save_and_die
main(sys.argv[1:])
"""
    options = ["--folds", 2, "--data", toy_folder, "--no-evaluate"]
    arguments = [*SHARED, *TEACHER, *STUDENT, *options, "--out", tmp_path / "killed" / "run"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}  # as many threads as here
    killed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, "train", *map(str, arguments)],
        env=environment,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (first,) = (tmp_path / "killed" / "teachers").glob("*/student/student.json")
    before = first.stat().st_mtime_ns
    assert not (tmp_path / "killed" / "run" / "student").exists()
    distil(*options, "--out", tmp_path / "killed" / "run")
    assert first.stat().st_mtime_ns == before
    distil(*options, "--out", tmp_path / "whole" / "run")
    expected = weights(tmp_path / "whole" / "run")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "killed" / "run").items())


# The cache.


def make_cache(folder, teachers, toy_folder, *options):
    pair = [*TEACHER[:-2], *STUDENT, *teachers, "--data", toy_folder, "--workers", 0, "--precision", "fp32"]
    cache_command([*pair, "--augmentations", 2, "--clips-per-shard", 20, "--dtype", "fp32", "--out", folder, *options])
    return folder


def test_cache__holds_what_the_live_teachers_say(teachers, fold_teachers, toy_folder, tmp_path, capsys, assert_refused):
    folder = make_cache(tmp_path / "cache", teachers, toy_folder)
    options = [*STUDENT, "--data", toy_folder, "--no-evaluate", "--objective", "compress-1q", "simreg"]
    train(*TEACHER, *teachers, *options, "--out", tmp_path / "live")
    train("--teacher-cache", folder, *options, "--out", tmp_path / "cached")
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "live"), abs=1e-4)
    assert recorded_teachers(facts(tmp_path / "cached")) == recorded_teachers(facts(tmp_path / "live"))
    assert len(TeacherCache(folder).weights) == 2
    maps = {path.name: path.read_bytes() for path in folder.glob("folds-*")}
    capsys.readouterr()
    cache_command(["verify", folder, "--data", toy_folder, "--workers", 0, "--clips", 12])
    assert float(re.search(r"at least\s+([01]\.\d+)", capsys.readouterr().out)[1]) >= 0.9999
    assert len(maps) == 1 and {path.name: path.read_bytes() for path in folder.glob("folds-*")} == maps
    first = sorted((folder / "shards").iterdir())[0]
    kept = first.read_bytes()
    first.unlink()
    make_cache(folder, teachers, toy_folder)
    assert first.read_bytes() == kept
    cached = ["--teacher-cache", folder, *STUDENT]
    assert_refused("of folds holds none: make it with --logits", *cached, "--objective", "kd", command=train)
    assert_refused("--teacher-cache has no networks", *cached, "--folds", 2, command=train)


# Errors.


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--folds", 1], "--folds is 1: input should be greater than or equal to 2"),
        (["--folds", 40], r"split '1@1of40' asks for 40 folds, and there are \d+ training videos: choose 2 to"),
        (["--folds", 2, "--teacher-weights", "a"], "--teacher-weights has 1 value for 2 folds: give a run with labels"),
        (["--folds", 2, "--teacher-weights", "a", "b", "c"], "--teacher-weights has 3 values for 2 folds"),
        (["--folds", 2, "--teacher-weights", "a", "b"], "a does not exist"),
        (["--folds", 2, "--mix"], "--mix of several folds makes clips of none: remove one of them"),
        (["--folds", 2, "--teacher", "self"], "--teacher self has no networks to divide them among"),
        (["--folds", 2, "--teacher", "rgb_tiny3d_8", "rgb_r3d10"], "--folds takes one --teacher, .* 2 were given"),
        (["--folds", 2, "--objective", "token-matching"], "token-matching compares tokens, and those of folds are in"),
        (["--folds", 2, "--split", "1@9of2"], "split '1@9of2' holds out fold 9: choose fold 1 to 2"),
    ],
)
def test_invalid_options__are_refused_in_one_sentence(options, sentence, assert_refused):
    # `self` allows no options of a teacher.
    command = (lambda *o: train(*STUDENT, *o)) if "self" in options else distil
    assert_refused(sentence, *options, command=command)


def test_supervised__has_no_teachers_to_divide_the_clips_among(assert_refused):
    options = ["--supervised", *STUDENT, "--folds", 2]
    assert_refused("--supervised has no networks to divide them among", *options, command=train)


def test_a_teacher_that_may_have_seen_its_fold__is_refused(fold_teachers, toy_folder, tmp_path, assert_refused):
    one, two = fold_teachers
    needs = r"--folds needs a run with labels on split 1@{}of2, which has not seen that fold, and"

    def given(first, second):
        return ["--folds", 2, "--teacher-weights", first, second]

    assert_refused(f"{needs.format(1)} .* learned from split 1@2of2: give the folds in their order", *given(two, one))
    assert_refused("learned from split 1@1of2", *given(one, one))
    assert_refused(f"{needs.format(2)} .* is no run's folder", *given(one, two / "student" / "student.safetensors"))
    file = two / "student" / "student.json"

    def changed(**values):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(two / "student", folder)
        content = json.loads(file.read_text())
        content["training"] = {**content["training"], **values}
        (folder / "student.json").write_text(json.dumps(content))
        return folder

    assert_refused("learned from other clips than that split of", *given(one, changed(clips=None)))
    assert_refused("started from runs/all, which may have seen it", *given(one, changed(student_weights="runs/all")))
    # The same names of clips with other content.
    data = Path(shutil.copytree(toy_folder, tmp_path / "data"))
    manifest = Manifest.load(data)
    video = manifest.videos[0]
    streams = {name: replace(stream, sha256="0" * 64) for name, stream in video.streams.items()}
    replace(manifest, videos=(replace(video, streams=streams), *manifest.videos[1:])).save()
    assert_refused("learned from other clips than that split of", "--data", data, *given(one, two))
    # The same clips with other groups, so that other clips are in the fold.
    turned = tuple(replace(each, group=f"{i % 3}") for i, each in enumerate(Manifest.load(toy_folder).videos))
    replace(Manifest.load(toy_folder), root=data, videos=turned).save()
    assert_refused("learned from other clips than that split of", "--data", data, *given(one, two))


def test_views_of_the_teachers__must_be_equal(fold_teachers, toy_folder, tmp_path, assert_refused):
    other = ["--supervised", "--student", "rgb_tiny3d_8", "--student-frames", 4, "--student-size", 20, "--no-evaluate"]
    train(*other, "--split", "1@2of2", "--data", toy_folder, "--out", tmp_path / "other")
    weights_of = ["--teacher-weights", fold_teachers[0], tmp_path / "other"]
    sentence = "needs networks that see the same clips, and .* sees 4 frames of 20 px, .* 4 frames of 16 px"
    options = ["--teacher", "rgb_tiny3d_8", *STUDENT, "--folds", 2, *weights_of]
    assert_refused(sentence, *options, command=train)


def test_dataset_without_labels__has_no_folds(toy_folder, tmp_path, capsys):
    extra = unlabelled(toy_folder, tmp_path / "extra")
    with pytest.raises(SystemExit):
        distil("--folds", 2, "--data", extra, "--out", tmp_path / "x")
    assert "--folds divides the training clips of a dataset with labels and split '1'" in " ".join(
        capsys.readouterr().err.split()
    )


def test_rounds__have_folds_in_the_first_alone(teachers, toy_folder, tmp_path):
    distil(*teachers, "--rounds", 2, "--data", toy_folder, "--out", tmp_path / "rounds")
    named = [facts(tmp_path / "rounds" / f"round-{number}")["teacher"] for number in (1, 2)]
    assert named == ["rgb_tiny3d_8 and rgb_tiny3d_8", "flow_tiny3d_8"]


def test_identity__of_runs_without_folds_is_that_of_before():
    from crossdistill.recipes.identity import identity

    options = ["--student", "flow_tiny3d_8", "--data", "x", "--teacher", "rgb_tiny3d_8"]
    assert "folds" not in identity(parse(options))["pair"]
    assert identity(parse([*options, "--folds", "3"]))["pair"]["folds"] == 3


def test_fold_split__nests():
    assert folds_module.fold_split("1@25%", 2, 3) == "1@25%@2of3"
