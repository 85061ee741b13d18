"""The attentive probe: attention layers that pool frozen tokens with one learned query, and a linear layer on top.

Bardes, Garrido, Ponce, Chen, Rabbat, LeCun, Assran, Ballas, "Revisiting Feature Prediction for Learning Visual
Representations from Video" (V-JEPA), arXiv 2404.08471, section 4; with self-attention in front of the pooling: Assran
et al., "V-JEPA 2", arXiv 2506.09985, section 5. Of a probe of depth d, d - 1 layers are self-attention of the tokens,
and the last one is cross-attention whose only query is learned; every layer ends with an MLP. Layers normalise their
input, and the cross-attention has no output projection, as in the authors' code. Probes of a grid of learning rates and
weight decays are trained side by side: every batch of tokens is read once, and shown to all of them.

Deviations: tokens are computed once, without augmentation. The pair is chosen on a held-out part of the training videos
(``protocols/attentive.py``), not on the test set. Weight decay acts on matrices alone and stays constant.

Shapes: N rows (views of videos), B batch, L tokens of a row, E token features, C classes, H heads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from crossdistill.evaluation.linear_probe import batch_size_for
from crossdistill.training.optimizer import has_fused
from crossdistill.training.schedule import learning_rate

MLP_RATIO = 4
INITIAL_STD = 0.02
NORM_EPSILON = 1e-6
ROWS_AT_ONCE = 256
"""Rows of a batch when probes are only applied."""


class _Layer(nn.Module):
    """What both kinds of layers share: norms, maps to queries, keys and values, and the MLP at the end."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=NORM_EPSILON) for _ in range(2))
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(dim, MLP_RATIO * dim), nn.GELU(), nn.Linear(MLP_RATIO * dim, dim))

    def add_mlp(self, x: Tensor) -> Tensor:
        """Add the MLP of the normalised input to the input."""
        added: Tensor = x + self.mlp(self.norm2(x))
        return added


class SelfAttentionLayer(_Layer):
    """Tokens [B, L, E] to tokens [B, L, E]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.projection = nn.Linear(dim, dim)

    def forward(self, tokens_ble: Tensor) -> Tensor:
        """Let every token attend to all."""
        normed = self.norm1(tokens_ble)
        maps = (self.query, self.key, self.value)
        heads = (rearrange(linear(normed), "b l (h e) -> b h l e", h=self.num_heads) for linear in maps)
        attended = rearrange(F.scaled_dot_product_attention(*heads), "b h l e -> b l (h e)")
        return self.add_mlp(tokens_ble + self.projection(attended))


class CrossAttentionLayer(_Layer):
    """One query [E] and tokens [B, L, E] to pooled features [B, E]. It has no output projection.

    All rows have the same query, so keys and values need not be computed for every token. With z the token before the
    scale g and shift b of its norm, the logit q·(W_k (g z + b)) is (g W_kᵀ q)·z and a part that is equal for all
    tokens, which softmax ignores; and the weighted sum of W_v (g z + b) is W_v (g Σ a z + b). That is E / H times less
    work, and the same numbers up to rounding.
    """

    def forward(self, query_e: Tensor, tokens_ble: Tensor) -> Tensor:
        """Pool the tokens."""
        z_ble = F.layer_norm(tokens_ble, self.norm1.normalized_shape, eps=self.norm1.eps)
        query_h1d = rearrange(self.query(query_e), "(h d) -> h 1 d", h=self.num_heads)
        key_hde = rearrange(self.key.weight, "(h d) e -> h d e", h=self.num_heads)
        asked_he = (query_h1d @ key_hde)[:, 0] * self.norm1.weight / math.sqrt(key_hde.shape[1])
        weights_bhl = (z_ble @ asked_he.T).mT.softmax(dim=2)
        mean_bhe = (weights_bhl @ z_ble) * self.norm1.weight + self.norm1.bias
        value_hde = rearrange(self.value.weight, "(h d) e -> h d e", h=self.num_heads)
        attended_hbd = mean_bhe.transpose(0, 1) @ value_hde.mT
        return self.add_mlp(query_e + rearrange(attended_hbd, "h b d -> b (h d)") + self.value.bias)


class AttentiveProbe(nn.Module):
    """Tokens [B, L, E] to logits [B, C].

    Args:
        dim: E.
        num_heads: Heads of every layer; they divide E.
        depth: Number of layers: one of cross-attention after ``depth - 1`` of self-attention.
        num_classes: C.
        num_positions: L if a learned vector for each token's place and time is added to it; 0 if not. V-JEPA's tokens
            say where they are; those of convolutions do not.

    Example:
        >>> AttentiveProbe(dim=8, num_heads=2, depth=2, num_classes=3)(torch.zeros(5, 7, 8)).shape
        torch.Size([5, 3])
    """

    def __init__(self, *, dim: int, num_heads: int, depth: int, num_classes: int, num_positions: int = 0) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(num_positions, dim)) if num_positions else None
        self.query_token = nn.Parameter(torch.empty(dim))
        self.layers = nn.ModuleList(SelfAttentionLayer(dim, num_heads) for _ in range(depth - 1))
        self.pooling = CrossAttentionLayer(dim, num_heads)
        self.linear = nn.Linear(dim, num_classes)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
                nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.query_token, std=INITIAL_STD)
        # What layer i adds to its input starts smaller, the deeper it is.
        for number, layer in enumerate([*self.layers, self.pooling], start=1):
            layer.mlp[2].weight.div_(math.sqrt(2 * number))
            if isinstance(layer, SelfAttentionLayer):
                layer.projection.weight.div_(math.sqrt(2 * number))

    def forward(self, tokens_ble: Tensor) -> Tensor:
        """Pool the tokens and classify."""
        if self.positions is not None:
            tokens_ble = tokens_ble + self.positions
        for layer in self.layers:
            tokens_ble = layer(tokens_ble)
        logits: Tensor = self.linear(self.pooling(self.query_token, tokens_ble))
        return logits


@dataclass(frozen=True)
class TokenRows:
    """Some rows of a large tensor of tokens, and their classes.

    Example:
        >>> rows = TokenRows(torch.zeros(4, 6), positions=torch.tensor([0, 1, 3]), labels=torch.zeros(3), token_dim=2)
        >>> len(rows), rows.batch(torch.tensor([1, 2]), torch.device("cpu")).shape
        (3, torch.Size([2, 3, 2]))
    """

    values: Tensor
    """[M, L * E] of any floating type, the features of one token after the other. It is not copied."""
    positions: Tensor
    """[N] int64, where the rows are in ``values``."""
    labels: Tensor
    """[N] int64."""
    token_dim: int
    """E."""

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, rows: Tensor, device: torch.device) -> Tensor:
        """Return the tokens of some rows [B] int64, as float32 [B, L, E] on a device."""
        return self.values[self.positions[rows]].to(device).float().unflatten(1, (-1, self.token_dim))


@dataclass(frozen=True)
class Rates:
    """Learning rate and weight decay of one probe."""

    lr: float
    """Peak learning rate of AdamW."""
    weight_decay: float


def train_probes(
    create: Callable[[], AttentiveProbe],
    train: TokenRows,
    grid: Sequence[Rates],
    *,
    num_epochs: int,
    seed: int,
    device: torch.device,
    on_epoch: Callable[[], None] = lambda: None,
) -> list[AttentiveProbe]:
    """Train one probe for each pair of rates, all with the same first weights and on the same batches.

    AdamW, and a cosine from the learning rate to zero without warm-up. The batch is that of the linear protocol. A
    probe of a grid ends with the weights that it would have alone.

    Args:
        create: Makes a probe; called once, after ``seed`` was set.
        train: What the probes learn from.
        grid: Learning rate and weight decay of each probe.
        num_epochs: Passes over the rows.
        seed: Of the first weights and of the order of rows.
        device: Where the probes train.
        on_epoch: Called after each pass.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = create().to(device)
    probes = [copy.deepcopy(first) for _ in grid]
    groups = [group for probe, rates in zip(probes, grid, strict=True) for group in _groups(probe, rates)]
    optimizer = torch.optim.AdamW(groups, fused=has_fused(device))
    batch_size = batch_size_for(len(train))
    num_steps, step = num_epochs * math.ceil(len(train) / batch_size), 0
    generator = torch.Generator().manual_seed(seed)
    labels_n = train.labels.to(device)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(train), generator=generator).split(batch_size):
            tokens_ble, labels_b = train.batch(rows, device), labels_n[rows.to(device)]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, peak=group["peak"], num_steps=num_steps)
            optimizer.zero_grad()
            for probe in probes:  # one graph at a time is alive
                F.cross_entropy(probe(tokens_ble), labels_b).backward()
            optimizer.step()
            step += 1
        on_epoch()
    return [probe.eval().requires_grad_(False) for probe in probes]


def _groups(probe: AttentiveProbe, rates: Rates) -> list[dict[str, Any]]:
    """Return the parameters of a probe for the optimizer: matrices, which decay, and vectors, which do not."""
    matrices = {id(layer.weight) for layer in probe.modules() if isinstance(layer, nn.Linear)}
    parts = [[value for value in probe.parameters() if (id(value) in matrices) == decays] for decays in (True, False)]
    decays = (rates.weight_decay, 0.0)
    return [
        {"params": values, "lr": rates.lr, "peak": rates.lr, "weight_decay": decay}
        for values, decay in zip(parts, decays, strict=True)
    ]


@torch.no_grad()
def score_rows(probes: Sequence[AttentiveProbe], rows: TokenRows, *, device: torch.device) -> list[Tensor]:
    """Compute the logits [N, C] of every row on the CPU, for each probe, in one pass over the tokens."""
    found: list[list[Tensor]] = [[] for _ in probes]
    for chosen in torch.arange(len(rows)).split(ROWS_AT_ONCE):
        tokens_ble = rows.batch(chosen, device)
        for logits, probe in zip(found, probes, strict=True):
            logits.append(probe(tokens_ble).cpu())
    return [torch.cat(logits) for logits in found]
