"""Write docs/reference/{train,commands,data_prep}.md: the options of every command, from its dataclass.

    python scripts/make_reference.py           write the pages
    python scripts/make_reference.py --check   write nothing; exit with 1 if a page is out of date

Each command is started with ``--help`` while ``tyro.cli`` is replaced by a function that records the dataclass which
the command parses. So this script needs no list of dataclasses, and a new command or option appears by itself.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import io
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import tyro

from crossdistill.commands.main import COMMANDS
from crossdistill.commands.main import main as crossdistill
from data_prep.__main__ import COMMANDS as DATA_COMMANDS
from data_prep.__main__ import DATASETS
from data_prep.__main__ import main as data_prep

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
NOTE = "<!-- Written by scripts/make_reference.py from the dataclasses of the commands. Edit those. -->"
SUBCOMMANDS = {"cache": ("verify",)}


@dataclass(frozen=True)
class Command:
    """What a command parses."""

    name: str
    """As it is typed, for example ``crossdistill cache verify``."""
    description: str
    """First paragraphs of its help."""
    kind: type
    """The dataclass of its options."""
    takes_training_options: bool = False
    """Whether it passes options that it does not know to the parser of ``crossdistill train``."""


@dataclass(frozen=True)
class Option:
    """One row of a table."""

    group: str
    """Section of the configuration; empty where the command has none."""
    name: str
    values: str
    default: str
    meaning: str


class _Recorded(Exception):
    """Carries the dataclass out of the command."""


def record(main: Callable[[list[str]], None], name: str, words: Sequence[str]) -> Command:
    """Start a command with ``--help``, and return what it would have parsed."""

    def stop(kind: type, return_unknown_args: bool = False, **_: Any) -> None:
        raise _Recorded(kind, return_unknown_args)

    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "100000"}),
        mock.patch.object(tyro, "cli", stop),
        contextlib.redirect_stdout(said),
    ):
        try:
            main([*words, "--help"])
        except _Recorded as recorded:
            return Command(name, said.getvalue().strip(), *recorded.args)
    raise AssertionError(f"{name} parses no options")


def attribute_docstrings(kind: type) -> dict[str, str]:
    """Field to the string below it, of the class and the classes that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def options_of(kind: type, group: str = "") -> Iterator[Option]:
    """The rows of a dataclass; a dataclass among its fields is a group."""
    hints = typing.get_type_hints(kind, include_extras=True)
    meanings = attribute_docstrings(kind)
    for field in dataclasses.fields(kind):
        hint, marks = unwrapped(hints[field.name])
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from options_of(hint, group=field.name)
            continue
        arg = next((mark for mark in marks if hasattr(mark, "metavar") and hasattr(mark, "prefix_name")), None)
        name = (arg.name if arg is not None and arg.name else field.name).replace("_", "-")
        is_positional = tyro.conf.Positional in marks or any("Positional" in repr(mark) for mark in marks)
        flag = f"`{name.upper()}`" if is_positional else f"`--{name}`"
        if hint is bool and default_of(field) is not dataclasses.MISSING:
            flag = f"`--{name}`, `--no-{name}`"
        values = arg.metavar if arg is not None and arg.metavar else values_of(hints[field.name])
        yield Option(group, flag, values, default_text(field), as_markdown(meanings.get(field.name, "")))


def unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without ``Annotated``, and what was annotated."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *marks = typing.get_args(hint)
        return inner, tuple(marks)
    return hint, ()


def values_of(hint: Any) -> str:
    """Allowed values, for a reader: ``integer ≥ 1``, or the names of a Literal."""
    hint, marks = unwrapped(hint)
    bounds = " ".join(bound for mark in marks for bound in bounds_of(mark))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(values_of(part) for part in arguments if part is not type(None))
    if origin is tuple:
        inner = values_of(arguments[0])
        return f"one or more: {inner}" if "`" in inner else f"{inner} …"
    names = {int: "integer", float: "number", str: "text", Path: "path", bool: "flag"}
    return f"{names[hint]} {bounds}".strip()


def bounds_of(mark: Any) -> list[str]:
    """Limits that pydantic's ``Field(ge=…)`` keeps in its metadata."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = getattr(mark, "metadata", ())
    return [f"{sign} {getattr(limit, key):g}" for limit in limits for key, sign in signs.items() if hasattr(limit, key)]


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default value, or ``dataclasses.MISSING``."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def default_text(field: dataclasses.Field[Any]) -> str:
    """The default as it is typed; a dash where an absent value has a meaning of its own."""
    value = default_of(field)
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value == ():
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    values = value if isinstance(value, tuple) else (value,)
    return f"`{' '.join(f'{one:.4g}' if isinstance(one, float) else str(one) for one in values)}`"


def as_markdown(text: str) -> str:
    """A docstring as a cell of a table."""
    text = text.replace("``", "`").replace("|", "\\|")
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<![\w-])(--[a-z][a-z0-9-]+)", r"`\1`", parts[i])
        parts[i] = parts[i].replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    return "".join(parts)


def table(options: Sequence[Option]) -> str:
    """The options in Markdown."""
    rows = [f"| {one.name} | {one.values} | {one.default} | {one.meaning} |" for one in options]
    return "\n".join(["| option | values | default | meaning |", "|---|---|---|---|", *rows])


def chapter(command: Command, *, level: str = "##", without: set[str] = frozenset()) -> str:
    """A command's description and its table; groups of options get a heading each."""
    options = [one for one in options_of(command.kind) if one.name not in without]
    parts = [f"{level} {command.name}", as_paragraphs(command.description)]
    for group in dict.fromkeys(one.group for one in options):
        if group:
            parts.append(f"## Section `{group}`")
        parts.append(table([one for one in options if one.group == group]))
    if command.takes_training_options:
        parts.append("All [training options](train.md) as well.")
    return "\n\n".join(parts)


def as_paragraphs(description: str) -> str:
    """A help text in Markdown; lines that are commands become code."""
    is_command = re.compile(r"(crossdistill|python|train\.py|accelerate) .*")
    parts = []
    for paragraph in description.split("\n\n"):
        if is_command.fullmatch(paragraph) and not paragraph.endswith("."):
            parts.append(f"`{paragraph}`")
        else:
            parts.append(
                "\n".join(
                    f"- {as_markdown(line[2:])}" if line.startswith("* ") else as_markdown(line)
                    for line in paragraph.split("\n")
                )
            )
    return "\n\n".join(parts)


def train_page() -> str:
    """The page of ``crossdistill train``."""
    command = record(crossdistill, "crossdistill train", ["train"])
    intro = (
        "In a clone, `python train.py` is the same command. In a YAML file (`--config FILE`) the options are keys of "
        "the section in the heading: `--batch-size 32` is `optimization: {batch_size: 32}`. The keyword arguments of "
        "`crossdistill.distill` have the same names, with underscores: `crossdistill train --student flow_r3d18 "
        '--batch-size 32` is `crossdistill.distill(student="flow_r3d18", batch_size=32)`.'
    )
    return "\n\n".join([NOTE, chapter(command, level="#").replace("\n\n", f"\n\n{intro}\n\n", 1)]) + "\n"


def commands_page() -> str:
    """The page of ``crossdistill COMMAND``."""
    parts = [
        NOTE,
        "# Commands",
        "Training has a [page of its own](train.md), and so has [data preparation](data_prep.md).",
    ]
    for name in COMMANDS:
        if name != "train":
            parts.append(chapter(record(crossdistill, f"crossdistill {name}", [name])))
        for sub in SUBCOMMANDS.get(name, ()):
            parts.append(chapter(record(crossdistill, f"crossdistill {name} {sub}", [name, sub])))
    return "\n\n".join(parts) + "\n"


def data_prep_page() -> str:
    """The page of ``python -m data_prep``; options that all datasets share are listed once."""
    commands = [record(data_prep, f"python -m data_prep {name}", [name]) for name in DATASETS]
    lists = [list(options_of(command.kind)) for command in commands if len(list(options_of(command.kind))) > 8]
    shared = [one for one in lists[0] if all(one in others for others in lists)]
    parts = [
        *(NOTE, "# Data preparation", "`python -m data_prep DATASET --out DIR` prepares a dataset."),
        "The formats of the files are on the page [File formats](file_formats.md).",
        *("## Options of every dataset", "All datasets but `toyactions`, which is rendered, take these options."),
        table(shared),
    ]
    parts += [
        chapter(command, without={one.name for one in shared if one in options_of(command.kind)})
        for command in commands
    ]
    parts += [chapter(record(data_prep, f"python -m data_prep {name}", [name])) for name in DATA_COMMANDS]
    return "\n\n".join(parts) + "\n"


@functools.cache
def pages() -> dict[str, str]:
    """File name to content."""
    return {"train.md": train_page(), "commands.md": commands_page(), "data_prep.md": data_prep_page()}


def main() -> None:
    """Write or check the pages."""
    stale = []
    for name, text in pages().items():
        path = PAGES / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in sys.argv[1:]:
                path.write_text(text, encoding="utf-8")
    if stale:
        print(f"docs/reference: {', '.join(stale)} {'is out of date' if '--check' in sys.argv[1:] else 'written'}")
    if stale and "--check" in sys.argv[1:]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
