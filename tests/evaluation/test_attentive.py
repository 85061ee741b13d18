"""The attentive protocol: the network against transformers', the training against torch.optim, and the command."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from crossdistill.commands.main import main as cli
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.distillation.student import save_student
from crossdistill.encoders import create_encoder
from crossdistill.encoders.base import wrap_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation import evaluate as evaluate_module
from crossdistill.evaluation import feature_store
from crossdistill.evaluation.attentive_probe import AttentiveProbe, Rates, TokenRows, _groups, score_rows, train_probes
from crossdistill.evaluation.clips import entries_of_part
from crossdistill.evaluation.embedded_split import EmbeddedSplit, EmbeddedTokens
from crossdistill.evaluation.embedder import TokenEmbedder
from crossdistill.evaluation.evaluate import EvaluatedEncoder
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.linear_probe import batch_size_for
from crossdistill.evaluation.protocols import PROTOCOLS
from crossdistill.evaluation.protocols.attentive import _scores
from crossdistill.evaluation.settings import ProbeSettings, ProtocolSettings
from crossdistill.evaluation.views import MultiViewClips, TestViews

CPU = torch.device("cpu")


def test_probe__equals_transformers_pooler_of_vjepa2():
    """The same weights in VJEPA2AttentivePooler, which computes keys and values for every token."""
    vjepa2 = pytest.importorskip("transformers.models.vjepa2.modeling_vjepa2")
    config = vjepa2.VJEPA2Config(
        hidden_size=24, num_attention_heads=4, num_pooler_layers=2, mlp_ratio=4, attention_dropout=0.0
    )
    config._attn_implementation = "sdpa"  # the eager one rounds to float32
    theirs = vjepa2.VJEPA2AttentivePooler(config).double()
    torch.manual_seed(0)
    for value in theirs.parameters():
        torch.nn.init.normal_(value, std=0.5)
    ours = AttentiveProbe(dim=24, num_heads=4, depth=3, num_classes=5).double()
    weights = {
        name.replace("self_attention_layers", "layers")
        .replace("cross_attention_layer", "pooling")
        .replace("layer_norm", "norm")
        .replace("self_attn.out_proj", "projection")
        .replace("self_attn.", "")
        .replace("cross_attn.", "")
        .replace("q_proj", "query")
        .replace("k_proj", "key")
        .replace("v_proj", "value")
        .replace("mlp.fc1", "mlp.0")
        .replace("mlp.fc2", "mlp.2"): value
        for name, value in theirs.state_dict().items()
    }
    weights["query_token"] = weights.pop("query_tokens").flatten()
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["linear.weight", "linear.bias"], [])
    tokens = 3 * torch.randn(6, 7, 24, dtype=torch.float64) + 1
    expected = ours.linear(theirs(tokens))
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-12)
    assert expected.std() > 0.1


def rows_of(num, *, num_tokens=4, dim=6, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % num_classes
    values = torch.randn(num, num_tokens * dim, generator=generator)
    return TokenRows(values, torch.arange(num), labels, token_dim=dim)


def test_train_probes__side_by_side_is_each_alone_by_torch_adamw():
    rows, num_epochs, seed = rows_of(30), 3, 5
    create = partial(AttentiveProbe, dim=6, num_heads=2, depth=2, num_classes=3)
    grid = [Rates(1e-2, 0.0), Rates(1e-3, 0.5)]
    together = train_probes(create, rows, grid, num_epochs=num_epochs, seed=seed, device=CPU)
    for rates, found in zip(grid, together, strict=True):
        torch.manual_seed(seed)
        probe = create()
        decayed = [p for name, p in probe.named_parameters() if name.endswith("weight") and "norm" not in name]
        others = [p for p in probe.parameters() if all(p is not q for q in decayed)]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": rates.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=rates.lr,
        )
        size = batch_size_for(30)
        num_steps = num_epochs * -(-30 // size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(num_epochs):
            order = torch.randperm(30, generator=generator)
            for start in range(0, 30, size):
                chosen = order[start : start + size]
                optimizer.zero_grad()
                F.cross_entropy(probe(rows.values[chosen].view(-1, 4, 6)), rows.labels[chosen]).backward()
                optimizer.step()
                schedule.step()
        for name, value in probe.named_parameters():
            torch.testing.assert_close(dict(found.named_parameters())[name], value, rtol=0, atol=1e-6)
    assert not torch.allclose(together[0].linear.weight, together[1].linear.weight, atol=1e-3)


def test_train_probes__keeps_torchs_generator_and_repeats():
    rows, create = rows_of(12), partial(AttentiveProbe, dim=6, num_heads=1, depth=1, num_classes=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    (first,), (second,) = (
        train_probes(create, rows, [Rates(1e-2, 0.1)], num_epochs=2, seed=0, device=CPU) for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def split_of(train, test, *, dim, num_classes, groups=None, num_views=1):
    """A split whose features are the mean of its tokens; each part is tokens [N, V, L, E] and labels."""

    def part(tokens, labels, groups):
        names, views = tuple(map(str, range(len(labels)))), TestViews(num_views)
        groups = groups or (None,) * len(labels)
        features = Features(tokens.mean(2), labels, {}, names, groups, views)
        return features, replace(features, views_nvd=tokens.flatten(2).half())

    (train_features, train_tokens), (test_features, test_tokens) = part(*train, groups), part(*test, None)
    tokens = EmbeddedTokens(train_tokens, test_tokens, dim, CPU)
    return EmbeddedSplit(train_features, test_features, num_classes, tokens=tokens)


def one_token_tells(num, *, seed, num_tokens=12, dim=16, num_classes=4, num_views=1):
    """One token at a random place shows the class in a marked direction; the others show random classes without it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % num_classes
    shown = torch.randint(num_classes, (num, num_views, num_tokens), generator=generator)
    place = torch.randint(num_tokens, (num, num_views, 1), generator=generator)
    shown.scatter_(2, place, labels[:, None, None].expand(-1, num_views, 1))
    tokens = 2 * F.one_hot(shown, dim).float()
    tokens[..., dim - 1] = torch.zeros(shown.shape).scatter_(2, place, 4.0)
    return tokens + 0.1 * torch.randn(tokens.shape, generator=generator), labels


SMALL = ProbeSettings(lrs=(1e-4, 5e-3), weight_decays=(0.01, 0.4), num_epochs=20)


def attentive(split, probe=SMALL, **options):
    (result,) = PROTOCOLS["attentive"](split, ProtocolSettings(probe=probe, **options))
    return result


def test_attentive__finds_the_token_that_tells_where_the_mean_hides_it():
    split = split_of(one_token_tells(320, seed=0), one_token_tells(200, seed=1), dim=16, num_classes=4)
    result, (linear,) = attentive(split), PROTOCOLS["linear"](split, ProtocolSettings())
    assert result.top1 > 0.95 and linear.top1 < 0.7
    details = result.details
    assert (details["lr"], details["depth"], details["num_heads"], details["num_tokens"]) == (5e-3, 1, 1, 12)
    assert details["held_out_by"] == "video" and details["num_held_out"] == 64 and details["at_edge"]
    tried = {(each["lr"], each["weight_decay"]): each["held_out_top1"] for each in details["grid"]}
    assert len(tried) == 4 and tried[details["lr"], details["weight_decay"]] == max(tried.values())
    json.dumps(details)


def place_tells(num, *, seed, num_tokens=4, dim=8):
    """The class is the place of the one marked token; all other tokens are noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % num_tokens
    tokens = 0.3 * torch.randn(num, 1, num_tokens, dim, generator=generator)
    tokens[torch.arange(num), 0, labels, 0] += 3
    return tokens, labels


@pytest.mark.parametrize("has_positions", [False, True])
def test_attentive__sees_where_a_token_is_with_positions_alone(has_positions):
    split = split_of(place_tells(320, seed=0), place_tells(200, seed=1), dim=8, num_classes=4)
    result = attentive(split, replace(SMALL, has_positions=has_positions, lrs=(3e-2,), num_epochs=40))
    assert result.top1 > 0.95 if has_positions else result.top1 < 0.5
    assert result.details["has_positions"] is has_positions


def test_train_probes__positions_do_not_decay():
    probe = AttentiveProbe(dim=4, num_heads=1, depth=2, num_classes=3, num_positions=5)
    decaying, kept = (group["params"] for group in _groups(probe, Rates(1e-3, 0.4)))
    assert len(decaying) == sum(isinstance(layer, torch.nn.Linear) for layer in probe.modules())
    assert any(value is probe.positions for value in kept) and len(decaying) + len(kept) == len(
        list(probe.parameters())
    )


def test_attentive__test_labels_choose_nothing():
    train, (tokens, labels) = one_token_tells(64, seed=0), one_token_tells(40, seed=1)
    settings = replace(SMALL, num_epochs=2)
    found = [
        attentive(split_of(train, (tokens, given), dim=16, num_classes=4), settings)
        for given in (labels, labels.roll(1))
    ]
    assert found[0].details == found[1].details and found[0].top1 != found[1].top1
    assert torch.equal(found[0].outcome.predicted_b, found[1].outcome.predicted_b)


def test_attentive__holds_out_whole_groups_and_never_predicts_absent_classes():
    train = one_token_tells(60, seed=0, num_classes=3)
    tokens, labels = one_token_tells(30, seed=1, num_classes=3)
    groups = tuple(f"g{i // 3 % 5}" for i in range(60))
    split = split_of(train, (tokens, labels + (labels == 2)), dim=16, num_classes=4, groups=groups)
    result = attentive(split, replace(SMALL, num_epochs=2))
    assert result.details["held_out_by"] == "group" and result.details["num_held_out"] == 12
    assert result.details["classes_without_training_clips"] == [3]
    assert 3 not in result.outcome.predicted_b


def test_attentive__probabilities_of_views_are_averaged():
    probe = AttentiveProbe(dim=16, num_heads=2, depth=1, num_classes=4)
    for value in probe.parameters():
        torch.nn.init.normal_(value, std=0.5)
    part = one_token_tells(8, seed=0, num_views=3)
    split = split_of(part, part, dim=16, num_classes=4, num_views=3)
    (scores,) = _scores([probe], split, split.tokens.test, torch.ones(8, dtype=torch.bool))
    tokens = split.tokens.test.views_nvd.float().unflatten(2, (12, 16))
    expected = torch.stack([probe(tokens[:, view]).softmax(1) for view in range(3)]).mean(0)
    torch.testing.assert_close(scores.exp().float() / 3, expected)


def test_score_rows__are_those_of_the_chosen_rows():
    rows = rows_of(9)
    probe = AttentiveProbe(dim=6, num_heads=1, depth=1, num_classes=3)
    some = TokenRows(rows.values, torch.tensor([4, 2]), rows.labels[[4, 2]], 6)
    torch.testing.assert_close(
        score_rows([probe], some, device=CPU)[0], score_rows([probe], rows, device=CPU)[0][[4, 2]]
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 0}, "--probe-depth is 0: give 1 or more"),
        ({"num_epochs": 0}, "--probe-epochs is 0: give 1 or more"),
        ({"num_heads": 0}, "--probe-heads is 0: give 1 or more"),
        ({"lrs": (0.1, 0.0)}, "--probe-lrs is 0.1 0: give learning rates above 0"),
        ({"weight_decays": ()}, "--probe-weight-decays is empty"),
    ],
)
def test_settings__refuse_what_trains_nothing(values, message):
    with pytest.raises(UserError, match=message):
        ProbeSettings(**values)


def test_heads__divide_the_features_of_a_token():
    with pytest.raises(UserError, match="--probe-heads 5 does not divide the 64 features of a token"):
        ProbeSettings(num_heads=5).heads_of(64)


# Tokens of an encoder, and the command


def make_encoder():
    torch.manual_seed(0)
    return create_encoder("rgb_tiny3d_8", num_frames=4, stride=1, size_px=32)


def execution_of(encoder):
    return Execution.choose(encoder, device=CPU, precision="fp32", layout="no")


def test_token_embedder__rows_are_one_token_after_the_other(toy_folder):
    encoder = make_encoder().eval()
    entries = entries_of_part(Manifest.load(toy_folder), "1", "test")
    batch = MultiViewClips(entries, view=encoder.view, views=TestViews()).read_batch(
        [SampleKey(i, 0) for i in range(3)]
    )
    embedder = TokenEmbedder(encoder, execution_of(encoder))
    rows = embedder.embed_batch(batch)
    with torch.no_grad():
        _, tokens = encoder.embed_with_tokens(normalise(batch.student, encoder.view))
    size, times, height, width = embedder.grid
    assert tokens.shape == (3, size, times, height, width) and rows.dtype == torch.float16
    expected = rearrange(tokens, "b e t h w -> b (t h w) e")
    torch.testing.assert_close(rows.float().unflatten(1, (-1, size)), expected, rtol=1e-3, atol=1e-3)


@pytest.fixture
def student(tmp_path):
    save_student(make_encoder(), tmp_path / "run" / "student", facts={"supervised": False})
    return tmp_path / "run"


OPTIONS = ["--probe-epochs", 2, "--probe-lrs", 1e-3, 3e-3, "--probe-weight-decays", 0.01, "--bootstrap", 20]


def evaluate(*arguments):
    cli(["evaluate", *map(str, arguments), "--workers", "0", "--precision", "fp32"])


def test_command__keeps_tokens_and_reports_the_probe(student, toy_folder, tmp_path, capsys, monkeypatch):
    embedded = []
    extract = feature_store.extract_features
    monkeypatch.setattr(
        feature_store, "extract_features", lambda *args, **o: embedded.append(o["embedder"]) or extract(*args, **o)
    )
    path = tmp_path / "numbers.json"
    command = [student, "--data", toy_folder, "--protocols", "linear", "attentive", "--views", "2x1", *OPTIONS]
    evaluate(*command, "--json", path)
    first, printed = json.loads(path.read_text()), capsys.readouterr().out
    result = first["results"]["attentive"]
    assert list(first["results"]) == ["linear", "attentive"] and result["views"] == "2x1"
    assert result["details"]["num_tokens"] == 4 and result["details"]["token_dim"] == 64
    low, high = result["intervals"]["top1"]
    assert low <= result["top1"] <= high and f"{result['top1']:.1%}" in printed
    assert re.search(r"4 tokens of 64 features a view are [\d.]+ [KM]B in memory, and as much on the disk in", printed)
    assert "attentive, 2 probes" in printed
    assert [isinstance(each, TokenEmbedder) for each in embedded] == [False, False, True, True]
    (kept,) = (student / "features").glob("*-tokens-2x1-*.safetensors")
    num_videos = len(Manifest.load(toy_folder).videos)
    assert kept.stat().st_size == pytest.approx(2 * num_videos * 2 * 4 * 64, rel=0.5)
    evaluate(*command, "--json", path)
    assert json.loads(path.read_text()) == first and len(embedded) == 4


def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_info:
        evaluate(*arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert exit_info.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def test_command__heads_that_do_not_divide_and_memory_that_is_short(student, toy_folder, capsys, monkeypatch):
    command = [student, "--data", toy_folder, "--protocols", "attentive", *OPTIONS]
    assert "--probe-heads 5 does not divide the 64 features" in error_of(capsys, *command, "--probe-heads", 5)
    assert not (student / "features").exists()  # known before a clip is embedded
    monkeypatch.setattr(evaluate_module, "free_memory_bytes", lambda device: 1000)
    assert "lower --train-views or --views, or remove attentive" in error_of(capsys, *command)


def test_encoder_without_tokens__is_refused(toy_folder):
    view = make_encoder().view
    body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 32 * 32, 5))
    encoder = wrap_encoder(body, view=view, embed_dim=5, name="rgb_mine")
    message = r"rgb_mine has no features before pooling \(tokens\), and the protocol attentive pools them"
    with pytest.raises(UserError, match=message):
        EvaluatedEncoder(encoder, execution_of(encoder)).check_tokens(ProbeSettings())
    with pytest.raises(UserError, match=message):
        evaluate_module.evaluate_encoder(
            encoder, Manifest.load(toy_folder), split="1", execution=execution_of(encoder), accelerator=None,
            protocols=["attentive"],
        )  # fmt: skip
