"""The advice of a run that waits for its clips."""

import time

import pytest
import torch
from accelerate import Accelerator

from crossdistill.training.monitor import WAITING_LINES, Monitor
from crossdistill.training.run_folder import MetricsLog, RunFolder
from crossdistill.types import StepOutput


@pytest.mark.parametrize(("wait_seconds", "step_seconds", "num_sentences"), [(0.02, 0.0, 1), (0.0, 0.01, 0)])
def test_run_that_waits_for_clips__says_once_what_helps(tmp_path, capsys, wait_seconds, step_seconds, num_sentences):
    def clips():
        for _ in range(num_steps):
            time.sleep(wait_seconds)
            yield 0

    num_steps = 3 * WAITING_LINES
    monitor = Monitor(
        MetricsLog(RunFolder(tmp_path), start_step=1, tracker="none"),
        accelerator=Accelerator(cpu=True),
        batch_size=4,
        log_every_steps=1,
        start_step=0,
        num_steps=num_steps,
        steps_per_epoch=5,
        started=time.perf_counter(),
        description="training",
    )
    with monitor:
        for step, _ in enumerate(monitor.watch(clips()), start=1):
            time.sleep(step_seconds)
            monitor.add(StepOutput(loss=torch.zeros(()), terms={}))
            monitor.finish_step(step, lr=0.1, bank_fill=None)
    assert capsys.readouterr().out.count("give more --workers") == num_sentences
