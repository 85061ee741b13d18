"""Options of training with labels and of fine-tuning: what they refuse, that each acts, resume, and the presets."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from in_process import check_configuration, train
from safetensors.torch import load_file

from crossdistill.commands.main import main as cli
from crossdistill.distillation.student import save_student
from crossdistill.encoders import create_encoder
from crossdistill.errors import UserError
from crossdistill.evaluation.settings import FineTuning
from crossdistill.recipes.config import SupervisionConfig, from_dict, load_yaml, parse
from crossdistill.recipes.config_files import find_config_file
from crossdistill.recipes.finetune import finetune_config, read_recipe
from crossdistill.recipes.identity import identity, own_teacher_config
from crossdistill.recipes.rounds import round_config
from crossdistill.recipes.teachers import teacher_options
from crossdistill.training.run_folder import RunFolder

LABELS = ["--data", "x", "--supervised"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--student", "rgb_r3d18", "--drop-path", "0.1"], r"rgb_r3d18 has no drop path \(stochastic depth\)"),
        (["--student", "flow_r3d18", "--auto-augment", "trivial"], "a flow view is no photograph: remove it"),
        (["--student", "skeleton_r3d10", "--cutmix", "1"], "a skeleton view is none: remove it"),
        (["--student", "rgb_r3d18", "--rand-ops", "4"], "--rand-ops 4 has no effect without --auto-augment rand"),
        (["--student", "rgb_r3d18", "--auto-augment", "trivial", "--rand-magnitude", "3"], "--rand-magnitude 3 has no"),
    ],
)
def test_options__that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        check_configuration(parse([*LABELS, *options]))


@pytest.mark.parametrize(
    ("option", "value"),
    [("mixup", 0.8), ("cutmix", 1.0), ("label-smoothing", 0.1), ("auto-augment", "rand"), ("weight-ema", 0.9)],
)
def test_options_of_labels__are_refused_with_a_teacher(option, value):
    config = parse(["--data", "x", "--teacher", "rgb_r3d18", "--student", "rgb_r3d10", f"--{option}", str(value)])
    with pytest.raises(UserError, match=rf"--{option} {value} has an effect on training with labels alone"):
        check_configuration(config)


def test_values_out_of_range__are_refused():
    for option, value in (("layer-decay", 0), ("layer-decay", 1.1), ("drop-path", 1), ("weight-ema", 1), ("mixup", -1)):
        with pytest.raises(UserError, match=f"--{option} is"):
            parse([*LABELS, "--student", "rgb_r3d18", f"--{option}", str(value)])


def test_identity__is_that_of_before_without_the_options_and_another_with_them():
    plain = parse([*LABELS, "--student", "rgb_r3d18"])
    kept = identity(plain)
    assert "supervision" not in kept and not {"layer_decay", "drop_path"} & kept["optimization"].keys()
    for options in (["--layer-decay", "0.7"], ["--drop-path", "0.1"], ["--mixup", "0.2"], ["--weight-ema", "0.9"]):
        assert identity(parse([*LABELS, "--student", "rgb_r3d18", *options])) != kept


def test_other_networks_of_a_run__are_trained_without_the_students_options():
    given = ["--mixup", "0.2", "--layer-decay", "0.7", "--rounds", "2"]
    config = parse([*LABELS, "--student", "rgb_r3d10", *given])
    assert round_config(config, RunFolder(Path("r")), 1).supervision.mixup == 0.2
    assert round_config(config, RunFolder(Path("r")), 2).supervision == SupervisionConfig()
    taught = parse(["--teacher", "rgb_r3d10", "--student", "flow_r3d10", "--layer-decay", "0.7"])
    (options,) = teacher_options(taught)
    teacher = own_teacher_config(taught, options, Path("runs/x"), [])
    assert teacher.optimization.layer_decay == 1 and teacher.supervision == SupervisionConfig()


# Runs

VIEW = ["--student-frames", 4, "--student-size", 16]
QUICK = [
    "--epochs",
    2,
    "--batch-size",
    12,
    "--workers",
    0,
    "--tracker",
    "none",
    "--precision",
    "fp32",
    "--knn-clips",
    0,
]


def run(folder, toy_folder, *options, student="rgb_tiny3d_8", shots=2):
    options = ["--data", toy_folder, "--supervised", "--shots", shots, "--student", student, *VIEW, *QUICK, *options]
    train([*options, "--no-evaluate", "--out", folder])
    return load_file(folder / "student" / "student.safetensors")


def test_runs__every_option_changes_what_is_learned(toy_folder, tmp_path):
    plain = run(tmp_path / "plain", toy_folder)
    for number, options in enumerate(
        [
            ["--layer-decay", 0.5],
            ["--label-smoothing", 0.2],
            ["--mixup", 0.8],
            ["--cutmix", 1.0],
            ["--auto-augment", "trivial"],
            ["--auto-augment", "rand", "--rand-ops", 3, "--rand-magnitude", 20],
            ["--weight-ema", 0.9],
        ]
    ):
        found = run(tmp_path / str(number), toy_folder, *options)
        assert not torch.equal(found["features.9.weight"], plain["features.9.weight"]), options
        assert all(torch.isfinite(value).all() for value in found.values())
    again = run(tmp_path / "again", toy_folder)
    assert all(torch.equal(value, plain[name]) for name, value in again.items())


ALL = ["--layer-decay", 0.8, "--mixup", 0.8, "--cutmix", 1.0, "--label-smoothing", 0.1, "--weight-ema", 0.95]
ALL += ["--auto-augment", "rand"]


def test_resume__matches_the_uninterrupted_run_and_keeps_the_average(toy_folder, tmp_path):
    """A run of one epoch that grows to two, against one of two; the average is also kept when a run has ended."""
    flat = ["--schedule", "steps", "--lr-milestones", 0.9, "--keep-checkpoints"]
    whole = run(tmp_path / "whole", toy_folder, *ALL, *flat)
    run(tmp_path / "parts", toy_folder, *ALL, *flat, "--checkpoint-every-steps", 2)
    checkpoints = sorted((tmp_path / "parts" / "checkpoints").glob("step-*.safetensors"))
    checkpoints[-1].unlink()
    shutil.rmtree(tmp_path / "parts" / "student")
    resumed = run(tmp_path / "parts", toy_folder, *ALL, *flat, "--checkpoint-every-steps", 2, "--resume")
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())

    ended = run(tmp_path / "ended", toy_folder, *ALL)  # keeps the weights alone, and the average with them
    shutil.rmtree(tmp_path / "ended" / "student")
    again = run(tmp_path / "ended", toy_folder, *ALL, "--resume")
    assert all(torch.equal(value, ended[name]) for name, value in again.items())
    (kept,) = (tmp_path / "ended" / "checkpoints").glob("step-*.safetensors")
    tensors = load_file(kept)
    raw, mean = (
        next(value for name, value in tensors.items() if name.startswith(part) and "features.0.weight" in name)
        for part in ("trainable", "result")
    )
    assert torch.equal(mean, ended["features.0.weight"]) and not torch.equal(raw, mean)


def test_drop_path__trains_a_network_that_has_it(toy_folder, tmp_path):
    pytest.importorskip("timm")
    name, short = "rgb_timm:vit_tiny_patch16_224", ["--epochs", 1]
    options = {"student": name, "shots": 1}
    dropped = run(tmp_path / "dropped", toy_folder, *short, "--drop-path", 0.5, "--layer-decay", 0.65, **options)
    plain = run(tmp_path / "plain", toy_folder, *short, "--layer-decay", 0.65, **options)
    assert list(dropped) == list(plain)  # the files hold the same network
    assert not torch.equal(dropped["blocks.11.mlp.fc2.weight"], plain["blocks.11.mlp.fc2.weight"])


# Presets, and evaluate --finetune-config


@pytest.mark.parametrize(
    ("name", "student"), [("finetune", "rgb_timm:vit_tiny_patch16_224"), ("finetune_conv", "flow_r3d18")]
)
def test_presets__fit_the_networks_that_they_are_for(name, student):
    config = parse(["--config", name, "--data", "x", "--student", student])
    check_configuration(config)
    assert config.pair.supervised and config.optimization.layer_decay < 1 and config.supervision.mixup > 0


def test_preset__has_the_values_of_videomae():
    config = parse(["--config", "finetune", "--data", "x"])
    optimization, supervision = config.optimization, config.supervision
    assert (optimization.lr, optimization.weight_decay, optimization.layer_decay) == (5e-4, 0.05, 0.75)
    assert (supervision.label_smoothing, supervision.mixup, supervision.cutmix) == (0.1, 0.8, 1.0)
    assert (supervision.rand_ops, supervision.rand_magnitude, optimization.drop_path) == (4, 21, 0.1)


@pytest.fixture
def student(tmp_path):
    torch.manual_seed(0)
    encoder = create_encoder("rgb_tiny3d_8", num_frames=4, stride=1, size_px=16)
    save_student(encoder, tmp_path / "run" / "student", facts={"supervised": False})
    return tmp_path / "run"


def test_finetune_config__merges_recipe_and_options(student, toy_folder):
    recipe, whole = read_recipe("finetune_conv")
    assert "student" not in recipe["pair"] and whole == from_dict(
        load_yaml(find_config_file("finetune_conv")), source="file"
    )
    settings = FineTuning(epochs=3, lr=0.5, batch_size=8, seed=4, recipe=recipe)
    config = finetune_config(settings, student / "student", data=toy_folder, split="1")
    optimization = config.optimization
    assert (optimization.epochs, optimization.lr, optimization.batch_size) == (3, 0.5, 8)
    assert optimization.layer_decay == whole.optimization.layer_decay and config.supervision == whole.supervision
    assert config.machine.seed == 4 and config.pair.student == "rgb_tiny3d_8" and config.data.crop_area_min == 0.5
    plain = finetune_config(replace(settings, recipe={}), student / "student", data=toy_folder, split="1")
    assert plain.machine.out != config.machine.out and plain.supervision == SupervisionConfig()


def evaluate(*arguments):
    cli(["evaluate", *map(str, arguments), "--workers", "0", "--precision", "fp32", "--protocols", "finetune"])


def test_command__finetunes_by_a_recipe(student, toy_folder, tmp_path):
    path = tmp_path / "numbers.json"
    options = ["--data", toy_folder, "--finetune-config", "finetune_conv", "--json", path, "--bootstrap", 0]
    evaluate(student, *options, "--finetune-epochs", 1)
    details = json.loads(path.read_text())["results"]["finetune"]["details"]
    assert (details["epochs"], details["lr"], details["batch_size"]) == (1, 0.001, 16)
    assert details["recipe"]["supervision"]["mixup"] == 0.2
    config = json.loads((student / details["run"] / "config.json").read_text())
    assert "0.9" in json.dumps(config) and "weight_ema" in json.dumps(config)
    evaluate(student, *options, "--finetune-epochs", 1)  # the finished run is taken
    assert len(list(student.glob("finetune-*"))) == 1


def test_command__refuses_recipes_that_name_networks_or_data(student, toy_folder, tmp_path, capsys):
    for text, message in (
        ("pair: {teacher: rgb_r3d18}", "has teacher, and the student and its data are those of evaluate"),
        ("data: {split: '2'}", "has split, and"),
        ("optimization: {lrr: 3}", "optimization.lrr"),
        ("optimization: {epochs: many}", "optimization.epochs is 'many'"),
    ):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(SystemExit):
            evaluate(student, "--data", toy_folder, "--finetune-config", tmp_path / "mine.yaml")
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    with pytest.raises(SystemExit):
        evaluate(student, "--data", toy_folder, "--finetune-config", "finetuna")
    assert "finetune" in capsys.readouterr().err
