"""Sizes of files as people write them."""

from __future__ import annotations

import re

from crossdistill.errors import UserError

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str, *, option: str) -> int:
    """Return the bytes of a size such as 1GB or 200MB; a ``UserError`` names the option.

    Example:
        >>> parse_size("1.5GB", option="--shard-size")
        1500000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise UserError(f"{option} is {text!r}: give a number and a unit, for example 1GB or 200MB")
    return int(float(match[1]) * UNITS[(match[2] or "B").upper()])
