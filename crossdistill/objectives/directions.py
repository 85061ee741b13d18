"""Rows that have a direction, for objectives that compare directions."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_LENGTH = 1e-6
"""Below it a row is noise of float32 around zero: features are of the order of 1."""


def hold_short(rows: Tensor, *, dim: int = 1) -> Tensor:
    """The same rows, but without gradients for those that are too short to have a direction.

    The gradient of ``x / ‖x‖`` grows as ``1 / ‖x‖``: a row of zeros, of a head that is dead for one sample, would get
    one of 1e12 (the eps of ``normalize``), finite and larger than all others together. A larger eps would give such
    rows a smaller gradient that points nowhere either, and change the values of short rows; here no value changes.

    Args:
        rows: [..., D, ...], the student's, before they are normalised.
        dim: Of D.
    """
    is_short = torch.linalg.vector_norm(rows.detach(), dim=dim, keepdim=True) < MIN_LENGTH
    return torch.where(is_short, rows.detach(), rows)
