"""Comparison of an exported file's outputs with PyTorch's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError

MAX_DIFFERENCE = 1e-3  # of a float student's outputs, relative to the largest value


@dataclass(frozen=True)
class ExportAgreement:
    """Agreement of an exported student's outputs with PyTorch's: the worst over all outputs."""

    num_clips: int
    min_cosine: float
    """Smallest cosine between both rows of a clip."""
    max_difference: float
    """Largest absolute difference, relative to PyTorch's largest value."""
    operators: dict[str, int] = field(default_factory=dict)
    """Convolutions and matrix products that the runtime executes, to their number; empty if the runtime hides them."""


def compare_outputs(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the smallest cosine of two rows, and the largest difference relative to the largest expected value.

    Both map the name of each output to [B, D]. Other names or shapes in ``found`` give -1 and infinity.
    """
    shapes = [{name: tensor.shape for name, tensor in outputs.items()} for outputs in (expected, found)]
    if shapes[0] != shapes[1]:
        return -1.0, float("inf")
    pairs = [(wanted, found[name]) for name, wanted in expected.items()]
    cosines = [float(F.cosine_similarity(given, wanted, eps=1e-12).min()) for wanted, given in pairs]
    differences = [(given - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12) for wanted, given in pairs]
    return min(cosines), float(max(differences))


def require_agreement(encoder: Encoder, agreement: ExportAgreement, *, runtime: str, min_cosine: float) -> None:
    """Raise a ``UserError`` if the outputs of a student's exported file differ too much in a runtime."""
    max_difference = MAX_DIFFERENCE if encoder.bits is None else float("inf")
    # Both comparisons are false for NaN, so a file with NaN outputs is refused.
    if agreement.min_cosine >= min_cosine and agreement.max_difference <= max_difference:
        return
    raise UserError(
        f"the outputs of {encoder.name} in {runtime} differ from PyTorch's (cosine {agreement.min_cosine:.4f}, "
        f"allowed {min_cosine}; largest difference {agreement.max_difference:.2g} of the largest value, allowed "
        f"{max_difference:g}), so nothing was written: compare on real clips (--data), train longer, or allow a "
        "smaller cosine (--min-cosine)"
    )
