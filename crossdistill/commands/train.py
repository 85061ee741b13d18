"""``crossdistill train`` and ``train.py``: train a student from a teacher, or with labels."""

from __future__ import annotations

from collections.abc import Sequence

from crossdistill.recipes.config import parse
from crossdistill.recipes.run import run


def main(arguments: Sequence[str], *, prog: str = "crossdistill train") -> None:
    """Run the command."""
    run(parse(list(arguments), prog=prog))
