"""Real processes that wait for each other longer than the limit of their group."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crossdistill.utils.distributed import LAUNCHER_VARIABLES
from crossdistill.utils.environment import num_cpu_cores

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, time
from datetime import timedelta
from pathlib import Path
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed
from crossdistill.utils.distributed import decide_on_first, ending_processes, gather_objects, largest_of_processes

limit = InitProcessGroupKwargs(timeout=timedelta(seconds=2))
accelerator = Accelerator(cpu=True, kwargs_handlers=[limit])
number = accelerator.process_index
with ending_processes():
    decided = decide_on_first(accelerator, lambda: time.sleep(4) or "by the first")
    time.sleep(4 * number)
    gathered = gather_objects(accelerator, [number])
    time.sleep(4 - 4 * number)
    facts = [decided, gathered, largest_of_processes(accelerator, number == 1, 15 - number)]
    (Path(__file__).parent / f"facts.{number}.json").write_text(json.dumps(facts))
    time.sleep(4 * number)
assert not distributed.is_initialized()
"""


def launch(folder, text, *options):
    """Run a script in two processes, and return what they print."""
    script = folder / "script.py"
    script.write_text(text)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([*launcher, str(script), *map(str, options)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_processes__wait_longer_than_the_limit_of_their_group(tmp_path):
    launch(tmp_path, SCRIPT)  # into files: what two processes print may be mixed within a line
    for number in range(2):
        facts = json.loads((tmp_path / f"facts.{number}.json").read_text())
        assert facts == ["by the first", [0, 1], [1, 15]]


THREADS = """
import sys
import torch
from accelerate import Accelerator
from crossdistill.utils.distributed import use_all_cores

accelerator, before = Accelerator(cpu=True), torch.get_num_threads()
use_all_cores(accelerator)
sys.stdout.write(f"{before} {torch.get_num_threads()}\\n")  # whole lines: two processes may print at once
"""
PYTHON = [sys.executable]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def threads_of(folder, launcher, **variables):
    """Threads of every process before and after ``use_all_cores``, with ``OMP_NUM_THREADS`` as the user has set it."""
    (folder / "script.py").write_text(THREADS)
    names = {"OMP_NUM_THREADS", *LAUNCHER_VARIABLES}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": str(PROJECT), **variables}
    command = [*launcher, str(folder / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return [tuple(map(int, line.split())) for line in done.stdout.splitlines() if re.fullmatch(r"\d+ \d+", line)]


def test_threads__a_number_of_the_user_is_kept(tmp_path):
    assert threads_of(tmp_path, PYTHON, OMP_NUM_THREADS="1") == [(1, 1)]
    found = threads_of(tmp_path, TORCHRUN, OMP_NUM_THREADS="2")
    assert len(found) == 2 and all(before == after for before, after in found)


def test_threads__one_is_the_default_of_accelerate_and_does_not_count_as_the_users(tmp_path):
    ((_, after),) = threads_of(tmp_path, ACCELERATE)
    assert after == num_cpu_cores()


# Everything that one process does alone takes longer than the limit; what they do together stays below it.
RUN = """
import sys, time
from datetime import timedelta
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from crossdistill.evaluation import evaluate, feature_store
from crossdistill.recipes import final_evaluation, rounds, run
from crossdistill.recipes.config import parse
from crossdistill.training import checkpoint, run_folder
from crossdistill.utils.distributed import ending_processes

LIMIT_SECONDS, slow = 15, []


def slow_down(owner, name):
    work = getattr(owner, name)

    def after_a_while(*arguments, **keywords):
        slow.append(name)
        if slow.count(name) == 1:
            time.sleep(LIMIT_SECONDS + 3)
        return work(*arguments, **keywords)

    setattr(owner, name, after_a_while)


PLACES = [
    (run_folder.RunFolder, "claim"), (checkpoint.Checkpoints, "save"), (run, "save_student"),
    (evaluate, "apply_protocols"), (feature_store.FeatureStore, "read"), (feature_store.FeatureStore, "write"),
    (final_evaluation, "print_comparison"), (rounds, "print_comparison"),
]
limit = InitProcessGroupKwargs(timeout=timedelta(seconds=LIMIT_SECONDS))
accelerator = Accelerator(cpu=True, kwargs_handlers=[limit])
if accelerator.is_main_process:
    for owner, name in PLACES:
        slow_down(owner, name)
with ending_processes():
    run.run(parse(sys.argv[1:]), accelerator)
if accelerator.is_main_process:
    assert set(slow) == {name for _, name in PLACES}, slow
    print("finished")
"""


@pytest.mark.slow
def test_run__of_two_processes_outlasts_everything_that_the_first_does_alone(toy_folder, tmp_path):
    options = ["--supervised", "--student", "flow_tiny3d_8", "--student-frames", 2, "--student-size", 32, "--rounds", 2]
    options += ["--data", toy_folder, "--epochs", 1, "--batch-size", 4, "--bank-size", 16, "--knn-clips", 8]
    options += ["--workers", 0, "--tracker", "none", "--out", tmp_path / "run"]
    assert launch(tmp_path, RUN, *options).splitlines()[-1] == "finished"
