"""Tokens: the features that a network has for each place and time before it pools them.

Shapes: B batch, C channels, T frames, H height, W width, N tokens, E token features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from crossdistill.errors import UserError
from crossdistill.modalities import IMAGE

Grid = tuple[int, int, int]
"""Number of tokens over time, in rows and in columns: (T, H, W)."""


@dataclass(frozen=True)
class TokenLayer:
    """The module of a network whose output is its tokens."""

    module: str
    """Name of the module in the body."""
    layout: Literal["channels-first", "channels-last", "sequence"] = "channels-first"
    """Shape of the output: [B, E, T, H, W], [B, T, H, W, E] (without T in a network of single frames), or [B, N, E].
    A sequence holds ``num_prefix`` class and register tokens, then the grid in the order of time, rows, columns."""
    frames_per_token: int = 1
    """Number of frames that one token of a sequence spans."""
    num_prefix: int = 0
    """Number of tokens before the grid in a sequence."""


def arrange_tokens(output: Tensor, layer: TokenLayer, *, num_frames: int, is_per_frame: bool) -> Tensor:
    """Bring the output of a token layer into the layout [B, E, T', H', W'], on the network's own grid.

    Args:
        output: Output of the layer; the first axis of a network of single frames is batch times frames.
        layer: Describes the output.
        num_frames: T of the clip.
        is_per_frame: Whether the network takes single frames.

    Example:
        >>> layer = TokenLayer("blocks", "sequence", num_prefix=1)
        >>> arrange_tokens(torch.zeros(2, 17, 8), layer, num_frames=4, is_per_frame=False).shape
        torch.Size([2, 8, 4, 2, 2])
    """
    if layer.layout == "sequence":
        num_times = 1 if is_per_frame else max(1, num_frames // layer.frames_per_token)
        grid = output[:, layer.num_prefix :]
        side = math.isqrt(grid.shape[1] // num_times)
        if num_times * side * side != grid.shape[1]:
            raise ValueError(f"{grid.shape[1]} tokens do not form {num_times} square grids")
        output = rearrange(grid, "b (t h w) e -> b t h w e", t=num_times, h=side)
    if layer.layout != "channels-first":
        output = output.movedim(-1, 1)
    if is_per_frame:  # a sequence has a time axis of length 1 here, and a grid has none
        return rearrange(output.squeeze(2) if output.dim() == 5 else output, "(b t) e h w -> b e t h w", t=num_frames)
    return output


def parse_grid(text: str, *, option: str) -> Grid:
    """Read a grid of tokens such as ``1x4x4``: times, rows, columns; anything else is a ``UserError``.

    Example:
        >>> parse_grid("1x4x4", option="--tokens")
        (1, 4, 4)
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option} is {text!r}: give times x rows x columns, for example 1x4x4, or own")
    num_times, height, width = map(int, parts)
    return num_times, height, width


def grid_text(grid: Grid) -> str:
    """Write a grid as ``parse_grid`` reads it."""
    return "x".join(map(str, grid))


def pool_tokens(tokens: Tensor, grid: Grid) -> Tensor:
    """Average tokens [B, E, T, H, W] over the cells of a coarser grid."""
    return tokens if tuple(tokens.shape[2:]) == grid else F.adaptive_avg_pool3d(tokens, grid)


def find_token_layer(body: nn.Module, *, channels: int, size_px: int) -> TokenLayer | None:
    """Find the last module of a network of pictures whose output is a square grid or a sequence of tokens.

    The body is on the meta device and has ``channels`` features before pooling. ``size_px`` must give a grid over 1x1.
    """
    found: list[TokenLayer] = []

    def look(name: str, output: Any) -> None:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else ()
        if len(shape) == 4 and shape[1] == channels and shape[2] == shape[3] > 1:
            found.append(TokenLayer(name, "channels-first"))
        elif len(shape) == 4 and shape[3] == channels and shape[1] == shape[2] > 1:
            found.append(TokenLayer(name, "channels-last"))
        elif len(shape) == 3 and shape[2] == channels and shape[1] > 1:
            # What is left over from the largest square grid are class and register tokens.
            prefix = getattr(body, "num_prefix_tokens", shape[1] - math.isqrt(shape[1]) ** 2)
            found.append(TokenLayer(name, "sequence", num_prefix=prefix))

    hooks = [
        module.register_forward_hook(lambda module, inputs, output, name=name: look(name, output))
        for name, module in body.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            body(torch.empty(1, IMAGE.channels, size_px, size_px, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1] if found else None
