"""Heads: their sizes follow from the encoders, they train, and wrong ones are refused before anything else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import crossdistill
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.heads import ADAPTERS, Sizes, TokenResampler
from crossdistill.distillation.student_with_heads import Head
from crossdistill.distillation.supervised import SupervisedTask
from crossdistill.distillation.terms import create_terms
from crossdistill.encoders import create_encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError

STUDENT = Sizes(12, (6, 2, 3, 3), blocks=(3, 6))
TEACHER = Sizes(20, (10, 4, 2, 2), num_classes=7)
INPUTS = {"features": (12,), "tokens": STUDENT.tokens, "blocks": (3 + 6 + 12,)}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters__give_what_they_say_and_every_weight_learns(kind):
    adapter = ADAPTERS[kind]
    head = adapter.build(STUDENT, TEACHER)
    given = torch.randn(4, *INPUTS[adapter.takes], requires_grad=True)
    output = head(given)
    kept = STUDENT if adapter.keeps_dim else TEACHER
    shapes = {
        "features": (kept.embed_dim,),
        "tokens": (kept.tokens[0], *TEACHER.tokens[1:]),
        "logits": (7,),
        "labels": (7,),
    }
    assert output.shape == (4, *shapes[adapter.gives])
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert given.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ADAPTERS)
def test_heads__compute_in_float32_under_autocast(kind):
    adapter = ADAPTERS[kind]
    head = Head(adapter.build(STUDENT, TEACHER), takes=adapter.takes).eval()
    given = torch.randn(4, *INPUTS[adapter.takes]).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(given)
    assert output.dtype == torch.float32 and torch.equal(output, head.module(given.float()))


def test_labels__logits_of_a_bf16_network_are_not_tied():
    """In bf16 about one row in 20 has two best classes among 400."""
    torch.manual_seed(0)
    encoder = crossdistill.create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16)
    execution = Execution.choose(encoder, precision="bf16")
    task = SupervisedTask(encoder=encoder, execution=execution, num_classes=400)
    clips = torch.randn(256, 3, 4, 16, 16)
    with torch.no_grad():
        logits = execution.run(task._call, clips)["classifier"]
        in_bf16 = execution.run(lambda clip: task.trainable.heads["classifier"].module(encoder(clip)), clips)
    assert num_ties(logits) == 0 < num_ties(in_bf16)


def num_ties(logits):
    best, second = logits.topk(2, dim=1).values.T
    return int((best == second).sum())


@pytest.mark.parametrize("num_layers", [2, 3, 4])
def test_mlp__has_so_many_layers_with_batch_norm_between(num_layers):
    head = ADAPTERS[f"mlp{num_layers}"].build(STUDENT, TEACHER)
    assert sum(isinstance(layer, nn.Linear) for layer in head) == num_layers
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in head) == num_layers - 1


def test_ladder__is_the_sum_of_an_mlp_for_each_block_and_one_of_four_times_the_width_for_the_features():
    torch.manual_seed(0)
    head = ADAPTERS["ladder"].build(STUDENT, TEACHER)
    assert [(rung[0].in_features, rung[0].out_features) for rung in head.rungs] == [(3, 12), (6, 12), (12, 48)]
    given = torch.randn(4, 3 + 6 + 12)
    expected = torch.zeros(4, TEACHER.embed_dim)
    for (first, _, last), part in zip(head.rungs, (given[:, :3], given[:, 3:9], given[:, 9:]), strict=True):
        hidden = part @ first.weight.T + first.bias
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        expected += hidden @ last.weight.T + last.bias
    torch.testing.assert_close(head(given), expected)


def test_temporal_pool__knows_the_order_and_attention_pool_does_not_need_to():
    torch.manual_seed(0)
    tokens = torch.randn(2, *STUDENT.tokens)
    ordered = ADAPTERS["temporal-pool"].build(STUDENT, TEACHER)
    assert (ordered(tokens) - ordered(tokens.flip(2))).abs().max() > 1e-3
    unordered = ADAPTERS["attention-pool"].build(STUDENT, TEACHER)
    torch.testing.assert_close(unordered(tokens), unordered(tokens.flip(2)), atol=1e-5, rtol=1e-4)


def test_attention_pool__is_a_softmax_over_tokens():
    """Against attention written out for one head."""
    head = ADAPTERS["attention-pool"].build(Sizes(3, (3, 2, 2, 2)), TEACHER)  # 3 channels: one head
    tokens = torch.randn(2, 3, 2, 2, 2)
    sequence = head.norm(tokens.flatten(2).transpose(1, 2))
    weights, bias = head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(x, w, b)
        for x, w, b in zip((head.query.expand(2, -1, -1), sequence, sequence), weights, bias, strict=True)
    )
    pooled = torch.softmax(query @ key.transpose(1, 2) / 3**0.5, dim=-1) @ value
    expected = head.out(head.attention.out_proj(pooled)[:, 0])
    torch.testing.assert_close(head(tokens), expected, atol=1e-5, rtol=1e-4)


def test_token_resampler__on_the_same_grid_is_a_linear_map_of_channels():
    head = TokenResampler(6, (10, 2, 3, 3))
    tokens = torch.randn(2, 6, 2, 3, 3)
    expected = torch.einsum("es,bsthw->bethw", head[1].weight[:, :, 0, 0, 0], tokens) + head[1].bias.view(-1, 1, 1, 1)
    torch.testing.assert_close(head(tokens), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["flow_r3d10", "rgb_tiny3d_8", "depth_r3d10_gn"])
def test_sizes__are_those_of_a_real_pass(name):
    encoder = create_encoder(name, num_frames=8, size_px=32)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    sizes = Sizes.of(encoder, with_tokens=True)
    features, tokens = encoder.embed_with_tokens(torch.randn(2, encoder.view.kind.channels, 8, 32, 32))
    assert (sizes.embed_dim, sizes.tokens) == (features.shape[1], tuple(tokens.shape[1:]))
    assert encoder.training
    encoder.eval()
    fresh = create_encoder(name, num_frames=8, size_px=32)
    Sizes.of(fresh, with_tokens=True)
    assert before.keys() == fresh.state_dict().keys()
    assert all(not value.isnan().any() for value in fresh.state_dict().values())


@pytest.mark.parametrize("adapter", ["linear", "mlp2", "ladder", "temporal-pool", "attention-pool"])
def test_every_adapter__distils(adapter, toy_folder):
    """One step moves encoder and head; nothing of the head is in the student's own weights."""
    teacher = create_encoder("rgb_r3d10", num_frames=4, size_px=32)
    student = create_encoder("depth_tiny3d_8", num_frames=4, size_px=32)
    manifest = crossdistill.Manifest.load(toy_folder)
    clips = crossdistill.PairedClips(
        crossdistill.entries_of(manifest, range(6)), student_view=student.view, teacher_views=[teacher.view]
    )
    terms = crossdistill.create_terms(["compress-1q:0.5", "simreg"], adapter=adapter)
    distiller = crossdistill.Distiller(student=student, teachers=[teacher], objective=terms, bank_size=8)
    batch = clips.read_batch([SampleKey(i, 0) for i in range(6)])
    distiller(batch)
    distiller.after_step()
    output = distiller(batch)
    total = 0.5 * output.terms["compress-1q"] + output.terms["simreg"]
    torch.testing.assert_close(output.loss.detach(), total)
    output.loss.backward()
    assert all(p.grad is not None for p in distiller.trainable.parameters())
    assert sum(p.grad.abs().sum() for p in distiller.trainable.heads["simreg"].parameters()) > 0
    assert not [name for name in student.state_dict() if "head" in name]


@pytest.mark.parametrize(
    ("terms", "adapter", "message"),
    [
        (["compress-1q"], "identity", "keeps the student's 256 features.*teacher's 128: choose linear"),
        (
            ["compress-1q"],
            "tokens",
            "adapter tokens gives .*, and the objective compares features: choose identity, linear",
        ),
        (["compress-1q"], "lineal", "did you mean 'linear'"),
        (["compress-2q", "compress-2q-live"], None, "compress-2q and compress-2q-live store student anchors"),
        (["compress-1q:0"], None, "weight is '0'; give a number above 0"),
        (["compress-1q:much"], None, "weight is 'much'"),
        (["compress-1q", "compress-1q"], None, "each once"),
        ([], None, "one or more objectives"),
    ],
)
def test_wrong_sums_and_adapters__are_refused(terms, adapter, message):
    teacher, student = create_encoder("rgb_r3d10"), create_encoder("depth_tiny3d_8")
    with pytest.raises(UserError, match=message):
        for term in crossdistill.create_terms(terms, adapter=adapter):
            term.require_fit(student=student, teacher=teacher)


def test_encoder_without_tokens__is_named():
    view = crossdistill.ViewSpec("flow", 4, 2, 32, mean=(0.0, 0.0), std=(1.0, 1.0))
    student = crossdistill.wrap_encoder(nn.Flatten(), view=view, embed_dim=8192)
    (term,) = crossdistill.create_terms(["compress-1q"], adapter="attention-pool")
    with pytest.raises(UserError, match="flow_flatten has no features before pooling"):
        term.require_fit(student=student, teacher=create_encoder("rgb_r3d10"))


def test_tokens_alone__are_refused_where_they_leave_weights_untrained():
    """X3D has two more convolutions after its tokens; beside an objective on embeddings they are trained."""
    view = {"num_frames": 2, "size_px": 64}
    student, teacher = create_encoder("rgb_x3d_xs", **view), create_encoder("rgb_tiny3d_8", num_frames=4, size_px=32)
    alone, beside = (crossdistill.create_terms(terms) for terms in (["token-matching"], ["token-matching", "simreg"]))
    with pytest.raises(UserError, match=r"rgb_x3d_xs has \d+ weights after its tokens .first: blocks.5.*simreg:1"):
        crossdistill.Distiller(student=student, teachers=[teacher], objective=alone, bank_size=4)
    crossdistill.Distiller(student=student, teachers=[teacher], objective=beside, bank_size=4)


def test_adapter_that_nothing_uses__is_refused():
    with pytest.raises(UserError, match="--adapter mlp4 has no effect with --objective token-matching"):
        crossdistill.create_terms(["token-matching"], adapter="mlp4")


def test_sizes__of_a_network_that_keeps_tensors_between_calls_leave_it_as_it_was():
    """DINOv3 keeps its coordinates; a pass without values would leave it with ones that have none."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(image_size=32, patch_size=16, **sizes)).eval()

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.tokens = model, nn.Identity()

        def forward(self, frames):
            return self.tokens(self.model(frames).last_hidden_state)[:, 0]

    view = crossdistill.ViewSpec("image", 1, 1, 32, mean=(0.0,) * 3, std=(1.0,) * 3)
    num_prefix = 1 + model.config.num_register_tokens
    layer = crossdistill.TokenLayer("tokens", "sequence", num_prefix=num_prefix)
    encoder = crossdistill.wrap_encoder(Body(), view=view, embed_dim=32, token_layer=layer).eval()
    assert Sizes.of(encoder, with_tokens=True).tokens == (32, 1, 2, 2)
    clip = torch.randn(2, 3, 1, 32, 32)
    with torch.no_grad():
        _, tokens = encoder.embed_with_tokens(clip)
        expected = model(clip[:, :, 0]).last_hidden_state[:, num_prefix:]
    torch.testing.assert_close(tokens[:, :, 0].flatten(2).transpose(1, 2), expected)


def test_cospress__reduces_standardised_teacher_features_by_one_linear_layer():
    torch.manual_seed(0)
    student, teacher, inputs = nn.Linear(4, 3), nn.Linear(4, 5), torch.randn(6, 4)
    distiller = crossdistill.Distiller(
        student=student, teachers=teacher, student_dim=3, teacher_dim=5, objective="cospress"
    )
    head = distiller.trainable.heads["cospress_of_teacher"]
    scale, shift, weight, bias = (torch.randn_like(p) for p in head.parameters())
    torch.nn.utils.vector_to_parameters(torch.cat([scale, shift, weight.flatten(), bias]), head.parameters())
    targets = teacher(inputs)
    centred = targets - targets.mean(1, keepdim=True)
    unit = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    reduced = (unit * scale + shift) @ weight.T + bias
    of_head, of_student = crossdistill.objectives.cospress_loss(
        student=student(inputs), teacher=targets, reduced=reduced
    )
    torch.testing.assert_close(distiller(inputs).loss, of_head + of_student)


def test_class_probabilities__of_one_class_are_refused():
    teacher, student = (create_encoder("rgb_tiny3d_8", num_frames=4, size_px=16) for _ in range(2))
    for num_classes in (1, 2):
        teacher.classifier = Classifier(torch.zeros(num_classes, teacher.embed_dim), torch.zeros(num_classes))
        terms = create_terms(["dkd"])
        if num_classes == 2:
            terms[0].require_fit(student=student, teacher=teacher)
            continue
        with pytest.raises(UserError, match="the classifier of rgb_tiny3d_8 has one class: choose an objective on"):
            terms[0].require_fit(student=student, teacher=teacher)
