"""Heads map the student's features to what an objective compares. They train with the student and are then dropped.

Shapes: B batch, D student features, E teacher features, S student token channels, T H W the grid of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.distillation.student_with_heads import HeadInput
from crossdistill.encoders import Encoder
from crossdistill.encoders.tokens import Grid, pool_tokens
from crossdistill.errors import UserError, unknown_name
from crossdistill.objectives.objective import Compares
from crossdistill.utils.modules import eval_mode

NUM_ATTENTION_HEADS = 4
LAST_RUNG_FACTOR = 4


@dataclass(frozen=True)
class Sizes:
    """The sizes of an encoder that an adapter needs to build a head."""

    embed_dim: int
    tokens: tuple[int, int, int, int] | None = None
    """(channels, T, H, W) of the features before pooling; None if they were not asked for."""
    num_classes: int | None = None
    """N, if the encoder's weights came with a classifier."""
    blocks: tuple[int, ...] = ()
    """Channels of each block before the last one; empty if they were not asked for."""
    pooled_from: Grid | None = None
    """The grid from which the tokens were pooled; None for tokens as the network has them."""

    @staticmethod
    def of(encoder: Encoder, *, with_tokens: bool = False, with_blocks: bool = False) -> Sizes:
        """Read the sizes of an encoder; those of its tokens and blocks by running it on a blank clip.

        Raises:
            UserError: Tokens or blocks are needed, and the encoder has none.
        """
        num_classes = encoder.num_classes
        blocks = tuple(block.channels for block in encoder.require_blocks()) if with_blocks else ()
        if not with_tokens:
            return Sizes(encoder.embed_dim, num_classes=num_classes, blocks=blocks)
        return Sizes(encoder.embed_dim, encoder.token_shape(), num_classes, blocks, encoder.pooled_from)


def require_trained_by_tokens(encoder: Encoder) -> None:
    """Raise a ``UserError`` if an encoder has weights on which its tokens do not depend.

    Objectives on tokens alone would never train those, and DistributedDataParallel would wait for their gradients.
    """
    parameters = {name: value for name, value in encoder.body.named_parameters() if value.requires_grad}
    with torch.enable_grad(), eval_mode(encoder):
        tokens = encoder.embed_with_tokens(encoder.blank_clip())[1]
        gradients = torch.autograd.grad(tokens.sum(), list(parameters.values()), allow_unused=True)
    unused = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if unused:
        raise UserError(
            f"{encoder.name} has {len(unused)} weights after its tokens (first: {unused[0]}), and objectives on tokens "
            "alone would never train them: add an objective on pooled features, for example simreg:1"
        )


class Mlp(nn.Sequential):
    """Linear layers with BatchNorm and ReLU between them (SimReg, Navaneet et al., BMVC 2021, sec. 3).

    Args:
        in_dim: D.
        out_dim: Number of output features E.
        num_layers: Number of linear layers; the hidden ones have width max(D, E).
    """

    def __init__(self, in_dim: int, out_dim: int, *, num_layers: int) -> None:
        width = max(in_dim, out_dim)
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers += [nn.Linear(in_dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
            in_dim = width
        super().__init__(*layers, nn.Linear(in_dim, out_dim))


class Ladder(nn.Module):
    """The sum of MLPs on the blocks of the student (Sariyildiz et al., UNIC, ECCV 2024, arXiv 2408.05088, sec. 3).

    Each MLP has two linear layers and GELU. UNIC's student is a ViT-B with 768 features; its heads have a hidden layer
    of 768 features, and the head on the last block one of 3072. Here these are once and four times the student's number
    of features. Deviations: a block's output is averaged over places and times, where UNIC takes its class token; the
    last head takes the student's features instead of the last block, so that the layers after it train too.

    Args:
        block_dims: Number of channels of each block before the last one.
        in_dim: Number of the student's features D.
        out_dim: Number of output features E.
    """

    def __init__(self, block_dims: Sequence[int], in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.in_dims = [*block_dims, in_dim]
        widths = [in_dim] * len(block_dims) + [LAST_RUNG_FACTOR * in_dim]
        self.rungs = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, out_dim))
            for dim, width in zip(self.in_dims, widths, strict=True)
        )

    def forward(self, blocks_and_features: Tensor) -> Tensor:
        """Map [B, C_1 + ... + C_n + D], the pooled blocks and the features, to [B, E]."""
        parts = blocks_and_features.split(self.in_dims, dim=1)
        return torch.stack([rung(part) for rung, part in zip(self.rungs, parts, strict=True)]).sum(dim=0)


class TemporalPool(nn.Module):
    """Pool tokens with regard to their order: mean over space, a convolution over time, mean over time.

    Args:
        in_channels: Number of input channels S.
        out_dim: Number of output features E.
    """

    def __init__(self, in_channels: int, out_dim: int) -> None:
        super().__init__()
        self.over_time = nn.Conv1d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.out = nn.Linear(in_channels, out_dim)

    def forward(self, tokens_bsthw: Tensor) -> Tensor:
        """Map tokens [B, S, T, H, W] to [B, E]."""
        over_space = tokens_bsthw.mean(dim=(3, 4))
        moved = over_space + F.relu(self.over_time(over_space))
        output: Tensor = self.out(moved.mean(dim=2))
        return output


class AttentionPool(nn.Module):
    """Pool tokens by attention: one learned query attends to all of them.

    Args:
        in_channels: Number of input channels S.
        out_dim: Number of output features E.
    """

    def __init__(self, in_channels: int, out_dim: int) -> None:
        super().__init__()
        heads = NUM_ATTENTION_HEADS if in_channels % NUM_ATTENTION_HEADS == 0 else 1
        self.query = nn.Parameter(torch.randn(1, 1, in_channels) * in_channels**-0.5)
        self.norm = nn.LayerNorm(in_channels)
        self.attention = nn.MultiheadAttention(in_channels, heads, batch_first=True)
        self.out = nn.Linear(in_channels, out_dim)

    def forward(self, tokens_bsthw: Tensor) -> Tensor:
        """Map tokens [B, S, T, H, W] to [B, E]."""
        sequence = self.norm(tokens_bsthw.flatten(2).transpose(1, 2))
        query = self.query.expand(len(sequence), -1, -1)
        pooled, _ = self.attention(query, sequence, sequence, need_weights=False)
        output: Tensor = self.out(pooled[:, 0])
        return output


class GridResampler(nn.Module):
    """Resample the student's tokens to the teacher's grid by trilinear interpolation; nothing is trained.

    If the teacher's tokens were pooled to a coarser grid, the student's are resampled to the grid before, and then
    pooled in the same way.

    Args:
        grid: (T, H, W) of the teacher's tokens.
        pooled_from: The grid from which the teacher's tokens were pooled; None for tokens as the network has them.
    """

    def __init__(self, grid: Grid, pooled_from: Grid | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.pooled_from = pooled_from or grid

    def forward(self, tokens_bsthw: Tensor) -> Tensor:
        """Map tokens [B, S, T, H, W] to [B, S, T', H', W']."""
        if tuple(tokens_bsthw.shape[2:]) != self.pooled_from:
            tokens_bsthw = F.interpolate(tokens_bsthw, size=self.pooled_from, mode="trilinear", align_corners=False)
        return pool_tokens(tokens_bsthw, self.grid)


class TokenResampler(nn.Sequential):
    """Resample the student's tokens to the teacher's grid, and map their channels linearly.

    Args:
        in_channels: Number of input channels S.
        target: (channels, T, H, W) of the teacher's tokens.
        pooled_from: See ``GridResampler``.
    """

    def __init__(self, in_channels: int, target: tuple[int, int, int, int], pooled_from: Grid | None = None) -> None:
        super().__init__(GridResampler(target[1:], pooled_from), nn.Conv3d(in_channels, target[0], 1))


@dataclass(frozen=True)
class Adapter:
    """One kind of head, which ``--adapter`` names."""

    build: Callable[[Sizes, Sizes], nn.Module]
    """Builds the head from the student's and the teacher's sizes."""
    takes: HeadInput = "features"
    """Input of the head."""
    gives: Compares = "features"
    """What the head's output can be compared with."""
    keeps_dim: bool = False
    """Whether the output has as many features as the student; as many as the teacher otherwise."""


def _tokens(sizes: Sizes) -> tuple[int, int, int, int]:
    assert sizes.tokens is not None, "Sizes.of(..., with_tokens=True)"
    return sizes.tokens


def _mlp(student: Sizes, teacher: Sizes, *, num_layers: int) -> nn.Module:
    return Mlp(student.embed_dim, teacher.embed_dim, num_layers=num_layers)


ADAPTERS: dict[str, Adapter] = {
    "identity": Adapter(lambda student, teacher: nn.Identity(), keeps_dim=True),
    "linear": Adapter(lambda student, teacher: nn.Linear(student.embed_dim, teacher.embed_dim)),
    "mlp2": Adapter(partial(_mlp, num_layers=2)),
    "mlp3": Adapter(partial(_mlp, num_layers=3)),
    "mlp4": Adapter(partial(_mlp, num_layers=4)),
    "ladder": Adapter(
        lambda student, teacher: Ladder(student.blocks, student.embed_dim, teacher.embed_dim), takes="blocks"
    ),
    "temporal-pool": Adapter(
        lambda student, teacher: TemporalPool(_tokens(student)[0], teacher.embed_dim), takes="tokens"
    ),
    "attention-pool": Adapter(
        lambda student, teacher: AttentionPool(_tokens(student)[0], teacher.embed_dim), takes="tokens"
    ),
    "tokens": Adapter(
        lambda student, teacher: TokenResampler(_tokens(student)[0], _tokens(teacher), teacher.pooled_from),
        takes="tokens",
        gives="tokens",
    ),
    "classifier": Adapter(
        lambda student, teacher: nn.Linear(student.embed_dim, teacher.num_classes or 0), gives="logits"
    ),
    "labels": Adapter(lambda student, labels: nn.Linear(student.embed_dim, labels.num_classes or 0), gives="labels"),
    "grid": Adapter(
        lambda student, teacher: GridResampler(_tokens(teacher)[1:], teacher.pooled_from),
        takes="tokens",
        gives="tokens",
        keeps_dim=True,
    ),
}


def get_adapter(kind: str) -> Adapter:
    """Look up an adapter by name; raise a ``UserError`` that lists all names if it is unknown."""
    if kind not in ADAPTERS:
        raise unknown_name("adapter", kind, ADAPTERS)
    return ADAPTERS[kind]


def require_fit(
    kind: str,
    *,
    student: Encoder,
    teacher: Encoder,
    compares: Compares,
    needs_teacher_dim: bool,
    is_loaded: bool = True,
) -> None:
    """Raise a ``UserError`` if an adapter cannot connect a student and a teacher for an objective.

    Args:
        kind: One of ``ADAPTERS``.
        student: The student; only its sizes are read.
        teacher: The teacher; only its sizes and its classifier are read.
        compares: Kind of outputs that the objective compares.
        needs_teacher_dim: Whether the objective needs embeddings of equal size on both sides.
        is_loaded: Whether the teacher's weights are loaded; before that nobody knows if it has a classifier.
    """
    adapter = get_adapter(kind)
    if adapter.gives != compares:
        fitting = ", ".join(name for name, other in ADAPTERS.items() if other.gives == compares)
        raise UserError(
            f"the adapter {kind} gives {adapter.gives}, and the objective compares {compares}: choose {fitting}"
        )
    if adapter.takes == "tokens":
        student.require_tokens()
    if adapter.takes == "blocks":
        student.require_blocks()
    if compares == "tokens":
        teacher.require_tokens()
    if compares == "logits" and is_loaded and teacher.num_classes is None:
        raise UserError(
            f"the objective compares class probabilities, and the weights of {teacher.name} came without a linear "
            "classifier: give weights with one, or choose an objective on embeddings, for example compress-1q or simreg"
        )
    if compares == "logits" and is_loaded and teacher.num_classes == 1:
        raise UserError(
            f"the objective compares class probabilities, and the classifier of {teacher.name} has one class: choose "
            "an objective on embeddings, for example compress-1q or simreg"
        )
    keeps = adapter.keeps_dim and needs_teacher_dim and compares == "features"
    if keeps and student.embed_dim != teacher.embed_dim:
        raise UserError(
            f"the adapter {kind} keeps the student's {student.embed_dim} features, and the objective needs as many as "
            f"the teacher's {teacher.embed_dim}: choose linear, mlp2, mlp3, mlp4, ladder, temporal-pool or "
            "attention-pool"
        )
