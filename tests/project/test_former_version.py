"""Files of version 0.1: tests/former_version holds what it wrote, and this version reads all of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from in_process import cache, train
from safetensors.torch import load_file

import crossdistill as cd
from crossdistill.commands.main import main
from crossdistill.distillation.teacher_cache import TeacherCache

FORMER = Path(__file__).resolve().parents[1] / "former_version"
PAIR = [
    "--teacher",
    "network.py:teacher",
    "--teacher-weights",
    "teacher.safetensors",
    "--student",
    "network.py:student",
]
# As the run was started, but for the options that have new names.
RUN = [
    *(*PAIR, "--data", "data", "--epochs", 2, "--batch-size", 4, "--bank-size", 8, "--workers", 0, "--lr", 0.05),
    *("--knn-clips", 4, "--tracker", "none", "--precision", "fp32", "--seed", 5, "--objective", "compress-2q"),
]


@pytest.fixture
def former(tmp_path, monkeypatch):
    folder = shutil.copytree(FORMER, tmp_path / "former")
    monkeypatch.chdir(folder)
    return folder


def weights(folder):
    return load_file(folder / "student" / "student.safetensors")


def test_dataset__loads_whole(former):
    manifest = cd.Manifest.load(former / "data")
    assert len(manifest.videos) == 24 and set(manifest.videos[0].streams) == {"rgb", "flow", "depth"}
    frames = cd.read_clip(former / "data", manifest.videos[0].streams, [0.0, 0.1])
    assert frames["rgb"].shape == (2, 32, 32, 3)


def test_run__resumes_from_its_checkpoint_to_the_same_student(former):
    expected = weights(former / "run")
    shutil.rmtree(former / "run" / "student")
    (former / "run" / "checkpoints" / "step-00000006.safetensors").unlink()
    train([*RUN, "--out", "run", "--resume"])
    found = weights(former / "run")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_run__is_not_resumed_with_other_options(former, capsys):
    with pytest.raises(SystemExit):
        train([*RUN, "--out", "run", "--resume", "--precision", "bf16"])
    assert "was started with another --precision (fp32, now bf16)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("student", "bits"), [("run", None), ("quantised", "w4a8")])
def test_students__load_and_evaluate_to_the_same_numbers(student, bits, former):
    if bits is not None:
        pytest.importorskip("brevitas")
    assert cd.load_student(former / student, allow_code=True).bits == bits
    options = ["--data", "data", "--allow-code", "--workers", 0, "--bootstrap", 0, "--precision", "fp32"]
    main(["evaluate", student, *map(str, options), "--json", "found.json"])
    found = json.loads((former / "found.json").read_text())["results"]
    expected = json.loads((former / ("evaluate.json" if bits is None else f"{student}.json")).read_text())["results"]
    assert {name: each["top1"] for name, each in found.items()} == {name: e["top1"] for name, e in expected.items()}


def test_feature_store__is_used(former, monkeypatch, capsys):
    monkeypatch.setattr(
        "crossdistill.evaluation.feature_store.extract_features", lambda *_, **__: pytest.fail("embeds")
    )
    options = ["--data", "data", "--allow-code", "--workers", "0", "--bootstrap", "0", "--precision", "fp32"]
    main(["evaluate", "run", *options])
    assert "features read from" in " ".join(capsys.readouterr().out.split())


def test_teacher_cache__is_complete_trains_and_grows(former):
    stored = TeacherCache(Path("cache"))
    assert stored.num_augmentations == 2 and stored.missing() == []
    train([*RUN, "--teacher-cache", "cache", "--out", "cached", "--no-evaluate"])
    assert (former / "cached" / "student" / "student.json").is_file()
    cache(
        [
            *PAIR,
            "--data",
            "data",
            "--augmentations",
            3,
            "--out",
            "cache",
            "--workers",
            0,
            "--precision",
            "fp32",
            "--seed",
            5,
        ]
    )
    assert TeacherCache(Path("cache")).num_augmentations == 3 and TeacherCache(Path("cache")).key == stored.key


def test_teacher_cache__is_verified_by_lengths_and_by_its_teacher(former, capsys):
    cache(
        [
            "verify",
            "cache",
            "--data",
            "data",
            "--teacher-weights",
            "teacher.safetensors",
            "--workers",
            0,
            "--allow-code",
        ]
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "2 shards of cache are as they were written; 2 of a former version have no checksum" in said
    assert "24 clips of cache: cosine to the live teacher at least 0.9999" in said or "at least 1.0000" in said


def test_report__reads_the_run(former):
    main(["report", "run", "--no-teacher", "--clips", "20", "--gallery", "1", "--workers", "0", "--allow-code"])
    assert "network.py:student" in (former / "run" / "report.html").read_text()


def test_old_names__are_answered_with_the_new_ones(former, capsys):
    for options, answer in (
        (["train", "--mixed-precision", "fp32"], "--mixed-precision is now called --precision"),
        (["train", "--precision", "w4a8"], "use --bits w4a8"),
        (["report", "run", "--twin", "x"], "--twin is now called --baseline"),
    ):
        with pytest.raises(SystemExit):
            main(options)
        assert answer in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["transfer", "--help"])
    assert "crossdistill transfer is now called crossdistill agreement" in capsys.readouterr().err
