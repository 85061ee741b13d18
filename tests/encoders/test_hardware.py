"""Precision and layout: how they are chosen, and that the choice does not change an encoder."""

import copy

import pytest
import torch
from torch import nn

from crossdistill.data.transforms import normalise
from crossdistill.encoders import create_encoder, hardware, wrap_module
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.hardware import bf16_gradients_repeat, channels_last, choose_precision
from crossdistill.errors import UserError
from crossdistill.types import View

CPU = torch.device("cpu")


def tiny():
    return create_encoder("rgb_r3d10", num_frames=4, size_px=32)


def decide(monkeypatch, *, setting="auto", has_amx=True, repeats=True, launched="no", batch=8):
    monkeypatch.setattr(hardware, "cpu_has_amx", lambda: has_amx)
    monkeypatch.setattr(hardware, "bf16_gradients_repeat", lambda encoder, batch_size: repeats)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    return choose_precision(tiny(), setting=setting, device=CPU, training_batch_size=batch)


def test_choose_precision__on_a_cpu(monkeypatch):
    assert decide(monkeypatch) == "bf16"
    assert decide(monkeypatch, has_amx=False) == "fp32"
    assert decide(monkeypatch, repeats=False) == "fp32"
    assert decide(monkeypatch, batch=None) == "fp32"
    assert decide(monkeypatch, setting="fp32", launched="fp16") == "fp32"
    assert decide(monkeypatch, setting="bf16", has_amx=False) == "bf16"
    assert decide(monkeypatch, setting="fp16") == "fp16"
    assert decide(monkeypatch, launched="bf16", has_amx=False) == "bf16"
    assert decide(monkeypatch, launched="fp16") == "fp16"
    with pytest.raises(UserError, match="'fp8' is not supported: launch with --mixed_precision bf16, fp16 or no"):
        decide(monkeypatch, launched="fp8")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16"), ((6, 1), "fp32")],
)
def test_choose_precision__on_a_gpu(monkeypatch, capability, expected):
    """Without a GPU: what CUDA reports is given, as the tables of the vendor have it."""
    has_bf16 = capability >= (8, 0)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_bf16
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T4")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)

    def choose(setting):
        return choose_precision(tiny(), setting=setting, device=torch.device("cuda"), training_batch_size=8)

    assert choose("auto") == expected
    assert choose("fp16") == "fp16"
    if has_bf16:
        assert choose("bf16") == "bf16"
    else:
        with pytest.raises(UserError, match=r"bf16 was asked for, and NVIDIA T4 .* give --precision fp16, or auto"):
            choose("bf16")


def test_gradient_check__does_not_change_network_or_generator():
    encoder = tiny()
    before, generator = copy.deepcopy(encoder.state_dict()), torch.get_rng_state()
    bf16_gradients_repeat(encoder, batch_size=2)
    assert torch.equal(generator, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


class Unsteady(nn.Module):
    """A network whose gradient depends on the number of calls."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.calls = 0

    def forward(self, clip):
        self.calls += 1
        return clip.mean(dim=(2, 3, 4)) * self.weight * self.calls


def test_gradient_check__detects_gradients_that_differ():
    encoder = tiny()
    encoder.body = Unsteady()
    assert not bf16_gradients_repeat(encoder, batch_size=2)


@pytest.mark.parametrize("layout", ["yes", "no"])
def test_execution__layout_does_not_change_values(layout):
    torch.manual_seed(0)
    encoder = tiny().eval()
    view = View(torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8), torch.ones(2, 3))
    expected = Execution.choose(copy.deepcopy(encoder), precision="fp32", layout="no").embed(encoder, view)
    execution = Execution.choose(encoder, precision="fp32", layout=layout)
    weight = encoder.body.get_submodule(encoder.info.stems[0]).weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d) == (layout == "yes")
    torch.testing.assert_close(execution.embed(encoder, view), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", ["yes", "no"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 8, 8), (2, 3, 8, 8)])
def test_execution__hands_a_plain_tensor_on_without_normalising(layout, shape):
    execution = Execution.choose(tiny(), precision="fp32", layout=layout)
    batch = torch.randn(shape)
    taken = execution.run(lambda tensor: tensor, batch)
    assert torch.equal(taken, batch)
    assert (channels_last(taken) is taken) == (layout == "yes")


def test_execution__plain_tensor_gives_the_features_of_its_stored_view():
    encoder = tiny().eval()
    execution = Execution.choose(encoder, precision="fp32")
    view = View(torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8), torch.ones(2, 3))
    assert torch.equal(execution.embed(encoder, normalise(view, encoder.view)), execution.embed(encoder, view))


def test_execution__a_stored_view_for_a_module_of_plain_tensors_is_one_sentence():
    encoder = wrap_module(nn.Flatten(), embed_dim=12)
    view = View(torch.zeros(2, 3, 1, 2, 2, dtype=torch.uint8), torch.ones(2, 3))
    execution = Execution.choose(encoder, device=CPU)
    with pytest.raises(UserError, match="takes tensors, not stored views"):
        execution.run(encoder, view)


def test_channels_last__returns_other_tensors_unchanged():
    vector = torch.ones(3, 2)
    assert channels_last(vector) is vector
