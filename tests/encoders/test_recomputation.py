"""Gradient checkpointing: the same step to the bit, with less memory."""

import copy

import pytest
import torch
from torch import nn

from crossdistill.distillation.student_with_heads import MomentumCopy
from crossdistill.encoders import create_encoder, wrap_module
from crossdistill.encoders.recomputation import innermost_blocks, recompute_activations
from crossdistill.errors import UserError
from crossdistill.quantization.quantize import quantize

# Networks with BatchNorm, dropout or stochastic depth, several inputs per block, lists as inputs, two pathways.
NETWORKS = {
    "rgb_r3d10": {"num_frames": 4, "size_px": 32},
    "image_resnet18": {"size_px": 32},
    "image_densenet121": {"size_px": 32},
    "image_mobilenet_v2": {"size_px": 32},
    "image_swin_t": {"size_px": 32},
    "rgb_x3d_xs": {"num_frames": 4, "size_px": 32},
    "rgb_slowfast_r50": {"num_frames": 8, "size_px": 32},
    "image_timm:vit_tiny_patch16_224": {"size_px": 32},
    "image_timm:resnetv2_50x1_bit": {"size_px": 32},
}


def clips_of(encoder, num_clips=2):
    view = encoder.view
    return torch.randn(num_clips, view.kind.channels, view.num_frames, view.size_px, view.size_px)


def step(encoder, clips, with_tokens=False):
    """Loss, gradients and buffers after one training step."""
    torch.manual_seed(1)
    encoder.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    features, *tokens = encoder.embed_with_tokens(clips) if with_tokens else (encoder(clips),)
    loss = features.square().mean() + sum(token.square().mean() for token in tokens)
    loss.backward()
    gradients = {f"{name}.grad": value.grad for name, value in encoder.named_parameters() if value.grad is not None}
    optimizer.step()
    return {"loss": loss.detach(), **gradients, **encoder.state_dict()}


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_step__has_the_same_bits(name, with_tokens):
    if with_tokens and name not in ("rgb_r3d10", "rgb_slowfast_r50", "image_timm:vit_tiny_patch16_224"):
        pytest.skip("tokens are tried on three networks")
    torch.manual_seed(0)
    plain = create_encoder(name, **NETWORKS[name])
    recomputed = copy.deepcopy(plain)
    assert recompute_activations(recomputed) >= 4
    assert recomputed.state_dict().keys() == plain.state_dict().keys()
    clips = clips_of(plain)
    one, other = step(plain, clips, with_tokens), step(recomputed, clips, with_tokens)
    assert one.keys() == other.keys() and len(one) > 20
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_statistics__would_move_twice_without_their_copies(monkeypatch):
    """The check above can fail: with torch's checkpoint alone BatchNorm moves a second time in the backward pass."""
    from contextlib import nullcontext

    from crossdistill.encoders import recomputation

    monkeypatch.setattr(recomputation, "_contexts", lambda block: (nullcontext(), nullcontext()))
    torch.manual_seed(0)
    plain = create_encoder("rgb_r3d10", num_frames=4, size_px=32)
    recomputed = copy.deepcopy(plain)
    recompute_activations(recomputed)
    clips = clips_of(plain)
    one, other = step(plain, clips), step(recomputed, clips)
    name = "body.stages.0.conv1.1.running_mean"
    assert not torch.equal(one[name], other[name]) and torch.equal(one["loss"], other["loss"])


def test_stochastic_depth_and_dropout__draw_the_same_numbers_twice():
    torch.manual_seed(0)
    plain = create_encoder("image_efficientnet_b0", size_px=32)  # drops residual branches at random
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6)) for _ in range(3)]
    own = wrap_module(nn.Sequential(*layers), embed_dim=6)
    for encoder, inputs in ((plain, clips_of(plain)), (own, torch.randn(4, 6))):
        recomputed = copy.deepcopy(encoder)
        recompute_activations(recomputed)
        one, other = step(encoder, inputs), step(recomputed, inputs)
        assert all(torch.equal(value, other[key]) for key, value in one.items())


class Counting(nn.Module):
    """A block that counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.passes = nn.Linear(6, 6), nn.Linear(6, 6), 0

    def forward(self, inputs):
        self.passes += 1
        return self.two(self.one(inputs).relu())


def test_blocks__run_twice_in_training_alone_and_copies_call_their_own():
    encoder = wrap_module(nn.Sequential(Counting(), Counting()), embed_dim=6)
    assert recompute_activations(encoder) == 2
    copied = MomentumCopy(encoder, momentum=0.9).module
    encoder.train()(torch.randn(2, 6)).sum().backward()
    assert [block.passes for block in encoder.body] == [2, 2]
    copied(torch.randn(2, 6))
    encoder.eval()(torch.randn(2, 6)).sum().backward()
    with torch.no_grad():
        encoder.train()(torch.randn(2, 6))
    assert [block.passes for block in encoder.body] == [4, 4]
    assert [block.passes for block in copied.body] == [1, 1]


def kept_bytes(encoder, clips):
    """Bytes that autograd keeps from the forward to the backward pass, each storage once, without the weights."""
    own = {value.untyped_storage().data_ptr() for value in (*encoder.parameters(), *encoder.buffers())}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = encoder.train()(clips)
    assert features.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("name", ["image_timm:vit_tiny_patch16_224", "image_resnet50"])
def test_memory__is_less_than_half(name):
    encoder = create_encoder(name, size_px=64)
    clips = clips_of(encoder)
    before = kept_bytes(encoder, clips)
    recompute_activations(encoder)
    assert kept_bytes(encoder, clips) < before / 2


def test_refused__without_blocks_and_quantised():
    with pytest.raises(
        UserError, match=r"rgb_tiny3d_8 has no repeated blocks to recompute: remove --gradient-checkpointing"
    ):
        recompute_activations(create_encoder("rgb_tiny3d_8"))
    pytest.importorskip("brevitas")
    student = create_encoder("image_resnet18", size_px=32)
    quantize(student, "w4a8")
    with pytest.raises(UserError, match="a student of w4a8 twice a step: remove it, or --bits"):
        recompute_activations(student)


def test_innermost_blocks__are_taken():
    inner = [nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(4)]
    body = nn.Sequential(nn.Linear(2, 2), nn.Sequential(*inner[:2]), nn.Sequential(*inner[2:]), nn.Linear(2, 2))
    assert innermost_blocks(body) == inner
    assert innermost_blocks(nn.Sequential(nn.Linear(2, 2), inner[0])) == []
