"""Gradient scaling: its state, the steps that it skips, and that training without it is as before."""

import copy
import json
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from in_process import train
from test_processes import KILLED_SCRIPT, command, finish, flatten, losses, start, train_until_killed
from torch import nn

from crossdistill.distillation.distiller import Distiller
from crossdistill.errors import UserError
from crossdistill.training import gradient_scaling, loop
from crossdistill.training.checkpoint import Checkpoints
from crossdistill.training.gradient_scaling import MIN_SCALE, GradientScaling

CPU = torch.device("cpu")


def scaled_step(scaling, weight, optimizer, factor=1.0):
    scaling.scale((weight * factor).sum()).backward()
    scaling.unscale(optimizer)
    has_moved = scaling.step(optimizer)
    optimizer.zero_grad()
    return has_moved


@pytest.mark.parametrize("create", [partial(torch.optim.SGD, momentum=0.9), torch.optim.AdamW])
def test_step__overflow_moves_nothing_and_halves_the_scale(create):
    weight = nn.Parameter(torch.ones(3))
    optimizer = create([weight], lr=0.1, fused=True)
    scaling = GradientScaling("fp16", CPU)
    assert scaled_step(scaling, weight, optimizer)
    before, state = weight.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])
    assert not torch.equal(before, torch.ones(3))
    assert not scaled_step(scaling, weight, optimizer, factor=float("inf"))
    assert torch.equal(weight, before) and scaling.value == 2.0**15
    now = optimizer.state_dict()["state"]  # AdamW's number of steps corrects its bias
    assert all(torch.equal(now[0][name], value) for name, value in state[0].items())


def test_state__continues_the_count_of_good_steps():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    scaling, other = GradientScaling("fp16", CPU), GradientScaling("fp16", CPU)
    scaled_step(scaling, weight, optimizer, factor=float("nan"))
    for _ in range(1999):
        scaled_step(scaling, weight, optimizer)
    assert scaling.value == 2.0**15
    other.load_state_dict(json.loads(json.dumps(scaling.state_dict())))
    scaled_step(other, weight, optimizer)
    assert other.value == 2.0**16


def test_state__of_another_precision_is_ignored():
    scaling = GradientScaling("fp16", CPU)
    scaling.load_state_dict(GradientScaling("fp32", CPU).state_dict())
    assert scaling.value == 2.0**16
    off = GradientScaling("bf16", CPU)
    off.load_state_dict(scaling.state_dict())
    assert off.value is None and off.state_dict() == {}


def test_step__ends_when_no_scale_helps():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaling = GradientScaling("fp16", CPU)
    with pytest.raises(UserError, match=r"scaled by 6\.1e-05: lower --lr, or choose --precision bf16 or fp32"):
        for _ in range(40):
            scaled_step(scaling, weight, optimizer, factor=float("nan"))
    assert scaling.value < MIN_SCALE


class Bursting(nn.Module):
    """A network whose gradient overflows in the passes that are named."""

    def __init__(self, bad_passes):
        super().__init__()
        self.layer, self.num_features = nn.Linear(6, 4), 4
        self.bad_passes, self.passes = set(bad_passes), 0

    def forward(self, inputs):
        output = self.layer(inputs)
        if self.training:
            if self.passes in self.bad_passes and output.requires_grad:
                output.register_hook(lambda gradient: gradient * float("inf"))
            self.passes += 1
        return output


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loop_step__skipped_steps_leave_weights_and_copy_and_fill_the_bank(accumulate):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
    objective = ["compress-2q", "simreg"]  # the first step of compress-2q has no anchors and no gradient
    distiller = Distiller(
        student=Bursting({2}), teachers=nn.Linear(6, 3), teacher_dim=3, objective=objective, bank_size=40
    )
    model, optimizer = accelerator.prepare(
        distiller.trainable, torch.optim.SGD(distiller.parameters(), lr=0.1, momentum=0.9, fused=True)
    )
    scaling = GradientScaling("fp16", CPU)
    moved = []
    for number in range(6):
        before = [value.detach().clone() for value in distiller.trainable.parameters()]
        copied = copy.deepcopy(distiller.momentum_copy.module.state_dict())
        batch = torch.randn(4, 6)
        output, has_moved = loop._step(
            distiller, model, optimizer, scaling, batch, lr=0.1, clip_norm=0.5, accelerator=accelerator
        )
        assert output.loss.isfinite()
        if not accelerator.sync_gradients:
            assert not has_moved
            continue
        distiller.after_step(has_moved=has_moved)
        moved.append(has_moved)
        stays = all(torch.equal(a, b) for a, b in zip(before, distiller.trainable.parameters(), strict=True))
        assert stays == (not has_moved)
        now = distiller.momentum_copy.module.state_dict()
        assert all(torch.equal(copied[name], value) for name, value in now.items()) == (not has_moved)
        assert distiller.bank_fill == min(1.0, 4 * (number + 1) / 40)
    assert moved == ([True, True, False, True, True, True] if accumulate == 1 else [True, False, True])


def test_clipping__limits_the_gradients_without_their_scale():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaling = GradientScaling("fp16", CPU)
    scaling.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()
    scaling.unscale(optimizer)
    assert accelerator.clip_grad_norm_([weight], 1.0).item() == pytest.approx(5.0)
    assert scaling.step(optimizer)
    torch.testing.assert_close(weight.detach(), torch.tensor([3 - 0.6, 4 - 0.8]))


TINY_PAIR = ["--precision", "fp16", "--teacher", "rgb_tiny3d_8", "--student", "flow_tiny3d_8"]


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory):
    from safetensors.torch import save_file

    from crossdistill.encoders import create_encoder

    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("tiny") / "teacher.safetensors"
    save_file(create_encoder("rgb_tiny3d_8").body.state_dict(), path)
    return path


def options_of(toy_folder, tiny_teacher, *more):
    options = [*("--teacher-frames", 4, "--teacher-size", 32), *TINY_PAIR, "--teacher-weights", tiny_teacher]
    return [*options, "--data", toy_folder, "--epochs", 2, "--checkpoint-every-steps", 1, *more]


@pytest.mark.slow
def test_resume__fp16_ends_with_the_same_bits(tmp_path, toy_folder, tiny_teacher):
    """The first scale, 65536, overflows nothing here; the scale and its count are in the checkpoint all the same."""
    more, processes = ["--batch-size", 4, "--accumulate", 2, "--objective", "compress-2q"], 2
    options = options_of(toy_folder, tiny_teacher, *more)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(command(*options, "--out", whole, processes=processes)))
    train_until_killed(command(*options, "--out", killed, "--resume", processes=processes, script=KILLED_SCRIPT), 2)
    output = finish(start(command(*options, "--out", killed, "--resume", processes=processes)))
    assert "resuming after step" in output
    one, other = (flatten(Checkpoints(folder / "checkpoints").load_newest()[1]) for folder in (whole, killed))
    for content in (one, other):
        assert content.pop("/seconds") > 0
    assert one["/scaling/_growth_tracker"] > 0 and one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name
    assert losses(whole) == losses(killed)


def test_train__counts_and_tells_skipped_steps(tmp_path, toy_folder, tiny_teacher, monkeypatch, capsys):
    """A first scale that is too large overflows in fp16 until it has been halved often enough."""
    real = torch.amp.GradScaler
    monkeypatch.setattr(
        gradient_scaling.torch.amp,
        "GradScaler",
        lambda device, enabled: real(device, init_scale=2.0**20, enabled=enabled),
    )
    options = options_of(toy_folder, tiny_teacher, "--batch-size", 8, "--out", tmp_path / "run")
    quiet = ["--student-frames", 4, "--student-size", 32, "--workers", 0, "--no-evaluate", "--knn-clips", 0]
    train([*options, *quiet, "--tracker", "none", "--log-every-steps", 1, "--keep-checkpoints"])
    step, content = Checkpoints(tmp_path / "run" / "checkpoints").load_newest()
    num_skipped = content["num_skipped"]
    assert 0 < num_skipped < step and content["scaling"]["scale"] == 2.0 ** (20 - num_skipped)
    assert f"{num_skipped} of {step} steps were skipped: their gradients overflowed in fp16" in capsys.readouterr().out
    rows = losses(tmp_path / "run")
    assert list(rows) == list(range(1, step + 1))  # skipped steps have their place in the curves
