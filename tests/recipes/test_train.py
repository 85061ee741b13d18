"""The commands with real command lines: the files that they write, and their errors for invalid input."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from in_process import train as main
from manifest_lines import to_lines
from safetensors.torch import load_file
from torch import nn
from torchvision.models.video import r3d_18

import crossdistill
from crossdistill.commands.main import main as cli
from crossdistill.data.manifest import Manifest
from crossdistill.encoders.weights import weights_hash
from crossdistill.evaluation.settings import Shots
from crossdistill.objectives import OBJECTIVES
from crossdistill.recipes import context
from crossdistill.recipes import run as train_module
from crossdistill.recipes.config import parse
from crossdistill.recipes.data import count_training_clips, select_training_clips

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = [
    *("--student-frames", 4, "--student-size", 32, "--teacher-frames", 4, "--teacher-size", 32),
    *("--epochs", 1, "--batch-size", 8, "--bank-size", 40, "--workers", 0, "--tracker", "none"),
]


def train(*options):
    main([str(option) for option in (*TINY, *options)])


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, toy_folder, teacher_file):
    folder = tmp_path_factory.mktemp("runs") / "run"
    teacher = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file]
    train(*teacher, "--student", "flow_r3d18", "--data", toy_folder, "--out", folder, "--log-every-steps", 2)
    return folder


def test_run__keeps_everything_it_promises(run_folder):
    results = json.loads((run_folder / "results.json").read_text())
    (by_role,) = results.values()
    assert set(by_role) == {"teacher", "student, random", "student, distilled"}
    for evaluation in by_role.values():
        assert {"1-nn", "5-nn", "20-nn", "linear"} <= set(evaluation["results"])
        assert evaluation["num_unreadable"] == 0 and evaluation["num_test"] > 0
        assert all(0 <= result["top1"] <= result["top5"] <= 1 for result in evaluation["results"].values())
    started = json.loads((run_folder / "config.json").read_text())
    assert started["configuration"]["pair"]["student"] == "flow_r3d18"
    assert torch.__version__.startswith(started["environment"]["torch"])
    rows = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert any("knn" in row for row in rows)
    logged = [row for row in rows if "loss" in row]
    assert all({"loss", "lr", "bank_fill", "clips_per_second", "data_wait"} <= row.keys() for row in logged)
    assert [row["seconds"] for row in logged] == sorted(row["seconds"] for row in logged) and logged[0]["seconds"] > 0
    assert logged[-1]["epoch"] == 1 and all(0 <= row["data_wait"] <= 1 for row in logged)
    # Four batches of eight fill the bank, which was lowered from 40 anchors to as many as the run draws.
    assert [row["bank_fill"] for row in logged] == [8 / 32, 16 / 32, 24 / 32, 32 / 32]


def test_student__loads_strictly_into_torchvisions_own_class_with_plain_torch(run_folder):
    model = r3d_18()
    model.fc = nn.Identity()
    model.stem[0] = nn.Conv3d(2, 64, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
    model.load_state_dict(load_file(run_folder / "student" / "student.safetensors"), strict=True)
    student = crossdistill.load_student(run_folder)
    clip = torch.randn(2, 2, 4, 32, 32)
    torch.testing.assert_close(student(clip), model.eval()(clip))


def test_student__says_what_it_is(run_folder):
    facts = json.loads((run_folder / "student" / "student.json").read_text())
    assert facts["encoder"] == "flow_r3d18" and facts["embed_dim"] == 512
    assert facts["view"]["num_frames"] == 4 and facts["view"]["size_px"] == 32
    assert facts["training"]["teacher"] == "rgb_r3d10_gn" and facts["training"]["supervised"] is False
    student = crossdistill.load_student(run_folder / "student")
    assert (student.view.num_frames, student.view.size_px, student.training) == (4, 32, False)


def test_evaluate_command__gives_the_runs_own_numbers(run_folder, toy_folder, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    options = [
        "--data",
        str(toy_folder),
        "--split",
        "1",
        "--protocols",
        "knn",
        "linear",
        "cluster",
        "--json",
        str(path),
    ]
    cli(["evaluate", str(run_folder), *options, "--workers", "0"])
    output = capsys.readouterr().out
    assert "test clips evaluated" in output and "0 could not be read" in output
    numbers = json.loads(path.read_text())
    (by_role,) = json.loads((run_folder / "results.json").read_text()).values()
    assert numbers == by_role["student, distilled"]


def test_evaluate_command__reports_coverage(run_folder, toy_folder, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(toy_folder, folder)
    manifest = Manifest.load(folder)
    position = manifest.select(split="1", part="test")[0]
    (folder / manifest.videos[position].streams["flow"].path).unlink()
    path = tmp_path / "numbers.json"
    cli(["evaluate", str(run_folder), "--data", str(folder), "--json", str(path), "--workers", "0"])
    numbers = json.loads(path.read_text())
    assert numbers["num_unreadable"] == 1
    assert numbers["num_test"] == len(manifest.select(split="1", part="test")) - 1
    assert manifest.videos[position].name in capsys.readouterr().out


def test_supervised__learns_the_training_labels(toy_folder, tmp_path):
    options = ["--supervised", "--student", "flow_r3d10", "--data", toy_folder, "--out", tmp_path / "run"]
    train(*options, "--epochs", 30, "--optimizer", "adamw", "--lr", 0.003, "--no-evaluate", "--knn-clips", 0)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["accuracy"] > 0.5 and rows[-1]["loss"] < 0.6 * rows[0]["loss"]  # chance: 1 in 12


def test_held_out_split__trains_and_evaluates_without_the_test_clips(toy_folder, tmp_path, capsys):
    """The streams of the test clips are not there, and neither training, its monitor nor the evaluation misses them."""
    manifest = Manifest.load(toy_folder)
    gone = {name: replace(stream, path="gone.mp4") for name, stream in manifest.videos[0].streams.items()}
    videos = [video if video.splits["1"] == "train" else replace(video, streams=gone) for video in manifest.videos]
    folder = tmp_path / "data"
    folder.mkdir()
    for stream in manifest.streams:
        (folder / stream).symlink_to(toy_folder / stream)
    replace(manifest, root=folder, videos=tuple(videos)).save()
    options = ["--supervised", "--student", "flow_tiny3d_8", "--data", folder, "--split", "1@25%"]
    train(*options, "--out", tmp_path / "run")
    assert "0 could not be read" in capsys.readouterr().out
    (by_role,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    evaluation = by_role["student, supervised"]
    assert (evaluation["split"], evaluation["num_unreadable"]) == ("1@25%", 0)
    held = {manifest.videos[i].name for i in manifest.select(split="1@25%", part="test")}
    assert set(evaluation["test_videos"]) == held and len(evaluation["results"]["1-nn"]["hits"]) == len(held) > 0
    assert evaluation["num_train"] + len(held) == len(manifest.select(split="1", part="train"))
    facts = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert facts["training"]["split"] == "1@25%"


def test_a_finished_run__is_a_teacher(run_folder, toy_folder, tmp_path):
    teacher = ["--teacher", "flow_r3d18", "--teacher-weights", run_folder]
    train(*teacher, "--student", "depth_r3d10", "--data", toy_folder, "--out", tmp_path / "run", "--no-evaluate")
    facts = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    student = crossdistill.load_student(run_folder)
    assert facts["training"]["teacher_weights_sha256"] == weights_hash(student)


# Objectives on tokens and labels, which do not train all weights of a student.
NEEDS_ANOTHER = ("token-matching", "attention-transfer", "token-relations", "time-relations", "cross-entropy")


@pytest.fixture(scope="module")
def labels_folder(tmp_path_factory, toy_folder):
    """A run that learned labels: a teacher with a classifier."""
    folder = tmp_path_factory.mktemp("labels") / "run"
    options = ["--supervised", "--student", "rgb_tiny3d_8", "--data", toy_folder, "--out", folder]
    train(*options, "--no-evaluate", "--knn-clips", 0)
    return folder


def test_time_relations__need_two_times(toy_folder, labels_folder, tmp_path, capsys):
    teacher = [
        "--teacher",
        "rgb_tiny3d_8",
        "--teacher-weights",
        labels_folder,
        "--objective",
        "time-relations",
        "simreg",
    ]
    pair = [*teacher, "--student", "flow_r3d10", "--data", toy_folder, "--out", tmp_path / "run"]
    compares = "time-relations compares the times of a clip with each other, and a clip of"
    assert f"{compares} rgb_tiny3d_8" in wrong(capsys, *pair)
    error = wrong(capsys, *pair, "--teacher-frames", 8)
    assert f"{compares} flow_r3d10" in error and "raise --student-frames" in error


def test_shots__refuse_a_teacher_that_would_learn_from_all_labels(toy_folder, tmp_path, capsys):
    pair = ["--teacher", "rgb_tiny3d_8", "--folds", 2, "--student", "flow_tiny3d_8", "--data", toy_folder]
    objective = ["--objective", "cross-entropy", "simreg", "--shots", 2]
    error = wrong(capsys, *pair, *objective, "--out", tmp_path / "run")
    assert "rgb_tiny3d_8 would learn from all labels, and --shots 2 allows few" in error


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective__changes_the_student(toy_folder, labels_folder, tmp_path, objective):
    beside = ["simreg:0.1"] if objective in NEEDS_ANOTHER else []
    teacher = ["--teacher", "rgb_tiny3d_8", "--teacher-weights", labels_folder, "--objective", objective, *beside]
    options = ["--student", "flow_r3d10", "--data", toy_folder, "--no-evaluate", "--knn-clips", 0, "--lr", 0.1]
    if objective == "time-relations":  # which compares the times of a clip
        options += ["--teacher-frames", 8, "--student-frames", 16]
    train(*teacher, *options, "--out", tmp_path / "run")
    torch.manual_seed(0)
    fresh = crossdistill.create_encoder("flow_r3d10")
    trained = crossdistill.load_student(tmp_path / "run")
    changed = [not torch.equal(a, b) for a, b in zip(fresh.parameters(), trained.parameters(), strict=True)]
    assert all(changed)


def test_classifier__of_a_run_with_labels_serves_objectives_on_probabilities(
    toy_folder, labels_folder, tmp_path, capsys
):
    layer = load_file(labels_folder / "student" / "classifier.safetensors")
    num_classes = len(Manifest.load(toy_folder).classes)
    assert layer["weight"].shape == (num_classes, 256) and layer["bias"].shape == (num_classes,)
    options = ["--student", "flow_tiny3d_8", "--data", toy_folder, "--no-evaluate", "--knn-clips", 0]
    teacher = ["--teacher", "rgb_tiny3d_8", "--teacher-weights"]
    train(*teacher, labels_folder, *options, "--objective", "kd", "dist:0.5", "--out", tmp_path / "kd")
    rows = [json.loads(line) for line in (tmp_path / "kd" / "metrics.jsonl").read_text().splitlines()]
    assert {"kd", "dist_within_class"} <= rows[0].keys() and "bank_fill" not in rows[0]
    weights = labels_folder / "student" / "student.safetensors"
    error = wrong(capsys, *teacher, weights, *options, "--objective", "kd", "--out", tmp_path / "none")
    assert "the weights of rgb_tiny3d_8 came without a linear classifier" in error


def test_student__that_starts_from_labels_drops_their_classifier(toy_folder, labels_folder, teacher_file, tmp_path):
    """It is another network after distilling, and its old classifier would be wrong."""
    pair = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--student", "flow_tiny3d_8"]
    start = ["--student-weights", labels_folder, "--data", toy_folder, "--no-evaluate", "--knn-clips", 0]
    main([str(option) for option in (*pair, *start, *TINY[4:], "--objective", "simreg", "--out", tmp_path / "run")])
    student = crossdistill.load_student(tmp_path / "run")
    assert student.classifier is None and not (tmp_path / "run" / "student" / "classifier.safetensors").exists()
    assert (student.view.num_frames, student.view.size_px) == (4, 32)  # those of the run that it started from


def test_image_teacher_and_image_student(toy_folder, tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "resnet18.pth"
    torch.save(crossdistill.create_encoder("image_resnet18").body.state_dict(), weights)
    teacher = ["--teacher", "image_resnet18", "--teacher-weights", weights]
    train(*teacher, "--student", "rgb_r3d10", "--data", toy_folder, "--out", tmp_path / "clip", "--no-evaluate")
    train(
        *teacher, "--student", "image_mobilenet_v2", "--data", toy_folder, "--out", tmp_path / "image", "--no-evaluate"
    )
    assert (tmp_path / "image" / "student" / "student.safetensors").is_file()


def wrong(capsys, *options):
    with pytest.raises(SystemExit) as exit_info:
        train(*options)
    assert exit_info.value.code not in (0, None)
    error = capsys.readouterr().err
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1, error
    return error


def test_bad_input__one_sentence_each(toy_folder, teacher_file, run_folder, tmp_path, capsys):
    known = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file]
    flow, data = ["--student", "flow_r3d10"], ["--data", toy_folder]
    out = ["--out", tmp_path / "new"]
    assert "no student was given" in wrong(capsys, *known, *data)
    assert "no teacher was given" in wrong(capsys, *flow, *data)
    assert "remove one of them" in wrong(capsys, *known, *flow, *data, "--supervised")
    assert "names like it are flow_r3d10, " in wrong(capsys, *known, "--student", "flow_r3d100", *data, *out)
    assert "unknown encoder 'sound_r3d10'" in wrong(capsys, *known, "--student", "sound_r3d10", *data, *out)
    assert "unknown objective 'compres-2q'" in wrong(capsys, *known, *flow, *data, *out, "--objective", "compres-2q")
    assert "there is no folder nowhere: correct" in wrong(capsys, *known, *flow, "--data", "nowhere", *out)
    assert "not a prepared dataset" in wrong(capsys, *known, *flow, "--data", tmp_path, *out)
    assert "has no split" in wrong(capsys, *known, *flow, *data, *out, "--split", "7")
    other = ["--teacher", "rgb_r3d18", "--teacher-weights", teacher_file]
    assert "does not exist" in wrong(capsys, *known[:2], "--teacher-weights", tmp_path / "x", *flow, *data, *out)
    assert "does not hold the weights of rgb_r3d18" in wrong(capsys, *other, *flow, *data, *out)
    other = ["--teacher", "rgb_r3d18", "--teacher-weights", run_folder]
    assert "holds flow_r3d18, not rgb_r3d18" in wrong(capsys, *other, *flow, *data, *out)
    assert "--batch-size 36" in wrong(capsys, *known, *flow, *data, *out, "--batch-size", 1000)
    assert "already holds a run" in wrong(capsys, *known, *flow, *data, "--out", run_folder)
    assert "--accumulate 5 needs 5 batches" in wrong(capsys, *known, *flow, *data, *out, "--accumulate", 5)
    assert "uses no labels: remove it" in wrong(capsys, *known, *flow, *data, *out, "--shots", 5)
    assert "than --rounds needs" in wrong(capsys, "--supervised", *flow, *data, *out, "--shots", 5, "--rounds", 2)
    assert "--shots 0 is neither" in wrong(capsys, "--supervised", *flow, *data, *out, "--shots", 0)
    assert not out[1].exists(), "a run that never started leaves its name free"
    changed = [*known, *flow, *data, "--out", run_folder, "--resume", "--lr", 0.5]
    assert "was started with another" in wrong(capsys, *changed)


def test_run_without_its_configuration__is_not_resumed(run_folder, toy_folder, teacher_file, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "config.json").unlink()
    known = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--student", "flow_r3d18"]
    assert "no config.json" in wrong(capsys, *known, "--data", toy_folder, "--out", folder, "--resume", "--lr", 0.5)
    assert not (folder / "config.json").exists()


def test_wrong_student_weights__are_named_before_a_teacher_is_trained(toy_folder, teacher_file, tmp_path, capsys):
    pair = ["--teacher", "rgb_r3d10", "--student", "flow_r3d10", "--student-weights", teacher_file]
    assert "flow_r3d10" in wrong(capsys, *pair, "--data", toy_folder, "--out", tmp_path / "runs" / "x")
    assert not (tmp_path / "runs" / "teachers").exists() and not (tmp_path / "runs" / "x").exists()


def test_evaluate_command__negative_workers_are_one_sentence(run_folder, toy_folder, capsys):
    with pytest.raises(SystemExit) as exit_info:
        cli(["evaluate", str(run_folder), "--data", str(toy_folder), "--workers", "-1"])
    assert exit_info.value.code == 2 and "--workers is -1" in capsys.readouterr().err


OWN_NETWORK = """
import torch, crossdistill

def make():
    view = crossdistill.ViewSpec("flow", 4, 2, 32, mean=(0.0, 0.0), std=(1.0, 1.0))
    body = torch.nn.Sequential(torch.nn.AdaptiveAvgPool3d(4), torch.nn.Flatten(), torch.nn.Linear(128, 7))
    torch.nn.init.constant_(body[2].bias, 3.0)
    return crossdistill.wrap_encoder(body, name="flow_mine", view=view, embed_dim=7)
"""


def test_custom_network__teaches_with_its_own_weights_and_runs_only_if_allowed(toy_folder, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(OWN_NETWORK)
    mine, data = f"{tmp_path}/mine.py:make", ["--data", toy_folder, "--no-evaluate", "--knn-clips", 0]
    train("--teacher", mine, "--teacher-weights", "own", "--student", mine, *data, "--out", tmp_path / "run")
    train(
        "--teacher",
        mine,
        "--teacher-weights",
        tmp_path / "run",
        "--student",
        "rgb_r3d10",
        *data,
        "--out",
        tmp_path / "2",
    )
    evaluate = ["evaluate", str(tmp_path / "run"), "--data", str(toy_folder), "--workers", "0"]
    with pytest.raises(crossdistill.UserError, match=r"is built by the Python file .*mine\.py:make"):
        crossdistill.load_student(tmp_path / "run")
    with pytest.raises(SystemExit):
        cli(evaluate)
    assert "--allow-code" in capsys.readouterr().err
    cli([*evaluate, "--allow-code"])
    assert "0 could not be read" in capsys.readouterr().out


def test_both_students__are_evaluated_in_one_precision(toy_folder, teacher_file, tmp_path, monkeypatch):
    compared = {}
    monkeypatch.setattr(
        context, "choose_precision", lambda encoder, training_batch_size, **_: "bf16" if training_batch_size else "fp32"
    )
    monkeypatch.setattr(train_module, "_train", lambda *_, **__: None)
    monkeypatch.setattr(train_module, "evaluate_networks", lambda run, networks, **_: compared.update(networks))
    known = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--student", "flow_r3d10"]
    train(*known, "--data", toy_folder, "--out", tmp_path / "run")
    assert {role: execution.precision for role, (_, execution) in compared.items()} == {
        "teacher": "fp32",
        "student, random": "bf16",
        "student, distilled": "bf16",
    }


def test_videos_in_no_split__are_fuel_without_labels_only(toy_folder, tmp_path, capsys):
    manifest = Manifest.load(toy_folder)
    first, second = (manifest.videos[i] for i in manifest.select(split="1", part="train")[:2])
    changes = {
        first.name: replace(first, splits={}, label=None),
        second.name: replace(second, status="skipped", reason="broken"),
    }
    mixed = replace(manifest, videos=tuple(changes.get(video.name, video) for video in manifest.videos))
    view = crossdistill.create_encoder("flow_r3d10").view
    sizes = {}
    for supervised in ([], ["--supervised"]):
        config = parse(["--data", str(toy_folder), *supervised])
        accelerator = Accelerator(mixed_precision="no")
        clips = select_training_clips(
            config, [mixed], student_view=view, uses_labels=bool(supervised), accelerator=accelerator
        )
        sizes[bool(supervised)] = {entry.video.name for entry in clips.entries}
        assert "1 of" in capsys.readouterr().out
    expected = {manifest.videos[i].name for i in manifest.select(split="1", part="train")} - {second.name}
    assert sizes[False] == expected and sizes[True] == expected - {first.name}


@pytest.mark.parametrize("shots", ["2", "50%"])
def test_shots__are_the_clips_that_lowshot_draws_first(toy_folder, shots):
    manifest = Manifest.load(toy_folder)
    positions = manifest.select(split="1", part="train")
    labels = torch.tensor([manifest.videos[i].label for i in positions])
    drawn = {manifest.videos[positions[i]].name for i in Shots.parse(shots).draw(labels, seed=3).tolist()}
    config = parse(["--data", str(toy_folder), "--supervised", "--shots", shots, "--seed", "3"])
    view = crossdistill.create_encoder("flow_r3d10").view
    accelerator = Accelerator(mixed_precision="no")
    clips = select_training_clips(config, [manifest], student_view=view, uses_labels=True, accelerator=accelerator)
    assert {entry.video.name for entry in clips.entries} == drawn
    assert set(Counter(entry.label for entry in clips.entries).values()) == {2}  # of 3 or 4 in each of 12 classes
    assert count_training_clips(config, [manifest], uses_labels=True) == len(drawn) == 24


def test_unreadable_clips__of_one_name_in_two_datasets_are_two(toy_folder, teacher_file, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        shutil.copytree(toy_folder, folder)
        manifest = Manifest.load(folder)
        for i in manifest.select(split="1", part="train")[:2]:
            (folder / manifest.videos[i].streams["flow"].path).unlink()
    known = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--student", "flow_r3d10"]
    options = ["--no-evaluate", "--knn-clips", 0, "--max-unreadable", 0.5, "--out", tmp_path / "run"]
    train(*known, "--data", *folders, *options)
    facts = json.loads((tmp_path / "run" / "student" / "student.json").read_text())
    assert facts["training"]["num_unreadable"] == 4


def test_unknown_weights__say_what_to_type(toy_folder, tmp_path, capsys):
    folder = tmp_path / "other"
    shutil.copytree(toy_folder, folder)
    to_lines(folder, lambda header, _: header.update(dataset="mine"))
    error = wrong(
        capsys, "--teacher", "rgb_r3d50", "--student", "flow_r3d10", "--data", folder, "--out", tmp_path / "o"
    )
    assert "--teacher-weights FILE" in error and "--supervised --student rgb_r3d50" in error


def test_missing_modality__says_how_to_prepare_it(toy_folder, teacher_file, tmp_path, capsys):
    folder = tmp_path / "rgb_only"
    shutil.copytree(toy_folder, folder)
    to_lines(folder, lambda _, rows: [row["streams"].pop("flow") for row in rows])
    known = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--student", "flow_r3d10"]
    error = wrong(capsys, *known, "--data", folder, "--out", tmp_path / "o")
    assert "needs the stream 'flow'" in error and "--modalities" in error


def test_unreadable_clips__are_reported_and_stop_the_run_beyond_the_share(toy_folder, teacher_file, tmp_path, capsys):
    folder = tmp_path / "damaged"
    shutil.copytree(toy_folder, folder)
    manifest = Manifest.load(folder)
    broken = [manifest.videos[i] for i in manifest.select(split="1", part="train")[:3]]
    for video in broken:
        (folder / video.streams["flow"].path).write_bytes(b"nothing")
    known = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--student", "flow_r3d10"]
    options = [*known, "--data", folder, "--no-evaluate", "--knn-clips", 0]
    train(*options, "--out", tmp_path / "tolerant", "--max-unreadable", 0.5)
    output = capsys.readouterr().out
    assert "3 clips could not be read" in output and broken[0].name in output
    facts = json.loads((tmp_path / "tolerant" / "student" / "student.json").read_text())
    assert facts["training"]["num_unreadable"] == 3
    error = wrong(capsys, *options, "--out", tmp_path / "strict", "--max-unreadable", 0.01)
    assert "--max-unreadable 0.01" in error


def test_no_data_and_no_weights__prepares_trains_a_teacher_once_and_keeps_it(toy_folder, tmp_path, monkeypatch, capsys):
    """The path of the README's command, on a dataset that is already there to save time."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toyactions").symlink_to(toy_folder)
    monkeypatch.chdir(tmp_path)
    debug = ["--config", str(CONFIGS / "debug.yaml"), "--workers", "0"]
    main(debug)
    assert "it is trained with labels first" in capsys.readouterr().out
    main(debug)
    assert "it is trained with labels first" not in capsys.readouterr().out
    assert len(list((tmp_path / "runs" / "teachers").iterdir())) == 1
    first, second = tmp_path / "runs" / "flow_r3d10-from-rgb_r3d10", tmp_path / "runs" / "flow_r3d10-from-rgb_r3d10-2"
    weights = [(folder / "student" / "student.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1], "same seed, same student"


def test_accumulation__two_half_batches_are_one_batch(toy_folder, teacher_file, tmp_path):
    known = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", teacher_file, "--student", "flow_r3d10_gn"]
    options = [*known, "--data", toy_folder, "--no-evaluate", "--knn-clips", 0, "--log-every-steps", 1, "--lr", 0.01]
    options += ["--objective", "compress-2q"]  # no head that normalises by the batch
    curves = []
    for name, batch_size, accumulate in (("one", 8, 1), ("two", 4, 2)):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        train(*options, "--out", tmp_path / name, "--batch-size", batch_size, "--accumulate", accumulate)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        curves.append([row["loss"] for row in rows])
    assert len(curves[0]) == len(curves[1]) >= 4 and max(curves[0]) > 0.1
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)


def test_cli__help_and_unknown_command(capsys):
    cli(["--help"])
    assert "evaluate" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        cli(["evalute"])
    assert exit_info.value.code == 2 and "did you mean 'evaluate'" in capsys.readouterr().err


def test_encoders_command__lists_the_registry(capsys):
    cli(["encoders", "--json"])
    cards = json.loads(capsys.readouterr().out)
    assert {card["name"] for card in cards} == set(crossdistill.list_encoders())
    (card,) = [card for card in cards if card["name"] == "rgb_r3d50"]
    assert card["embed_dim"] == 2048 and card["num_parameters"] == 46_198_976


@pytest.mark.parametrize(
    "change",
    [
        {"version": None},
        {"encoder": None},
        {"view": None},
        {"view": {"num_frames": 4}},
        {"view": {"modality": "flow"}},
        [],
    ],
    ids=str,
)
def test_damaged_student_json__is_one_sentence(run_folder, tmp_path, change):
    folder = shutil.copytree(run_folder / "student", tmp_path / "student")
    facts = json.loads((folder / "student.json").read_text())
    (folder / "student.json").write_text(json.dumps({**facts, **change} if change else []))
    with pytest.raises(crossdistill.UserError, match=r"is damaged .*: export the student again"):
        crossdistill.load_student(folder)
