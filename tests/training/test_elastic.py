"""Real processes that come and go: other numbers of them continue a run with the same clips in the same order."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killing import PATIENCE_SECONDS
from safetensors.torch import load_file
from test_processes import KILLED_SCRIPT, PROJECT, TEACHER, TINY, command, finish, losses, start, train_until_killed

from crossdistill.recipes.config import parse
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


SMALL = [
    *("--supervised", "--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 32, "--batch-size", 4),
    *("--workers", 0, "--epochs", 2, "--no-evaluate", "--knn-clips", 0, "--tracker", "none", "--log-every-steps", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", [[], ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]])
def test_killed_process__is_started_again_and_continues(tmp_path, toy_folder, rendezvous):
    """Without a folder at first. SIGKILL comes at step 3, after the checkpoint of step 2; the first process writes."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", 2, "--max-restarts", 1, *rendezvous]
    options = [*SMALL, "--data", toy_folder, "--checkpoint-every-steps", 2, "--out", tmp_path / "run", "--resume"]
    process = start([*map(str, [*launch, KILLED_SCRIPT, *options])], KILL_AFTER_STEP="3", KILL_FIRST="1")
    output = finish(process)
    assert "resuming after step 2" in output and "Traceback" not in output
    assert output.count("crossdistill: error: another process of this run has ended") <= 1
    assert sorted(losses(tmp_path / "run")) == list(range(1, 9)) and (tmp_path / "run" / "student").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_signal__ends_a_process_that_waits_for_others_to_connect(tmp_path, rank):
    """Nobody else comes: the store, or the first process, is waited for outside Python."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    code = (
        "from accelerate import Accelerator; from crossdistill.utils import distributed; import sys\n"
        "connect = Accelerator.__init__\n"
        "def tell(*a, **k): print('connecting', flush=True); connect(*a, **k)\n"
        "Accelerator.__init__ = tell\n"
        "from crossdistill.errors import friendly_errors\n"
        "friendly_errors(distributed.create_accelerator)()"
    )
    process = start([sys.executable, "-W", "ignore", "-c", code], **place, MASTER_PORT=str(port))
    assert process.stdout.readline() == "connecting\n"
    time.sleep(5)  # so that it waits in PyTorch
    assert process.poll() is None
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGUSR1, output  # for a shell, and for srun: 138


@pytest.mark.slow
def test_signal__while_the_first_process_evaluates_ends_all_with_its_status(tmp_path, toy_folder):
    """As srun does, which starts the processes and passes signals on. The second waits outside Python."""
    code = (
        "import os, signal, time\n"
        "from crossdistill.evaluation import evaluate\n"
        "def wait(*a, **k): print('evaluating', flush=True); time.sleep(600)\n"
        "evaluate.apply_protocols = wait\n"
        "from crossdistill.commands.main import main; main(command='train', prog='crossdistill train')"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [option for option in SMALL if option != "--no-evaluate"]
    arguments = map(
        str, [sys.executable, "-W", "ignore", "-c", code, *options, "--data", toy_folder, "--out", tmp_path / "run"]
    )
    command, processes = [*arguments], []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        processes.append(start(command, **place, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)))
    while "evaluating" not in (line := processes[0].stdout.readline()):
        assert line, "the run ended before its evaluation"
    for process in processes:
        process.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=PATIENCE_SECONDS)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    told = outputs[0].splitlines()[-1]
    assert "--resume continues the run: in each process, crossdistill train --supervised" in told and not outputs[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_full_disk__while_curves_are_written_is_one_sentence_and_keeps_the_checkpoint(tmp_path, toy_folder, processes):
    """From step 6 on, the first process may write files that are 50 bytes longer than the curves."""
    code = (
        "import os, resource\n"
        "from crossdistill.training.run_folder import MetricsLog\n"
        "write = MetricsLog.write\n"
        "def write_more(log, step, values):\n"
        "    if step == 6: resource.setrlimit(resource.RLIMIT_FSIZE, (log._file.tell() + 50,) * 2)\n"
        "    write(log, step, values)\n"
        "MetricsLog.write = write_more\n"
        "from crossdistill.commands.main import main; main(command='train', prog='crossdistill train')"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    options = [*SMALL, "--data", toy_folder, "--checkpoint-every-steps", 4, "--out", tmp_path / "run"]
    arguments = command(processes=processes, script=script)[: -len(TINY)]
    process = start([*arguments, *map(str, options)])
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    path = tmp_path / "run" / "metrics.jsonl"
    assert process.returncode == (2 if processes == 1 else 1), output
    assert f"crossdistill: error: the disk is full ({path}): free space and start again" in output
    assert "site-packages/torch/distributed/distributed_c10d" not in output
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [4] and not path.read_text().endswith("\n")
    resumed = start([*command(processes=processes)[: -len(TINY)], *map(str, [*options, "--resume"])])
    assert "resuming after step 4" in finish(resumed)
    assert sorted(losses(tmp_path / "run"))[:5] == [1, 2, 3, 4, 5]


# SLURM, as far as the script of the guide sees it.

FAKE_SRUN = """
import os, subprocess, sys
number = int(os.environ["SLURM_NTASKS"])
group, tasks = 0, []
for task in range(number):  # a process group of their own: the signal goes to all tasks, and not to the script
    place = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)}
    tasks.append(subprocess.Popen(sys.argv[1:], env={**os.environ, **place}, preexec_fn=lambda: os.setpgid(0, group)))
    group = group or tasks[0].pid
codes = [task.wait() for task in tasks]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""


def script_of_guide():
    guide = (PROJECT / "docs" / "how_to" / "many_gpus.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```sh\n(#!.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)
    return text


@pytest.fixture
def sbatch(tmp_path):
    """Run the script of the guide as SLURM does, once for each number of tasks."""
    text = script_of_guide()
    bin_folder, queue = tmp_path / "bin", tmp_path / "queue"
    bin_folder.mkdir()
    queue.touch()
    scripts = {
        "scontrol": f'case $1 in show) echo 127.0.0.1 ;; requeue) echo "$2" >> {queue} ;; *) exit 3 ;; esac',
        "srun": f'exec {sys.executable} {tmp_path / "srun.py"} "$@"',
        "crossdistill": f'[ "$1" = train ] || exit 4; shift; exec {sys.executable} -W ignore {KILLED_SCRIPT} "$@"',
    }
    for name, body in scripts.items():
        (bin_folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (bin_folder / name).chmod(0o755)
    (tmp_path / "srun.py").write_text(FAKE_SRUN)

    def run(*, options=None, srun=None, tasks=(1,), variables=({},)):
        script, used = tmp_path / "job.sh", text
        if options is not None:
            used, count = re.subn(r"--data data/k400.*?--resume", shlex.join(map(str, options)), text, flags=re.DOTALL)
            assert count == 1
        script.write_text(used)
        if srun is not None:
            (bin_folder / "srun").write_text(f"#!/bin/bash\n{srun}\n")
        statuses, outputs = [], []
        for number, more in zip(tasks, variables, strict=True):
            job = {
                "SLURM_JOB_ID": str(4711 + os.getpid() % 1000),
                "SLURM_NTASKS": str(number),
                "SLURM_JOB_NODELIST": "n",
            }
            process = start(["bash", str(script)], PATH=f"{bin_folder}:{os.environ['PATH']}", **job, **more)
            outputs.append(process.communicate(timeout=PATIENCE_SECONDS)[0])
            statuses.append(process.returncode)
        return statuses, queue.read_text().split(), outputs

    return run


@pytest.mark.parametrize(
    ("status", "is_queued"), [(0, False), (1, False), (2, False), (137, False), (138, True), (143, True)]
)
def test_sbatch__queues_the_job_again_after_a_stop_alone(sbatch, status, is_queued):
    statuses, queue, _ = sbatch(srun=f"exit {status}")
    assert statuses == [status] and len(queue) == is_queued


def test_sbatch__is_a_script_with_options_that_exist():
    text = script_of_guide()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    (train,) = re.findall(r"crossdistill train (.*?)'", text.replace("\\\n", ""), flags=re.DOTALL)
    config = parse(train.split())
    assert config.machine.resume and config.machine.checkpoint_every_minutes == 10


@pytest.mark.slow
def test_sbatch__finishes_the_run_with_other_tasks_after_a_signal(sbatch, tmp_path, toy_folder):
    options = [*SMALL, "--data", toy_folder, "--out", tmp_path / "run", "--resume"]
    stop = {"KILL_AFTER_STEP": "3", "KILL_SIGNAL": "SIGUSR1"}
    statuses, queue, outputs = sbatch(options=options, tasks=(2, 1), variables=(stop, {}))
    assert statuses == [138, 0] and len(queue) == 1, outputs
    assert "8 clips a step (2 processes x 4), now as 1 process x 4 x 2 batches" in " ".join(outputs[1].split())
    assert "resuming after step 3" in outputs[1] and (tmp_path / "run" / "student").is_dir()
    assert sorted(losses(tmp_path / "run")) == list(range(1, 9))
