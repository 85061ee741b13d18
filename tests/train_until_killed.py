"""train.py that sends SIGKILL to all its processes once metrics.jsonl holds the step KILL_AFTER_STEP.

A test that watches the file from outside may come too late on a busy machine.
"""

import os
import signal

import psutil

from crossdistill.commands.main import main
from crossdistill.training.run_folder import MetricsLog

write = MetricsLog.write


def write_and_die(log: MetricsLog, step: int, values: dict[str, float]) -> None:
    write(log, step, values)
    if "loss" not in values or step < int(os.environ["KILL_AFTER_STEP"]):
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        torchrun = psutil.Process(os.getppid())
        others = [each for each in torchrun.children(recursive=True) if each.pid != os.getpid()]
        for each in (torchrun, *others):
            each.kill()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    MetricsLog.write = write_and_die  # type: ignore[method-assign]
    main(command="train", prog="train.py")
