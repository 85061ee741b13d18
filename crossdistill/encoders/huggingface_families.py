"""Families of Hugging Face's networks, with the facts that their configurations do not contain.

Shapes: B batch, T frames, D features, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from crossdistill.errors import require_package
from crossdistill.modalities import IMAGE


# Exported model cards print the first lines of the next three docstrings after "the features are" (export/hf.py).
def class_token(output: Any) -> Tensor:
    """The class token [B, D] after the last normalisation."""
    return output.last_hidden_state[:, 0]


def mean_of_tokens(output: Any) -> Tensor:
    """The mean over all tokens, [B, D]."""
    return output.last_hidden_state.mean(dim=1)


def pooled(output: Any) -> Tensor:
    """The network's own pooled output [B, D], or the mean over its tokens or grid if it has none."""
    features: Tensor | None = getattr(output, "pooler_output", None)
    if features is not None:
        return features.flatten(1)
    last = output.last_hidden_state
    return last.mean(dim=1) if last.dim() == 3 else last.flatten(2).mean(dim=2)


def _tubelet(config: Any) -> int:
    size = config.tubelet_size
    return int(size if isinstance(size, int) else size[0])


@dataclass(frozen=True)
class Family:
    """One kind of network, a ``model_type`` of the library."""

    features: Callable[[Any], Tensor] = pooled
    """Maps the network's output to [B, D]."""
    stride: int | None = None
    """Distance between frames in the training of the published weights; None for networks of pictures."""
    mean: tuple[float, ...] = IMAGE.mean
    """Mean of the preprocessing. It counts, like the next three, where the model comes without a description of it."""
    std: tuple[float, ...] = IMAGE.std
    rescale: float = 1 / 255
    """Factor of a byte before mean and standard deviation."""
    offset: float = 0.0
    """Value that is subtracted after that factor."""
    resizing: Mapping[str, Any] | None = field(default_factory=dict)
    """Arguments of a call with views of another size. None: position embeddings fit one size and number of frames, so
    these go into the configuration."""
    build: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the constructor."""
    forward: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of every call."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Replacements of values of the configuration."""
    has_tokens: bool = True
    frames_per_token: Callable[[Any], int] = lambda config: 1
    """Number of frames that one token spans, from the configuration."""
    num_class_tokens: int = 1
    """Number of class tokens before the grid; the configuration has the number of registers after them."""
    is_time_last: bool = False
    """Whether the tokens are in the order of rows, columns, time."""


_HALF = (0.5, 0.5, 0.5)
_INTERPOLATED = {"interpolate_pos_encoding": True}
_NO_POOLER: dict[str, Any] = {"add_pooling_layer": False}
_VIDEOMAE = Family(mean_of_tokens, stride=4, resizing=None, frames_per_token=_tubelet, num_class_tokens=0)

FAMILIES: dict[str, Family] = {
    # 16 frames, stride 4. Its classifier takes the mean, after a norm of its own.
    "videomae": _VIDEOMAE,
    # 64 frames, stride 4 as in its evaluations. The library's attentive pooler is a part of the classifier.
    "vjepa2": replace(_VIDEOMAE, forward={"skip_predictor": True}),
    # 8 frames, stride 32.
    "timesformer": Family(
        class_token, stride=32, mean=(0.45, 0.45, 0.45), std=(0.225, 0.225, 0.225), resizing=None, is_time_last=True
    ),
    # 32 frames, stride 2. Bytes are scaled to [-1, 1] before normalisation. Its published weights have no pooler.
    "vivit": Family(
        class_token,
        stride=2,
        mean=_HALF,
        std=_HALF,
        rescale=1 / 127.5,
        offset=1.0,
        resizing=None,
        build=_NO_POOLER,
        frames_per_token=_tubelet,
    ),
    "dinov2": Family(class_token),
    "dinov2_with_registers": Family(class_token),
    "dinov3_vit": Family(class_token),
    # Many published weights have no pooler; the others have one from pretraining.
    "vit": Family(class_token, mean=_HALF, std=_HALF, resizing=_INTERPOLATED, build=_NO_POOLER),
    # Its own ratio masks three quarters of every picture. It shuffles the tokens at any ratio.
    "vit_mae": Family(class_token, resizing=_INTERPOLATED, settings={"mask_ratio": 0.0}, has_tokens=False),
    "clip_vision_model": Family(
        mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), resizing=_INTERPOLATED
    ),
    "siglip_vision_model": Family(mean=_HALF, std=_HALF, resizing=_INTERPOLATED, num_class_tokens=0),
}
"""Families by ``model_type``. Strides, means and deviations are those of the papers and preprocessing of the published
weights."""
_OTHER = Family(has_tokens=False)


def family_of(config: Any) -> Family:
    """Return the family of a configuration's ``model_type``; one that is not listed has no tokens."""
    return FAMILIES.get(config.model_type, _OTHER)


def quiet_transformers(target: str) -> Any:
    """Import transformers for ``target``, without its progress bars and warnings; our errors quote its messages."""
    transformers = require_package("transformers", target=target, extra="hf")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


class Features(nn.Module):
    """Maps a model's output to features; it has no weights, so it adds no names to the library's.

    Its child ``tokens`` is an identity that sees the tokens [B, N, D] in the order of time, rows, columns, for hooks.
    """

    def __init__(self, family: Family, num_frames: int) -> None:
        super().__init__()
        self.pool = family.features
        self.is_time_last = family.is_time_last
        self.num_frames = num_frames
        self.tokens = nn.Identity()

    def forward(self, output: Any) -> Tensor:
        """Map a model's output to [B, D]."""
        last = output.last_hidden_state
        if self.is_time_last:
            grid = rearrange(last[:, 1:], "b (s t) d -> b (t s) d", t=self.num_frames)
            last = torch.cat([last[:, :1], grid], dim=1)
        self.tokens(last)
        return self.pool(output)
