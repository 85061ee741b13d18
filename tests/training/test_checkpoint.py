"""Checkpoints: whole or not there, whatever kills the writer."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from crossdistill.distillation.student import save_student
from crossdistill.encoders import create_encoder
from crossdistill.errors import UserError
from crossdistill.objectives.memory_bank import MemoryBank
from crossdistill.training import checkpoint
from crossdistill.training.checkpoint import Checkpoints, load_optimizer_state, optimizer_state
from crossdistill.types import Anchors
from crossdistill.utils.tensor_files import join_tensors, split_tensors


def state(value):
    return {
        "trainable": {"w": torch.full((100, 100), float(value))},
        "unreadable": {"a": "b"},
        "list": [1, torch.ones(2)],
    }


def test_split_tensors__join_gives_the_state_back():
    tree = {"a": [1, {"b": torch.arange(3)}], "c": "text", "d": None, "e": {"f": torch.ones(2, dtype=torch.uint8)}}
    rest, tensors = split_tensors(tree)
    again = join_tensors(json.loads(json.dumps(rest)), tensors)
    assert again["a"][0] == 1 and again["c"] == "text" and again["d"] is None
    assert torch.equal(again["a"][1]["b"], torch.arange(3)) and again["e"]["f"].dtype == torch.uint8


def test_checkpoints__newest_two_are_kept_and_the_newest_is_loaded(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.load_newest() is None
    for step in (5, 10, 200):
        checkpoints.save(step, state(step))
    assert checkpoints.steps() == [10, 200]
    step, content = checkpoints.load_newest()
    assert step == 200 and content["trainable"]["w"][0, 0] == 200 and content["unreadable"] == {"a": "b"}


def test_load_newest__does_not_pass_over_what_it_cannot_read_for_a_moment(tmp_path, monkeypatch):
    """Else the run would begin again, and its first checkpoint would remove the good ones."""
    checkpoints = Checkpoints(tmp_path)
    for step in (10, 20):
        checkpoints.save(step, state(step))

    def fail(*arguments, **keywords):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"step-00000020.* cannot be read \(Input/outp"):
        patch.setattr(checkpoint, "safe_open", fail)
        checkpoints.load_newest()
    assert checkpoints.load_newest()[0] == 20


def test_load_newest__of_damaged_checkpoints_alone_does_not_begin_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.path(step).write_bytes(b"damaged" * (2 - step))
    with pytest.raises(
        UserError, match=r"no checkpoint in .* is intact: bring one back from a copy, or delete the fol"
    ):
        checkpoints.load_newest()


def test_keep_weights_alone__leaves_one_small_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.keep_weights_alone()  # nothing was saved: nothing to do
    large = torch.zeros(1000, 1000)
    for step in (1, 2):
        checkpoints.save(step, {**state(step), "optimizer": {"m": large}, "task": {"banks": [{"teacher": large}]}})
    whole_bytes = checkpoints.path(2).stat().st_size
    for _ in range(2):
        checkpoints.keep_weights_alone()
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.safetensors"]
        assert checkpoints.path(2).stat().st_size < 50_000 < 8_000_000 < whole_bytes
        _, content = checkpoints.load_newest()
        assert content.keys() == state(2).keys() and content["trainable"]["w"].unique().tolist() == [2.0]


def test_keep_weights_alone__passes_over_a_damaged_checkpoint(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.path(2).write_bytes(b"damaged")
    checkpoints.keep_weights_alone()
    assert checkpoints.steps() == [1]


def test_save__copies_only_what_shares_memory(tmp_path, monkeypatch):
    """A copy of a memory bank would need as much memory as the bank, at the first checkpoint."""
    bank = MemoryBank(size=7, teacher_dim=3, student_dim=2)
    bank.enqueue(Anchors(teacher=torch.ones(4, 3), student=torch.ones(4, 2), sample_ids=torch.arange(4)))
    layer = nn.Linear(2, 2)
    content = {
        "bank": bank.state_dict(),
        "one": layer.state_dict(),
        "tied": layer.state_dict(),
        "turned": bank._teacher.T,
    }
    written = {}

    def note(tensors, path, metadata):
        written.update({name: tensor.data_ptr() for name, tensor in tensors.items()})
        save_file(tensors, path, metadata=metadata)

    monkeypatch.setattr("crossdistill.utils.tensor_files.save_file", note)
    Checkpoints(tmp_path).save(1, content)
    named = {"bank/teacher": bank._teacher, "bank/student": bank._student, "one/weight": layer.weight}
    assert {name: written[name] for name in named} == {name: tensor.data_ptr() for name, tensor in named.items()}
    assert len(set(written.values())) == len(written) == 9
    _, again = Checkpoints(tmp_path).load_newest()
    assert torch.equal(again["tied"]["weight"], layer.weight) and torch.equal(again["turned"], bank._teacher.T)


@pytest.mark.parametrize("num_bytes", [0, 4, 100, 20_000, -1])
def test_checkpoints__one_cut_short_is_never_loaded(tmp_path, num_bytes):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    path = checkpoints.save(2, state(2))
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert checkpoints.load_newest()[0] == 1


def test_checkpoints__going_on_after_damage_keeps_the_new_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    for step in (8, 9):
        checkpoints.path(step).write_bytes(b"damaged")
    (tmp_path / ".step-00000009.safetensors.77.tmp").write_bytes(b"of a killed run")
    checkpoints.save(2, state(2))
    assert checkpoints.steps() == [1, 2] and len(list(tmp_path.iterdir())) == 2


def fill_disk(monkeypatch):
    def save_file(tensors, path, metadata):
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("crossdistill.utils.tensor_files.save_file", save_file)


def test_checkpoints__later_ones_stay_until_the_new_one_is_written(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 8):
        checkpoints.save(step, state(step))
    with monkeypatch.context() as patch:
        fill_disk(patch)
        with pytest.raises(UserError, match="step 1 is kept"):
            checkpoints.save(2, state(2))
    assert checkpoints.steps() == [1, 8]
    checkpoints.save(2, state(2))
    assert checkpoints.steps() == [1, 2]


def test_save_student__full_disk_is_one_sentence(tmp_path, monkeypatch):
    fill_disk(monkeypatch)
    with pytest.raises(UserError, match=r"cannot write .*student\.safetensors .*free space.*--resume"):
        save_student(create_encoder("rgb_r3d10"), tmp_path, facts={})


@pytest.mark.parametrize("header", [None, {"state": "{}"}, {"version": "one", "state": "{}"}, {"version": "1"}])
def test_checkpoints__with_a_damaged_header_are_passed_over(tmp_path, header):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    save_file({"w": torch.ones(1)}, checkpoints.path(2), metadata=header)
    assert checkpoints.load_newest()[0] == 1


WRITER = """
import sys, torch
from pathlib import Path
from crossdistill.training.checkpoint import Checkpoints
checkpoints = Checkpoints(Path(sys.argv[1]))
for step in range(1, 10_000):
    checkpoints.save(step, {"w": torch.full((300, 300), float(step))})
    print(step, flush=True)
"""


def test_checkpoints__sigkill_at_any_moment_leaves_a_whole_one(tmp_path):
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        saved = int(process.stdout.readline())
        time.sleep(0.003 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        saved = max([saved, *map(int, process.stdout.read().split())])
        process.wait()
        step, content = Checkpoints(tmp_path).load_newest()
        assert step >= saved and (content["w"] == step).all()
        for path in tmp_path.iterdir():
            path.unlink()


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from crossdistill.training.checkpoint import Checkpoints
from crossdistill.errors import friendly_errors
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"w": torch.ones(10)})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
friendly_errors(lambda: checkpoints.save(2, {"w": torch.ones(1000, 1000)}))()
"""


def test_checkpoints__full_disk_is_one_sentence_and_keeps_the_last_one(tmp_path):
    """The kernel refuses the write (file size limit), as it does on a full disk."""
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot write" in done.stderr and "step 1 is kept" in done.stderr
    assert "--resume" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]
    assert Checkpoints(tmp_path).load_newest()[0] == 1


def test_checkpoints__of_a_newer_version_are_refused(tmp_path):
    header = {"version": "99", "state": "{}"}
    save_file({"w": torch.ones(1)}, tmp_path / "step-00000001.safetensors", metadata=header)
    with pytest.raises(UserError, match="newer crossdistill"):
        Checkpoints(tmp_path).load_newest()


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, lr=0.1)]
)
def test_optimizer_state__is_bit_identical_after_a_file(tmp_path, make):
    def fresh():
        torch.manual_seed(0)
        module = nn.Linear(5, 3)
        return module, make(module.parameters())

    def walk(module, optimizer, steps):
        for i in steps:
            module(torch.full((2, 5), i / 7)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    module, optimizer = fresh()
    walk(module, optimizer, range(4))
    Checkpoints(tmp_path).save(4, {"module": module.state_dict(), "optimizer": optimizer_state(optimizer)})
    walk(module, optimizer, range(4, 8))
    other, other_optimizer = fresh()
    _, content = Checkpoints(tmp_path).load_newest()
    other.load_state_dict(content["module"])
    load_optimizer_state(other_optimizer, content["optimizer"])
    walk(other, other_optimizer, range(4, 8))
    assert torch.equal(module.weight, other.weight) and torch.equal(module.bias, other.bias)
