"""Every format: outputs for any batch size, metadata, and the libraries that open the file."""

import dataclasses
import inspect
import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from crossdistill.commands.export import Options
from crossdistill.commands.main import main as cli
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import FACTS_NAME, save_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.timm import OF_PUBLISHED_WEIGHTS
from crossdistill.errors import UserError
from crossdistill.export import hf, onnx
from crossdistill.export.agreement import ExportAgreement, compare_outputs, require_agreement
from crossdistill.export.export import export_file
from crossdistill.export.formats import FORMATS, Format, export_student
from crossdistill.export.limits import MIN_COSINE
from crossdistill.export.metadata import ExportMetadata
from crossdistill.quantization.quantize import noise_clips, quantize

transformers = pytest.importorskip("transformers")
onnx_library = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
openvino_library = pytest.importorskip("openvino")

CLASSES = ("clap", "wave", "jump")


def read_metadata(path, to):
    """The metadata, read with each format's own library."""
    extra = {"crossdistill.json": ""}
    if to == "onnx":
        text = {entry.key: entry.value for entry in onnx_library.load(path).metadata_props}["crossdistill"]
    elif to == "torchscript":
        torch.jit.load(str(path), _extra_files=extra)
        text = extra["crossdistill.json"].decode()
    elif to == "torch-export":
        with path.open("rb") as file:
            torch.export.load(file, extra_files=extra)
        text = extra["crossdistill.json"]
    elif to == "safetensors":
        with safe_open(path, framework="pt") as file:
            text = file.metadata()["crossdistill"]
    elif to == "openvino":
        text = openvino_library.Core().read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
        text = text.get_rt_info("crossdistill").value
    else:
        text = json.dumps(json.loads((path / "config.json").read_text())["crossdistill"])
    return ExportMetadata.from_text(text, source=str(path))


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
def test_format__outputs_match_pytorch_for_any_batch_size_and_metadata_is_readable(tmp_path, to):
    encoder, path = make_encoder(), tmp_path / "student"
    agreement = export_student(encoder, path, noise_clips(encoder, 4), to=to, classes=CLASSES)
    assert agreement.max_difference < 1e-5 and agreement.num_clips == 4
    clips = noise_clips(encoder, 5)
    outputs = FORMATS[to].open(path, encoder)(clips)
    embeddings, logits = expected_outputs(encoder, clips)
    torch.testing.assert_close(outputs["embeddings"], embeddings, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs["logits"], logits, atol=1e-4, rtol=1e-4)
    assert read_metadata(path, to) == ExportMetadata.from_encoder(encoder, CLASSES)
    assert read_metadata(path, to).classes == CLASSES


@pytest.mark.parametrize("to", FORMATS)
def test_format__without_classifier_has_embeddings_alone(tmp_path, to):
    encoder, path = make_encoder(num_classes=0), tmp_path / "student"
    export_student(encoder, path, noise_clips(encoder, 1), to=to)
    assert list(FORMATS[to].open(path, encoder)(noise_clips(encoder, 1))) == ["embeddings"]
    assert read_metadata(path, to).outputs == {"embeddings": encoder.embed_dim}


@pytest.mark.parametrize("to", FORMATS)
def test_format__outputs_that_differ_are_refused_and_nothing_is_left(tmp_path, monkeypatch, to):
    encoder, path = make_encoder(), tmp_path / "student"
    chosen = FORMATS[to]

    def open_other(path, encoder):
        forward = chosen.open(path, encoder)
        return lambda clips: {name: 1.01 * tensor for name, tensor in forward(clips).items()}

    monkeypatch.setitem(FORMATS, to, Format(**{**vars(chosen), "open": open_other}))
    with pytest.raises(
        UserError, match=r"outputs of flow_tiny3d_8 in .* differ .*difference 0\.01 of.*nothing was written"
    ):
        export_student(encoder, path, noise_clips(encoder, 2), to=to)
    assert list(tmp_path.iterdir()) == []


def test_compare_outputs__other_shapes_and_nan_are_refused():
    good = {"embeddings": torch.ones(2, 3)}
    assert compare_outputs(good, {"embeddings": torch.ones(3, 3)}) == (-1.0, float("inf"))
    assert compare_outputs(good, {}) == (-1.0, float("inf"))
    encoder, bad = make_encoder(), {"embeddings": torch.full((2, 3), torch.nan)}
    cosine, difference = compare_outputs(good, bad)
    with pytest.raises(UserError, match="nothing was written"):
        require_agreement(encoder, ExportAgreement(2, cosine, difference), runtime="x", min_cosine=MIN_COSINE)


def test_graph__opens_in_pytorch_without_this_package(tmp_path):
    """Outputs and metadata in a process that cannot import crossdistill."""
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


def test_weights__load_strictly_into_torchvisions_class(tmp_path):
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


def test_hf__student_of_transformers_loads_as_its_own_class(tmp_path):
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


def test_hf__other_student_loads_with_automodel_and_one_import_in_the_folder(tmp_path):
    encoder = make_encoder()
    export_student(encoder, tmp_path / "hf", noise_clips(encoder, 2), to="hf", classes=CLASSES)
    model = transformers.AutoModel.from_pretrained(tmp_path / "hf", trust_remote_code=False)
    clips = noise_clips(encoder, 3)
    with torch.no_grad():
        output = model(clips)
    torch.testing.assert_close(output.logits, expected_outputs(encoder, clips)[1], atol=1e-5, rtol=1e-5)
    assert sorted(file.suffix for file in (tmp_path / "hf").iterdir()) == [".json", ".md", ".py", ".safetensors"]
    assert (tmp_path / "hf" / hf.CODE_NAME).read_text() == hf.CODE


def test_hf__other_student_loads_in_a_process_that_trusts_the_folder(tmp_path):
    encoder = make_encoder()
    clips = noise_clips(encoder, 2)
    export_student(encoder, tmp_path / "hf", clips, to="hf", classes=CLASSES)
    torch.save(clips, tmp_path / "clips.pt")
    code = (
        "import sys, torch, transformers\n"
        "load = transformers.AutoModel.from_pretrained\n"
        "try:\n"
        "    load('hf', trust_remote_code=False)\n"
        "except ValueError:\n"
        "    print('refused')\n"
        "with torch.no_grad():\n"
        "    output = load('hf', trust_remote_code=True)(torch.load('clips.pt'))\n"
        "torch.save([output.embeddings, output.logits], 'outputs.pt')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
    for found, expected in zip(torch.load(tmp_path / "outputs.pt"), expected_outputs(encoder, clips), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "size_px"), [("flow_timm:resnet18", 32), ("image_timm:vit_tiny_patch16_224", 64)])
def test_hf__student_of_timm_loads_with_timm_and_with_automodel(tmp_path, name, size_px):
    timm = pytest.importorskip("timm")
    encoder = make_encoder(name=name, num_frames=1, size_px=size_px)
    clips, folder = noise_clips(encoder, 2), tmp_path / "hf"
    export_student(encoder, folder, clips, to="hf", classes=CLASSES)
    pictures, expected = clips[:, :, 0], expected_outputs(encoder, clips)[0]
    with torch.no_grad():
        own = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        wrapped = transformers.AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
        torch.testing.assert_close(own(pictures), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(wrapped(pictures).pooler_output, expected, atol=1e-5, rtol=1e-5)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.classifier.safetensors",
        "model.safetensors",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [encoder.view.kind.channels, size_px, size_px]
    assert not set(OF_PUBLISHED_WEIGHTS) & set(config["pretrained_cfg"])
    assert config["crossdistill"]["classes"] == list(CLASSES)


def test_hf__existing_folder_is_not_overwritten(tmp_path):
    encoder = make_encoder()
    (tmp_path / "hf").mkdir()
    with pytest.raises(UserError, match="exists already: remove it"):
        export_student(encoder, tmp_path / "hf", noise_clips(encoder, 1), to="hf")


def test_hf__network_from_python_file_is_refused(tmp_path):
    encoder = make_encoder()
    encoder.name = "mine.py:build"
    with pytest.raises(UserError, match=r"built by a Python file.*--to torch-export"):
        export_student(encoder, tmp_path / "hf", noise_clips(encoder, 1), to="hf")


@pytest.mark.parametrize("to", ["torchscript", "hf", "safetensors"])
def test_format__quantised_student_computes_as_in_training(tmp_path, to):
    pytest.importorskip("brevitas")
    encoder = quantize(make_encoder(), "w4a8").eval()
    agreement = export_student(encoder, tmp_path / "a", noise_clips(encoder, 2), to=to)
    assert agreement.max_difference < 1e-5 and read_metadata(tmp_path / "a", to).bits == "w4a8"


def test_format__unknown_name_lists_formats():
    encoder = make_encoder()
    with pytest.raises(UserError, match=r"unknown format 'tflite': choose one of hf, onnx, openvino, safetensors"):
        export_student(encoder, None, noise_clips(encoder, 1), to="tflite")


def test_class_names__wrong_number_is_refused(tmp_path):
    encoder = make_encoder()
    with pytest.raises(UserError, match="has 3 classes, but 2 names were given"):
        export_student(encoder, tmp_path / "a", noise_clips(encoder, 1), to="safetensors", classes=("a", "b"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no crossdistill metadata, so its preprocessing is unknown"),
        ("{", "is damaged"),
        ('{"version": 99}', "has format version 99, this crossdistill reads up to 1: update crossdistill"),
        ('{"version": 1, "preprocessing": {"modality": "smell"}}', "is damaged"),
    ],
)
def test_metadata__unreadable_text_is_one_sentence(text, says):
    with pytest.raises(UserError, match=says):
        ExportMetadata.from_text(text, source="a.onnx")


def test_onnx__damaged_or_missing_file_is_one_sentence(tmp_path):
    path = tmp_path / "a.onnx"
    with pytest.raises(UserError, match="there is no ONNX file"):
        onnx.open_session(path)
    path.write_bytes(b"nonsense" * 100)
    with pytest.raises(UserError, match=r"onnxruntime .* cannot run the file .*export the student again"):
        onnx.open_session(path)


def test_command__writes_into_run_folder_with_class_names(tmp_path, capsys):
    save_student(make_encoder(), tmp_path / "run" / "student", facts={})
    facts = tmp_path / "run" / "student" / FACTS_NAME
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "classes": CLASSES}))
    cli(["export", str(tmp_path / "run"), "--to", "safetensors", "--clips", "2"])
    said = " ".join(capsys.readouterr().out.split())
    assert "outputs embeddings [B, " in said and "logits [B, 3]; on 2 clips of noise" in said
    assert read_metadata(tmp_path / "run" / "export.safetensors", "safetensors").classes == CLASSES


def test_command__dataset_with_other_classes_is_refused(tmp_path, capsys):
    Manifest(root=tmp_path / "data", dataset="d", classes=("a", "b"), videos=()).save()
    save_student(make_encoder(), tmp_path / "student", facts={})
    with pytest.raises(SystemExit) as ended:
        cli(["export", str(tmp_path), "--to", "safetensors", "--data", str(tmp_path / "data")])
    assert ended.value.code == 2
    assert "has 3 classes and the dataset" in capsys.readouterr().err


def test_export_file__same_file_and_defaults_as_command(tmp_path):
    save_student(make_encoder(), tmp_path / "student", facts={})
    cli(["export", str(tmp_path), "--to", "torchscript", "--out", str(tmp_path / "shell.pt")])
    exported = export_file(tmp_path, tmp_path / "notebook.pt", to="torchscript")
    clips = noise_clips(make_encoder(), 2)
    shell, notebook = (torch.jit.load(tmp_path / f"{name}.pt")(clips) for name in ("shell", "notebook"))
    assert all(torch.equal(a, b) for a, b in zip(shell, notebook, strict=True))
    assert exported.path == tmp_path / "notebook.pt" and exported.num_bytes > 1000
    options = {field.name: field.default for field in dataclasses.fields(Options) if field.name != "student"}
    parameters = inspect.signature(export_file).parameters
    assert {name: parameters[name].default for name in parameters if name != "student"} == options


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"clips": 0}, "--clips is 0"),
        ({"min_cosine": -1.0}, "--min-cosine is -1"),
        ({"to": "tflite"}, "unknown format"),
    ],
)
def test_export_file__invalid_argument_is_refused_before_loading(tmp_path, arguments, error):
    with pytest.raises(UserError, match=error):
        export_file(tmp_path, **arguments)
