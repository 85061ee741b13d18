"""Parse command lines into dataclasses with tyro; turn its messages about wrong options into ``UserError``."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import tyro
from pydantic import TypeAdapter, ValidationError
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from crossdistill.errors import UserError, unknown_name

Options = TypeVar("Options")
_registry = ConstructorRegistry()
# What Python and tyro say about a value that is no number, and what we say.
_UNION = r"no type matching .* instantiated from \['([^']*)'\]\. .*"
_PLAIN_WORDS = (
    (rf"{_UNION}invalid literal for int.*", r"'\1' is no whole number"),
    (rf"{_UNION}could not convert string to float.*", r"'\1' is no number"),
    (r"invalid literal for int\(\) with base 10: (['\"].*['\"])", r"\1 is no whole number"),
    (r"could not convert string to float: (['\"].*['\"])", r"\1 is no number"),
    (r"[Cc]ould not find valid parse for arguments: \[(.*)\]", r"cannot be read from \1"),
)
_CHOICE = r"invalid choice (['\"].*['\"]) for argument '(.*)'\. Expected one of \((.*)\)"
_ASKED = "asked"  # marks a type whose rule is being applied, so that the rule does not apply to itself


def parse_options(
    kind: type[Options],
    arguments: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    default: Options | None = None,
) -> Options:
    """Parse the arguments that follow a command's name into a dataclass, whose docstrings are the help texts.

    ``prog`` is the name of the command, ``description`` the text at the top of the help (by default the class's
    docstring), ``default`` the values of the options that are not given (by default those of the class).

    Raises:
        UserError: An option is unknown, missing or invalid.
        SystemExit: The arguments contain ``--help``, and the help was printed.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Greeting:
        ...     name: str
        ...     times: int = 1
        >>> parse_options(Greeting, ["--name", "Ada", "--times", "2"], prog="greet")
        Greeting(name='Ada', times=2)
    """
    return _parse(kind, arguments, prog, description, {} if default is None else {"default": default})


def options_from_keywords(kind: type[Options], keywords: Mapping[str, Any]) -> Options:
    """Build a command's options from Python keywords, checked as on the command line.

    A single value is converted to a tuple if the field is a tuple. An unknown keyword or a value of the wrong type is a
    ``UserError``.
    """
    types = get_type_hints(kind)
    for name in keywords:
        if name not in types:
            raise unknown_name("keyword", name, types)
    values = {
        name: (value,) if get_origin(types[name]) is tuple and isinstance(value, str | int | Path) else value
        for name, value in keywords.items()
    }
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{name} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error


def parse_known_options(
    kind: type[Options],
    arguments: Sequence[str],
    *,
    prog: str,
    description: str | None = None,
    help_of_rest: Callable[[], object] | None = None,
) -> tuple[Options, list[str]]:
    """Parse the options that belong to one dataclass, and return the other arguments for another parser.

    See ``parse_options``. ``help_of_rest`` prints the help of the other parser, after this help.
    """
    try:
        options, rest = _parse(kind, arguments, prog, description, {"return_unknown_args": True})
    except SystemExit:  # of --help
        if help_of_rest is not None:
            print()
            help_of_rest()
        raise
    return options, list(rest)


def _parse(
    kind: type[Any], arguments: Sequence[str], prog: str, description: str | None, more: Mapping[str, Any]
) -> Any:
    """Call ``tyro.cli``, print a description that fits the terminal, and turn tyro's error box into a ``UserError``."""
    # The description is printed here, because tyro does not break its lines.
    given = {"args": list(arguments), "prog": prog, "description": "", **more}
    if not {"-h", "--help"}.isdisjoint(arguments):
        print(flowed(description or kind.__doc__ or ""), end="\n\n")
        with _registry:
            return tyro.cli(kind, **given)
    # tyro reports an error as a printed box and SystemExit. Its only other way is a private hook
    # (tyro._errors.on_parse_error), which the tyro authors reserve the right to change in any release.
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return tyro.cli(kind, **given)
    except SystemExit as error:
        raise UserError(f"{_reason_in_box(printed.getvalue())}; {prog} --help lists the options") from error


def flowed(text: str) -> str:
    """Break paragraphs and items of ``*`` lists at the width of the terminal, ignoring their old line breaks."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join("\n".join(map(_filled, re.split(r"\n(?=\* )", paragraph))) for paragraph in paragraphs)


def rows_of(meanings: Mapping[str, str]) -> str:
    """Format names and their meanings in two columns that fit the terminal."""
    width = max(map(len, meanings)) + 3
    return "\n".join(_filled(what, f"  {name:<{width}}") for name, what in meanings.items())


def _filled(text: str, start: str = "") -> str:
    indent = " " * len(start) if start else "  " * text.startswith("* ")
    columns = shutil.get_terminal_size().columns
    wrapper = textwrap.TextWrapper(columns, start, indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(" ".join(text.split()))  # no breaks at hyphens, because option names contain them


@_registry.struct_rule
def _with_joined_lines(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Join each paragraph of help texts to one line; tyro does so only if the lines are not indented."""
    if not dataclasses.is_dataclass(info.type) or _ASKED in info.markers:
        return None
    found = ConstructorRegistry.get_struct_spec(dataclasses.replace(info, markers=(*info.markers, _ASKED)))
    assert isinstance(found, StructConstructorSpec)
    fields = (dataclasses.replace(field, helptext=_joined(field)) for field in found.fields)
    return dataclasses.replace(found, fields=tuple(fields))


def _joined(field: StructFieldSpec) -> str | None:
    text = field.helptext() if callable(field.helptext) else field.helptext
    return None if text is None else "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))


def _say_choice(found: re.Match[str]) -> str:
    given, option, listed = found.groups()
    names = sorted(name for name in re.findall(r"'([^']+)'", listed) if name != "None")  # None is its absence
    return f"{option}: {given} is not among {', '.join(names)}" + _hint(given.strip("'\""), names)


def _hint(given: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, allowed, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _reason_in_box(text: str) -> str:
    """Return the text above the first rule of tyro's error box, and the option that tyro suggests."""
    # Without UTF-8, tyro draws no box and puts a rule below the title. With it, the title is part of the first rule.
    lines = [line.strip(" │") for line in text.splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines:
        if re.match(r"[-─╭╰]{3}", line):
            parts.append([])
        elif line:
            parts[-1].append(line)
    content = " ".join(parts[1]).removesuffix(".") if len(parts) > 1 else text.strip()
    content = re.sub(r"^Error parsing (\w+: )?", "", content).removesuffix("(required)").strip().removesuffix(".")
    for theirs, ours in _PLAIN_WORDS:
        content = re.sub(theirs, ours, content)
    content = re.sub(_CHOICE, _say_choice, content)
    # What is missing may be misspelt.
    unknown = re.search(r"Missing from .*Unrecognized options:\s+(--[\w-]+)", " ".join(lines))
    if unknown and (hint := _hint(unknown[1], re.findall(r"--[\w-]+", content))):
        content = f"unknown option {unknown[1]}{hint}"
    meant = re.search(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(lines))
    hint = f"; did you mean {meant[1]}?" if meant else ""
    return f"{content[:1].lower()}{content[1:]}{hint}"
