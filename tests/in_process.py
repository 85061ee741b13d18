"""Commands run in this process, as ``crossdistill COMMAND`` runs them."""

from __future__ import annotations

from collections.abc import Sequence

from crossdistill.commands.main import main
from crossdistill.recipes import checks
from crossdistill.recipes.config import RunConfig
from crossdistill.recipes.teachers import teacher_sources


def train(arguments: Sequence[str]) -> None:
    """Run ``crossdistill train``."""
    main(["train", *map(str, arguments)])


def cache(arguments: Sequence[str]) -> None:
    """Run ``crossdistill cache``."""
    main(["cache", *map(str, arguments)])


def check_configuration(config: RunConfig) -> None:
    """Check a configuration as a run does before anything is made."""
    checks.check_configuration(config, teacher_sources(config))
