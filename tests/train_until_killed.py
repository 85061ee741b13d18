"""train.py that sends a signal to all its processes once metrics.jsonl holds the step KILL_AFTER_STEP.

The signal is KILL_SIGNAL, SIGKILL by default. KILL_IN is a part of the path of that file, for a run of several
trainings; any by default. A test that watches the file from outside may come too late on a busy machine. With
KILL_FIRST, SIGKILL goes to the first process alone, and not to one that torchrun has started again. With
SAMPLE_LOG, each process appends the clips of each batch to SAMPLE_LOG.<process>.
"""

import json
import os
import signal
import threading

import psutil
import torch

from crossdistill.commands.main import main
from crossdistill.training import loop
from crossdistill.training.run_folder import MetricsLog
from crossdistill.utils.stopping import StopRequest

write, note = MetricsLog.write, StopRequest._note
SIGNAL = signal.Signals[os.environ.get("KILL_SIGNAL", "SIGKILL")]
IS_LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ
is_noted = threading.Event()


def write_and_die(log: MetricsLog, step: int, values: dict[str, float]) -> None:
    write(log, step, values)
    is_other = os.environ.get("KILL_IN", "") not in log._file.name
    is_early = "loss" not in values or step < int(os.environ.get("KILL_AFTER_STEP", "1_000_000"))
    if is_early or is_noted.is_set() or is_other:
        return
    if SIGNAL != signal.SIGKILL:
        # As a terminal or a scheduler does; torchrun, whose workers have sessions of their own, passes it on.
        os.kill(os.getppid(), SIGNAL) if IS_LAUNCHED else os.killpg(0, SIGNAL)
        while not is_noted.wait(0.01):
            pass
        return
    if "KILL_FIRST" in os.environ:
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        return
    if IS_LAUNCHED:
        torchrun = psutil.Process(os.getppid())
        # An orphan's parent is the first process of the machine, and its children are all others.
        assert "torch.distributed.run" in torchrun.cmdline(), torchrun.cmdline()
        others = [each for each in torchrun.children(recursive=True) if each.pid != os.getpid()]
        for each in (torchrun, *others):
            each.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def note_and_tell(request: StopRequest, signal_number: int, frame: object) -> None:
    note(request, signal_number, frame)
    is_noted.set()


def step_and_log(task, model, optimizer, scaling, batch, **keywords):  # type: ignore[no-untyped-def]
    """Log (sample, epoch, what the student sees of it in digits) of each clip."""
    seen = batch.student.values.flatten(1).long()
    digits = (seen * (1 + torch.arange(seen.shape[1]) % 9973)).sum(1)
    clips = [(*key, digit) for key, digit in zip(batch.sample_keys.tolist(), digits.tolist(), strict=True)]
    with open(f"{os.environ['SAMPLE_LOG']}.{os.environ.get('RANK', '0')}", "a", encoding="utf-8") as file:
        file.write(json.dumps(clips) + "\n")
    return step(task, model, optimizer, scaling, batch, **keywords)


if __name__ == "__main__":
    if "SAMPLE_LOG" in os.environ:
        step, loop._step = loop._step, step_and_log
    MetricsLog.write = write_and_die  # type: ignore[method-assign]
    StopRequest._note = note_and_tell  # type: ignore[method-assign]
    main(command="train", prog="python train.py")
