"""Command lines to dataclasses, with tyro; what it refuses becomes one sentence."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from crossdistill.errors import UserError

Options = TypeVar("Options")
HELP = ("-h", "--help")


def parse_options(
    kind: type[Options], arguments: Sequence[str], *, prog: str, description: str | None = None, **more: Any
) -> Options:
    """Parse the arguments of a command.

    Args:
        kind: A dataclass; its docstrings are the help.
        arguments: What follows the command's name.
        prog: The command's name.
        description: Above the options in its help; the class's docstring if None.
        more: For ``tyro.cli``, for example ``default``.

    Raises:
        UserError: An option is unknown, absent or wrong.
        SystemExit: Help was asked for, and printed.
    """
    given = {"args": list(arguments), "prog": prog, "description": description or kind.__doc__, **more}
    if any(argument in HELP for argument in arguments):
        options: Options = tyro.cli(kind, **given)
        return options
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            options = tyro.cli(kind, **given)
    except SystemExit as error:
        raise UserError(f"{_first_part(said.getvalue())}; {prog} --help lists the options") from error
    return options


def _first_part(text: str) -> str:
    """What stands between the first two rules of tyro's box, and the option that it supposes was meant."""
    lines = [line.strip(" │") for line in text.splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines:
        if re.match(r"[-─╭╰]{3}", line):
            parts.append([])
        elif line:
            parts[-1].append(line)
    content = " ".join(parts[1]).removesuffix(".") if len(parts) > 1 else text.strip()
    content = re.sub(r"^Error parsing (\w+: )?", "", content).removesuffix("(required)").strip()
    meant = re.search(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(lines))
    hint = f"; did you mean {meant[1]}?" if meant else ""
    return f"{content[:1].lower()}{content[1:]}{hint}"
