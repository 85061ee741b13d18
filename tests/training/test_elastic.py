"""Real processes that come and go: other numbers of them continue a run with the same clips in the same order."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_processes import KILLED_SCRIPT, TEACHER, command, finish, losses, start, train_until_killed

from crossdistill.training.checkpoint import Checkpoints


def clips_of(log, processes):
    """Return the clips of a part of a run in their order, from the logs of its processes."""
    logs = [[json.loads(line) for line in Path(f"{log}.{i}").read_text().splitlines()] for i in range(processes)]
    return [tuple(clip) for batches in zip(*logs, strict=True) for batch in batches for clip in batch]


START = "--batch-size", 3, "--accumulate", 2


@pytest.mark.slow
def test_run__of_four_then_two_then_three_processes_learns_as_one_of_four(tmp_path, toy_folder, teacher_file):
    """36 clips an epoch and 24 a step: steps end inside epochs. Batches of two processes do, too."""
    options = [*TEACHER, "--student", "flow_r3d10_gn", "--teacher-weights", teacher_file, "--data", toy_folder]
    options += ["--epochs", 8, "--objective", "compress-2q", "--optimizer", "sgd", "--lr", 0.05]
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def run(folder, name, processes, division):
        given = [*options, *division, "--out", folder, "--resume"]
        arguments = command(*given, processes=processes, script=KILLED_SCRIPT)
        return arguments, {"SAMPLE_LOG": str(tmp_path / name)}

    arguments, variables = run(whole, "whole", 4, START)
    finish(start(arguments, **variables))
    for name, processes, division, step in (
        ("a", 4, START, 3),
        ("b", 2, ("--batch-size", 4, "--accumulate", 3), 7),
    ):
        arguments, variables = run(parts, name, processes, division)
        train_until_killed(arguments, step, signal.SIGTERM, **variables)
    arguments, variables = run(parts, "c", 3, START)
    output = " ".join(finish(start(arguments, **variables)).split())
    changed = "the run takes 24 clips a step (4 processes x 3 x 2 batches), now as 3 processes x 2 x 4 batches"
    assert changed in output and "resuming after step 7" in output
    clips = {name: clips_of(tmp_path / name, number) for name, number in (("whole", 4), ("a", 4), ("b", 2), ("c", 3))}
    assert [len(clips[name]) for name in "abc"] == [3 * 24, 4 * 24, 5 * 24]
    assert clips["a"] + clips["b"] + clips["c"] == clips["whole"]
    curve, curve_of_parts = losses(whole), losses(parts)
    assert curve.keys() == curve_of_parts.keys() == set(range(1, 13)) and max(curve.values()) > 0.01
    for step, loss in curve.items():
        assert curve_of_parts[step] == pytest.approx(loss, abs=1e-5), step
    banks = [Checkpoints(folder / "checkpoints").load_newest()[1]["task"]["banks"][0] for folder in (whole, parts)]
    assert torch.equal(banks[0]["sample_ids"], banks[1]["sample_ids"])
    weights = [load_file(folder / "student" / "student.safetensors") for folder in (whole, parts)]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-4, rtol=0)
