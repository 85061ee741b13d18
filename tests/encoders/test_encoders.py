"""The registry: every encoder runs, has the published size, and loads into the library's own class."""

import contextlib
import dataclasses
import json
import re
from urllib.error import URLError

import pytest
import torch
from pytorchvideo.models import hub
from rich.console import Console
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.video import mvit, r3d_18

import crossdistill
from crossdistill.commands import encoders as encoders_command
from crossdistill.commands.encoders import main as listing
from crossdistill.encoders import ARCHITECTURES, create_encoder, list_encoders
from crossdistill.encoders.architecture import CLIP_MODALITIES
from crossdistill.encoders.cards import card_of, count_gmacs
from crossdistill.encoders.sizes import SizesOnly
from crossdistill.encoders.tsm import temporal_shift
from crossdistill.encoders.weights import (
    fetch_public_weights,
    load_tensors,
    load_weights,
    match_stem_channels,
    weights_hash,
)
from crossdistill.errors import UserError
from crossdistill.modalities import get_modality
from crossdistill.types import View, ViewSpec
from crossdistill.utils.weight_files import read_weights

# The smallest clips that survive all halvings, [frames, pixels]; 2 frames of 32 pixels for the others.
SMALL_VIEWS = {
    "alexnet": (2, 64),
    "alexnet_no_dropout": (2, 64),
    "s3d": (8, 32),
    "x3d_xs": (2, 64),
    "x3d_s": (2, 64),
    "x3d_m": (2, 64),
}

LARGE = "resnet50x4"  # 1.5 GB; tests/encoders/test_wide_resnet.py runs it narrow

# Names of the registry -> names of torchvision.
TORCHVISION = {
    name: entry.source.removeprefix("torchvision.models.")
    for name, entry in ARCHITECTURES.items()
    if entry.source.startswith("torchvision.models.")
}


@pytest.fixture(autouse=True)
def mvit_of_any_size(monkeypatch):
    """Build mvit_v2_s for small views: at the only size that it takes, a test costs 10 s."""
    real = mvit._mvit
    size = {"spatial_size": (32, 32), "temporal_size": 2}
    monkeypatch.setattr(mvit, "_mvit", lambda **options: real(**{**options, **size}))


def fill(module, seed=0):
    """Fill a module of the meta device with values quickly; random initialisation costs seconds."""
    noise = torch.randn(2**16 + 1, generator=torch.Generator().manual_seed(seed))
    module.to_empty(device="cpu")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.dim() > 1 and tensor.is_floating_point():
            scale = tensor[0].numel() ** -0.5
            for part in tensor.data.view(-1).split(len(noise)):
                torch.mul(noise[: len(part)], scale, out=part)
        else:
            tensor.data.fill_(float(name.endswith(("weight", "running_var"))))
    return module


def quick(name, seed=0, **view):
    with torch.device("meta"), SizesOnly():
        encoder = create_encoder(name, **view)
    return fill(encoder, seed)


def quick_r3d18():
    with torch.device("meta"), SizesOnly():
        model = r3d_18()
    return fill(model, seed=1)


def small(name, batch_size=2, smallest=(2, 32)):
    """Return an encoder for the smallest view that it takes (at least ``smallest``), and a batch of such views."""
    architecture = name.partition("_")[2]
    num_frames, size_px = max(SMALL_VIEWS.get(architecture, smallest), smallest)
    view = {"num_frames": num_frames, "size_px": size_px}
    if architecture == "mvit_v2_s":
        view, num_frames, size_px = {}, 2, 32  # see mvit_of_any_size
    encoder = quick(name, **view)
    return encoder, torch.randn(batch_size, encoder.view.kind.channels, num_frames, size_px, size_px)


@pytest.mark.parametrize("name", [name for name in list_encoders() if not name.endswith(LARGE)])
def test_every_encoder__maps_its_view_to_its_features_and_learns(name):
    encoder, clip = small(name)
    features = encoder(clip)
    assert features.shape == (len(clip), encoder.embed_dim)
    features.square().mean().backward()
    assert all(p.grad is not None and p.grad.sum().isfinite() for p in encoder.parameters())
    for stem in encoder.info.stems:
        assert encoder.body.get_submodule(stem).weight.shape[1] == encoder.view.kind.channels


# More than the mean over places lies between their tokens and their features: the tokens of 4 frames of 64 pixels.
AFTER_TOKENS = {
    # linear layers and activations
    **dict.fromkeys(("alexnet", "alexnet_no_dropout"), (256, 4, 1, 1)),
    "vgg16": (512, 4, 2, 2),
    "mobilenet_v3_small": (576, 4, 2, 2),
    "mobilenet_v3_large": (960, 4, 2, 2),
    **dict.fromkeys(("x3d_xs", "x3d_s", "x3d_m"), (192, 4, 2, 2)),
    # a layer norm
    "convnext_tiny": (768, 4, 2, 2),
    # the class token is the features; mvit_v2_s at 2 frames of 32 pixels
    "vit_b_16": (768, 4, 4, 4),
    "mvit_v2_s": (768, 1, 1, 1),
    "mvit_b": (768, 2, 2, 2),
    # tokens of the slow pathway, features of both
    "slowfast_r50": (2048, 1, 2, 2),
    # features of four moments
    "tiny3d_8": (64, 1, 4, 4),
    "tiny3d_16": (128, 1, 4, 4),
    "tiny3d_32": (256, 1, 4, 4),
}


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != LARGE])
def test_tokens__mean_over_the_grid_equals_the_features(architecture):
    """With a wrong layout, a grid of 2x2 places has another mean or another shape."""
    entry = ARCHITECTURES[architecture]
    name = f"{entry.modalities[-1]}_{architecture}"
    encoder, clip = small(name, batch_size=1, smallest=(4, 64))
    encoder.eval()
    with torch.no_grad():
        features, tokens = encoder.embed_with_tokens(clip)
    assert tokens.dim() == 5 and tokens.shape[3] == tokens.shape[4] >= 1
    assert tokens.shape[2] == clip.shape[2] if entry.takes == "frames" else tokens.shape[2] <= clip.shape[2]
    if architecture in AFTER_TOKENS:
        assert tokens.shape[1:] == AFTER_TOKENS[architecture]
    else:
        torch.testing.assert_close(tokens.mean(dim=(2, 3, 4)), features, atol=1e-5, rtol=1e-4)


def library_model(name, view):
    options = {"image_size": view.size_px} if name == "vit_b_16" else {}
    return get_model(TORCHVISION[name], weights=None, **options)


def load_strictly_without_classifier(model, encoder):
    """Load a body as README explains it for users of the library without this package."""
    model.set_submodule(encoder.info.classifier_prefix.removesuffix("."), nn.Identity())
    model.load_state_dict(encoder.body.state_dict(), strict=True, assign=True)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision__body_loads_into_its_class_and_gives_its_features(name):
    """The features equal the input of the library's last layer."""
    encoder, clip = small(f"rgb_{name}", batch_size=1)
    encoder.eval()
    with torch.device("meta"), SizesOnly():
        model = library_model(name, encoder.view)
    model = fill(model, seed=1).eval()
    missing, unexpected = model.load_state_dict(encoder.body.state_dict(), strict=False)
    assert missing and not unexpected
    with torch.device("meta"), SizesOnly():
        load_strictly_without_classifier(library_model(name, encoder.view), encoder)
    last = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)][-1]
    seen = []
    last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    if name == "s3d":  # its pooling has a fixed window, so it cannot see small clips
        model.avgpool = nn.AdaptiveAvgPool3d(1)
    with torch.no_grad():
        clip = clip[:, :, :1] if encoder.takes == "frames" else clip
        model(clip[:, :, 0] if encoder.takes == "frames" else clip)
        features = encoder(clip)
    expected = seen[0].flatten(2).mean(dim=2) if seen[0].dim() > 2 else seen[0]
    assert features.shape == (1, ARCHITECTURES[name].embed_dim)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


# Trained on 32 frames; torchvision counted its operations on 16.
COUNTED_FRAMES = {"swin3d_t": 16}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision__parameters_and_operations_equal_the_published(name, monkeypatch):
    monkeypatch.undo()  # at its own size
    entry, modality = ARCHITECTURES[name], ARCHITECTURES[name].modalities[0]
    with torch.device("meta"), SizesOnly():
        encoder = create_encoder(f"{modality}_{name}", num_frames=COUNTED_FRAMES.get(name))
        model = library_model(name, encoder.view)
        whole = crossdistill.wrap_encoder(model, name=f"{modality}_x", view=encoder.view, embed_dim=1)
        gmacs = count_gmacs(whole)
        assert 0.85 * gmacs < count_gmacs(encoder) <= gmacs
    weights = get_model_weights(TORCHVISION[name]).DEFAULT
    assert whole.num_parameters == weights.meta["num_params"]
    classifier = sum(p.numel() for key, p in model.named_parameters() if key.startswith(entry.classifier_prefix))
    assert encoder.num_parameters == whole.num_parameters - classifier
    assert gmacs == pytest.approx(entry.published_gmacs, rel=0.02)


def test_public_weights__load_by_name_from_the_hub_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    encoder = quick("rgb_r3d18", num_frames=4, size_px=32)
    (public,) = encoder.public_weights
    assert (public.name, public.modalities, public.top1_percent) == ("kinetics400", ("rgb",), 63.2)

    def no_network(*arguments, **options):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(UserError, match=r"cannot be downloaded .*put it at .*checkpoints/r3d_18-b3b3357e\.pth"):
        fetch_public_weights(public)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(quick_r3d18().state_dict(), tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth")
    load_weights(encoder, fetch_public_weights(public))


@pytest.mark.parametrize(("name", "millions"), [("rgb_r3d50", 46.2), ("rgb_x3d_xs", 2.97), ("rgb_r3d10", 0.90)])
def test_parameters__equal_the_published_without_classifier(name, millions):
    """46.2 M: Hara et al. 2018. X3D-XS: 3.79 M minus 0.82 M of its classifier. r3d10: width 16, as documented."""
    assert create_encoder(name).num_parameters / 1e6 == pytest.approx(millions, abs=0.01 if millions < 3 else 0.05)


def test_public_weights__imagenet_serves_teachers_of_rgb_clips():
    (public,) = ARCHITECTURES["resnet50"].public_weights
    assert (public.name, public.modalities) == ("imagenet", ("image", "rgb"))
    (of_tsm,) = ARCHITECTURES["tsm_mobilenet_v2"].public_weights
    assert (of_tsm.url, of_tsm.modalities) == (ARCHITECTURES["mobilenet_v2"].public_weights[0].url, ("image",))


def test_view__network_of_frames_keeps_its_statistics_for_pixels():
    entry = ARCHITECTURES["resnet50"]
    views = {modality: entry.view(modality) for modality in entry.modalities}
    shapes = {modality: (view.num_frames, view.stride, view.size_px) for modality, view in views.items()}
    assert shapes == {"image": (1, 1, 224), **dict.fromkeys(CLIP_MODALITIES, (8, 4, 224))}
    assert views["image"].mean == views["rgb"].mean == (0.485, 0.456, 0.406)
    assert views["flow"].mean == get_modality("flow").mean and views["depth"].std == get_modality("depth").std


LIBRARY_NAMES = {"mvit_b": "mvit_base_16x4"}
HUB_NAMES = [name for name, entry in ARCHITECTURES.items() if entry.source.startswith("pytorchvideo.models.hub.")]


def hub_model(name):
    with torch.device("meta") if name != "mvit_b" else contextlib.nullcontext(), SizesOnly():
        return getattr(hub, LIBRARY_NAMES.get(name, name))().to("meta")


@pytest.mark.parametrize("name", HUB_NAMES)
def test_pytorchvideo__body_loads_into_its_class(name):
    with torch.device("meta"), SizesOnly():
        encoder = create_encoder(f"rgb_{name}")
    load_strictly_without_classifier(hub_model(name), encoder)


@pytest.mark.parametrize(
    ("name", "size_px", "gmacs"),
    [("slow_r50", 256, 54.52), ("slowfast_r50", 256, 65.71), ("r2plus1d_r50", 256, 76.45), ("mvit_b", 224, 70.5)],
)
def test_pytorchvideo__operations_equal_the_published(name, size_px, gmacs):
    """Sources: the library's model zoo, which tests at 256 pixels; MViT-B from table 2 of Fan et al., ICCV 2021."""
    with torch.device("meta"), SizesOnly():
        counted = count_gmacs(create_encoder(f"rgb_{name}", size_px=size_px))
    assert counted == pytest.approx(gmacs, rel=0.02)


@pytest.mark.parametrize(("name", "window"), [("slow_r50", (8, 2, 2)), ("x3d_xs", None)])
def test_pytorchvideo__gives_the_librarys_features(name, window):
    """At its own size, or with the library's fixed pooling window set to the size of the map."""
    encoder = quick(f"rgb_{name}", size_px=64 if window else None).eval()
    model = getattr(hub, name)().eval()
    if window:
        model.blocks[-1].pool = nn.AvgPool3d(window, stride=1)
    model.load_state_dict(encoder.body.state_dict(), strict=False)
    seen = []
    model.blocks[-1].proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    clip = torch.randn(1, 3, encoder.view.num_frames, encoder.view.size_px, encoder.view.size_px)
    with torch.no_grad():
        model(clip)
        torch.testing.assert_close(encoder(clip), seen[0].flatten(1), atol=1e-5, rtol=1e-4)


def test_mvit_b__gives_the_librarys_features():
    encoder, clip = small("rgb_mvit_b", batch_size=1)
    model = hub.mvit_base_16x4(spatial_size=32, temporal_size=2).eval()
    model.load_state_dict(encoder.eval().body.state_dict(), strict=False)
    seen = []
    model.head.proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model(clip)
        torch.testing.assert_close(encoder(clip), seen[0], atol=1e-5, rtol=1e-4)


def test_slowfast__both_stems_are_adapted_to_flow():
    rgb, _ = small("rgb_slowfast_r50")
    flow, _ = small("flow_slowfast_r50")
    load_tensors(flow, rgb.body.state_dict(), source="rgb", adapt_stem=True)
    for stem in rgb.info.stems:
        filters = [encoder.body.get_submodule(stem).weight.sum(dim=1) for encoder in (rgb, flow)]
        torch.testing.assert_close(*filters)
    with pytest.raises(UserError, match="stem takes 3 channels, and the stem of flow_slowfast_r50 takes 2"):
        load_tensors(flow, rgb.body.state_dict(), source="rgb")


def test_slowfast__gives_the_librarys_features():
    encoder = quick("rgb_slowfast_r50", size_px=64).eval()
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


def test_temporal_shift__equals_a_loop_over_channels_and_frames():
    frames = torch.randn(2, 4, 16, 3, 3)
    expected = torch.zeros_like(frames)
    for t in range(4):
        for c in range(16):
            source = t + 1 if c < 2 else t - 1 if c < 4 else t
            if 0 <= source < 4:
                expected[:, t, c] = frames[:, source, c]
    assert torch.equal(temporal_shift(frames, fraction=1 / 8), expected)
    assert torch.equal(temporal_shift(frames, fraction=0), frames)


def test_tsm__shifts_mobilenet_v2_and_nothing_else():
    """Without the shift it is the mean over frames; with it the order of frames matters. Names are torchvision's."""
    pooled, _ = small("rgb_mobilenet_v2")
    tsm, clip = small("rgb_tsm_mobilenet_v2")
    tsm.body.load_state_dict(pooled.body.state_dict(), strict=True)
    clip = torch.cat([clip, torch.randn_like(clip)], dim=2)
    pooled.eval(), tsm.eval()
    with torch.no_grad():
        shifted, backwards = tsm(clip), tsm(clip.flip(2))
        assert (shifted - backwards).abs().max() > 1e-3 * shifted.abs().max()
        tsm.body.fraction = 0.0
        torch.testing.assert_close(tsm(clip), pooled(clip), atol=1e-5, rtol=1e-4)
        assert (shifted - tsm(clip)).abs().max() > 1e-3 * shifted.abs().max()


@pytest.mark.parametrize(
    ("name", "num_frames", "size_px"),
    [("image_alexnet", 1, 16), ("flow_s3d", 2, 64), ("rgb_vit_b_16", 2, 40), ("depth_densenet121", 1, 8)],
)
def test_view__too_small_for_a_network_is_refused(name, num_frames, size_px):
    message = rf"{name} cannot take {num_frames} frames of {size_px} pixels \(.+\): its own view is \d+ of \d+"
    with torch.device("meta"), SizesOnly(), pytest.raises(UserError, match=message):
        create_encoder(name, num_frames=num_frames, size_px=size_px)


def test_view__check_does_not_change_the_network():
    encoder = create_encoder("rgb_r3d10", num_frames=4, size_px=32)
    assert encoder.body.training and all(not p.is_meta and p.std() > 0 for p in encoder.parameters() if p.dim() > 1)


@pytest.mark.parametrize("name", ["depth_resnet18", "flow_slowfast_r50", "depth_x3d_xs", "image_mobilenet_v2"])
def test_listing__derived_sizes_equal_measured_ones(name):
    with torch.device("meta"):
        encoder = create_encoder(name)
        gmacs = count_gmacs(encoder)
    card = card_of(name)
    assert card["num_parameters"] == encoder.num_parameters
    assert card["gmacs"] == pytest.approx(gmacs, rel=1e-9)
    assert card["view"] == dataclasses.asdict(encoder.view) and card["has_tokens"]


def test_group_norm_variant__does_not_depend_on_the_batch():
    encoder = create_encoder("rgb_r3d10_gn", num_frames=4, size_px=32).train()
    clip = torch.randn(4, 3, 4, 32, 32)
    torch.testing.assert_close(encoder(clip)[:2], encoder(clip[:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rgb_r3d51", "names like it are rgb_r3d50, .*; crossdistill encoders lists all$"),
        ("rbg_r3d18", "names like it are rgb_r3d18, "),
        ("r3d18", "names like it are .*rgb_r3d18"),
        ("zzz", "unknown encoder 'zzz': crossdistill encoders lists all$"),
        ("image_r3d18", "does not take image"),
        ("no/such/file.py:make", "no file"),
    ],
)
def test_unknown_names__error_lists_what_is_allowed(name, message):
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
    with pytest.raises(UserError, match="starts with flow_"):
        crossdistill.wrap_encoder(nn.Identity(), name="rgb_x", view=view, embed_dim=7)


def test_view__invalid_sizes_are_refused():
    with pytest.raises(UserError, match="2 values in mean"):
        ViewSpec("flow", 4, 2, 32, mean=(0.0,), std=(1.0, 1.0))
    with pytest.raises(UserError, match="num_frames"):
        create_encoder("rgb_r3d10", num_frames=0)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights__a_library_file_loads_strictly(tmp_path, suffix):
    model = quick_r3d18()
    path = tmp_path / f"r3d18{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    encoder = quick("rgb_r3d18", num_frames=4, size_px=32).eval()
    load_weights(encoder, path)
    model.fc = nn.Identity()
    clip = torch.randn(2, 3, 4, 32, 32)
    torch.testing.assert_close(encoder(clip), model.eval()(clip))


def test_weights__rgb_stem_is_adapted_to_flow(tmp_path):
    path = tmp_path / "r3d18.pth"
    torch.save(quick_r3d18().state_dict(), path)
    rgb, flow = quick("rgb_r3d18"), quick("flow_r3d18")
    load_weights(rgb, path)
    load_weights(flow, path, adapt_stem=True)
    gray = torch.randn(1, 1, 4, 32, 32)
    responses = [
        e.body.get_submodule(e.info.stems[0])(gray.expand(-1, e.view.kind.channels, -1, -1, -1)) for e in (rgb, flow)
    ]
    torch.testing.assert_close(*responses, atol=1e-4, rtol=1e-4)


def test_weights__of_another_modality_need_adapt_stem(tmp_path):
    path = tmp_path / "r3d18.pth"
    torch.save(quick_r3d18().state_dict(), path)
    with pytest.raises(UserError, match="stem takes 3 channels, and the stem of flow_r3d18 takes 2"):
        load_weights(quick("flow_r3d18"), path)


def test_match_stem_channels__keeps_matching_filters():
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
    weights = quick_r3d18().state_dict()
    change(weights)
    torch.save(weights, tmp_path / "w.pth")
    encoder = quick("rgb_r3d18")
    before = weights_hash(encoder)
    with pytest.raises(UserError, match=message):
        load_weights(encoder, tmp_path / "w.pth")
    assert weights_hash(encoder) == before


class Evil:
    def __reduce__(self):
        return (print, ("untrusted code ran",))


def test_weights__damaged_and_untrusted_files_are_refused(tmp_path, capsys):
    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="could execute unknown code"):
        read_weights(tmp_path / "evil.pth")
    assert "ran" not in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(UserError, match="not a complete safetensors"):
        read_weights(tmp_path / "cut.safetensors")
    torch.save(quick_r3d18().state_dict(), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a complete PyTorch file"):
        read_weights(tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="not a dictionary of tensors"):
        read_weights(tmp_path / "list.pth")
    with pytest.raises(UserError, match="no weight file"):
        read_weights(tmp_path / "absent.pth")


def test_weights_hash__differs_for_different_weights():
    one, other = create_encoder("rgb_r3d10"), create_encoder("rgb_r3d10")
    assert weights_hash(one) == weights_hash(one) != weights_hash(other)
    other.load_state_dict(one.state_dict())
    assert weights_hash(one) == weights_hash(other)


def test_registry__names_are_complete():
    assert {"r3d18", "r3d50", "x3d_xs", "r3d10", "alexnet", "resnet18", "resnet50", "mobilenet_v2"} <= set(
        ARCHITECTURES
    )
    for name in ("r3d18", "r3d50", "x3d_xs", "r3d10"):
        assert {f"{m}_{name}" for m in ("rgb", "flow", "depth")} <= set(list_encoders())


def test_network_of_one_size__refuses_others():
    with pytest.raises(UserError, match="mvit_v2_s takes 16 frames of 224 pixels, not 8 of 224"):
        create_encoder("rgb_mvit_v2_s", num_frames=8)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != LARGE])
def test_every_architecture__is_a_teacher_and_a_student(architecture):
    """Through the distiller it teaches a small network and learns from one, in its own modality."""
    modality = ARCHITECTURES[architecture].modalities[0]
    encoder, clip = small(f"{modality}_{architecture}")
    other, other_clip = small("flow_tiny3d_8", smallest=(4, 16))
    views = [View(x.mul(20).add(100).clamp(0, 255).byte(), torch.ones(x.shape[:2])) for x in (clip, other_clip)]
    for student, teacher, (seen, shown) in ((encoder, other, views), (other, encoder, views[::-1])):
        distiller = crossdistill.Distiller(
            student=student,
            teachers=[teacher],
            objective=crossdistill.create_terms(["simreg"], adapter="linear"),
            bank_size=4,
        )
        ids = torch.arange(len(clip))
        batch = crossdistill.PairedBatch(student=seen, teachers=(shown,), sample_ids=ids, labels=ids)
        output = distiller(batch)
        assert output.loss.isfinite()
        student.requires_grad_().zero_grad()
        if student is encoder:
            output.loss.backward()
            assert student.body.get_submodule(student.info.stems[0]).weight.grad.sum().isfinite()


@pytest.mark.parametrize("name", [name for name in HUB_NAMES if ARCHITECTURES[name].published_gmacs])
def test_pytorchvideo__listing_has_the_published_operations(name):
    """At the encoder's own view. The classifier, which the body lacks, has less than a thousandth of the operations."""
    assert card_of(f"rgb_{name}")["gmacs"] == pytest.approx(ARCHITECTURES[name].published_gmacs, rel=0.02)


def test_listing__is_names_in_a_pipe_and_takes_filters(capsys):
    listing([], prog="crossdistill encoders")
    assert capsys.readouterr().out.splitlines() == list_encoders()
    listing(["flow", "--match", "TINY", "--json"], prog="crossdistill encoders")
    names = [card["name"] for card in json.loads(capsys.readouterr().out)]
    assert names == ["flow_convnext_tiny", "flow_tiny3d_16", "flow_tiny3d_32", "flow_tiny3d_8"]
    with pytest.raises(UserError, match="no encoder has such a name: leave out --match"):
        listing(["--match", "zzz"], prog="crossdistill encoders")


def test_listing__is_short_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(encoders_command, "console", Console(force_terminal=True))
    listing([], prog="crossdistill encoders")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 30 and max(map(len, lines)) <= 80
    shown = " ".join(lines)
    assert all(re.search(rf"\b{name}\b", shown) for name in ARCHITECTURES)


def test_listing__shows_encoders_outside_the_registry(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text(
        "import torch, crossdistill\n"
        "def make():\n"
        "    view = crossdistill.ViewSpec('flow', 4, 2, 8, mean=(0.0, 0.0), std=(1.0, 1.0))\n"
        "    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 4 * 8 * 8, 7))\n"
        "    return crossdistill.wrap_encoder(body, modality='flow', view=view, embed_dim=7)\n"
    )
    listing([f"{path}:make", "rgb_r3d10", "--json"], prog="crossdistill encoders")
    mine, listed = json.loads(capsys.readouterr().out)
    assert (mine["embed_dim"], mine["num_parameters"], mine["gmacs"]) == (7, 7 * 513, 7 * 512 / 1e9)
    assert listed["name"] == "rgb_r3d10" and listed["published_gmacs"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_like_this\n", r"failed to build .line 1, ModuleNotFoundError.*: fix the file"),
        ("def make():\n    return 1 / 0\n", r"failed to build .line 2, ZeroDivisionError"),
        (
            "import torch, crossdistill\ndef make():\n"
            "    view = crossdistill.ViewSpec('flow', 4, 2, 8, mean=(0.0, 0.0), std=(1.0, 1.0))\n"
            "    return crossdistill.wrap_encoder(torch.nn.Flatten(), view=view, embed_dim=9)\n",
            r"gives features of shape \[1, 512\] for one clip, and its embed_dim says 9",
        ),
        (
            "import torch, crossdistill\ndef make():\n"
            "    view = crossdistill.ViewSpec('flow', 4, 2, 8, mean=(0.0, 0.0), std=(1.0, 1.0))\n"
            "    return crossdistill.wrap_encoder(torch.nn.Linear(3, 9), view=view, embed_dim=9)\n",
            "cannot take 4 frames of 8 pixels",
        ),
        (
            "import torch, crossdistill\nclass Net(torch.nn.Module):\n    def forward(self, clip):\n        pass\n"
            "def make():\n"
            "    view = crossdistill.ViewSpec('flow', 4, 2, 8, mean=(0.0, 0.0), std=(1.0, 1.0))\n"
            "    return crossdistill.wrap_encoder(Net(), view=view, embed_dim=9)\n",
            r"mine.py:make returned NoneType, expected features \[B, 9\]: return one tensor",
        ),
    ],
)
def test_encoder_from_a_file__failure_is_one_sentence(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message):
        create_encoder(f"{tmp_path / 'mine.py'}:make")


def test_encoder_from_a_file__may_import_neighbours_and_define_dataclasses(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("SIZE = 8\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses, torch, crossdistill\n"
        "from neighbour_of_mine import SIZE\n"
        "@dataclasses.dataclass\nclass Options:\n    size: int = SIZE\n"
        "def make():\n"
        "    size = Options().size\n"
        "    view = crossdistill.ViewSpec('depth', 2, 2, size, mean=(0.0,), std=(1.0,))\n"
        "    return crossdistill.wrap_encoder(torch.nn.Flatten(), view=view, embed_dim=2 * size * size)\n"
    )
    assert create_encoder(f"{path}:make").embed_dim == 128
    assert create_encoder(f"{path}:make", num_frames=2).view.num_frames == 2
    with pytest.raises(UserError, match="embed_dim says 128"):
        create_encoder(f"{path}:make", num_frames=4)


@pytest.mark.parametrize("num_frames", [4, 8, 12, 20])
def test_tiny3d__pools_any_number_of_frames_to_four_moments(num_frames):
    encoder = create_encoder("depth_tiny3d_8", num_frames=num_frames, size_px=16).eval()
    clip = torch.randn(2, 1, num_frames, 16, 16)
    pooled = torch.nn.functional.adaptive_avg_pool3d(encoder.body.features(clip), (4, 1, 1)).flatten(1)
    torch.testing.assert_close(encoder(clip), pooled)
