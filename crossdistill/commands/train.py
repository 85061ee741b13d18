"""``crossdistill train`` and ``train.py``: train a student from a teacher, or with labels."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

from crossdistill.errors import Stopped
from crossdistill.recipes.config import RunConfig, parse
from crossdistill.utils.command_line import Options, parse_known_options
from crossdistill.utils.environment import command_as_typed


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    config = parse(list(arguments), prog=prog)
    from crossdistill.recipes.run import run  # imports torch, for which --help need not wait

    words = command_as_typed(arguments, prog=prog)  # now: Ctrl-C may end the launcher first
    try:
        run(config)
    except Stopped as stopped:
        if not stopped.needs_resume:
            raise
        command = shlex.join([*words, *([] if config.machine.resume else ["--resume"])])
        is_each = words[: len(prog.split())] == prog.split() and os.environ.get("WORLD_SIZE", "1") != "1"
        raise Stopped.by(stopped, f"{stopped}: {'in each process, ' if is_each else ''}{command}") from None


def parse_beside_training(
    kind: type[Options], arguments: Sequence[str], *, prog: str, description: str
) -> tuple[Options, RunConfig]:
    """Parse a command line that has options of its own beside those of training; see ``parse_known_options``."""
    own, rest = parse_known_options(
        kind,
        arguments,
        prog=prog,
        description=description,
        help_of_rest=lambda: parse(["--help"], prog="crossdistill train"),
    )
    return own, parse(rest, prog=prog)
