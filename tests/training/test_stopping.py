"""Signals in a training: one sentence, the status of the signal, a checkpoint that resumes to the bit."""

import itertools
import json
import os
import signal
from types import SimpleNamespace

import psutil
import pytest
from in_process import cache, train
from safetensors.torch import load_file

from crossdistill.commands.train import main as train_command
from crossdistill.distillation.teacher_cache import TeacherCache
from crossdistill.errors import STOP_SIGNALS, Stopped
from crossdistill.evaluation.feature_store import FeatureStore
from crossdistill.recipes import final_evaluation
from crossdistill.recipes import run as run_module
from crossdistill.training import checkpoint
from crossdistill.training.checkpoint import Checkpoints
from crossdistill.training.monitor import Monitor
from crossdistill.utils.environment import command_as_typed

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


def stop_in(monkeypatch, owner, name, number):
    """Send a signal to this process where a function is called first."""
    work, sent = getattr(owner, name), []

    def stopped_work(*arguments, **keywords):
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return work(*arguments, **keywords)

    monkeypatch.setattr(owner, name, stopped_work)
    return sent


PHASES = {
    "the student is saved": (run_module, "save_student", signal.SIGTERM),
    "an evaluation": (final_evaluation, "evaluate_encoder", signal.SIGUSR1),
    "features are cached": (FeatureStore, "write", signal.SIGINT),
    "results are written": (final_evaluation, "write_text_atomically", signal.SIGUSR1),
}


@pytest.mark.parametrize("phase", PHASES)
def test_signal__after_the_training_is_continued_with_resume(toy_folder, tmp_path, capfd, monkeypatch, phase):
    owner, name, number = PHASES[phase]
    options = [option for option in OPTIONS if option != "--no-evaluate"]
    options += ["--data", toy_folder, "--out", tmp_path / "run"]
    sent = stop_in(monkeypatch, owner, name, number)
    with pytest.raises(SystemExit) as exit_info:
        train(options)
    assert sent == [number] and exit_info.value.code == 128 + number
    sentence = capfd.readouterr().err.splitlines()[-1]
    assert sentence.startswith("crossdistill: stopped: the checkpoint of step ") and sentence.endswith("--resume")
    assert not (tmp_path / "run" / "results.json").exists()
    train([*options, "--resume"])
    assert "student, supervised" in (tmp_path / "run" / "results.json").read_text()


def test_end__during_an_evaluation_loses_no_step_and_is_made_up_for(toy_folder, tmp_path, monkeypatch):
    """As if a cluster had killed the run: the checkpoint is there before the evaluation, the numbers are not."""
    options = [*OPTIONS, "--knn-clips", 8, "--knn-every-epochs", 0.5, "--data", toy_folder, "--epochs", 2]
    options += ["--checkpoint-every-steps", 100, "--out"]
    train([*options, tmp_path / "whole"])
    evaluate_encoder = run_module.evaluate_encoder

    def ends(*_, **__):
        raise Killed

    monkeypatch.setattr(run_module, "evaluate_encoder", ends)
    with pytest.raises(Killed):
        train([*options, tmp_path / "run"])
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [2]
    assert evaluations(tmp_path / "run") == {}
    monkeypatch.setattr(run_module, "evaluate_encoder", evaluate_encoder)
    train([*options, tmp_path / "run", "--resume"])
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "whole") and len(evaluations(tmp_path / "run")) == 4


class Killed(BaseException):
    """In place of SIGKILL."""


def evaluations(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["knn"] for row in rows if "knn" in row}


def test_signal__while_a_teacher_is_trained_first_is_continued(toy_folder, tmp_path, capfd, signals):
    pair = ["--teacher", "rgb_tiny3d_8", "--teacher-frames", 4, "--teacher-size", 32, "--teacher-epochs", 1]
    options = [*pair, *OPTIONS[1:], "--bank-size", 16, "--data", toy_folder, "--out", tmp_path / "run"]
    signals[2] = [signal.SIGUSR1]
    with pytest.raises(SystemExit) as exit_info:
        train([*options, "--resume"])
    assert exit_info.value.code == 138
    assert capfd.readouterr().err.splitlines()[-1] == "crossdistill: stopped: start the same command again"
    (teacher,) = (tmp_path / "teachers").iterdir()
    assert Checkpoints(teacher / "checkpoints").steps() == [2]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"], "for other processes that resume"
    train([*options, "--resume"])
    assert "resuming after step 2" in capfd.readouterr().out and (tmp_path / "run" / "student").is_dir()


def test_signal__while_a_cache_is_written_is_continued(toy_folder, teacher_file, tmp_path, capfd, monkeypatch):
    options = ["--teacher", "rgb_r3d10_gn", "--teacher-frames", 4, "--teacher-size", 32, "--data", toy_folder]
    options += ["--teacher-weights", teacher_file, "--student", "flow_r3d10", "--augmentations", 1]
    options += ["--out", tmp_path / "cache", "--workers", 0, "--precision", "fp32"]
    stop_in(monkeypatch, TeacherCache, "write", signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_info:
        cache(options)
    assert exit_info.value.code == 143 and "start the same command again" in capfd.readouterr().err
    cache(options)
    assert not TeacherCache(tmp_path / "cache").missing()


def test_checkpoints__are_written_by_the_clock_too(toy_folder, tmp_path, monkeypatch):
    """A clock that goes on by 10 s each time that it is read: once when it starts and once in each step."""
    seconds = itertools.count(0, 10)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    saved, save = [], Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state: saved.append(step) or save(self, step, state))
    options = [*OPTIONS, "--data", toy_folder, "--epochs", 2, "--keep-checkpoints"]
    train([*options, "--checkpoint-every-minutes", 0.5, "--checkpoint-every-steps", 100, "--out", tmp_path / "run"])
    assert saved == [3, 6, 8]
    saved.clear()
    train([*options, "--checkpoint-every-minutes", 0.5, "--out", tmp_path / "other"])  # and at the end of each epoch
    assert saved == [3, 4, 7, 8]


def test_command__that_continues_names_its_launcher(monkeypatch):
    """``torchrun`` is shown with its interpreter. Any other parent is no launcher."""
    arguments = ["--student", "x", "--out", "a b"]
    parents = {
        "torchrun --nproc_per_node 2 train.py": ["/bin/python3", "/bin/torchrun", "--nproc_per_node", "2", "train.py"],
        "python -m torch.distributed.run train.py": ["python", "-m", "torch.distributed.run", "train.py"],
    }
    for typed, words in parents.items():
        monkeypatch.setattr(psutil.Process, "cmdline", lambda _, words=words: [*words, *arguments])
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        assert command_as_typed(arguments, prog="crossdistill train") == ["crossdistill", "train", *arguments]
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        assert command_as_typed(arguments, prog="crossdistill train") == [*typed.split(), *arguments]
    assert command_as_typed(["--student", "y"], prog="p") == ["p", "--student", "y"], "another command"


def test_command__that_continues_can_be_pasted(monkeypatch):
    def stop(config):
        raise Stopped("kept", needs_resume=True)

    monkeypatch.setattr("crossdistill.recipes.run.run", stop)
    with pytest.raises(Stopped) as stopped:
        train_command(["--student", "flow_tiny3d_8", "--supervised", "--out", "my runs/a"], prog="crossdistill train")
    command = "crossdistill train --student flow_tiny3d_8 --supervised --out 'my runs/a' --resume"
    assert str(stopped.value) == f"kept: {command}"
