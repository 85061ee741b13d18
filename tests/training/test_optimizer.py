"""Which weights decay, at which rate each trains, and that a run of version 0.1 keeps its own groups."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from crossdistill.distillation.heads import ADAPTERS, Sizes
from crossdistill.distillation.student_with_heads import Head, StudentWithHeads
from crossdistill.encoders import create_encoder, wrap_module
from crossdistill.training import optimizer as optimizer_module
from crossdistill.training.checkpoint import load_optimizer_state, optimizer_state
from crossdistill.training.optimizer import create_optimizer, take_groups_of


def optimizer_of(model, kind="adamw", lr=0.01):
    return create_optimizer(model, optimizer=kind, lr=lr, momentum=0.9, weight_decay=0.05)


def undecayed(model):
    """Names of the encoder's parameters of two or more dimensions that do not decay; vectors must never decay."""
    names = {value: name.removeprefix("encoder.body.") for name, value in model.named_parameters()}
    groups = optimizer_of(model).param_groups
    listed = [value for group in groups for value in group["params"]]
    assert len(listed) == len(names) == len(set(listed))
    assert {group["weight_decay"] for group in groups} == {0.0, 0.05}
    assert all(value.dim() > 1 for group in groups if group["weight_decay"] for value in group["params"])
    return {
        names[value] for group in groups if not group["weight_decay"] for value in group["params"] if value.dim() > 1
    }


def without_heads(body):
    encoder = body if hasattr(body, "view") else wrap_module(body, 8)
    return StudentWithHeads(encoder, {})


class Tokens(nn.Module):
    """Position and token parameters under the names of Hugging Face's networks."""

    def __init__(self):
        super().__init__()
        self.position_embeddings = nn.Embedding(9, 8)
        self.register_tokens = nn.Parameter(torch.zeros(1, 4, 8))
        self.time_embeddings = nn.Parameter(torch.zeros(1, 4, 8))
        self.attention = nn.MultiheadAttention(8, 2)
        self.score = nn.Linear(8, 1)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: create_encoder("rgb_tiny3d_8"), set()),
        (
            lambda: ConvNeXt([CNBlockConfig(8, None, 2)], num_classes=8),
            {"features.1.0.layer_scale", "features.1.1.layer_scale"},
        ),
        (Tokens, {"position_embeddings.weight", "register_tokens", "time_embeddings"}),
    ],
)
def test_adamw__decays_maps_and_neither_positions_nor_tokens_nor_scales(make, expected):
    assert undecayed(without_heads(make())) == expected


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("image_vit_b_16", {"class_token", "pos_embedding"}),
        ("image_swin_t", {"relative_position_bias_table"}),
        ("rgb_mvit_v2_s", {"rel_pos_h", "rel_pos_w", "rel_pos_t"}),
        ("rgb_mvit_b", {"cls_token", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"}),
    ],
)
def test_adamw__leaves_the_positions_of_every_library_alone(name, ends):
    with torch.device("meta"):
        model = without_heads(create_encoder(name))
    assert {name.rpartition(".")[2] for name in undecayed(model)} == ends


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swinv2_tiny_window8_256", "levit_128s"])
def test_adamw__follows_what_timm_excludes(name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        body = timm.create_model(name, num_classes=0)
    excluded = {each for each, value in body.named_parameters() if each in body.no_weight_decay() and value.dim() > 1}
    assert excluded and undecayed(without_heads(body)) == excluded


def test_sgd__decays_everything_as_the_authors_code():
    groups = optimizer_of(without_heads(create_encoder("rgb_tiny3d_8")), "sgd").param_groups
    assert [group["weight_decay"] for group in groups] == [0.05]


def test_adamw__divides_the_rate_of_each_layer_of_a_head_by_its_own_inputs():
    student, teacher = Sizes(64, (256, 2, 3, 3)), Sizes(512, (640, 2, 2, 2))
    kinds = {kind: ADAPTERS[kind] for kind in ("mlp3", "attention-pool", "tokens")}
    heads = {kind: Head(each.build(student, teacher), takes=each.takes) for kind, each in kinds.items()}
    model = StudentWithHeads(wrap_module(nn.Linear(900, 64), 64), heads)
    groups = optimizer_of(model).param_groups
    scales = {value: group["lr_scale"] for group in groups for value in group["params"]}
    found = {name.removeprefix("heads."): scales[value] for name, value in model.named_parameters()}
    layers = {name: scale for name, scale in found.items() if scale < 1}
    assert layers == {
        "mlp3.module.3.weight": 128 / 512,  # the first layer has 64 inputs, the hidden and the last one 512
        "mlp3.module.6.weight": 128 / 512,
        "attention-pool.module.attention.in_proj_weight": 128 / 256,
        "attention-pool.module.attention.out_proj.weight": 128 / 256,
        "attention-pool.module.out.weight": 128 / 256,
        "tokens.module.1.weight": 128 / 256,
    }


def small():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 200))
    return StudentWithHeads(wrap_module(body, 200), {"linear": Head(nn.Linear(200, 3))})


def walk(model, optimizer, steps):
    for i in steps:
        model(torch.full((4, 6), i / 7).cumsum(dim=1))["linear"].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_adamw__continues_a_run_of_version_0_1_to_the_bit():
    """That version had one group for the encoder and one for the heads, and decayed everything."""
    former, now = small(), small()
    groups = [{"params": former.encoder.parameters(), "lr_scale": 1.0}]
    groups.append({"params": former.heads.parameters(), "lr_scale": 0.64})
    theirs, ours = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.05, fused=True), optimizer_of(now)
    walk(former, theirs, range(3))
    state = copy.deepcopy(optimizer_state(theirs))
    now.load_state_dict(former.state_dict())
    take_groups_of(state, ours, now)
    load_optimizer_state(ours, state)
    for model, optimizer in ((former, theirs), (now, ours)):
        walk(model, optimizer, range(3, 6))
    assert all(torch.equal(value, now.state_dict()[name]) for name, value in former.state_dict().items())
    assert [(group["weight_decay"], group["lr_scale"]) for group in ours.param_groups] == [(0.05, 1.0), (0.05, 0.64)]


def test_adamw__keeps_its_groups_when_its_own_run_is_resumed():
    one, other = small(), small()
    first, second = optimizer_of(one), optimizer_of(other)
    walk(one, first, range(3))
    other.load_state_dict(one.state_dict())
    take_groups_of(optimizer_state(first), second, other)
    load_optimizer_state(second, copy.deepcopy(optimizer_state(first)))
    walk(one, first, range(3, 5))
    walk(other, second, range(3, 5))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert {group["weight_decay"] for group in second.param_groups} == {0.0, 0.05}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_fused__steps_as_the_loop_over_weights_and_a_run_changes_between_them(kind, monkeypatch):
    fused, plain, changed = small(), small(), small()
    first = optimizer_of(fused, kind)
    monkeypatch.setattr(optimizer_module, "has_fused", lambda device: False)
    second, third = optimizer_of(plain, kind), optimizer_of(changed, kind)
    assert {group["fused"] for group in first.param_groups} == {True}
    assert {group["fused"] for group in second.param_groups} == {False}
    walk(fused, first, range(3))
    walk(plain, second, range(6))
    changed.load_state_dict(fused.state_dict())
    load_optimizer_state(third, copy.deepcopy(optimizer_state(first)))
    assert {group["fused"] for group in third.param_groups} == {False}  # the kernels are those of this device
    walk(fused, first, range(3, 6))
    walk(changed, third, range(3, 6))
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(changed.state_dict()[name], value, rtol=1e-5, atol=1e-6)
