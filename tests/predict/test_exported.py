"""Exported files in their runtimes: the same answers everywhere, the choice of the fastest, and error texts."""

import json
import time

import pytest
import torch
from video_files import moving_frames, write_video

from crossdistill.commands.main import main as cli
from crossdistill.encoders import create_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.export.formats import export_student
from crossdistill.predict import exported
from crossdistill.predict.exported import OPENERS, open_exported
from crossdistill.quantization.quantize import noise_clips

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

FORMATS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch-export", ".pt": "torchscript"}
CASES = [(suffix, runtime) for suffix, runtimes in OPENERS.items() for runtime in runtimes]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = create_encoder("rgb_tiny3d_8", num_frames=8, size_px=32, stride=1).eval()
    encoder.classifier = Classifier(torch.randn(3, encoder.embed_dim), torch.randn(3))
    return encoder


@pytest.fixture(scope="module")
def files(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for suffix, to in FORMATS.items():
        path = folder / f"a{suffix}"
        export_student(encoder, path, noise_clips(encoder, 2), to=to, classes=("x", "y", "z"))
    return folder


@pytest.mark.parametrize(("suffix", "runtime"), CASES)
def test_runtime__gives_pytorchs_embeddings(files, encoder, suffix, runtime):
    opened = open_exported(files / f"a{suffix}", runtime)
    clips = noise_clips(encoder, 5)
    with torch.no_grad():
        torch.testing.assert_close(opened.forward(clips)["embeddings"], encoder(clips), atol=1e-5, rtol=1e-5)
    assert opened.runtime == runtime and opened.classes == ("x", "y", "z") and opened.view == encoder.view


def test_predict_and_evaluate__same_numbers_in_every_runtime(files, toy_folder, tmp_path, capsys):
    video = write_video(tmp_path / "a.mp4", moving_frames(30))
    shares, top1 = [], []
    for suffix, runtime in CASES:
        file, out = files / f"a{suffix}", tmp_path / "out.json"
        cli(["predict", str(file), str(video), "--runtime", runtime, "--json", str(out)])
        (answer,) = json.loads(out.read_text())["answers"]
        shares.append({entry["name"]: entry["share"] for entry in answer["classes"]})
        arguments = ["--data", toy_folder, "--protocols", "knn", "--bootstrap", 0, "--workers", 0, "--json", out]
        cli(["evaluate", str(file), "--runtime", runtime, *map(str, arguments), "--features", str(tmp_path / "f")])
        top1.append(json.loads(out.read_text())["results"])
    for share in shares[1:]:
        assert share == pytest.approx(shares[0], abs=1e-4)
    assert all(found == top1[0] for found in top1[1:])
    # onnxruntime and OpenVINO keep their features apart, although both ran the same ONNX file.
    assert len(list((tmp_path / "f").iterdir())) == len(CASES)


def test_auto__is_the_fastest_and_says_so(files, monkeypatch, capsys):
    path = files / "a.onnx"
    plain = OPENERS[".onnx"]["openvino"]

    def slow(path):
        forward, metadata = plain(path)

        def late(clips):
            time.sleep(0.2)
            return forward(clips)

        return late, metadata

    monkeypatch.setitem(OPENERS[".onnx"], "openvino", slow)
    assert open_exported(path, "auto").runtime == "onnxruntime"
    said = " ".join(capsys.readouterr().out.split())
    assert "runs in onnxruntime (a clip: onnxruntime" in said and "openvino 5" in said  # 0.2 s for 4 clips


def test_auto__leaves_out_what_is_missing_and_refuses_disagreement(files, monkeypatch, capsys):
    path = files / "a.onnx"

    def absent(path):
        raise UserError("OpenVINO needs openvino")

    monkeypatch.setitem(OPENERS[".onnx"], "openvino", absent)
    assert open_exported(path, "auto").runtime == "onnxruntime"
    assert "openvino is left out (OpenVINO needs openvino)" in " ".join(capsys.readouterr().out.split())
    plain = OPENERS[".onnx"]["onnxruntime"]

    def other(path):
        forward, metadata = plain(path)
        return lambda clips: {name: -values for name, values in forward(clips).items()}, metadata

    monkeypatch.setitem(OPENERS[".onnx"], "openvino", other)
    with pytest.raises(UserError, match=r"onnxruntime and openvino disagree on .* \(cosine -1\.000"):
        open_exported(path, "auto")
    monkeypatch.setattr(exported, "OPENERS", {".onnx": {"openvino": absent}})
    with pytest.raises(UserError, match="OpenVINO needs openvino"):
        open_exported(path, "auto")


def test_file__that_cannot_be_opened_is_one_sentence(files, tmp_path):
    for name, says in {
        "a.xml": r"does not run in onnxruntime: a \.xml file runs in openvino",
        "a.pt2": "does not run in onnxruntime",
    }.items():
        with pytest.raises(UserError, match=says):
            open_exported(files / name, "onnxruntime")
    with pytest.raises(UserError, match="unknown runtime 'tvm': choose one of auto, onnxruntime, openvino, pytorch"):
        open_exported(files / "a.onnx", "tvm")
    with pytest.raises(UserError, match="there is no exported file"):
        open_exported(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="has no suffix of an exported file"):
        open_exported(tmp_path / "a.tflite")
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt")
    (tmp_path / "b.pt2").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="is not a complete TorchScript file"):
        open_exported(tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"is not a complete \.pt2 file"):
        open_exported(tmp_path / "b.pt2")
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), str(tmp_path / "c.pt"))
    with pytest.raises(UserError, match="no crossdistill metadata"):
        open_exported(tmp_path / "c.pt")


def test_command__runtime_of_a_folder_or_finetune_of_a_file_is_refused(files, toy_folder, tmp_path, capsys):
    from crossdistill.distillation.student import save_student

    save_student(create_encoder("rgb_tiny3d_8"), tmp_path / "student", facts={})
    video = write_video(tmp_path / "a.mp4", moving_frames(30))
    refused = {
        ("predict", tmp_path, video, "--runtime", "openvino"): "--runtime openvino needs an exported file",
        (
            "evaluate",
            files / "a.onnx",
            "--data",
            toy_folder,
            "--protocols",
            "finetune",
        ): "finetune needs the student's folder",
        ("evaluate", tmp_path / "no.onnx", "--data", toy_folder): "there is no exported file",
    }
    for arguments, says in refused.items():
        with pytest.raises(SystemExit) as ended:
            cli([str(argument) for argument in arguments])
        assert ended.value.code == 2 and says in capsys.readouterr().err
