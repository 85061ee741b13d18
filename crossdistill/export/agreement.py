"""Whether an exported file gives what PyTorch gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError

MIN_COSINE = 0.99
"""Of a quantised student's embeddings in both runtimes. Convolutions agree to the bit (``integers.py``); sums of linear
layers and attention are in floating point here, and where they end almost between two integers they may go to one in
PyTorch and to the other elsewhere."""
MAX_DIFFERENCE = 1e-3
"""Of a float student's, relative to the largest value."""
INTEGER_OPERATORS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")


@dataclass(frozen=True)
class Agreement:
    """How near the outputs of an exported student are to those of PyTorch: the worst of all outputs."""

    num_clips: int
    min_cosine: float
    """Between both rows of a clip."""
    max_difference: float
    """Largest absolute one, relative to PyTorch's largest value."""
    operators: dict[str, int] = field(default_factory=dict)
    """Convolutions and products of matrices as the runtime executes them, and how many; empty if it does not say."""

    @property
    def num_integer(self) -> int:
        """Operators that compute with integers."""
        return sum(self.operators.get(name, 0) for name in INTEGER_OPERATORS)


def measure(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[float, float]:
    """Smallest cosine of two rows, and largest difference relative to the largest expected value.

    Args:
        expected: Output to [B, D].
        found: The same outputs; others or other shapes agree not at all.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in outputs.items()} for outputs in (expected, found)]
    if shapes[0] != shapes[1]:
        return -1.0, float("inf")
    cosines = [float(F.cosine_similarity(found[name], expected[name], eps=1e-12).min()) for name in expected]
    differences = [
        float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-12))
        for name in expected
    ]
    return min(cosines), max(differences)


def require_agreement(encoder: Encoder, agreement: Agreement, *, where: str, min_cosine: float = MIN_COSINE) -> None:
    """Refuse a file whose outputs differ too much.

    Args:
        encoder: Of which it was made.
        agreement: What was found.
        where: Whose outputs they are, for example ``onnxruntime``.
        min_cosine: The smallest that is allowed.

    Raises:
        UserError: They differ.
    """
    max_difference = MAX_DIFFERENCE if encoder.bits is None else float("inf")
    if agreement.min_cosine >= min_cosine and agreement.max_difference <= max_difference:  # false of NaN as well
        return
    raise UserError(
        f"{where}'s outputs of {encoder.name} differ from PyTorch's (cosine {agreement.min_cosine:.4f}, "
        f"allowed {min_cosine}; largest difference {agreement.max_difference:.2g} of the largest value, allowed "
        f"{max_difference:g}), so nothing was written: compare on real clips (--data), train on, or allow a smaller "
        "cosine with --min-cosine"
    )
