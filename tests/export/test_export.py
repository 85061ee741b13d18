"""ONNX: embeddings in onnxruntime agree with PyTorch's, and quantised students run on integers."""

import sys

import pytest
import torch
from torch import nn

from crossdistill.commands.main import main as cli
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import save_student
from crossdistill.encoders import create_encoder, wrap_encoder
from crossdistill.errors import UserError
from crossdistill.export import onnx
from crossdistill.export.export import export_file
from crossdistill.export.formats import export_student
from crossdistill.export.int8 import dataset_clips
from crossdistill.export.onnx import FLOAT_OPERATORS, INTEGER_OPERATORS
from crossdistill.quantization.quantize import noise_clips, quantize

pytest.importorskip("brevitas")
pytest.importorskip("onnxoptimizer")
runtime = pytest.importorskip("onnxruntime")


@pytest.fixture
def trained(toy_folder):
    """Return a function that makes an encoder whose BatchNorm statistics and ranges come from real clips."""

    def make(name, widths=None, *, num_frames=None):
        torch.manual_seed(0)
        encoder = create_encoder(name, size_px=48 if name.startswith("image") else 32, num_frames=num_frames)
        if widths is not None:
            quantize(encoder, widths)
        clips = dataset_clips(encoder, Manifest.load(toy_folder), 16)
        with torch.no_grad():
            for _ in range(3):
                encoder.train()(clips)
        return encoder.eval()

    return make


def embed(path, clips):
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["embeddings"], {"clips": clips.numpy()})[0])


@pytest.fixture
def trained_for_a_while(trained, toy_folder):
    """Return a function that makes a quantised encoder with trained BatchNorm shifts and scales."""

    def make(name, widths, *, num_frames=None):
        encoder = trained(name, widths, num_frames=num_frames)
        clips = dataset_clips(encoder, Manifest.load(toy_folder), 16)
        targets = torch.randn(16, encoder.embed_dim, generator=torch.Generator().manual_seed(1))
        optimizer = torch.optim.SGD(encoder.train().parameters(), lr=0.02, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            (1 - nn.functional.cosine_similarity(encoder(clips), targets)).mean().backward()
            optimizer.step()
        return encoder.eval()

    return make


@pytest.mark.parametrize(
    ("name", "num_frames", "widths", "num_convolutions"),
    [
        ("rgb_r3d10", 4, "w8a8", 12),
        ("image_squeezenet1_0", None, "w4a8", 25),
        ("flow_tiny3d_8", 16, "w4a4", 4),
        ("flow_tiny3d_8", 16, "w2a2", 4),
        ("rgb_r3d10", 4, "w2a4", 12),
        ("image_resnet18", None, "w4a4", 20),
        ("image_resnet18", None, "w2a4", 20),
        ("image_squeezenet1_0", None, "w3a5", 25),
    ],
)
def test_export__quantised_network_runs_on_integers_and_matches_pytorch(
    tmp_path, toy_folder, trained_for_a_while, name, num_frames, widths, num_convolutions
):
    """Only the last mean is in floating point. With biases quantised in coarser steps the cosine was 0.79."""
    encoder, path = trained_for_a_while(name, widths, num_frames=num_frames), tmp_path / "student.onnx"
    clips = dataset_clips(encoder, Manifest.load(toy_folder), 7)
    agreement = export_student(encoder, path, clips[:4])
    assert agreement.operators == {"QLinearConv": num_convolutions}
    assert agreement.min_cosine > 0.9999
    # Other clips than those that were compared, and another number.
    torch.testing.assert_close(embed(path, clips[4:]), encoder(clips[4:]).detach(), rtol=1e-4, atol=1e-5)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.out = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 24)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, frames):
        tokens = self.patches(frames).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.out((tokens + self.mlp(tokens)).mean(dim=1))


def test_export__attention_and_linear_layers_run_on_integers(tmp_path):
    torch.manual_seed(0)
    view = create_encoder("image_resnet18", size_px=32).view
    encoder = quantize(wrap_encoder(Attention(), view=view, embed_dim=24, stem="patches").eval(), "w4a8")
    agreement = export_student(encoder, tmp_path / "student.onnx", noise_clips(encoder, 4))
    # One convolution; two projections, two matrix products of attention, two layers of the MLP, the last layer.
    assert sum(agreement.operators[name] for name in agreement.operators if name in INTEGER_OPERATORS) == 8
    assert not set(agreement.operators) & set(FLOAT_OPERATORS)
    assert agreement.min_cosine >= 0.99


def test_export__float_network_matches_pytorch_for_any_batch_size(tmp_path, trained):
    encoder, path = trained("flow_r3d10", num_frames=4), tmp_path / "student.onnx"
    agreement = export_student(encoder, path, noise_clips(encoder, 2))
    assert agreement.max_difference < 1e-5 and not set(agreement.operators) & set(INTEGER_OPERATORS)
    clips = noise_clips(encoder, 5)
    torch.testing.assert_close(embed(path, clips), encoder(clips).detach(), atol=1e-5, rtol=1e-5)


def test_export__outputs_that_differ_are_refused_and_nothing_is_written(tmp_path, trained, monkeypatch):
    encoder = trained("rgb_r3d10", num_frames=4)
    clips = noise_clips(encoder, 2)
    run = onnx.run_session
    monkeypatch.setattr(onnx, "run_session", lambda *given: {name: v.flip(1) for name, v in run(*given).items()})
    with pytest.raises(UserError, match=r"outputs of rgb_r3d10 in onnxruntime differ .* nothing was written"):
        export_student(encoder, tmp_path / "student.onnx", clips)
    assert list(tmp_path.iterdir()) == []


class UnevenPool(nn.Module):
    """Pools four frames to three, which no ONNX operator does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(2, 8, 1)

    def forward(self, clip):
        return nn.functional.adaptive_avg_pool3d(self.layer(clip), (3, 1, 1)).flatten(1)


def test_export__unsupported_operator_is_one_sentence(tmp_path, capfd):
    view = create_encoder("flow_r3d10", num_frames=4, size_px=16).view
    encoder = wrap_encoder(UnevenPool(), view=view, embed_dim=24, name="flow_uneven").eval()
    with pytest.raises(UserError, match=r"cannot export flow_uneven as ONNX for 4 frames .*adaptive_avg_pool3d"):
        export_student(encoder, tmp_path / "student.onnx", noise_clips(encoder, 2))
    assert list(tmp_path.iterdir()) == []
    assert "prim::" not in "".join(capfd.readouterr())  # the graph that PyTorch prints


def test_export__uneven_temporal_pooling_is_written(tmp_path, trained):
    encoder = trained("flow_tiny3d_8", num_frames=12)  # three frames of features are pooled to four moments
    agreement = export_student(encoder, tmp_path / "student.onnx", noise_clips(encoder, 2))
    assert agreement.max_difference < 1e-5


def test_export__missing_package_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    encoder = create_encoder("rgb_r3d10", num_frames=4, size_px=32)
    with pytest.raises(UserError, match=r"needs onnxruntime.*run pip install 'crossdistill\[export\]'"):
        export_student(encoder, tmp_path / "student.onnx", noise_clips(encoder, 2))


def test_export__takes_the_format_of_the_suffix(tmp_path, trained):
    save_student(trained("flow_tiny3d_8"), tmp_path / "student", facts={})
    assert export_file(tmp_path / "student", tmp_path / "network.pt2", clips=2).to == "torch-export"
    torch.export.load(tmp_path / "network.pt2")
    with pytest.raises(UserError, match=r"other\.pt2 has the suffix of torch-export, and --to is onnx: change one"):
        export_file(tmp_path / "student", tmp_path / "other.pt2", to="onnx")


def test_command__reports_agreement_on_real_clips(tmp_path, toy_folder, trained, capsys):
    save_student(trained("flow_tiny3d_8", "w4a8", num_frames=16), tmp_path / "student", facts={})
    out = tmp_path / "student.onnx"
    cli(["export", str(tmp_path), "--to", "onnx", "--out", str(out), "--data", str(toy_folder), "--clips", "3"])
    said = " ".join(capsys.readouterr().out.split())
    assert "flow_tiny3d_8 w4a8" in said and "on 3 clips of" in said and "executes 4 QLinearConv" in said
    assert out.stat().st_size > 1000
