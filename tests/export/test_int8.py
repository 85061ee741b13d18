"""Post-training quantisation: ranges against a naive version, clips that may be used, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crossdistill.commands.main import main as cli
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import save_student
from crossdistill.encoders import create_encoder
from crossdistill.errors import UserError
from crossdistill.export import int8
from crossdistill.export.export import export_file
from crossdistill.export.formats import export_student
from crossdistill.export.int8 import KnownClips, dataset_clips
from crossdistill.quantization.calibrate import HIGH_FACTORS, LOW_FACTORS, best_bounds, calibrate
from crossdistill.quantization.quantize import noise_clips, quantize

pytest.importorskip("brevitas")
pytest.importorskip("onnxoptimizer")
pytest.importorskip("onnxruntime")


@pytest.fixture
def student(tmp_path, toy_folder):
    """The folder of a float student whose BatchNorm statistics come from real clips."""
    torch.manual_seed(0)
    encoder = create_encoder("flow_tiny3d_8", num_frames=8, size_px=32)
    clips = dataset_clips(encoder, Manifest.load(toy_folder), 16)
    with torch.no_grad():
        for _ in range(3):
            encoder.train()(clips)
    save_student(encoder.eval(), tmp_path / "student", facts={})
    return tmp_path / "student"


def rounding_error(values, low, high):
    """Sum of squared errors of values that 256 integers between two bounds stand for, one of them for zero."""
    scale = max((high - low) / 255, 1e-12)
    zero = round(-low / scale)
    return float(((values / scale).round().clamp(-zero, 255 - zero).mul(scale) - values).square().sum())


def least_error(values, passed=(-float("inf"), float("inf"))):
    """The smallest error of all pairs of bounds that may be tried, by trying them on the values themselves."""
    values = values.double().clamp(*passed)
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    lows, highs = (
        [end * float(factor) for factor in factors] for end, factors in ((low, LOW_FACTORS), (high, HIGH_FACTORS))
    )
    return min(rounding_error(values, one, other) for one in set(lows) for other in set(highs))


def test_calibrate__ranges_have_the_least_error_of_the_float_networks_activations():
    """Against hooks on a float network whose weights are rounded as in the quantised one."""
    torch.manual_seed(0)
    encoder = create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16).eval()
    quantised = quantize(copy.deepcopy(encoder), "w8a8").eval()
    clips = 3 * noise_clips(encoder, 6)
    assert calibrate(quantised, clips.split(4)) == 6
    plain = dict(encoder.body.named_modules())
    for name, layer in quantised.body.named_modules():
        if isinstance(plain.get(name), nn.Conv3d):
            plain[name].weight.data = layer.weight_quant(layer.weight).detach()
    seen, checked = {}, 0
    for name, module in plain.items():
        if isinstance(module, (nn.Conv3d, nn.BatchNorm3d)):
            module.register_forward_hook(lambda module, given, out, name=name: seen.update({name: (given[0], out)}))
    with torch.no_grad():
        encoder(clips)
    for name, (given, out) in seen.items():
        layer = quantised.body.get_submodule(name)
        is_norm = isinstance(plain[name], nn.BatchNorm3d)
        proxy = layer.output_quant.act_quant if is_norm else layer.input_quant
        bounds = proxy.fused_activation_quant_proxy.tensor_quant.bounds.tolist()
        passed = (0.0, float("inf")) if is_norm else (-float("inf"), float("inf"))  # a ReLU follows each norm
        values = (out if is_norm else given).double().clamp(*passed)
        assert rounding_error(values, *bounds) <= 1.05 * least_error(values)
        assert not is_norm or bounds[0] == 0
        checked += 1
    assert checked == 8


def test_calibrate__values_to_which_a_shortcut_is_added_in_place_are_not_rectified():
    """ResNet adds its shortcut to a norm's output in place, and the ReLU then gets the same tensor object."""
    torch.manual_seed(0)
    encoder = create_encoder("image_resnet18", size_px=32)
    clips = noise_clips(encoder, 8)
    with torch.no_grad():
        for _ in range(3):
            encoder.train()(clips)
        expected = encoder.eval()(clips)
        calibrate(quantize(encoder, "w8a8").eval(), clips.split(4))
        cosines = F.cosine_similarity(encoder(clips), expected)
    lows = {
        name: float(module.output_quant.act_quant.fused_activation_quant_proxy.tensor_quant.bounds[0])
        for name, module in encoder.body.named_modules()
        if type(module) is nn.BatchNorm2d
    }
    assert all(low == 0 for name, low in lows.items() if name.endswith("bn1"))
    assert all(low < 0 for name, low in lows.items() if not name.endswith("bn1"))
    assert cosines.min() > 0.99


class AfterNorm(nn.Module):
    """A convolution and a norm, whose output goes through ``read`` to the body of an encoder."""

    def __init__(self, read, body):
        super().__init__()
        self.convolution, self.norm = nn.Conv3d(3, 3, 3, padding=1, bias=False), nn.BatchNorm3d(3)
        self.read, self.body, self.relu, self.relu6 = read, body, nn.ReLU(), nn.ReLU6()
        nn.init.constant_(self.norm.weight, 4)

    def normed(self, clips):
        return self.norm(self.convolution(clips))

    def forward(self, clips):
        return self.body(self.read(self, self.normed(clips)))


@pytest.mark.parametrize(
    ("read", "has_negative", "highest"),
    [
        (lambda net, y: net.relu(y), False, 100),
        (lambda net, y: y.relu_() + y, False, 100),  # reads what the ReLU has left
        (lambda net, y: net.relu6(y), False, 6),
        (lambda net, y: net.relu6(y) + y.relu(), False, 100),
        (lambda net, y: net.relu(y) - y, True, 100),
        (lambda net, y: net.normed(net.relu(y)), True, 100),  # the norm is called twice, once without a ReLU
        (lambda net, y: torch.cat([y.relu()[:, :2], y[:, 2:]], dim=1), True, 100),
        (lambda net, y: y.relu() + torch.cat(y.chunk(3, dim=1), dim=1), True, 100),  # chunks are several tensors
    ],
)
def test_calibrate__leaves_out_what_all_readers_of_a_norm_cut_off(read, has_negative, highest):
    torch.manual_seed(0)
    encoder = create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16)
    encoder.body = AfterNorm(read, encoder.body).eval()
    clips = 3 * noise_clips(encoder, 8)
    expected = encoder(clips)
    calibrate(quantize(encoder, "w8a8").eval(), clips.split(4))
    proxy = encoder.body.norm.output_quant.act_quant.fused_activation_quant_proxy
    low, high = proxy.tensor_quant.bounds.tolist()
    assert (low < 0) == has_negative and 3 < high <= highest
    assert nn.functional.cosine_similarity(encoder(clips), expected).min() > 0.99


def test_best_bounds__against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    counts = (torch.rand(64, generator=generator) ** 8 * 1000).double()
    low, high = -0.7, 2.0
    middles = [low + (i + 0.5) * (high - low) / 64 for i in range(64)]

    def error(bounds):
        scale = (bounds[1] - bounds[0]) / 15
        zero = round(-bounds[0] / scale)
        steps = [min(max(round(middle / scale), -zero), 15 - zero) for middle in middles]
        return sum(
            n * (step * scale - middle) ** 2 for n, step, middle in zip(counts.tolist(), steps, middles, strict=True)
        )

    pairs = [(low * float(one), high * float(other)) for one in LOW_FACTORS for other in HIGH_FACTORS]
    assert best_bounds(counts, low, high, 15).tolist() == pytest.approx(min(pairs, key=error))


def test_best_bounds__of_one_sign_and_of_nothing():
    assert best_bounds(torch.ones(64).double(), 0.0, 1.0, 255)[0] == 0
    assert best_bounds(torch.ones(64).double(), -1.0, 0.0, 255)[1] == 0
    assert best_bounds(torch.zeros(64).double(), 0.0, 0.0, 255).tolist() == [0, 0]


def test_calibrate__does_not_depend_on_batches_and_leaves_no_trace():
    torch.manual_seed(0)
    encoder = quantize(create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16), "w8a8").train()
    clips = noise_clips(encoder, 6)
    weights = {name: value.clone() for name, value in encoder.body.state_dict().items() if "bounds" not in name}
    found = []
    for size in (1, 4, 6):
        calibrate(encoder, clips.split(size))
        found.append(torch.cat([value for name, value in encoder.body.state_dict().items() if "bounds" in name]))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[0], found[2])
    assert encoder.body.training
    for name, value in encoder.body.state_dict().items():
        if "bounds" not in name and "num_batches" not in name:
            assert torch.equal(value, weights[name]), name
    with pytest.raises(UserError, match="there is no clip to calibrate with"):
        calibrate(encoder, [])


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_export__float_student_becomes_int8(student, toy_folder, tmp_path, capsys, to):
    if to == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / f"a{'.xml' if to == 'openvino' else '.onnx'}"
    arguments = ["--to", to, "--out", str(out), "--clips", "6", "--calibration-clips", "20"]
    cli(["export", str(student), *arguments, "--int8", "--calibrate", str(toy_folder)])
    said = " ".join(capsys.readouterr().out.split())
    assert f"flow_tiny3d_8 w8a8, {to}" in said and "calibrated on 20 training clips of" in said
    operators = {"onnx": "onnxruntime executes 4 QLinearConv", "openvino": "OpenVINO executes 4 Convolution u8"}
    assert operators[to] in said
    exported = export_file(student, out, int8=True, calibrate=toy_folder, clips=6)
    assert exported.calibration.min_cosine > 0.99 and exported.agreement.min_cosine > 0.99


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_export__biases_of_millions_of_steps(tmp_path, to):
    """float32 gives such a bias divided by its scale only to a fraction of a step; brevitas' exporter refuses that."""
    if to == "openvino":
        pytest.importorskip("openvino")
    torch.manual_seed(0)
    encoder = create_encoder("image_mobilenet_v2", size_px=64)
    clips = noise_clips(encoder, 16)
    with torch.no_grad():
        for _ in range(3):  # statistics of noise leave small activations, and so biases of many steps
            encoder.train()(clips)
    quantize(encoder.eval(), "w8a8").eval()
    calibrate(encoder, [clips])
    assert export_student(encoder, tmp_path / "a", clips, to=to).min_cosine > 0.999


def test_calibration__takes_training_clips_of_the_split_alone(toy_folder, monkeypatch):
    encoder = create_encoder("flow_tiny3d_8", num_frames=8, size_px=32)
    manifest = Manifest.load(toy_folder)
    for split in ("1", "2"):
        known = KnownClips.find(encoder, manifest, split)
        train = set(manifest.positions(split=split, part="train").tolist())
        assert set(known.positions.tolist()) == train
        assert not train & set(manifest.positions(split=split, part="test").tolist())
    read = []
    monkeypatch.setattr(int8, "clips_at", lambda encoder, manifest, positions: read.append(positions.tolist()))
    known.read(5)
    assert len(read[0]) == 5 and set(read[0]) <= train
    assert read[0][0] == min(train) and read[0][-1] == max(train)
    known.read(10_000)
    assert read[1] == sorted(train)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"int8": True}, "--int8 needs clips to measure the ranges"),
        ({"int8": True, "to": "torchscript"}, "--int8 has no effect with --to torchscript: give --to onnx or openvino"),
        ({"calibrate": "x"}, "--calibrate has no effect without --int8"),
        ({"int8": True, "calibrate": "x", "calibration_clips": 0}, "--calibration-clips is 0"),
    ],
)
def test_options__that_do_not_fit_are_refused_before_loading(tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        export_file(tmp_path, **options)


def test_calibration__data_that_does_not_fit_is_refused(student, toy_folder, tmp_path):
    save_student(create_encoder("skeleton_tiny3d_8", num_frames=8, size_px=20), tmp_path / "other", facts={})
    with pytest.raises(
        UserError, match="the calibration of a skeleton student needs the stream 'skeleton', but the dataset"
    ):
        export_file(tmp_path / "other", int8=True, calibrate=toy_folder)
    with pytest.raises(UserError, match="split"):
        export_file(student, int8=True, calibrate=toy_folder, split="9")
    save_student(quantize(create_encoder("flow_tiny3d_8"), "w4a8"), tmp_path / "few", facts={})
    with pytest.raises(UserError, match="is quantised to w4a8 already: remove --int8"):
        export_file(tmp_path / "few", int8=True, calibrate=toy_folder)
    with pytest.raises(UserError, match=r"int8 changes the embeddings .*nothing was written: calibrate on more"):
        export_file(student, tmp_path / "a.onnx", int8=True, calibrate=toy_folder, min_cosine=1.0)
    assert not (tmp_path / "a.onnx").exists()
