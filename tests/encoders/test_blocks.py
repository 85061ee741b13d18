"""Blocks of every kind of network, their pooled outputs against plain calls, and a ladder that trains every weight."""

import pytest
import torch
from torch import nn

import crossdistill
from crossdistill.distillation.heads import Ladder, Sizes
from crossdistill.distillation.student_with_heads import Head, MomentumCopy, StudentWithHeads
from crossdistill.encoders import ARCHITECTURES, create_encoder, wrap_encoder, wrap_module
from crossdistill.encoders.tokens import TokenLayer
from crossdistill.errors import UserError
from crossdistill.types import ViewSpec

LARGE = "resnet50x4"  # 1.5 GB
RESNET = {"relu": 64, "layer1": 64, "layer2": 128, "layer3": 256}
# Blocks and channels at the networks' own views, known from their papers and their libraries' code.
EXPECTED = {
    "tiny3d_8": {"features.2": 8, "features.5": 16, "features.8": 32},
    "r3d10": {"stages.0": 16, "stages.1": 32, "stages.2": 64},
    "r3d18": {"layer1": 64, "layer2": 128, "layer3": 256},
    "r3d50": {"blocks.1": 256, "blocks.2": 512, "blocks.3": 1024},
    "resnet18": RESNET,
    "alexnet": {"features.1": 64, "features.4": 192, "features.11": 256},
    "mobilenet_v2": {"features.1": 16, "features.3": 24, "features.6": 32, "features.13": 96},
    "densenet121": {"features.relu0": 64} | {f"features.denseblock{i}": 128 * 2**i for i in (1, 2, 3)},
    "swin_t": {"features.1": 96, "features.3": 192, "features.5": 384},
    "vit_b_16": {f"encoder.layers.encoder_layer_{i}": 768 for i in range(11)},
    "mvit_b": {"blocks.0": 192, "blocks.2": 384, "blocks.13": 768},
    "x3d_xs": {"blocks.0": 24, "blocks.1": 24, "blocks.2": 48, "blocks.3": 96},
    # Channels of both pathways.
    "slowfast_r50": {"blocks.1": 256 + 96, "blocks.2": 512 + 192, "blocks.3": 1024 + 384},
    # Residual blocks are no modules that are called as a whole, because their branch takes shifted channels.
    "tsm_mobilenet_v2": {"features.1": 16, "features.2": 24, "features.4": 32, "features.11": 96},
}


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != LARGE])
def test_blocks__of_every_encoder_are_found_before_anything_is_trained(architecture):
    with torch.device("meta"):
        encoder = create_encoder(f"{ARCHITECTURES[architecture].modalities[-1]}_{architecture}")
        blocks = encoder.require_blocks()
    assert 3 <= len(blocks) <= 11 and all(block.channels > 1 for block in blocks)
    if architecture in EXPECTED:
        assert {block.name: block.channels for block in blocks} == EXPECTED[architecture]


def pooled(encoder, clip):
    with encoder.watching_blocks() as found, torch.no_grad():
        encoder(clip)
    return found


def small(name, num_frames=4, size_px=64):
    encoder = create_encoder(name, num_frames=num_frames, size_px=size_px).eval()
    return encoder, torch.randn(2, encoder.view.kind.channels, num_frames, size_px, size_px)


@torch.no_grad()
def test_pooled_outputs__equal_plain_means_of_a_network_of_clips():
    encoder, clip = small("flow_tiny3d_8")
    for values, end in zip(pooled(encoder, clip), (3, 6, 9), strict=True):
        torch.testing.assert_close(values, encoder.body.features[:end](clip).mean(dim=(2, 3, 4)))


@torch.no_grad()
def test_pooled_outputs__equal_plain_means_of_a_network_with_channels_last():
    encoder, clip = small("image_swin_t", num_frames=1)
    maps = clip[:, :, 0]
    for values, end in zip(pooled(encoder, clip), (2, 4, 6), strict=True):
        expected = encoder.body.features[:end](maps)
        assert expected.shape[1] == expected.shape[2]
        torch.testing.assert_close(values, expected.mean(dim=(1, 2)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_pooled_outputs__equal_plain_means_of_a_vit():
    encoder, clip = small("image_vit_b_16", num_frames=1, size_px=32)
    sequence = encoder.body._process_input(clip[:, :, 0])
    sequence = torch.cat([encoder.body.class_token.expand(2, -1, -1), sequence], dim=1)
    sequence = sequence + encoder.body.encoder.pos_embedding
    for values, layer in zip(pooled(encoder, clip), encoder.body.encoder.layers, strict=False):
        sequence = layer(sequence)
        torch.testing.assert_close(values, sequence.mean(dim=1), atol=1e-5, rtol=1e-4)


class Ones(nn.Module):
    """A head that returns its input."""

    def forward(self, values):
        return values


@pytest.mark.parametrize("name", ["rgb_resnet18", "rgb_tsm_mobilenet_v2", "rgb_slowfast_r50", "rgb_mvit_b"])
@torch.no_grad()
def test_input_of_a_ladder__is_that_of_each_clip_alone(name):
    """The frames of a clip are averaged with each other, and not with those of its neighbour."""
    num_frames = 8 if name == "rgb_slowfast_r50" else 4
    encoder, clip = small(name, num_frames=num_frames)
    model = StudentWithHeads(encoder, {"ladder": Head(Ones(), takes="blocks")}).eval()
    whole = model(clip)["ladder"]
    dims = Sizes.of(encoder, with_blocks=True)
    assert whole.shape == (2, sum(dims.blocks) + encoder.embed_dim)
    alone = torch.cat([model(one)["ladder"] for one in clip.split(1)])
    torch.testing.assert_close(whole, alone, atol=1e-4, rtol=1e-3)
    assert (whole[0] - whole[1]).abs().max() > 1e-3
    torch.testing.assert_close(whole[:, -encoder.embed_dim :], encoder(clip), atol=1e-4, rtol=1e-3)
    if encoder.takes == "frames":
        frames = [pooled(encoder, clip[:, :, [t]]) for t in range(num_frames)]
        expected = torch.stack([torch.cat(frame, dim=1) for frame in frames]).mean(dim=0)
        torch.testing.assert_close(whole[:, : -encoder.embed_dim], expected, atol=1e-4, rtol=1e-3)


def num_hooks(encoder):
    return sum(len(module._forward_hooks) for module in encoder.modules())


def assert_ladder_trains(encoder, clip):
    dims = Sizes.of(encoder, with_blocks=True)
    model = StudentWithHeads(encoder, {"ladder": Head(Ladder(dims.blocks, encoder.embed_dim, 5), takes="blocks")})
    before, num_before = set(encoder.state_dict()), num_hooks(encoder)
    model.train()(clip)["ladder"].square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, missing
    assert set(encoder.state_dict()) == before
    assert num_hooks(encoder) == num_before
    copy = MomentumCopy(model, momentum=0.9).module
    assert copy(clip)["ladder"].shape == (len(clip), 5)


@pytest.mark.parametrize(
    "name", ["image_alexnet", "rgb_resnet18", "rgb_mobilenet_v3_small", "flow_x3d_xs", "depth_r3d18", "skeleton_r3d50"]
)
def test_ladder__trains_every_weight_of_the_registrys_networks(name):
    assert_ladder_trains(*small(name, num_frames=1 if name.startswith("image") else 4))


@pytest.mark.parametrize("name", ["image_timm:test_vit", "flow_timm:test_resnet", "rgb_timm:test_convnext"])
def test_ladder__trains_every_weight_of_timms_networks(name):
    pytest.importorskip("timm")
    encoder = create_encoder(name, num_frames=1 if name.startswith("image") else 2)
    view = encoder.view
    assert_ladder_trains(encoder, torch.randn(2, view.kind.channels, view.num_frames, view.size_px, view.size_px))


@pytest.mark.parametrize("kind", ["videomae", "vit", "resnet"])
def test_ladder__trains_every_weight_of_hugging_faces_networks(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    configs = {
        "videomae": lambda: transformers.VideoMAEConfig(**sizes, image_size=32, num_frames=4),
        "vit": lambda: transformers.ViTConfig(**sizes, image_size=32, patch_size=8),
        "resnet": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 1, 1]),
    }
    configs[kind]().save_pretrained(tmp_path)
    encoder = create_encoder(f"{'flow' if kind == 'videomae' else 'image'}_hf:{tmp_path}", size_px=32)
    view = encoder.view
    assert len(encoder.require_blocks()) == 2
    assert_ladder_trains(encoder, torch.randn(2, view.kind.channels, view.num_frames, 32, 32))


VIEW = ViewSpec("rgb", 4, 1, 16, mean=(0.0,) * 3, std=(1.0,) * 3)


def own_network():
    return nn.Sequential(
        *(nn.Conv3d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv3d(4, 5, 3, 2, 1), nn.ReLU(), nn.Conv3d(5, 6, 3, 2, 1)),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten()),
    )


def test_blocks__of_an_own_network_are_found_or_named():
    found = wrap_encoder(own_network(), view=VIEW, embed_dim=6, token_layer=TokenLayer("4")).require_blocks()
    assert [(block.name, block.channels) for block in found] == [("1", 4), ("3", 5)]
    named = wrap_encoder(own_network(), view=VIEW, embed_dim=6, blocks=("2", "0")).require_blocks()
    assert [(block.name, block.channels) for block in named] == [("0", 4), ("2", 5)]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: wrap_encoder(nn.Flatten(), view=VIEW, embed_dim=3072),
            r"rgb_flatten has no blocks .*: name them by wrap_encoder\(blocks=...\), or choose another adapter",
        ),
        (
            lambda: wrap_encoder(own_network(), view=VIEW, embed_dim=6, blocks=("1", "nowhere")),
            "the blocks 1, nowhere of rgb_sequential are not all modules that run once and return maps",
        ),
        (lambda: wrap_module(own_network(), 6), "sequential has no view to find its blocks with: use wrap_encoder"),
    ],
)
def test_networks_without_blocks__are_refused_in_one_sentence(make, sentence):
    student = make()
    (term,) = crossdistill.create_terms(["unic"], adapter="ladder")
    with pytest.raises(UserError, match=sentence):
        term.require_fit(student=student, teacher=create_encoder("rgb_tiny3d_8"))


def test_ladder__on_a_quantised_student_trains_every_weight():
    pytest.importorskip("brevitas")
    from crossdistill.quantization.quantize import quantize

    for name in ("flow_tiny3d_8", "rgb_r3d10"):
        encoder, clip = small(name, size_px=32)
        quantize(encoder, "w4a8")
        assert_ladder_trains(encoder, clip)
