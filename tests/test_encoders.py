"""The registry: every encoder runs, has the library's own size, and loads into the library's own class."""

import pytest
import torch
from torch import nn
from torchvision.models import alexnet, mobilenet_v2, resnet18, resnet50
from torchvision.models.video import r3d_18

import crossdistill
from crossdistill.encoders import ARCHITECTURES, create_encoder, encoder_names
from crossdistill.encoders.weights import load_weights, match_stem_channels, read_weights, weights_hash
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", encoder_names())
def test_every_encoder__maps_its_view_to_its_features_and_learns(name):
    is_clip = not name.startswith("image_")
    encoder = create_encoder(name, num_frames=4 if is_clip else 2, size_px=64)
    clip = torch.randn(2, encoder.view.kind.channels, encoder.view.num_frames, 64, 64)
    features = encoder(clip)
    assert features.shape == (2, encoder.embed_dim)
    features.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder.body.get_submodule(encoder.stem).weight.shape[1] == encoder.view.kind.channels


@pytest.mark.parametrize(
    ("name", "library_model", "classifier"),
    [
        ("rgb_r3d18", r3d_18, "fc"),
        ("image_resnet18", resnet18, "fc"),
        ("image_resnet50", resnet50, "fc"),
        ("image_alexnet", alexnet, "classifier.6"),
        ("image_mobilenet_v2", mobilenet_v2, "classifier"),
    ],
)
def test_torchvision_body__has_the_librarys_parameters_and_features(name, library_model, classifier):
    encoder, model = create_encoder(name, num_frames=1, size_px=64).eval(), library_model().eval()
    parent, _, leaf = classifier.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    assert num_parameters(encoder) == num_parameters(model)
    model.load_state_dict(encoder.body.state_dict(), strict=True)
    clip = torch.randn(2, 3, 1, 64, 64)
    expected = model(clip if encoder.view.kind.has_time else clip[:, :, 0])
    torch.testing.assert_close(encoder(clip), expected)


@pytest.mark.parametrize(("name", "millions"), [("rgb_r3d50", 46.2), ("rgb_x3d_xs", 2.97), ("rgb_r3d10", 0.90)])
def test_parameters__equal_the_published_without_classifier(name, millions):
    """46.2 M: Hara et al. 2018; X3D-XS: 3.79 M less 0.82 M of its classifier; r3d10: our stated width 16."""
    assert create_encoder(name).num_parameters / 1e6 == pytest.approx(millions, abs=0.01 if millions < 3 else 0.05)


def test_x3d__at_its_own_size_gives_the_librarys_features():
    from pytorchvideo.models.x3d import create_x3d

    encoder = create_encoder("rgb_x3d_xs").eval()
    model = create_x3d(input_clip_length=4, input_crop_size=160).eval()
    model.load_state_dict({**model.state_dict(), **encoder.body.state_dict()}, strict=True)
    model.blocks[-1].proj, model.blocks[-1].dropout, model.blocks[-1].activation = nn.Identity(), None, None
    clip = torch.randn(1, 3, 4, 160, 160)
    torch.testing.assert_close(encoder(clip), model(clip).flatten(1), atol=1e-5, rtol=1e-4)


def test_image_encoder__averages_the_frames_of_a_clip():
    encoder = create_encoder("image_resnet18", num_frames=3, size_px=64).eval()
    clip = torch.randn(2, 3, 3, 64, 64)
    expected = torch.stack([encoder.body(clip[:, :, t]) for t in range(3)]).mean(dim=0)
    torch.testing.assert_close(encoder(clip), expected)


def test_group_norm_variant__does_not_depend_on_the_batch():
    encoder = create_encoder("rgb_r3d10_gn", num_frames=4, size_px=32).train()
    clip = torch.randn(4, 3, 4, 32, 32)
    torch.testing.assert_close(encoder(clip)[:2], encoder(clip[:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rgb_r3d51", "did you mean 'r3d50'"),
        ("rbg_r3d18", "did you mean 'rgb_r3d18'"),
        ("r3d18", "did you mean 'rgb_r3d18'|unknown encoder"),
        ("flow_alexnet", "does not take flow"),
        ("image_r3d18", "does not take image"),
        ("no/such/file.py:make", "no file"),
    ],
)
def test_unknown_names__say_what_is_allowed(name, message):
    with pytest.raises(UserError, match=message):
        create_encoder(name)


def test_encoder_from_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch, crossdistill\n"
        "def make():\n"
        "    view = crossdistill.ViewSpec('flow', 4, 2, 32, mean=(0.0, 0.0), std=(1.0, 1.0))\n"
        "    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 4 * 32 * 32, 7))\n"
        "    return crossdistill.wrap_encoder(body, name='flow_mine', view=view, embed_dim=7)\n"
        "def wrong():\n"
        "    return 3\n"
    )
    encoder = create_encoder(f"{path}:make")
    assert encoder(torch.randn(2, 2, 4, 32, 32)).shape == (2, 7)
    assert encoder.view.stride == 2
    with pytest.raises(UserError, match="not an Encoder"):
        create_encoder(f"{path}:wrong")
    with pytest.raises(UserError, match="no function"):
        create_encoder(f"{path}:absent")


def test_wrap_encoder__name_and_modality_must_agree():
    view = ViewSpec("flow", 4, 2, 32, mean=(0.0, 0.0), std=(1.0, 1.0))
    with pytest.raises(UserError, match="flow_<something>"):
        crossdistill.wrap_encoder(nn.Identity(), name="rgb_x", view=view, embed_dim=7)


def test_view__wrong_sizes_are_refused():
    with pytest.raises(UserError, match="2 values in mean"):
        ViewSpec("flow", 4, 2, 32, mean=(0.0,), std=(1.0, 1.0))
    with pytest.raises(UserError, match="num_frames"):
        create_encoder("rgb_r3d10", num_frames=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights__a_library_file_loads_strictly(tmp_path, suffix):
    model = r3d_18()
    path = tmp_path / f"r3d18{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    encoder = create_encoder("rgb_r3d18", num_frames=4, size_px=32).eval()
    load_weights(encoder, path)
    model.fc = nn.Identity()
    clip = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(encoder(clip), model.eval()(clip))


def test_weights__an_rgb_stem_becomes_a_flow_stem(tmp_path):
    path = tmp_path / "r3d18.pth"
    torch.save(r3d_18().state_dict(), path)
    rgb, flow = create_encoder("rgb_r3d18"), create_encoder("flow_r3d18")
    load_weights(rgb, path)
    load_weights(flow, path, adapt_stem=True)
    gray = torch.randn(1, 1, 4, 32, 32)
    responses = [e.body.get_submodule(e.stem)(gray.expand(-1, e.view.kind.channels, -1, -1, -1)) for e in (rgb, flow)]
    torch.testing.assert_close(*responses, atol=1e-4, rtol=1e-4)


def test_weights__of_another_modality_are_refused_unless_the_stem_may_change(tmp_path):
    path = tmp_path / "r3d18.pth"
    torch.save(r3d_18().state_dict(), path)
    with pytest.raises(UserError, match="stem takes 3 channels, and that of flow_r3d18 takes 2"):
        load_weights(create_encoder("flow_r3d18"), path)


def test_match_stem_channels__keeps_what_fits():
    weight = torch.randn(4, 3, 3, 3)
    assert match_stem_channels(weight, torch.empty(4, 3, 3, 3)) is weight
    assert match_stem_channels(weight, torch.empty(4, 1, 3, 3)).shape == (4, 1, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("layer1.0.conv1.0.weight"), "1 missing .first: layer1.0.conv1.0.weight"),
        (lambda w: w.update(extra=torch.ones(1)), "1 unexpected .first: extra"),
        (lambda w: w.update({"layer1.0.conv1.0.weight": torch.ones(2)}), "1 of another shape"),
    ],
)
def test_weights__of_another_network_are_refused(tmp_path, change, message):
    weights = r3d_18().state_dict()
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    encoder = create_encoder("rgb_r3d18")
    before = weights_hash(encoder)
    with pytest.raises(UserError, match=message):
        load_weights(encoder, tmp_path / "w.pth")
    assert weights_hash(encoder) == before


class Evil:
    def __reduce__(self):
        return (print, ("code of a stranger ran",))


def test_weights__damaged_and_untrusted_files_are_refused(tmp_path, capsys):
    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="stranger's code"):
        read_weights(tmp_path / "evil.pth")
    assert "ran" not in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(UserError, match="not a whole safetensors"):
        read_weights(tmp_path / "cut.safetensors")
    torch.save(r3d_18().state_dict(), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a whole PyTorch file"):
        read_weights(tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="not a dictionary of tensors"):
        read_weights(tmp_path / "list.pth")
    with pytest.raises(UserError, match="no weight file"):
        read_weights(tmp_path / "absent.pth")


def test_weights_hash__tells_weights_apart():
    one, other = create_encoder("rgb_r3d10"), create_encoder("rgb_r3d10")
    assert weights_hash(one) == weights_hash(one) != weights_hash(other)
    other.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(other)


def test_registry__names_are_complete():
    assert {"r3d18", "r3d50", "x3d_xs", "r3d10", "alexnet", "resnet18", "resnet50", "mobilenet_v2"} <= set(
        ARCHITECTURES
    )
    for name in ("r3d18", "r3d50", "x3d_xs", "r3d10"):
        assert {f"{m}_{name}" for m in ("rgb", "flow", "depth")} <= set(encoder_names())
