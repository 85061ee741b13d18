"""The registry: every encoder runs, has the library's own size, and loads into the library's own class."""

from urllib.error import URLError

import pytest
import torch
from pytorchvideo.models import hub
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.video import r3d_18

import crossdistill
from crossdistill.encoders import ARCHITECTURES, create_encoder, encoder_names
from crossdistill.encoders.listing import count_gmacs
from crossdistill.encoders.torchvision import NETWORKS
from crossdistill.encoders.weights import (
    fetch_public_weights,
    load_weights,
    match_stem_channels,
    read_weights,
    weights_hash,
)
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec

# Frames of the smallest clips that survive all halvings of time; 4 for the others.
SMALL_FRAMES = {"s3d": 8, "slowfast_r50": 8}


def small(name):
    """An encoder of the smallest view that it takes."""
    modality, _, architecture = name.partition("_")
    if getattr(NETWORKS.get(architecture), "is_of_one_size", False):
        return create_encoder(name)
    num_frames = 2 if modality == "image" else SMALL_FRAMES.get(architecture, 4)
    return create_encoder(name, num_frames=num_frames, size_px=64)


@pytest.mark.parametrize("name", encoder_names())
def test_every_encoder__maps_its_view_to_its_features_and_learns(name):
    encoder = small(name)
    view = encoder.view
    batch_size = 2 if view.size_px == 64 else 1  # a large view costs seconds
    clip = torch.randn(batch_size, view.kind.channels, view.num_frames, view.size_px, view.size_px)
    features = encoder(clip)
    assert features.shape == (batch_size, encoder.embed_dim)
    features.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder.body.get_submodule(encoder.stem).weight.shape[1] == encoder.view.kind.channels


def library_model(name, view):
    network = NETWORKS[name]
    return get_model(network.name or name, weights=None, **network.size_options(view))


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision__body_loads_into_the_librarys_own_class_and_gives_its_features(name):
    """The features are what goes into the library's last layer."""
    modality = NETWORKS[name].modalities[0]
    encoder = small(f"{modality}_{name}").eval()
    model = library_model(name, encoder.view).eval()
    missing, unexpected = model.load_state_dict(encoder.body.state_dict(), strict=False)
    assert not unexpected
    assert missing and all(key.startswith(encoder.classifier) for key in missing)
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)][-1]
    seen = []
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    clip = torch.randn(1, 3, encoder.view.num_frames, encoder.view.size_px, encoder.view.size_px)
    if name == "s3d":  # its pooling has a fixed window, so it cannot see small clips
        model.avgpool = nn.AdaptiveAvgPool3d(1)
    model(clip if encoder.view.kind.has_time else clip[:, :, 0])
    expected = seen[0].flatten(2).mean(dim=2) if seen[0].dim() > 2 else seen[0]
    features = encoder(clip[:, :, :1] if not encoder.view.kind.has_time else clip)
    assert features.shape == (1, ARCHITECTURES[name].embed_dim)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


# Trained on 32 frames; torchvision counted its operations on 16.
COUNTED_FRAMES = {"swin3d_t": 16}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision__parameters_and_operations_are_the_published(name):
    entry, modality = ARCHITECTURES[name], NETWORKS[name].modalities[0]
    with torch.device("meta"):
        encoder = create_encoder(f"{modality}_{name}", num_frames=COUNTED_FRAMES.get(name))
        model = library_model(name, encoder.view)
        whole = crossdistill.wrap_encoder(model, name=f"{modality}_x", view=encoder.view, embed_dim=1)
        gmacs = count_gmacs(whole)
        assert 0.85 * gmacs < count_gmacs(encoder) <= gmacs
    weights = get_model_weights(NETWORKS[name].name or name).DEFAULT
    assert whole.num_parameters == weights.meta["num_params"]
    classifier = sum(p.numel() for key, p in model.named_parameters() if key.startswith(entry.classifier))
    assert encoder.num_parameters == whole.num_parameters - classifier
    assert gmacs == pytest.approx(entry.published_gmacs, rel=0.02)


def test_public_weights__load_by_name_from_the_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    encoder = create_encoder("rgb_r3d18", num_frames=4, size_px=32)
    (public,) = encoder.public_weights
    assert (public.name, public.modality, public.top1_percent) == ("kinetics400", "rgb", 63.2)

    def no_network(*arguments, **options):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(UserError, match=r"cannot be fetched .*put it at .*checkpoints/r3d_18-b3b3357e\.pth"):
        fetch_public_weights(public)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(r3d_18().state_dict(), tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth")
    load_weights(encoder, fetch_public_weights(public))


@pytest.mark.parametrize(("name", "millions"), [("rgb_r3d50", 46.2), ("rgb_x3d_xs", 2.97), ("rgb_r3d10", 0.90)])
def test_parameters__equal_the_published_without_classifier(name, millions):
    """46.2 M: Hara et al. 2018; X3D-XS: 3.79 M less 0.82 M of its classifier; r3d10: our stated width 16."""
    assert create_encoder(name).num_parameters / 1e6 == pytest.approx(millions, abs=0.01 if millions < 3 else 0.05)


@pytest.mark.parametrize("name", ["slow_r50", "slowfast_r50", "r2plus1d_r50", "csn_r101", "x3d_xs", "x3d_s", "x3d_m"])
def test_pytorchvideo__body_loads_into_the_librarys_own_class(name):
    encoder = create_encoder(f"rgb_{name}")
    model = getattr(hub, name)()
    missing, unexpected = model.load_state_dict(encoder.body.state_dict(), strict=False)
    assert not unexpected
    assert missing and all(key.startswith(encoder.classifier) for key in missing)


@pytest.mark.parametrize("name", ["slow_r50", "x3d_xs"])
def test_pytorchvideo__at_its_own_size_gives_the_librarys_features(name):
    encoder = create_encoder(f"rgb_{name}").eval()
    model = getattr(hub, name)().eval()
    model.load_state_dict(encoder.body.state_dict(), strict=False)
    seen = []
    model.blocks[-1].proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    clip = torch.randn(1, 3, encoder.view.num_frames, encoder.view.size_px, encoder.view.size_px)
    with torch.no_grad():
        model(clip)
        torch.testing.assert_close(encoder(clip), seen[0].flatten(1), atol=1e-5, rtol=1e-4)


def test_slowfast__gives_the_librarys_features():
    encoder = create_encoder("rgb_slowfast_r50", size_px=64).eval()
    model = hub.slowfast_r50(head_pool_kernel_sizes=((8, 2, 2), (32, 2, 2))).eval()
    model.load_state_dict(encoder.body.state_dict(), strict=False)
    seen = []
    model.blocks[-1].proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    clip = torch.randn(1, 3, 32, 64, 64)
    with torch.no_grad():
        model([clip[:, :, ::4], clip])
        torch.testing.assert_close(encoder(clip), seen[0].flatten(1), atol=1e-5, rtol=1e-4)


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


def test_network_of_one_size__refuses_others():
    with pytest.raises(UserError, match="mvit_v2_s takes 16 frames of 224 pixels, not 8 of 224"):
        create_encoder("rgb_mvit_v2_s", num_frames=8)
