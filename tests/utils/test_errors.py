"""Errors in commands: one sentence for user errors, printed once, and a stack trace for bugs."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from killing import PATIENCE_SECONDS

from crossdistill.commands.main import COMMANDS
from crossdistill.commands.main import main as cli
from crossdistill.errors import STOP_SIGNALS, OneProcessError, UserError, friendly_errors, require_at_least
from crossdistill.utils.files import require_writable


def said(capsys, error):
    @friendly_errors
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("rank", "is_said"), [(None, True), ("0", True), ("1", False)])
def test_friendly_errors__only_first_process_prints(monkeypatch, capsys, rank, is_said):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert said(capsys, UserError("no")) == ("crossdistill: error: no\n" if is_said else "")
    assert "alone" in said(capsys, OneProcessError("alone"))
    assert "is full" in said(capsys, OSError(errno.ENOSPC, "", "x")), "SLURM's srun says nothing of its own"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", os.devnull)
    assert ("is full" in said(capsys, OSError(errno.ENOSPC, "", "x"))) == is_said


def test_friendly_errors__torchrun_gets_the_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        friendly_errors(lambda: require_at_least("--k", 0, 1))()
    written = json.loads((tmp_path / "error.json").read_text())["message"]
    assert written["message"] == capsys.readouterr().err.strip() == "crossdistill: error: --k is 0: give 1 or more"
    assert int(written["extraInfo"]["timestamp"]) > 0  # torchrun finds the first failure by it


@pytest.mark.parametrize("number", STOP_SIGNALS[1:])
def test_friendly_errors__signals_are_one_sentence_and_a_status(number, capsys):
    with pytest.raises(SystemExit) as exit_info:
        friendly_errors(lambda: signal.raise_signal(number))()
    assert exit_info.value.code == 128 + number and signal.getsignal(number) is signal.SIG_DFL
    assert capsys.readouterr().err == "crossdistill: stopped: start the same command again\n"


def test_friendly_errors__memory_is_one_sentence(capsys):
    on_cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory\nframe 0")
    for error in (torch.OutOfMemoryError("CUDA out of memory.\nTried"), on_cpu, MemoryError()):
        sentence = said(capsys, error)
        assert "not enough memory" in sentence and "--batch-size" in sentence and "--accumulate" in sentence
        assert len(sentence.splitlines()) == 1


def test_friendly_errors__recognises_error_of_cpu_allocator(capsys):
    """The error comes from PyTorch itself: no machine has 8 PiB."""
    with pytest.raises(RuntimeError) as info:
        torch.empty(2**50, dtype=torch.float64)
    assert "not enough memory" in said(capsys, info.value)


def test_friendly_errors__other_errors_are_raised(monkeypatch):
    for error in (RuntimeError("a bug"), OSError("another"), KeyError("x")):
        with pytest.raises(type(error)):
            friendly_errors(lambda error=error: (_ for _ in ()).throw(error))()
    monkeypatch.setenv("CROSSDISTILL_TRACEBACK", "1")
    with pytest.raises(UserError):
        friendly_errors(lambda: (_ for _ in ()).throw(UserError("no")))()


def test_require_writable__refuses_folders_and_unwritable_paths(tmp_path):
    (tmp_path / "file").write_text("x")
    require_writable(tmp_path / "new" / "folder" / "numbers.json")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="is a folder: give a file name"):
        require_writable(tmp_path)
    with pytest.raises(
        UserError, match=r"file/numbers.json cannot be written, because .*/file is not a writable folder"
    ):
        require_writable(tmp_path / "file" / "numbers.json")


def test_friendly_errors__os_error_with_path_is_one_sentence(tmp_path, capsys):
    @friendly_errors
    def main():
        (tmp_path / "absent" / "x").read_text()

    with pytest.raises(SystemExit):
        main()
    assert "absent/x cannot be read or written (no such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["encoders"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_commands__exit_quietly_on_broken_pipe(monkeypatch, capfd, command):
    reader, writer = os.pipe()
    os.close(reader)  # as after ``| head``
    with os.fdopen(writer, "w") as output, monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_info:
        patch.setattr(sys, "stdout", output)
        cli(command)
    assert exit_info.value.code == 141 and "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("command", [["crossdistill", "encoders"], ["data_prep", "--help"]], ids=" ".join)
def test_processes__exit_quietly_on_broken_pipe(command):
    """Python itself prints nothing at exit either."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", *command], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_SECONDS
    )
    os.close(writer)
    assert done.returncode == 141 and "BrokenPipe" not in done.stderr and "Traceback" not in done.stderr


def test_friendly_errors__other_broken_pipe_is_raised(capsys):
    @friendly_errors
    def main():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        main()
