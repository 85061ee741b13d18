"""Real processes: signals and resume to the bit, and two processes that do what one does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killing import PATIENCE_SECONDS
from safetensors.torch import load_file

from crossdistill.training.checkpoint import Checkpoints

PROJECT = Path(__file__).resolve().parents[2]
KILLED_SCRIPT = PROJECT / "tests" / "train_until_killed.py"
TINY = [
    *("--student-frames", 4, "--student-size", 32),
    *("--optimizer", "adamw", "--lr", 0.003, "--schedule", "cosine"),
    *("--bank-size", 40, "--clip-norm", 1.0),
    *("--precision", "fp32", "--workers", 1, "--no-evaluate", "--knn-clips", 0),
    *("--tracker", "none", "--log-every-steps", 1, "--keep-checkpoints"),
]


def command(*options, processes=1, script=PROJECT / "train.py"):
    launcher = [sys.executable, "-W", "ignore"]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0"]
        launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    return [*launcher, str(script), *map(str, (*TINY, *options))]


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    return output


def start(arguments, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), **variables}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def flatten(tree, path=""):
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flatten(value, f"{path}/{key}").items()}
    if isinstance(tree, list):
        return flatten(dict(enumerate(tree)), path)
    return {path: tree}


def evaluations(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["knn"] for row in rows if "knn" in row}


def train_until_killed(arguments, step, number=signal.SIGKILL, *, where="", **variables):
    """Train until all processes get a signal after a step, in the training whose ``metrics.jsonl`` has this path."""
    variables |= {"KILL_AFTER_STEP": str(step), "KILL_SIGNAL": number.name, "KILL_IN": where}
    process = start(arguments, **variables, PYTHONPATH=str(PROJECT))
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL, output
    else:
        assert process.returncode in (128 + number, 1), output  # 1 is torchrun's
        assert f"crossdistill: stopped: the checkpoint of step {step} is kept in" in output, output


TEACHER = ["--teacher", "rgb_r3d10_gn", "--teacher-frames", 4, "--teacher-size", 32]
PAIR = [*TEACHER, "--student", "flow_r3d10"]
# Both have tokens of two times.
LONG_PAIR = [*TEACHER[:3], 16, *TEACHER[4:], "--student", "flow_r3d10", "--student-frames", 16]
TWO_TEACHERS = [TEACHER[0], "rgb_r3d10_gn", *TEACHER[1:], "--student", "flow_r3d10"]
FOLDS = ["--teacher", "rgb_tiny3d_8", "--folds", 2]
DROPOUT_PAIR = [*TEACHER, "--student", "image_mobilenet_v3_small"]  # the smallest one whose body drops features out
# An evaluation at every step of a checkpoint and between them.
KNN = ["--knn-clips", 12, "--knn-every-epochs", 0.25]
NEW_OBJECTIVES = ["cospress", "unic", "token-relations", "time-relations"]
RESUME_CASES = {
    "momentum": ([*PAIR, "--objective", "compress-2q", *KNN], 1, (3, 8)),
    "live, dropout, accumulation, mixed, SGD": (
        [*DROPOUT_PAIR, "--objective", "compress-2q-live", "--accumulate", 2, "--mix", "--optimizer", "sgd"],
        1,
        (3,),
    ),
    "labels": (["--supervised", "--student", "flow_r3d10"], 1, (5,)),
    "two processes": ([*LONG_PAIR, "--objective", "compress-2q", *NEW_OBJECTIVES], 2, (3,)),
    "two processes, two teachers, quantised, bags": (
        [
            *(*TWO_TEACHERS, "--standardize", "phi-s", "--teacher-drop", 0.5),
            *("--objective", "compress-2q", "bingo", "--bits", "w4a8"),
        ],
        2,
        (3,),
    ),
    "two processes, two teachers, ladder with an EMA copy, running statistics": (
        [
            *(*TWO_TEACHERS, "--standardize", "running", "--teacher-drop", 0.5),
            *("--objective", "compress-2q", "unic", "--adapter", "ladder", "--bits", "w4a8"),
        ],
        2,
        (3,),
    ),
    "two processes, its own EMA copy, mixed": (
        ["--teacher", "self", "--student", "flow_r3d10", "--objective", "seed", "--strong-views", "--mix"],
        2,
        (3,),
    ),
    "two processes, folds": ([*FOLDS, "--student", "flow_r3d10", "--objective", "compress-1q", "simreg"], 2, (3,)),
}
# The others have the parts of these between them: make test-slow runs them.
SLOW_CASES = {
    "two processes, two teachers, ladder with an EMA copy, running statistics",
    "two processes, two teachers, quantised, bags",
    "two processes, its own EMA copy, mixed",
    "two processes, folds",
    "momentum",
}
# These end with a checkpoint after the step; the others are killed.
SIGNALS = {"labels": signal.SIGINT, "two processes": signal.SIGTERM}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW_CASES)) for case in RESUME_CASES]
)
def test_resume__stopped_runs_end_with_the_same_bits(tmp_path, toy_folder, teacher_file, case, request):
    """Dropout, BatchNorm, EMA copy, bank, optimizer, schedule, sampler: all of it is in the checkpoint."""
    pair, processes, kill_steps = RESUME_CASES[case]
    options = [*pair, "--data", toy_folder, "--batch-size", 8 // processes, "--epochs", 3]
    options += ["--checkpoint-every-steps", 2]
    if "rgb_r3d10_gn" in pair:
        options += ["--teacher-weights", teacher_file]
    if "--folds" in pair:
        options += ["--teacher-weights", *request.getfixturevalue("fold_teachers")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = start(command(*options, "--out", whole, processes=processes))
    for step in kill_steps:
        resumed = command(*options, "--out", killed, "--resume", processes=processes, script=KILLED_SCRIPT)
        train_until_killed(resumed, step, SIGNALS.get(case, signal.SIGKILL))
    finish(reference)
    assert max(losses(killed)) == max(kill_steps) < max(losses(whole))
    output = finish(start(command(*options, "--out", killed, "--resume", processes=processes)))
    assert "resuming after step" in output
    student = "student/student.safetensors"
    assert (whole / student).read_bytes() == (killed / student).read_bytes()
    one, other = (flatten(Checkpoints(folder / "checkpoints").load_newest()[1]) for folder in (whole, killed))
    for content in (one, other):
        assert content.pop("/seconds") > 0  # of the clock
    assert one.keys() == other.keys() and len(one) > 50
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name
    assert losses(whole) == losses(killed)
    assert evaluations(whole) == evaluations(killed) and bool(evaluations(whole)) == ("--knn-clips" in pair)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_resume__in_either_stage_of_a_run_through_a_proxy(tmp_path, toy_folder, teacher_file, processes):
    """Both stages continue where they were killed, and a finished proxy is taken as it is."""
    options = [*TWO_TEACHERS, "--teacher-weights", teacher_file, "--data", toy_folder, "--batch-size", 8 // processes]
    options += ["--proxy", "rgb_tiny3d_16", "--proxy-frames", 4, "--proxy-size", 32, "--objective", "compress-2q"]
    options += ["--epochs", 2, "--checkpoint-every-steps", 2]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    reference = start(command(*options, "--out", whole, processes=processes))
    resumed = command(*options, "--out", killed, "--resume", processes=processes, script=KILLED_SCRIPT)
    train_until_killed(resumed, 3, where="proxy/metrics.jsonl")
    assert max(losses(killed / "proxy")) == 3 and not (killed / "metrics.jsonl").exists()
    train_until_killed(resumed, 3, where="killed/metrics.jsonl")
    assert max(losses(killed)) == 3
    weights = "student/student.safetensors"
    proxy = (killed / "proxy" / weights).stat()
    finish(start(command(*options, "--out", killed, "--resume", processes=processes)))
    finish(reference)
    assert (killed / "proxy" / weights).stat().st_mtime_ns == proxy.st_mtime_ns
    for folder in (Path("proxy"), Path()):
        assert (whole / folder / weights).read_bytes() == (killed / folder / weights).read_bytes()
        assert losses(whole / folder) == losses(killed / folder) and max(losses(whole / folder)) > 3


@pytest.mark.parametrize(
    ("accumulate", "more"),
    [
        pytest.param(1, [], marks=pytest.mark.slow),
        pytest.param(2, [], marks=pytest.mark.slow),
        (1, ["--objective", "compress-2q", "unic", "--adapter", "ladder", "--standardize", "running"]),
    ],
)
def test_two_processes_with_half_the_batch__do_what_one_process_does(
    tmp_path, toy_folder, teacher_file, accumulate, more
):
    options = [*TEACHER, "--student", "flow_r3d10_gn", "--teacher-weights", teacher_file]
    options += ["--data", toy_folder, "--epochs", 2, "--objective", "compress-2q", "--accumulate", accumulate, *more]
    # SGD: AdamW divides by the size of the gradient and so turns rounding into steps of full length.
    # Running statistics divide by deviations of a few clips at first, and so make rounding larger.
    options += ["--optimizer", "sgd", "--lr", 0.002 if more else 0.05]
    one, two = tmp_path / "one", tmp_path / "two"
    first = start(command(*options, "--batch-size", 8, "--out", one))
    finish(start(command(*options, "--batch-size", 4, "--out", two, processes=2)))
    finish(first)
    curve_one, curve_two = losses(one), losses(two)
    assert curve_one.keys() == curve_two.keys() and len(curve_one) >= 4
    slack = 10 if more else 1
    for step, loss in curve_one.items():
        assert curve_two[step] == pytest.approx(loss, abs=1e-5 * slack), step
    assert max(curve_one.values()) > 0.01
    tasks = [Checkpoints(folder / "checkpoints").load_newest()[1]["task"] for folder in (one, two)]
    banks = [task["banks"][0] for task in tasks]
    for statistics in zip(*(task.get("standardizers", []) for task in tasks), strict=True):
        torch.testing.assert_close(*statistics, atol=1e-5 * slack, rtol=1e-4)
    assert torch.equal(banks[0]["sample_ids"], banks[1]["sample_ids"])
    assert torch.equal(banks[0]["position"], banks[1]["position"])
    for name in ("teacher", "student"):
        torch.testing.assert_close(banks[0][name], banks[1][name], atol=1e-5 * slack, rtol=0)
    weights = [load_file(folder / "student" / "student.safetensors") for folder in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-4 * slack, rtol=0)


def test_two_processes__route_and_align_folds_as_one_process_does(tmp_path, toy_folder, fold_teachers):
    options = [*FOLDS, "--student", "flow_r3d10_gn", "--teacher-weights", *fold_teachers, "--data", toy_folder]
    options += ["--epochs", 2, "--objective", "compress-1q", "simreg", "--optimizer", "sgd", "--lr", 0.05]
    one, two = tmp_path / "one", tmp_path / "two"
    first = start(command(*options, "--adapter", "linear", "--batch-size", 8, "--out", one))
    finish(start(command(*options, "--adapter", "linear", "--batch-size", 4, "--out", two, processes=2)))
    finish(first)
    maps = [load_file(next(folder.glob("folds-*.safetensors"))) for folder in (one, two)]
    assert maps[0].keys() == maps[1].keys() and len(maps[0]) == 6
    for name, value in maps[0].items():
        torch.testing.assert_close(value, maps[1][name], atol=1e-3, rtol=0)
    curve_one, curve_two = losses(one), losses(two)
    assert curve_one.keys() == curve_two.keys() and len(curve_one) >= 4
    for step, loss in curve_one.items():
        assert curve_two[step] == pytest.approx(loss, abs=1e-3), step
