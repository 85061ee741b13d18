"""Signals in a training: one sentence, the status of the signal, a checkpoint that resumes to the bit."""

import os
import signal

import pytest
from in_process import train
from safetensors.torch import load_file

from crossdistill.commands.train import main as train_command
from crossdistill.errors import STOP_SIGNALS, Stopped
from crossdistill.training.checkpoint import Checkpoints
from crossdistill.training.monitor import Monitor

OPTIONS = [
    *("--supervised", "--student", "flow_tiny3d_8", "--student-frames", 4, "--student-size", 32, "--epochs", 1),
    *("--batch-size", 8, "--workers", 0, "--tracker", "none", "--no-evaluate", "--knn-clips", 0),
    *("--log-every-steps", 1, "--precision", "fp32"),
]


@pytest.fixture
def signals(monkeypatch):
    """Signals to this process, sent in the middle of a step: step to their numbers."""
    sent, finish = {}, Monitor.finish_step

    def finish_step(self, step, **state):
        finish(self, step, **state)
        for number in sent.pop(step, ()):
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Monitor, "finish_step", finish_step)
    return sent


@pytest.fixture(scope="module")
def whole_run(toy_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train([*OPTIONS, "--data", toy_folder, "--out", folder])
    return folder


def stopped(capfd, *options):
    """Run until the signal; return the status and the lines of the standard error after the notice."""
    capfd.readouterr()
    handlers = [signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGCHLD)]
    with pytest.raises(SystemExit) as exit_info:
        train([*OPTIONS, *options])
    assert handlers == [signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGCHLD)]
    return exit_info.value.code, capfd.readouterr().err.splitlines()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signal__finishes_the_step_and_the_run_resumes_to_the_same_bits(
    toy_folder, whole_run, tmp_path, capfd, signals, number, status
):
    data = ["--data", toy_folder]
    signals[2] = [number]
    found, (_, notice, sentence) = stopped(capfd, *data, "--out", tmp_path / "run")
    assert found == status and notice == "stopping after this step; the next Ctrl-C or signal stops at once"
    kept = f"the checkpoint of step 2 is kept in {tmp_path / 'run'}, and --resume continues the run"
    assert sentence.startswith(
        f"crossdistill: stopped: {kept}: crossdistill train --supervised --student "
    ) and sentence.endswith(" --resume")
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2] and not (tmp_path / "run" / "student").exists()
    train(sentence.partition("crossdistill train ")[2].split())
    for name in ("student/student.safetensors", "student/classifier.safetensors"):
        whole, resumed = load_file(whole_run / name), load_file(tmp_path / "run" / name)
        assert whole.keys() == resumed.keys() and all(whole[key].equal(resumed[key]) for key in whole)


def test_second_signal__stops_at_once(toy_folder, tmp_path, capfd, signals):
    signals[1] = [signal.SIGINT, signal.SIGTERM]
    status, (*_, sentence) = stopped(capfd, "--data", toy_folder, "--out", tmp_path / "run")
    assert status == 143 and sentence == "crossdistill: stopped: start the same command again"
    assert not (tmp_path / "run" / "checkpoints").exists(), "the same command takes the folder over"


def test_signal__that_the_caller_ignores_does_not_stop(toy_folder, tmp_path, signals):
    signals[1] = [signal.SIGINT]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does
    try:
        train([*OPTIONS, "--data", toy_folder, "--out", tmp_path / "run"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "run" / "student").is_dir()


def test_command__that_continues_can_be_pasted(monkeypatch):
    def stop(config):
        raise Stopped("kept", needs_resume=True)

    monkeypatch.setattr("crossdistill.recipes.run.run", stop)
    with pytest.raises(Stopped) as stopped:
        train_command(["--student", "flow_tiny3d_8", "--supervised", "--out", "my runs/a"], prog="crossdistill train")
    command = "crossdistill train --student flow_tiny3d_8 --supervised --out 'my runs/a' --resume"
    assert str(stopped.value) == f"kept: {command}"
