"""SimCLR's wide ResNet-50, AlexNet without dropout, and the published checkpoints of the CompRess paper's teachers."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import alexnet, resnet50

from crossdistill.encoders import ARCHITECTURES, create_encoder
from crossdistill.encoders.base import Encoder
from crossdistill.encoders.sizes import SizesOnly, output_shape
from crossdistill.encoders.weights import load_weights
from crossdistill.encoders.wide_resnet import WideResNet50, tensorflow_names
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec

WIDTH = 1 / 16  # 0.1 M parameters under the names of the published files


def narrow(width=WIDTH):
    view = ViewSpec("image", 1, 1, 32, mean=(0.0,) * 3, std=(1.0,) * 3)
    info = ARCHITECTURES["resnet50x4"]
    info = type(info)(**{**vars(info), "embed_dim": round(2048 * width)})
    return Encoder(WideResNet50(width), name="image_resnet50", view=view, info=info)


def test_resnet50x4__has_the_published_size():
    with torch.device("meta"), SizesOnly():
        encoder = create_encoder("image_resnet50x4")
    assert round(encoder.num_parameters / 1e6) == 375
    assert output_shape(encoder.body, 1, 3, 64, 64) == (1, 8192) == (1, encoder.embed_dim)
    assert encoder.view.mean == (0.0,) * 3 and encoder.view.std == (1.0,) * 3  # SimCLR sees [0, 1]


def test_wide_resnet__of_width_1_is_torchvisions():
    with torch.device("meta"):
        ours, theirs = WideResNet50(1).state_dict(), resnet50().state_dict()
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items() if not name.startswith("fc.")
    }


def test_alexnet_no_dropout__is_alexnet_without_noise(tmp_path):
    with torch.device("meta"), SizesOnly():  # random initialisation takes seconds
        reference, encoder = alexnet().eval(), create_encoder("image_alexnet_no_dropout", size_px=64).train()
    reference.to_empty(device="cpu")
    encoder.to_empty(device="cpu")
    for number, parameter in enumerate(reference.parameters()):
        parameter.data.fill_((number + 1) / 1e4)
    torch.save({"model": {f"module.{authors(name)}": v for name, v in reference.state_dict().items()}}, tmp_path / "a")
    load_weights(encoder, tmp_path / "a")
    reference.classifier[6] = nn.Identity()
    pictures = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder(pictures), reference(pictures))


def authors(name):
    """Return a name of torchvision's AlexNet as CompRess' authors have it."""
    for ours, theirs in (("classifier.1.", "feats.0."), ("classifier.4.", "feats.2."), ("classifier.6.", "fc.")):
        name = name.replace(ours, theirs)
    return name


def named(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def linear(num_in, num_out):
    return {"weight": torch.randn(num_out, num_in), "bias": torch.randn(num_out)}


def mlp(prefix):
    return named(f"{prefix}0.", linear(128, 128)) | named(f"{prefix}2.", linear(128, 16))


def moco_v1(w):
    query, key = (named(f"module.encoder_{which}.", w | named("fc.", linear(128, 16))) for which in "qk")
    return {"epoch": 200, "arch": "resnet50", "state_dict": query | key | {"module.queue": torch.randn(16, 9)}}


def moco_v2(w):
    query = named("module.encoder_q.", w | mlp("fc."))
    key = named("module.encoder_k.", {name: value * 0 for name, value in w.items()} | mlp("fc."))
    queue = {"module.queue": torch.randn(16, 9), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": query | key | queue, "optimizer": {"state": {}}}


def moco_v3(w):
    base = named("module.base_encoder.", w | mlp("fc."))
    momentum = named("module.momentum_encoder.", {name: value * 0 for name, value in w.items()} | mlp("fc."))
    return {"state_dict": base | momentum | mlp("module.predictor.")}


def swav(w):
    return named("module.", w | mlp("projection_head.") | {"prototypes.weight": torch.randn(30, 16)})


def dino(w):
    student = named("module.backbone.", {name: value * 0 for name, value in w.items()}) | mlp("module.head.mlp.")
    return {"student": student, "teacher": named("backbone.", w) | mlp("head.mlp."), "epoch": 800}


def simclr(w):
    return {"state_dict": w | named("fc.", linear(128, 10))}


def compress_authors(w):
    theirs = {ours: name for name, ours in tensorflow_names().items()}
    renamed = {f"{theirs[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in w.items()}
    return {"state_dict": renamed | named("fc.", linear(128, 10))}


def lightning(w):
    return {"state_dict": named("model.backbone.", w) | mlp("model.projector."), "pytorch-lightning_version": "2.4"}


def without_counts(w):
    return {name: value for name, value in w.items() if not name.endswith("num_batches_tracked")}


# Content of a file, and what is said to be left out of it; None if nothing is said.
PUBLISHED = {
    moco_v1: "module.encoder_k (320 tensors), module.queue, module.encoder_q.fc (2 tensors)",
    moco_v2: "module.encoder_k (322 tensors), module.queue, module.queue_ptr, module.encoder_q.fc (4 tensors)",
    moco_v3: "module.momentum_encoder (322 tensors), module.predictor (4 tensors), module.base_encoder.fc (4 tensors)",
    swav: "module.projection_head (4 tensors), module.prototypes",
    dino: "head (4 tensors)",
    simclr: None,
    compress_authors: None,
    lightning: "model.projector (4 tensors)",
    without_counts: None,
}


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(3)
    return narrow()


@pytest.mark.parametrize("make", PUBLISHED)
def test_published_checkpoint__gives_the_encoders_weights(make, published, tmp_path, capsys):
    content, encoder, path = make(published.body.state_dict()), narrow(), tmp_path / "checkpoint.pth.tar"
    torch.save(content, path)
    load_weights(encoder, path)
    for name, value in published.body.state_dict().items():
        torch.testing.assert_close(encoder.body.state_dict()[name], value)
    said = capsys.readouterr().out
    assert (f"left out: {PUBLISHED[make]}" in said) if PUBLISHED[make] else ("left out" not in said)
    assert (encoder.classifier is not None) == (make in (simclr, compress_authors))


def test_published_checkpoint__as_safetensors(published, tmp_path):
    encoder = narrow()
    save_file(swav(published.body.state_dict()), tmp_path / "swav.safetensors")
    load_weights(encoder, tmp_path / "swav.safetensors")
    assert torch.equal(encoder.body.conv1.weight, published.body.conv1.weight)


def test_published_checkpoint__of_another_width_or_depth_is_one_sentence(published, tmp_path):
    torch.save(moco_v2(published.body.state_dict()), tmp_path / "narrow.pth")
    with pytest.raises(UserError, match=r"under 'module.encoder_q.': .*conv1.weight, \[4, 3, 7, 7\] instead of \[8, 3"):
        load_weights(narrow(2 * WIDTH), tmp_path / "narrow.pth")
    deeper = published.body.state_dict() | {"layer3.6.conv1.weight": torch.ones(1)}
    torch.save(swav(deeper), tmp_path / "deep.pth")
    with pytest.raises(UserError, match=r"1 unexpected \(first: layer3.6.conv1.weight\); give .*, width and depth"):
        load_weights(narrow(), tmp_path / "deep.pth")
