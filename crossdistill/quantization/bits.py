"""Bit widths of a quantised network: ``w4a8`` means 4-bit weights and 8-bit activations."""

from __future__ import annotations

import re
from dataclasses import dataclass

from crossdistill.errors import UserError

MIN_BITS, MAX_BITS = 2, 8
_SPEC = re.compile(r"w([1-9]\d*)a([1-9]\d*)")


@dataclass(frozen=True)
class BitWidths:
    """Number of bits of the weights and of the activations of a quantised network."""

    weight_bits: int
    activation_bits: int

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.activation_bits}"


def parse_bit_widths(text: str) -> BitWidths:
    """Parse ``w4a8``; another form, or a width that is not in 2..8, is a ``UserError``."""
    match = _SPEC.fullmatch(text)
    widths = [int(digits) for digits in match.groups()] if match else []
    if not match or not all(MIN_BITS <= width <= MAX_BITS for width in widths):
        raise UserError(
            f"{text!r} is not a supported bit width: give wXaY with X bits for weights and Y for activations, each "
            f"{MIN_BITS} to {MAX_BITS}, for example w4a8"
        )
    return BitWidths(*widths)
