"""Quantised students: the values of their layers, and that they train, resume and load like any other."""

import copy
import json
import sys

import pytest
import torch
from in_process import train
from safetensors.torch import load_file
from torch import nn

import crossdistill
from crossdistill.distillation.student import load_student, save_student
from crossdistill.encoders import create_encoder, wrap_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.quantization.bits import BitWidths, parse_bit_widths
from crossdistill.quantization.integers import IntegerWeights
from crossdistill.quantization.quantize import float_layers, quantize
from crossdistill.quantization.ranges import RunningRange, bounds_of, share_ranges
from crossdistill.quantization.stored import prepare_for_export
from crossdistill.recipes.config import parse
from crossdistill.recipes.tasks import create_optimizer
from crossdistill.training.checkpoint import Checkpoints, load_optimizer_state, optimizer_state
from crossdistill.types import View

pytest.importorskip("brevitas")


def small(name="rgb_r3d10", *, seed=0, **view):
    torch.manual_seed(seed)
    return create_encoder(name, **({"num_frames": 4, "size_px": 32} | view))


def clips(num_clips=4, *, seed=1):
    return torch.randn(num_clips, 3, 4, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def made():
    """An rgb_r3d10 before and after quantisation; tests that change it make a copy."""
    encoder = small()
    return encoder, quantize(copy.deepcopy(encoder), "w4a8")


@pytest.mark.parametrize("text", ["w1a8", "w4a9", "w4", "4,8", "w4a8x", "w04a8", ""])
def test_bit_widths__are_two_to_eight(text):
    assert parse_bit_widths("w2a8") == BitWidths(2, 8) and str(BitWidths(2, 8)) == "w2a8"
    with pytest.raises(UserError, match=r"give wXaY .* each 2 to 8, for example w4a8"):
        parse_bit_widths(text)


def test_quantize__weights_are_integers_and_the_stem_has_eight_bits(made):
    encoder, quantised = made
    layers = {name: layer for name, layer in quantised.body.named_modules() if hasattr(layer, "weight_quant")}
    plain = {name for name, layer in encoder.body.named_modules() if isinstance(layer, nn.Conv3d)}
    assert set(layers) == plain and float_layers(quantised) == [] and quantised.bits == "w4a8"
    for name, layer in layers.items():
        largest = 127 if name == encoder.info.stems[0] else 7
        weights = layer.quant_weight().detach().flatten(1)
        scales = layer.weight.detach().flatten(1).abs().amax(dim=1, keepdim=True) / largest
        torch.testing.assert_close(weights / scales, (weights / scales).round(), atol=1e-4, rtol=0)
        assert (layer.weight - layer.quant_weight()).abs().flatten(1).le(0.51 * scales).all()


def test_quantize__does_not_change_values_names_or_the_generator(made):
    encoder, quantised = made
    own = quantised.body.state_dict()
    assert all(torch.equal(own[name], value) for name, value in encoder.body.state_dict().items())
    before = torch.get_rng_state()
    eight = quantize(copy.deepcopy(encoder), "w8a8").eval()
    assert torch.equal(before, torch.get_rng_state())
    similarity = nn.functional.cosine_similarity(eight(clips()), encoder.eval()(clips()))
    assert 0.99 < similarity.min() < 1 - 1e-7
    with pytest.raises(UserError, match="already quantised to w8a8"):
        quantize(eight, "w4a8")


def test_running_range__starts_with_the_first_batch_moves_and_keeps_zero(made):
    quantised = copy.deepcopy(made[1])
    first = next(module for module in quantised.modules() if isinstance(module, RunningRange))
    of_noise = first.bounds.clone()
    quantised.eval()(5 * clips())
    assert torch.equal(first.bounds, of_noise) and first.num_batches == 0
    quantised.train()(5 * clips())
    torch.testing.assert_close(first.bounds, bounds_of(5 * clips()))
    quantised(clips(seed=2)), quantised(clips(seed=2))
    moved = torch.lerp(bounds_of(5 * clips()), bounds_of(clips(seed=2)), 1 / 2)
    torch.testing.assert_close(first.bounds, torch.lerp(moved, bounds_of(clips(seed=2)), 1 / 3))
    values, scale, _, bits = first.eval()(torch.tensor([[0.0, 1.0, -1e4, 1e4]]))
    assert values[0, 0] == 0 and bits == 8 and (values[0, 1] - 1).abs() <= 0.5 * scale
    low, high = first.bounds
    torch.testing.assert_close(values[0, 2:], torch.stack([low, high]), atol=float(scale.detach()), rtol=0)


def naive_convolution(layer, norm, values):
    """Compute QLinearConv by its definition, with sums in int64 and every step in float32."""
    given, gives = (
        proxy.fused_activation_quant_proxy.tensor_quant for proxy in (layer.input_quant, norm.output_quant.act_quant)
    )
    (input_scale, *_), (output_scale, output_zero, _) = given.grid(), gives.grid()
    inputs = given.round(values / input_scale)
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight, bias = layer.weight * factor.view(-1, 1, 1, 1, 1), norm.bias - norm.running_mean * factor
    outputs = []
    for channel in range(len(weight)):
        scale = weight[channel].abs().max() / 7
        stored = 16 * torch.round(weight[channel] / scale).long()  # four bits as multiples in eight
        scale = scale / 16
        stride, padding = layer.stride, layer.padding
        sums = nn.functional.conv3d(inputs.double(), stored.double()[None], None, stride, padding)
        sums = sums.long() + torch.round(bias[channel] / (input_scale * scale)).long()
        rounded = torch.round(sums.float() * (input_scale * scale / output_scale)) + output_zero
        outputs.append((rounded.clamp(0, 255) - output_zero) * output_scale)
    return torch.cat(outputs, dim=1)


def seen(encoder, num_batches=3):
    for step in range(num_batches):
        encoder.train()(3 * clips(seed=step) + 1)
    return encoder.eval()


@torch.no_grad()
def test_convolution__sums_integers_outside_of_training():
    quantised = seen(quantize(small(), "w4a4"))
    layers = [layer for layer in quantised.body.modules() if getattr(layer, "norms", None) and layer.weight_bits == 4]
    assert len(layers) == 11
    for layer in layers:
        (norm,) = layer.norms
        norm.bias.uniform_(-0.3, 0.3)
        values = 2 * torch.rand(2, layer.in_channels, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        assert torch.equal(layer(values), naive_convolution(layer, norm, values))
        assert layer(values).unique().numel() > 30
        assert torch.equal(norm(layer(values)), layer(values))  # nothing is left to do for it


def test_convolution__equals_training_up_to_rounding():
    quantised = seen(quantize(small(), "w8a8"))
    simulated = copy.deepcopy(quantised)
    for layer in simulated.modules():
        if hasattr(layer, "is_simulated"):
            layer.is_simulated = True
    expected = simulated(clips())
    assert nn.functional.cosine_similarity(quantised(clips()), expected).min() > 0.99
    one, two = (
        torch.autograd.grad(e(clips())[:, 0].sum(), e.body.get_submodule(e.info.stems[0]).weight)[0]
        for e in (quantised, simulated)
    )
    assert nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0) > 0.9  # gradients pass in eval mode too


def test_convolution__in_bf16_sums_the_same_integers():
    quantised = seen(quantize(small(), "w4a8"))
    with torch.autocast("cpu", torch.bfloat16):
        half = quantised(clips())
    torch.testing.assert_close(half, quantised(clips()), atol=0, rtol=1e-6)


def test_ranges__start_with_those_of_noise():
    ranges = ranges_of(quantize(small("rgb_tiny3d_8"), "w4a8"))
    assert len(ranges) == 8 and not any(layer.bounds.tolist() == [0.0, 1.0] for layer in ranges)


def test_round__rounds_before_the_zero_point_is_added():
    """As in ONNX, half a step is rounded to the even integer before an odd zero point is added."""
    layer = next(m for m in quantize(small("rgb_tiny3d_8"), "w4a8").modules() if isinstance(m, RunningRange))
    layer.bounds.copy_(torch.tensor([-1.0, 254.0]))
    assert [float(value) for value in layer.grid()] == [1, 1, 8]
    steps = torch.tensor([-3.0, -0.5, 0.5, 1.5, 2.5, 300.0])
    assert layer.round(steps).tolist() == [-1, 0, 0, 2, 2, 254]
    assert layer.eval()(steps)[0].tolist() == [-1, 0, 0, 2, 2, 254]


@pytest.mark.parametrize(("bits", "multiple"), [(2, 64), (4, 16), (8, 1)])
def test_prepare_for_export__stores_the_same_weights_as_multiples(bits, multiple):
    quantised = seen(quantize(small(), BitWidths(bits, 4)))
    file = copy.deepcopy(quantised)
    prepare_for_export(file.body)
    assert not [layer for layer in file.modules() if isinstance(layer, nn.BatchNorm3d)]
    names = [
        name
        for name, layer in quantised.body.named_modules()
        if hasattr(layer, "norms") and name != quantised.info.stems[0]
    ]
    for name in names:
        layer, kept = quantised.body.get_submodule(name), file.body.get_submodule(name)
        (norm,) = layer.norms
        values, scale, _, stored_bits = kept.weight_quant.tensor_quant(kept.weight)
        stored = (values / scale).detach()
        assert stored_bits == 8 and stored.abs().max().item() == pytest.approx(multiple * (2 ** (bits - 1) - 1))
        torch.testing.assert_close(stored, multiple * (stored / multiple).round(), atol=1e-4, rtol=0)
        factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        differs = (values - layer.quant_weight() * factor.view(-1, 1, 1, 1, 1)).abs() > 1e-5 * values.abs().max()
        assert differs.sum() <= 1  # of weights almost between two integers


def test_integer_weights__channel_of_zeros_keeps_its_bias():
    weight, bias = torch.tensor([[0.0, 0.0], [3.0, 7.0]]), torch.tensor([5.0, -1.0])
    found = IntegerWeights.of(weight, bias, bits=4, input_scale=torch.tensor(0.5))
    assert found.bias.abs().max() <= 2**30 and found.integers.tolist() == [[0, 0], [3, 7]]
    torch.testing.assert_close(found.bias * found.scale * 0.5, bias, rtol=1e-6, atol=0.02)
    torch.testing.assert_close(found.values, weight)


class Mixed(nn.Module):
    """Attention, a layer that is called, one whose weights are read, and a subclass that computes something else."""

    class Doubled(nn.Linear):
        def forward(self, tokens):
            return 2 * super().forward(tokens)

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.called, self.read, self.doubled = nn.Linear(8, 8), nn.Linear(8, 8), self.Doubled(8, 12)

    def forward(self, frames):
        tokens = self.patches(frames).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        tokens = nn.functional.linear(self.called(tokens), self.read.weight, self.read.bias)
        return self.doubled(tokens).mean(dim=1)


def mixed():
    torch.manual_seed(0)
    view = create_encoder("image_resnet18", size_px=32).view
    return wrap_encoder(Mixed(), view=view, embed_dim=12, stem="patches")


def test_quantize__replaces_layers_that_are_called_and_lists_the_others():
    encoder = mixed()
    picture = clips()[:, :, :1]
    expected = encoder.eval()(picture)
    quantised = quantize(encoder, "w8a8").eval()
    assert float_layers(quantised) == ["read", "doubled"]
    assert nn.functional.cosine_similarity(quantised(picture), expected).min() > 0.99
    quantised.train()(picture).square().sum().backward()
    assert quantised.body.attention.in_proj.weight.grad.abs().sum() > 0


def test_quantize__needs_a_layer_to_quantise():
    view = create_encoder("image_resnet18", size_px=32).view
    body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(3))
    with pytest.raises(UserError, match="image_pooled has no convolution"):
        quantize(wrap_encoder(body, view=view, embed_dim=3, name="image_pooled"), "w8a8")


def test_quantize__without_brevitas_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "brevitas.nn", None)
    with pytest.raises(UserError, match=r"pip install 'crossdistill\[precision\]'"):
        quantize(small(), "w4a8")


@pytest.mark.parametrize("layout", ["yes", "no"])
def test_quantised__trains_in_bf16_and_channels_last(made, layout):
    quantised = copy.deepcopy(made[1]).train()
    execution = Execution.choose(quantised, precision="bf16", layout=layout)
    shown = View((clips() * 40 + 100).clamp(0, 255).byte(), torch.ones(4, 3))
    execution.embed(quantised, shown).square().mean().backward()
    gradients = [parameter.grad for parameter in quantised.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


def test_student_files__hold_and_describe_the_quantised_network(made, tmp_path):
    quantised = copy.deepcopy(made[1])
    quantised.train()(clips())
    save_student(quantised.eval(), tmp_path, facts={})
    facts = json.loads((tmp_path / "student.json").read_text())
    assert facts["quantize"] == "w4a8" and "brevitas" in facts["weights_load_into"] and facts["float_layers"] == []
    assert set(load_file(tmp_path / "student.safetensors")) == set(quantised.body.state_dict())
    again = load_student(tmp_path)
    assert again.bits == "w4a8" and torch.equal(again(clips()), quantised(clips()))


def distiller(objective="compress-2q"):
    student = quantize(small("rgb_tiny3d_8"), "w4a8")
    made = crossdistill.Distiller(student=student, teachers=[small(seed=7)], objective=objective, bank_size=8)
    return made, torch.optim.SGD(made.trainable.parameters(), lr=0.05, momentum=0.9)


def step(made, optimizer, seed):
    made.trainable.train()
    shown = View((clips(seed=seed) * 40 + 100).clamp(0, 255).byte(), torch.ones(4, 3))
    ids = torch.arange(4)
    output = made(crossdistill.PairedBatch(student=shown, teachers=(shown,), sample_ids=ids, labels=ids))
    output.loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    made.after_step()
    return output.loss


def test_quantised__resumes_to_the_bit_with_its_ema_copy(tmp_path):
    made, optimizer = distiller()
    for seed in range(2):
        step(made, optimizer, seed)
    content = {
        "trainable": made.trainable.state_dict(), "optimizer": optimizer_state(optimizer), "task": made.resume_state()
    }  # fmt: skip
    Checkpoints(tmp_path).save(2, content)
    again, other = distiller()
    content = Checkpoints(tmp_path).load(2)
    again.trainable.load_state_dict(content["trainable"])
    load_optimizer_state(other, content["optimizer"])
    again.load_resume_state(content["task"])
    for seed in range(2, 4):
        assert torch.equal(step(made, optimizer, seed), step(again, other, seed))
    for one, two in ((made.trainable, again.trainable), (made.momentum_copy.module, again.momentum_copy.module)):
        assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())
    gains = [value for name, value in made.trainable.named_parameters() if name.endswith(".gain")]
    assert any(gain != 1 for gain in gains)


@pytest.mark.parametrize("objective", ["simreg", "token-matching", "rkd"])
def test_quantised__learns_from_other_kinds_of_objectives(objective):
    made, optimizer = distiller(objective)
    losses = [step(made, optimizer, seed=0).detach() for _ in range(4)]
    assert losses[-1] < losses[0]


def test_train__quantises_the_students_and_not_the_teacher(tmp_path, toy_folder, teacher_file, capsys):
    sizes = ["--student-frames", "4", "--student-size", "32", "--teacher-frames", "4", "--teacher-size", "32"]
    short = ["--epochs", "1", "--batch-size", "8", "--bank-size", "16", "--workers", "0", "--tracker", "none"]
    pair = ["--teacher", "rgb_r3d10_gn", "--teacher-weights", str(teacher_file), "--student", "flow_tiny3d_8"]
    command = [*pair, *sizes, *short, "--data", str(toy_folder), "--knn-clips", "0"]
    train([*command, "--bits", "w4a8", "--out", str(tmp_path / "run")])
    student = load_student(tmp_path / "run")
    assert student.bits == "w4a8" and float_layers(student) == []
    assert json.loads((tmp_path / "run" / "config.json").read_text())["configuration"]["pair"]["bits"] == "w4a8"
    (results,) = json.loads((tmp_path / "run" / "results.json").read_text()).values()
    assert len(results) == 3
    for options, message in (
        (["--bits", "w9a8"], "'w9a8' is not a supported bit width"),
        (["--student-weights", str(tmp_path / "run")], "quantised to w4a8: add --bits w4a8"),
    ):
        with pytest.raises(SystemExit):
            train([*command, *options, "--out", str(tmp_path / "other")])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_optimizer__never_decays_learned_ranges(optimizer):
    config = parse(["--student", "rgb_tiny3d_8", "--optimizer", optimizer, "--weight-decay", "0.1"])
    tower = distiller()[0].trainable
    ranges = [value for name, value in tower.named_parameters() if name.endswith("gain")]
    groups = create_optimizer(config, tower).param_groups
    decays = {id(value): group["weight_decay"] for group in groups for value in group["params"]}
    assert len(ranges) == 8 and all(decays[id(value)] == 0 for value in ranges)
    biases_and_norms = [value for value in tower.parameters() if value.dim() < 2]
    undecayed = ranges if optimizer == "sgd" else biases_and_norms
    assert sum(decay == 0.1 for decay in decays.values()) == len(decays) - len(undecayed)
    assert decays.keys() == {id(value) for value in tower.parameters()}


def test_share_ranges__gives_all_processes_their_mean():
    """DDP does not wrap an EMA copy: otherwise a resumed run would continue with the ranges of the first process."""
    processes = [quantize(small("rgb_tiny3d_8"), "w4a8").train() for _ in range(2)]
    for seed, encoder in enumerate(processes):
        encoder(clips(seed=seed) * (1 + seed))
    before = [[layer.bounds.clone() for layer in ranges_of(encoder)] for encoder in processes]
    stacked = [torch.stack(bounds)[None] for bounds in before]
    for encoder in processes:
        share_ranges(encoder, lambda mine: torch.cat(stacked))
    for one, two, *both in zip(*map(ranges_of, processes), *before, strict=True):
        assert not torch.equal(*both)
        torch.testing.assert_close(one.bounds, (both[0] + both[1]) / 2, rtol=1e-6, atol=0)
        assert torch.equal(one.bounds, two.bounds)
    share_ranges(nn.Linear(2, 2), pytest.fail)  # nothing to share, nothing is gathered


def ranges_of(encoder):
    return [module for module in encoder.modules() if isinstance(module, RunningRange)]
