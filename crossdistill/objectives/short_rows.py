"""Stop the gradient of rows whose length is near zero, for losses that normalise rows."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_LENGTH = 1e-6
"""Features have lengths of order 1; a shorter row than this is float32 rounding noise."""


def detach_short_rows(rows: Tensor, *, dim: int = 1) -> Tensor:
    """Return the same values, and stop the gradient of rows shorter than ``MIN_LENGTH``.

    The gradient of ``x / ‖x‖`` grows with ``1 / ‖x‖``. A row of zeros (a dead head) would receive a finite gradient of
    up to 1e12, because ``F.normalize`` clamps the length to 1e-12, and that gradient would swamp all others. A larger
    clamp would change the values of short rows and still give them a gradient without a meaningful direction.

    Args:
        rows: [..., D, ...] features of the student before normalisation.
        dim: Dimension of D.

    Example:
        >>> rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
        >>> torch.nn.functional.normalize(detach_short_rows(rows), dim=1)[:, 0].sum().backward()
        >>> rows.grad
        tensor([[ 0.1280, -0.0960],
                [ 0.0000,  0.0000]])
    """
    is_short = torch.linalg.vector_norm(rows.detach(), dim=dim, keepdim=True) < MIN_LENGTH
    return torch.where(is_short, rows.detach(), rows)
