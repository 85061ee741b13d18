"""Weight files as people have them: prefixes of wrappers, larger dictionaries, other formats under a weight name."""

import argparse
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from crossdistill.encoders import create_encoder
from crossdistill.encoders.weights import load_weights
from crossdistill.errors import UserError
from crossdistill.recipes.weights import load_named_weights
from crossdistill.utils.weight_files import read_weights


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return create_encoder("flow_tiny3d_8", num_frames=4, size_px=16)


def other_values(encoder):
    return {name: value + 1 for name, value in encoder.body.state_dict().items()}


def named(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


def inside(weights):
    """Compile one module of the network, as torch.compile(net.module) names it."""
    first = next(iter(weights)).partition(".")[0]
    return {name.replace(f"{first}.", f"{first}._orig_mod.", 1): value for name, value in weights.items()}


CONTENTS = {
    "DataParallel": lambda w: named("module.", w),
    "torch.compile": lambda w: named("_orig_mod.", w),
    "compiled, then DDP": lambda w: named("module._orig_mod.", w),
    "one compiled part": inside,
    "Lightning": lambda w: {"state_dict": named("model.", w), "epoch": 3, "loops": {}, "hyper_parameters": {"lr": 0.1}},
    "PyTorch's tutorial": lambda w: {"model_state_dict": w, "optimizer_state_dict": {"state": {}}, "loss": 0.5},
    "twice nested": lambda w: {"state_dict": {"model": w}},
    "DINO's teacher": lambda w: {
        "student": named("module.backbone.", {name: value * 0 for name, value in w.items()}),
        "teacher": named("backbone.", w) | {"head.mlp.0.weight": torch.zeros(2)},
        "args": argparse.Namespace(arch="tiny"),
    },
    "a key of one's own": lambda w: {"my_network": w, "step": 7},
    "numbers of NumPy": lambda w: {"state_dict": w, "best_acc1": np.float64(71.1)},
    "averaged": lambda w: named("module.", w) | {"n_averaged": torch.tensor(5)},
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_load_weights__finds_the_network_in_a_larger_file(kind, encoder, tmp_path):
    wanted = other_values(encoder)
    torch.save(CONTENTS[kind](wanted), tmp_path / "weights.pth")
    load_weights(encoder, tmp_path / "weights.pth")
    for name, value in encoder.body.state_dict().items():
        torch.testing.assert_close(value, wanted[name])


def test_load_weights__says_what_is_left_out(encoder, tmp_path, capsys):
    wanted = other_values(encoder)
    content = named("module.encoder_q.", wanted) | named("module.encoder_k.", wanted) | {"module.queue": torch.ones(9)}
    torch.save({"state_dict": content}, tmp_path / "moco.pth")
    load_weights(encoder, tmp_path / "moco.pth")
    said = capsys.readouterr().out.strip()
    assert said.endswith(
        f"moco.pth: the weights of flow_tiny3d_8 are those under 'module.encoder_q.'; left out: module.encoder_k "
        f"({len(wanted)} tensors), module.queue"
    )


def test_load_weights__blocks_of_a_network_with_numbered_names_are_no_copies_of_it(tmp_path):
    """As ``nn.Sequential(*resnet.children())`` saves a ResNet, whose blocks begin like the network itself."""
    encoder = create_encoder("image_resnet18")
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    parts = [(*name.partition("."), value) for name, value in encoder.body.state_dict().items()]
    content = {f"backbone.{numbers[first]}.{rest}": value for first, _, rest, value in parts}
    torch.save(content, tmp_path / "numbered.pth")
    with pytest.raises(UserError, match=r"numbered\.pth") as caught:
        load_weights(encoder, tmp_path / "numbered.pth")
    assert "copies" not in str(caught.value)


def test_load_weights__refuses_two_copies_that_nothing_tells_apart(encoder, tmp_path):
    weights = other_values(encoder)
    torch.save(named("one.", weights) | named("two.", weights), tmp_path / "two.pth")
    with pytest.raises(UserError, match=r"2 copies of the network, named 'one\.', 'two\.'"):
        load_weights(encoder, tmp_path / "two.pth")


def test_load_weights__names_the_prefix_and_both_shapes_of_another_width(encoder, tmp_path):
    wider = create_encoder("flow_tiny3d_16", num_frames=4, size_px=16)
    torch.save({"state_dict": named("model.", wider.body.state_dict())}, tmp_path / "wide.ckpt")
    with pytest.raises(UserError, match=r"under 'model\.': .* of another shape \(first: .*\[16.*\] instead of \[8"):
        load_weights(encoder, tmp_path / "wide.ckpt")


def test_load_named_weights__says_which_network_fits_the_file(encoder, tmp_path):
    wider = create_encoder("flow_tiny3d_16", num_frames=4, size_px=16)
    torch.save({"state_dict": named("model.", wider.body.state_dict())}, tmp_path / "wide.ckpt")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"depth, or name the network of this file: --teacher flow_tiny3d_16$"):
        load_named_weights(encoder, str(tmp_path / "wide.ckpt"), option="--teacher-weights")
    with pytest.raises(UserError, match=r"same architecture, width and depth$"):
        load_named_weights(encoder, str(tmp_path / "other.pth"), option="--teacher-weights")


def test_read_weights__goes_by_the_first_bytes(encoder, tmp_path):
    weights = encoder.body.state_dict()
    save_file(weights, tmp_path / "pytorch_model.bin")
    torch.save(weights, tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        assert read_weights(path).keys() == weights.keys()


def torchscript(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", "hello")


def starts(first):
    return lambda path: path.write_bytes(first + b"\n" * 300)


OTHERS = [
    (starts(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab"), "is a Git LFS pointer.*git lfs pull"),
    (starts(b"\n<!DOCTYPE html><html>Sign in"), "is a web page"),
    (starts(b'{"error": "not found"}'), "is JSON"),
    (starts(b"\x1f\x8b\x08"), "is a gzip archive: unpack it"),
    (starts(b"a" * 257 + b"ustar"), "is a tar archive: unpack it"),
    (starts(b"\x89HDF\r\n"), r"is an HDF5 file \(Keras\)"),
    (starts(b"nothing known"), "is no weight file, it starts with b'nothing '"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (torchscript, "is a TorchScript program.*jit.load"),
    (zipped, r"is a zip archive that torch.save did not write \(it holds README.md\)"),
    (lambda path: torch.save({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, path), "its keys are a, b"),
    (lambda path: torch.save({"w": nn.Linear(1, 1)}, path), r"more than tensors \(torch.nn.modules.linear.Linear\)"),
]


@pytest.mark.parametrize(("write", "message"), OTHERS)
def test_read_weights__names_what_a_file_is(write, message, tmp_path):
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(UserError, match=message) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
