"""Heads from an encoder's space to the objective's. They are trained with the student, then dropped.

Shapes: B batch, D student features, E teacher features, S student token channels, T H W the grid of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError, unknown_name
from crossdistill.objectives.objective import Compares

NUM_ATTENTION_HEADS = 4


@dataclass(frozen=True)
class Sizes:
    """What an adapter has to know of an encoder; derived, never typed."""

    embed_dim: int
    tokens: tuple[int, int, int, int] | None = None
    """(channels, T, H, W) of its features before pooling; None where nobody asked for them."""
    num_classes: int | None = None
    """N, if its weights came with a classifier."""

    @staticmethod
    def of(encoder: Encoder, *, with_tokens: bool = False) -> Sizes:
        """Find the sizes of an encoder; tokens by running it on tensors without content.

        Raises:
            UserError: Tokens are wanted of an encoder that has none.
        """
        num_classes = None if encoder.classifier is None else len(encoder.classifier.bias)
        if not with_tokens:
            return Sizes(encoder.embed_dim, num_classes=num_classes)
        # A real pass: some libraries keep tensors between calls, and would keep ones without values.
        was_training = encoder.training
        with torch.no_grad():
            tokens = encoder.eval().embed_with_tokens(_blank_clip(encoder))[1]
        encoder.train(was_training)
        _, channels, num_times, height, width = tokens.shape
        return Sizes(encoder.embed_dim, (channels, num_times, height, width), num_classes)


def _blank_clip(encoder: Encoder) -> Tensor:
    view, device = encoder.view, next(encoder.parameters()).device
    return torch.zeros(1, view.kind.channels, view.num_frames, view.size_px, view.size_px, device=device)


def require_trained_by_tokens(encoder: Encoder) -> None:
    """Raise a ``UserError`` if an encoder has weights on which its tokens do not depend.

    Objectives on tokens alone would leave those as they began, and several processes would wait for their gradients.
    """
    parameters = {name: value for name, value in encoder.body.named_parameters() if value.requires_grad}
    was_training = encoder.training
    with torch.enable_grad():
        tokens = encoder.eval().embed_with_tokens(_blank_clip(encoder))[1]
        gradients = torch.autograd.grad(tokens.sum(), list(parameters.values()), allow_unused=True)
    encoder.train(was_training)
    unused = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]
    if unused:
        raise UserError(
            f"{encoder.name} has {len(unused)} weights after its tokens (first: {unused[0]}), which objectives and "
            "adapters on tokens alone would never train: add an objective on embeddings, for example simreg:1"
        )


class Mlp(nn.Sequential):
    """Linear layers with BatchNorm and ReLU between them (SimReg, Navaneet et al., BMVC 2021, sec. 3).

    Args:
        in_dim: D.
        out_dim: E.
        num_layers: Linear layers; those inside have the larger of both widths.
    """

    def __init__(self, in_dim: int, out_dim: int, *, num_layers: int) -> None:
        width = max(in_dim, out_dim)
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers += [nn.Linear(in_dim, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
            in_dim = width
        super().__init__(*layers, nn.Linear(in_dim, out_dim))


class TemporalPool(nn.Module):
    """Tokens to one embedding that knows their order: mean over space, a convolution over time, mean over time.

    Args:
        in_channels: S.
        out_dim: E.
    """

    def __init__(self, in_channels: int, out_dim: int) -> None:
        super().__init__()
        self.over_time = nn.Conv1d(in_channels, in_channels, 3, padding=1, groups=in_channels)
        self.out = nn.Linear(in_channels, out_dim)

    def forward(self, tokens_bsthw: Tensor) -> Tensor:
        """[B, S, T, H, W] to [B, E]."""
        over_space = tokens_bsthw.mean(dim=(3, 4))
        moved = over_space + F.relu(self.over_time(over_space))
        output: Tensor = self.out(moved.mean(dim=2))
        return output


class AttentionPool(nn.Module):
    """Tokens to one embedding: a learned query looks at all of them.

    Args:
        in_channels: S.
        out_dim: E.
    """

    def __init__(self, in_channels: int, out_dim: int) -> None:
        super().__init__()
        heads = NUM_ATTENTION_HEADS if in_channels % NUM_ATTENTION_HEADS == 0 else 1
        self.query = nn.Parameter(torch.randn(1, 1, in_channels) * in_channels**-0.5)
        self.norm = nn.LayerNorm(in_channels)
        self.attention = nn.MultiheadAttention(in_channels, heads, batch_first=True)
        self.out = nn.Linear(in_channels, out_dim)

    def forward(self, tokens_bsthw: Tensor) -> Tensor:
        """[B, S, T, H, W] to [B, E]."""
        sequence = self.norm(tokens_bsthw.flatten(2).transpose(1, 2))
        query = self.query.expand(len(sequence), -1, -1)
        pooled, _ = self.attention(query, sequence, sequence, need_weights=False)
        output: Tensor = self.out(pooled[:, 0])
        return output


class GridResampler(nn.Module):
    """The student's tokens on the teacher's grid, by trilinear interpolation; nothing is trained.

    Args:
        grid: (T, H, W) of the teacher's tokens.
    """

    def __init__(self, grid: tuple[int, int, int]) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, tokens_bsthw: Tensor) -> Tensor:
        """[B, S, T, H, W] to [B, S, T', H', W']."""
        if tuple(tokens_bsthw.shape[2:]) == self.grid:
            return tokens_bsthw
        return F.interpolate(tokens_bsthw, size=self.grid, mode="trilinear", align_corners=False)


class TokenResampler(nn.Sequential):
    """The student's tokens on the teacher's grid, and a linear map of their channels.

    Args:
        in_channels: S.
        target: (channels, T, H, W) of the teacher's tokens.
    """

    def __init__(self, in_channels: int, target: tuple[int, int, int, int]) -> None:
        super().__init__(GridResampler(target[1:]), nn.Conv3d(in_channels, target[0], 1))


@dataclass(frozen=True)
class Adapter:
    """One kind of head."""

    build: Callable[[Sizes, Sizes], nn.Module]
    """Student's and teacher's sizes to the head."""
    takes_tokens: bool = False
    """Whether it is given the student's tokens, or its pooled features."""
    gives: Compares = "features"
    """What it makes it possible to compare."""
    keeps_dim: bool = False
    """Whether its output has the student's number of features or channels; the teacher's otherwise."""


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
    "temporal-pool": Adapter(
        lambda student, teacher: TemporalPool(_tokens(student)[0], teacher.embed_dim), takes_tokens=True
    ),
    "attention-pool": Adapter(
        lambda student, teacher: AttentionPool(_tokens(student)[0], teacher.embed_dim), takes_tokens=True
    ),
    "tokens": Adapter(
        lambda student, teacher: TokenResampler(_tokens(student)[0], _tokens(teacher)),
        takes_tokens=True,
        gives="tokens",
    ),
    "classifier": Adapter(
        lambda student, teacher: nn.Linear(student.embed_dim, teacher.num_classes or 0), gives="logits"
    ),
    "labels": Adapter(lambda student, labels: nn.Linear(student.embed_dim, labels.num_classes or 0), gives="labels"),
    "grid": Adapter(
        lambda student, teacher: GridResampler(_tokens(teacher)[1:]),
        takes_tokens=True,
        gives="tokens",
        keeps_dim=True,
    ),
}


def get_adapter(kind: str) -> Adapter:
    """Look up an adapter by name; an unknown one is a ``UserError`` that lists the known ones."""
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
    """Raise a ``UserError`` for an adapter that cannot stand between two encoders for an objective.

    Args:
        kind: One of ``ADAPTERS``.
        student: Read for its sizes, and so is the teacher.
        teacher: See there.
        compares: What the objective is given.
        needs_teacher_dim: Whether the objective subtracts embeddings or multiplies them, so that they need one size.
        is_loaded: Whether the teacher has its weights, and so its classifier, if it is to have one.
    """
    adapter = get_adapter(kind)
    if adapter.gives != compares:
        fitting = ", ".join(name for name, other in ADAPTERS.items() if other.gives == compares)
        raise UserError(f"the adapter {kind} does not give what the objective compares ({compares}): choose {fitting}")
    if adapter.takes_tokens:
        student.require_tokens()
    if compares == "tokens":
        teacher.require_tokens()
    if compares == "logits" and is_loaded and teacher.classifier is None:
        raise UserError(
            f"the objective compares class probabilities, and the weights of {teacher.name} came without a linear "
            "classifier: give weights with one, or choose an objective on embeddings, for example compress-1q or simreg"
        )
    keeps = adapter.keeps_dim and needs_teacher_dim and compares == "features"
    if keeps and student.embed_dim != teacher.embed_dim:
        raise UserError(
            f"the adapter {kind} keeps the student's {student.embed_dim} features, and the objective compares them "
            f"with the teacher's {teacher.embed_dim}: choose linear, mlp2, mlp3, mlp4, temporal-pool or attention-pool"
        )


class Head(nn.Module):
    """A module on the student's features or tokens.

    Args:
        module: Maps [B, D], or tokens [B, S, T, H, W], to what a term of the loss compares.
        takes_tokens: Which of the two it is given.
    """

    def __init__(self, module: nn.Module, *, takes_tokens: bool = False) -> None:
        super().__init__()
        self.module = module
        self.takes_tokens = takes_tokens


class Tower(nn.Module):
    """An encoder and the heads on it, in one module, so that exactly what is trained is wrapped."""

    def __init__(self, encoder: Encoder, heads: Mapping[str, Head]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(dict(heads))
        self.needs_tokens = any(head.takes_tokens for head in heads.values())

    def forward(self, clip_bcthw: Tensor) -> dict[str, Tensor]:
        """Normalised views [B, C, T, H, W] to every head's output."""
        features, tokens = embed(self.encoder, clip_bcthw, with_tokens=self.needs_tokens)
        outputs: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            given = tokens if head.takes_tokens else features
            assert given is not None
            outputs[name] = head.module(given.float())  # heads are float32 whatever the encoder is
        return outputs


def embed(encoder: Encoder, clip_bcthw: Tensor, *, with_tokens: bool) -> tuple[Tensor, Tensor | None]:
    """[B, D], and the tokens [B, S, T, H, W] where they are wanted."""
    return encoder.embed_with_tokens(clip_bcthw) if with_tokens else (encoder(clip_bcthw), None)
