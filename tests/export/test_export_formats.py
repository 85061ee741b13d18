"""Every format: the outputs of PyTorch for any batch, what the file says of itself, and who can open it."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from crossdistill import export as exports
from crossdistill.commands.main import main as cli
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import FACTS_NAME, save_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.errors import UserError
from crossdistill.export import FORMATS, export_student, hf, onnx, safetensors, torch_export, torchscript
from crossdistill.export.agreement import measure
from crossdistill.export.description import Description, describe
from crossdistill.quantization.quantize import BitWidths, noise_clips, quantize

transformers = pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

CLASSES = ("clap", "wave", "jump")
READ = {
    "onnx": lambda path: onnx.read_description(onnx.open_session(path), path),
    "torchscript": torchscript.read_description,
    "torch-export": torch_export.read_description,
    "safetensors": safetensors.read_description,
    "hf": hf.read_description,
}


def make_encoder(*, num_classes=3, name="flow_tiny3d_8", **view):
    torch.manual_seed(0)
    encoder = create_encoder(name, **{"num_frames": 16, "size_px": 16, **view}).eval()
    if num_classes:
        encoder.classifier = Classifier(torch.randn(num_classes, encoder.embed_dim), torch.randn(num_classes))
    return encoder


def expected_outputs(encoder, clips):
    with torch.no_grad():
        embeddings = encoder(clips)
    return embeddings, F.linear(embeddings, encoder.classifier.weight, encoder.classifier.bias)


@pytest.mark.parametrize("to", FORMATS)
def test_format__gives_embeddings_and_logits_of_any_batch_and_says_what_it_wants(tmp_path, to):
    encoder, path = make_encoder(), tmp_path / "student"
    agreement = export_student(encoder, path, noise_clips(encoder, 4), to=to, classes=CLASSES)
    assert agreement.max_difference < 1e-5 and agreement.num_clips == 4
    clips = noise_clips(encoder, 5)
    outputs = FORMATS[to].open(path, encoder)(clips)
    embeddings, logits = expected_outputs(encoder, clips)
    torch.testing.assert_close(outputs["embeddings"], embeddings, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs["logits"], logits, atol=1e-4, rtol=1e-4)
    assert READ[to](path) == describe(encoder, CLASSES)
    assert READ[to](path).classes == CLASSES


@pytest.mark.parametrize("to", FORMATS)
def test_format__without_a_classifier_gives_embeddings_alone(tmp_path, to):
    encoder, path = make_encoder(num_classes=0), tmp_path / "student"
    export_student(encoder, path, noise_clips(encoder, 1), to=to)
    assert list(FORMATS[to].open(path, encoder)(noise_clips(encoder, 1))) == ["embeddings"]
    assert READ[to](path).outputs == {"embeddings": encoder.embed_dim}


@pytest.mark.parametrize("to", FORMATS)
def test_format__what_differs_is_refused_and_leaves_nothing(tmp_path, monkeypatch, to):
    encoder, path = make_encoder(), tmp_path / "student"
    chosen = FORMATS[to]

    def open_other(path, encoder):
        run = chosen.open(path, encoder)
        return lambda clips: {name: 1.01 * tensor for name, tensor in run(clips).items()}

    monkeypatch.setitem(exports.FORMATS, to, exports.Format(**{**vars(chosen), "open": open_other}))
    with pytest.raises(UserError, match=r"outputs of flow_tiny3d_8 differ .*difference 0\.01 of.*nothing was written"):
        export_student(encoder, path, noise_clips(encoder, 2), to=to)
    assert list(tmp_path.iterdir()) == []


def test_measure__other_outputs_and_nan_do_not_agree():
    good = {"embeddings": torch.ones(2, 3)}
    assert measure(good, {"embeddings": torch.ones(3, 3)}) == (-1.0, float("inf"))
    assert measure(good, {}) == (-1.0, float("inf"))
    encoder, bad = make_encoder(), {"embeddings": torch.full((2, 3), torch.nan)}
    cosine, difference = measure(good, bad)
    with pytest.raises(UserError, match="nothing was written"):
        exports.require_agreement(encoder, exports.Agreement(2, cosine, difference), where="x")


def test_graphs_of_pytorch__open_without_this_package(tmp_path):
    """In a process that cannot import it: outputs, and the metadata."""
    encoder = make_encoder()
    clips = noise_clips(encoder, 3)
    torch.save(clips, tmp_path / "clips.pt")
    for to, name in (("torchscript", "a.pt"), ("torch-export", "a.pt2")):
        export_student(encoder, tmp_path / name, clips, to=to, classes=CLASSES)
    script = """
import json, sys, warnings
sys.modules["crossdistill"] = None
warnings.simplefilter("ignore")
import torch
clips = torch.load("clips.pt", weights_only=True)
one, two = {"crossdistill.json": ""}, {"crossdistill.json": ""}
networks = torch.jit.load("a.pt", _extra_files=one), torch.export.load("a.pt2", extra_files=two).module()
for network, extra in zip(networks, (one, two)):
    print(json.dumps([json.loads(extra["crossdistill.json"])["classes"], network(clips)[1].tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        classes, logits = json.loads(line)
        assert tuple(classes) == CLASSES
        torch.testing.assert_close(torch.tensor(logits), expected_outputs(encoder, clips)[1], atol=1e-4, rtol=1e-4)
    assert len(done.stdout.splitlines()) == 2


def test_weights__load_strictly_into_the_librarys_own_class(tmp_path):
    import torchvision

    encoder = make_encoder(name="image_mobilenet_v2", num_frames=1, size_px=32)
    clips = noise_clips(encoder, 2)
    export_student(encoder, tmp_path / "a.safetensors", clips, to="safetensors")
    model = torchvision.models.mobilenet_v2()
    model.classifier = torch.nn.Identity()
    model.load_state_dict(load_file(tmp_path / "a.safetensors"), strict=True)
    layer = load_file(tmp_path / "a.classifier.safetensors")
    with torch.no_grad():
        embeddings = model.eval()(clips[:, :, 0])
    torch.testing.assert_close(F.linear(embeddings, **layer), expected_outputs(encoder, clips)[1], atol=1e-4, rtol=1e-4)


def test_hf__a_student_of_the_library_is_its_own_class(tmp_path):
    config = transformers.VideoMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, num_frames=4
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "source")
    encoder = make_encoder(name=f"rgb_hf:{tmp_path / 'source'}", num_frames=None, size_px=None)
    clips, folder = noise_clips(encoder, 2), tmp_path / "hf"
    export_student(encoder, folder, clips, to="hf", classes=CLASSES)
    model = transformers.VideoMAEModel.from_pretrained(folder)
    with torch.no_grad():
        embeddings = model(clips.transpose(1, 2)).last_hidden_state.mean(1)
    torch.testing.assert_close(embeddings, expected_outputs(encoder, clips)[0], atol=1e-5, rtol=1e-5)
    assert model.config.crossdistill["preprocessing"]["mean"] == list(encoder.view.mean)
    assert (folder / "model.classifier.safetensors").is_file()
    assert "mean over all tokens" in (folder / "README.md").read_text()


def test_hf__another_student_is_known_to_automodel_without_code_in_the_folder(tmp_path):
    encoder = make_encoder()
    export_student(encoder, tmp_path / "hf", noise_clips(encoder, 2), to="hf", classes=CLASSES)
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf", trust_remote_code=False)
    clips = noise_clips(encoder, 3)
    with torch.no_grad():
        output = model(clips)
    torch.testing.assert_close(output.logits, expected_outputs(encoder, clips)[1], atol=1e-5, rtol=1e-5)
    assert sorted(file.suffix for file in (tmp_path / "hf").iterdir()) == [".json", ".md", ".safetensors"]


def test_hf__a_folder_that_is_there_is_not_overwritten(tmp_path):
    encoder = make_encoder()
    (tmp_path / "hf").mkdir()
    with pytest.raises(UserError, match="is there already: remove it"):
        export_student(encoder, tmp_path / "hf", noise_clips(encoder, 1), to="hf")


def test_hf__a_network_of_a_python_file_is_refused(tmp_path):
    encoder = make_encoder()
    encoder.name = "mine.py:build"
    with pytest.raises(UserError, match=r"built by a Python file.*--to torch-export"):
        export_student(encoder, tmp_path / "hf", noise_clips(encoder, 1), to="hf")


@pytest.mark.parametrize("to", ["torchscript", "hf", "safetensors"])
def test_format__a_quantised_student_computes_as_in_training(tmp_path, to):
    pytest.importorskip("brevitas")
    encoder = quantize(make_encoder(), BitWidths(4, 8)).eval()
    agreement = export_student(encoder, tmp_path / "a", noise_clips(encoder, 2), to=to)
    assert agreement.max_difference < 1e-5 and READ[to](tmp_path / "a").quantize == "w4a8"


def test_unknown_format__is_named():
    encoder = make_encoder()
    with pytest.raises(UserError, match=r"unknown format 'tflite': choose one of hf, onnx, safetensors, torch"):
        export_student(encoder, None, noise_clips(encoder, 1), to="tflite")


def test_class_names__of_another_number_are_refused(tmp_path):
    encoder = make_encoder()
    with pytest.raises(UserError, match="has 3 classes and the data has 2"):
        export_student(encoder, tmp_path / "a", noise_clips(encoder, 1), to="safetensors", classes=("a", "b"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "does not say which preprocessing"),
        ("{", "is damaged"),
        ('{"version": 99}', "has format version 99, this crossdistill reads up to 1: update it"),
        ('{"version": 1, "preprocessing": {"modality": "smell"}}', "is damaged"),
    ],
)
def test_description__what_cannot_be_read_is_one_sentence(text, says):
    with pytest.raises(UserError, match=says):
        Description.from_text(text, source="a.onnx")


def test_onnx_file__damaged_or_missing_is_one_sentence(tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(UserError, match="there is no ONNX file"):
        onnx.open_session(path)
    path.write_bytes(b"nonsense" * 100)
    with pytest.raises(UserError, match=r"is no ONNX file that onnxruntime .* can run .*export the student again"):
        onnx.open_session(path)


def test_command__writes_into_the_runs_folder_and_names_classes(tmp_path, capsys):
    save_student(make_encoder(), tmp_path / "run" / "student", facts={})
    facts = tmp_path / "run" / "student" / FACTS_NAME
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "classes": CLASSES}))
    cli(["export", str(tmp_path / "run"), "--to", "safetensors", "--clips", "2"])
    said = " ".join(capsys.readouterr().out.split())
    assert "gives embeddings [B, " in said and "logits [B, 3]; on 2 clips of noise" in said
    assert safetensors.read_description(tmp_path / "run" / "export.safetensors").classes == CLASSES


def test_command__data_of_other_classes_is_one_sentence(tmp_path, capsys):
    Manifest(root=tmp_path / "data", dataset="d", classes=("a", "b"), videos=()).save()
    save_student(make_encoder(), tmp_path / "student", facts={})
    with pytest.raises(SystemExit) as ended:
        cli(["export", str(tmp_path), "--to", "safetensors", "--data", str(tmp_path / "data")])
    assert ended.value.code == 2
    assert "has 3 classes and the dataset" in capsys.readouterr().err
