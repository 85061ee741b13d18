"""Layers in order, and drop path: against timm, and for networks of every library."""

import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from crossdistill.encoders import create_encoder
from crossdistill.encoders.drop_path import require_drop_path, set_drop_path
from crossdistill.encoders.layer_order import layer_numbers, layer_scales
from crossdistill.errors import UserError
from crossdistill.recipes.weights import preview_encoder

timm = pytest.importorskip("timm")
TIMM_NAMES = ["vit_tiny_patch16_224", "resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_layer_scales__are_those_of_timms_layer_decay(name):
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        whole = timm.create_model(name, num_classes=7)
    groups = param_groups_layer_decay(whole, layer_decay=0.7)
    expected = {id(value): group["lr_scale"] for group in groups for value in group["params"]}
    ours = layer_scales(preview_encoder(f"image_timm:{name}").body, 0.7)
    shared = {name: expected[id(value)] for name, value in whole.named_parameters() if name in ours}
    assert ours == shared and len(set(ours.values())) > 3
    assert max(ours.values()) == (1.0 if name == "convnext_atto" else 0.7)  # timm: its last norm is the classifier's


@pytest.mark.parametrize(
    ("name", "num_layers"),
    [("rgb_r3d18", 9), ("rgb_r3d10", 5), ("image_vit_b_16", 13), ("rgb_tiny3d_8", 4), ("image_resnet50", 17),
     ("image_swin_t", 13), ("rgb_mvit_v2_s", 17), ("image_mobilenet_v2", None), ("rgb_slowfast_r50", None)],
)  # fmt: skip
def test_layer_numbers__rise_through_every_parameter(name, num_layers):
    body = preview_encoder(name).body
    numbers, heads = layer_numbers(body)
    assert heads == max(numbers.values()) + 1
    assert list(numbers) == [name for name, _ in body.named_parameters()]
    assert set(numbers.values()) == set(range(max(numbers.values()) + 1))
    assert max(numbers.values()) + 1 == num_layers if num_layers else len(set(numbers.values())) > 10


def test_layer_numbers__of_torchvisions_resnet_and_vit_are_timms():
    """Networks without timm's description, by the general rule, against timm's networks of the same structure."""
    (resnet, _), (theirs, _) = (
        layer_numbers(preview_encoder(f"image_{name}").body) for name in ("resnet18", "timm:resnet18")
    )
    assert resnet == theirs
    vit, _ = layer_numbers(preview_encoder("image_vit_b_16").body)
    parts = ("class_token", "conv_proj", "encoder.pos", "encoder.layers.encoder_layer_4.", "encoder.ln")
    assert [{n for name, n in vit.items() if name.startswith(part)} for part in parts] == [{0}, {0}, {0}, {5}, {12}]


def test_layer_numbers__of_a_network_without_blocks_are_its_layers():
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1))
    assert list(layer_numbers(body)[0].values()) == [0, 0, 0, 0, 1, 1]
    assert layer_scales(body, 0.5)["2.weight"] == 0.5 and layer_scales(body, 0.5)["0.weight"] == 0.25


def rates(body):
    """Rates of all drop paths in order, whatever their class; blocks that drop nothing have 0."""
    found = []
    for module in body.modules():
        for name, part in {**module._modules, **vars(module)}.items():
            if name.startswith("drop_path"):
                found.append(getattr(part, "drop_prob", getattr(part, "p", 0.0)))
    return found


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_drop_path__rises_as_in_timm(name):
    encoder = preview_encoder(f"image_timm:{name}")
    set_drop_path(encoder, 0.2)
    with torch.device("meta"):
        theirs = timm.create_model(name, drop_path_rate=0.2, num_classes=0)
    assert rates(encoder.body) == pytest.approx(rates(theirs), abs=1e-7) and max(rates(theirs)) == pytest.approx(0.2)


def test_drop_path__arithmetic_is_timms():
    from timm.layers import DropPath

    x = torch.randn(64, 3, 2)
    torch.manual_seed(0)
    theirs = DropPath(0.3)(x)
    torch.manual_seed(0)
    ours = StochasticDepth(0.3, mode="row")(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)
    assert 0.1 < float((ours == 0).all(dim=(1, 2)).float().mean()) < 0.5


@pytest.mark.parametrize("name", ["image_swin_t", "rgb_mvit_v2_s"])
def test_drop_path__replaces_the_rates_of_torchvision(name):
    encoder = preview_encoder(name)
    before = [module.p for module in encoder.body.modules() if isinstance(module, StochasticDepth)]
    num_blocks = set_drop_path(encoder, 0.5)
    after = [module.p for module in encoder.body.modules() if isinstance(module, StochasticDepth)]
    # torchvision's own rates are linear too, with another maximum.
    assert after == pytest.approx([rate * 0.5 / max(before) for rate in before]) and num_blocks > 10
    set_drop_path(encoder, 0.0)
    assert not any(module.p for module in encoder.body.modules() if isinstance(module, StochasticDepth))


def test_drop_path__acts_in_training_alone():
    torch.manual_seed(0)
    encoder = create_encoder("image_timm:vit_tiny_patch16_224", num_frames=1, size_px=32)
    clip = torch.randn(2, 3, 1, 32, 32)
    with torch.no_grad():
        still = encoder.eval()(clip)
        set_drop_path(encoder, 0.9)
        assert torch.equal(encoder.eval()(clip), still)
        assert not torch.allclose(encoder.train()(clip), still)


def test_drop_path__of_a_network_without_it_is_refused():
    with pytest.raises(UserError, match=r"rgb_r3d18 has no drop path \(stochastic depth\): remove --drop-path"):
        require_drop_path(preview_encoder("rgb_r3d18"))
