"""Students in onnxruntime: the same embeddings, and integers where integers were asked for."""

import sys

import pytest
import torch
from torch import nn

from crossdistill.commands.export import real_clips
from crossdistill.commands.main import main as cli
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import save_student
from crossdistill.encoders import create_encoder, wrap_encoder
from crossdistill.errors import UserError
from crossdistill.export import export_student, onnx
from crossdistill.export.onnx import FLOAT_OPERATORS
from crossdistill.quantization.quantize import BitWidths, noise_clips, quantize

pytest.importorskip("brevitas")
pytest.importorskip("onnxoptimizer")
runtime = pytest.importorskip("onnxruntime")


@pytest.fixture
def trained(toy_folder):
    """Makes an encoder whose statistics and ranges have seen real clips, as after training."""

    def make(name, widths=None, *, num_frames=None):
        torch.manual_seed(0)
        encoder = create_encoder(name, size_px=48 if name.startswith("image") else 32, num_frames=num_frames)
        if widths is not None:
            quantize(encoder, widths)
        clips = real_clips(encoder, Manifest.load(toy_folder), 16)
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
    """Makes a quantised encoder that a few steps of training have moved, so that its BatchNorms shift and scale."""

    def make(name, widths, *, num_frames=None):
        encoder = trained(name, widths, num_frames=num_frames)
        clips = real_clips(encoder, Manifest.load(toy_folder), 16)
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
        ("rgb_r3d10", 4, BitWidths(8, 8), 12),
        ("image_squeezenet1_0", None, BitWidths(4, 8), 25),
        ("flow_tiny3d_8", 16, BitWidths(4, 4), 4),
        ("flow_tiny3d_8", 16, BitWidths(2, 2), 4),
        ("rgb_r3d10", 4, BitWidths(2, 4), 12),
        ("image_resnet18", None, BitWidths(4, 4), 20),
        ("image_resnet18", None, BitWidths(2, 4), 20),
        ("image_squeezenet1_0", None, BitWidths(3, 5), 25),
    ],
)
def test_export__a_quantised_network_runs_on_integers_with_the_same_embeddings(
    tmp_path, toy_folder, trained_for_a_while, name, num_frames, widths, num_convolutions
):
    """Equal up to the last mean, which is in floating point: with biases in coarser steps the cosine was 0.79."""
    encoder, path = trained_for_a_while(name, widths, num_frames=num_frames), tmp_path / "student.onnx"
    clips = real_clips(encoder, Manifest.load(toy_folder), 7)
    agreement = export_student(encoder, path, clips[:4])
    assert agreement.operators == {"QLinearConv": num_convolutions}
    assert agreement.min_cosine > 0.9999
    # Of neither those that were compared nor as many.
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
    encoder = quantize(wrap_encoder(Attention(), view=view, embed_dim=24, stem="patches").eval(), BitWidths(4, 8))
    agreement = export_student(encoder, tmp_path / "student.onnx", noise_clips(encoder, 4))
    # One convolution; two projections, two products of attention, two layers of the MLP, the last layer.
    assert agreement.num_integer == 8 and not set(agreement.operators) & set(FLOAT_OPERATORS)
    assert agreement.min_cosine >= 0.99


def test_export__a_float_network_agrees_closely_and_takes_any_batch(tmp_path, trained):
    encoder, path = trained("flow_r3d10", num_frames=4), tmp_path / "student.onnx"
    agreement = export_student(encoder, path, noise_clips(encoder, 2))
    assert agreement.max_difference < 1e-5 and agreement.num_integer == 0
    clips = noise_clips(encoder, 5)
    torch.testing.assert_close(embed(path, clips), encoder(clips).detach(), atol=1e-5, rtol=1e-5)


def test_export__refuses_what_differs_and_writes_nothing(tmp_path, trained, monkeypatch):
    encoder = trained("rgb_r3d10", num_frames=4)
    clips = noise_clips(encoder, 2)
    run = onnx.run_session
    monkeypatch.setattr(onnx, "run_session", lambda *given: {name: v.flip(1) for name, v in run(*given).items()})
    with pytest.raises(UserError, match=r"onnxruntime's outputs of rgb_r3d10 differ .* nothing was written"):
        export_student(encoder, tmp_path / "student.onnx", clips)
    assert list(tmp_path.iterdir()) == []


class UnevenPool(nn.Module):
    """Three parts of four frames: what ONNX has no operator for."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv3d(2, 8, 1)

    def forward(self, clip):
        return nn.functional.adaptive_avg_pool3d(self.layer(clip), (3, 1, 1)).flatten(1)


def test_export__what_the_exporter_cannot_write_is_one_sentence(tmp_path, capfd):
    view = create_encoder("flow_r3d10", num_frames=4, size_px=16).view
    encoder = wrap_encoder(UnevenPool(), view=view, embed_dim=24, name="flow_uneven").eval()
    with pytest.raises(UserError, match=r"cannot write flow_uneven as ONNX at 4 frames .*adaptive_avg_pool3d"):
        export_student(encoder, tmp_path / "student.onnx", noise_clips(encoder, 2))
    assert list(tmp_path.iterdir()) == []
    assert "prim::" not in "".join(capfd.readouterr())  # the graph, which PyTorch prints, helps nobody


def test_export__moments_of_unequal_length_are_written(tmp_path, trained):
    encoder = trained("flow_tiny3d_8", num_frames=12)  # three times become four moments
    agreement = export_student(encoder, tmp_path / "student.onnx", noise_clips(encoder, 2))
    assert agreement.max_difference < 1e-5


def test_export__without_its_packages_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    encoder = create_encoder("rgb_r3d10", num_frames=4, size_px=32)
    with pytest.raises(UserError, match=r"needs onnxruntime.*pip install 'crossdistill\[export\]'"):
        export_student(encoder, tmp_path / "student.onnx", noise_clips(encoder, 2))


def test_command__compares_on_real_clips_and_says_what_it_found(tmp_path, toy_folder, trained, capsys):
    save_student(trained("flow_tiny3d_8", BitWidths(4, 8), num_frames=16), tmp_path / "student", facts={})
    out = tmp_path / "student.onnx"
    cli(["export", str(tmp_path), "--to", "onnx", "--out", str(out), "--data", str(toy_folder), "--clips", "3"])
    said = " ".join(capsys.readouterr().out.split())
    assert "flow_tiny3d_8 w4a8" in said and "on 3 clips of" in said and "executes 4 QLinearConv" in said
    assert out.stat().st_size > 1000
