"""Real processes that wait for each other longer than the limit of their group."""

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = """
import time
from datetime import timedelta
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed
from crossdistill.utils.distributed import decide_on_first, ending_processes, gather_objects, on_any_process

limit = InitProcessGroupKwargs(timeout=timedelta(seconds=2))
accelerator = Accelerator(cpu=True, kwargs_handlers=[limit])
number = accelerator.process_index
with ending_processes():
    decided = decide_on_first(accelerator, lambda: time.sleep(4) or "by the first")
    time.sleep(4 * number)
    gathered = gather_objects(accelerator, [number])
    time.sleep(4 - 4 * number)
    print(decided, gathered, on_any_process(accelerator, number == 1), on_any_process(accelerator, False))
    time.sleep(4 * number)
assert not distributed.is_initialized()
"""


def test_processes__wait_longer_than_the_limit_of_their_group(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["by the first [0, 1] True False"] * 2
