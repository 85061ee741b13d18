"""Command lines: errors are one sentence, and help fits the terminal."""

import contextlib
import io
import itertools
import re
from dataclasses import dataclass
from typing import Literal

import pytest

from crossdistill.commands.main import COMMANDS
from crossdistill.commands.main import main as cli
from crossdistill.errors import UserError
from crossdistill.utils.command_line import parse_known_options, parse_options
from data_prep import __main__ as data_prep


@dataclass(frozen=True)
class Options:
    """Do something."""

    data: str
    """Where the data is."""
    draws: int = 3
    """How many times."""
    limit: int | None = None
    share: float | None = None
    parts: tuple[int, ...] = ()
    speed: Literal["fast", "slow"] = "fast"


def parse(*arguments):
    return parse_options(Options, arguments, prog="some command")


def test_valid_options__become_the_dataclass():
    assert parse("--data", "x", "--draws", "4") == Options("x", 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"^missing from some command: --data STR Where the data is; some command --help lists the options$"),
        (["--data", "x", "--drows", "1"], r"^unrecognized options: --drows, 1; did you mean --draws\?; some command"),
        (["--data", "x", "--draws", "a"], r"^--draws: 'a' is no whole number; some command"),
        (["--data", "x", "--draws", "it's"], r"^--draws: \"it's\" is no whole number; some command"),
        (["--data", "x", "--limit", "a"], r"^--limit: 'a' is no whole number; some command"),
        (["--data", "x", "--share", "a"], r"^--share: 'a' is no number; some command"),
        (["--data", "x", "--parts", "1", "a"], r"^--parts: cannot be read from '1', 'a'; some command"),
        (
            ["--data", "x", "--speed", "fas"],
            r"^--speed: 'fas' is not among fast, slow; did you mean fast\?; some command",
        ),
        (["--date", "x"], r"^unknown option --date; did you mean --data\?; some command"),
        (["--data"], r"^missing value for argument '--data'"),
    ],
)
def test_invalid_options__are_one_sentence(arguments, sentence, capfd):
    with pytest.raises(UserError, match=sentence) as error_info:
        parse(*arguments)
    assert "\n" not in str(error_info.value) and "".join(capfd.readouterr()) == ""


def parse_known(*arguments, **more):
    return parse_known_options(Options, arguments, prog="some command", **more)


def test_known_options__are_parsed_and_the_rest_is_returned_in_order():
    options, rest = parse_known("--seed", "3", "--data", "x", "--is-fast", "--draws", "4", "--views", "1", "2")
    assert options == Options("x", 4) and rest == ["--seed", "3", "--is-fast", "--views", "1", "2"]
    assert parse_known("--data", "x") == (Options("x"), [])


def test_known_options__missing_or_invalid_ones_are_one_sentence():
    with pytest.raises(UserError, match=r"^missing from some command: --data STR .*lists the options$"):
        parse_known("--seed", "3")
    with pytest.raises(UserError, match=r"^--draws: 'a' is no whole number"):
        parse_known("--data", "x", "--draws", "a", "--seed", "3")


def test_known_options__help_is_followed_by_that_of_the_rest(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_known("--seed", "3", "--help", help_of_rest=lambda: print("and --seed"))
    said = capsys.readouterr().out
    assert exit_info.value.code == 0 and 0 < said.index("Where the data is") < said.index("and --seed")


def test_help__is_printed(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse("--help")
    assert exit_info.value.code == 0 and "Where the data is" in capsys.readouterr().out


HELPS = [
    *((cli, [name, "--help"]) for name in COMMANDS),
    (cli, ["cache", "verify", "--help"]),
    (cli, []),
    *((data_prep.main, [name, "--help"]) for name in (*data_prep.DATASETS, *data_prep.COMMANDS)),
    (data_prep.main, []),
]


def help_of(main, arguments):
    """Return the output of a command in an encoding that has box characters."""
    said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main(arguments)
    said.seek(0)
    return said.read()


def breaks_in_boxes(said):
    """Yield two neighbouring lines of an option's help text and the width of its column."""
    columns = {}
    for line in said.splitlines():
        for cell in re.finditer("│ (.*?) │|╭", line):  # boxes may be side by side
            columns.setdefault(cell.start(), []).append(cell[1] or "")
    for lines in columns.values():
        left = max(len(line) - len(line.lstrip()) for line in lines)  # start of the help column
        for line, following in itertools.pairwise(lines):
            begins = line[left - 2 : left] == "  " and line[left:].strip()  # if not, the line is a long option name
            if begins and following[:left].isspace() and following[left:].strip():
                yield line[left:].rstrip(), following[left:].rstrip(), len(line) - left


def breaks_outside(said, num_columns):
    """Yield two neighbouring lines of a paragraph, list item or table row, and the width of the terminal."""
    lines = [line for line in said.splitlines() if not re.match("[╭│╰]|usage:", line)]
    for line, following in itertools.pairwise(lines):
        starts_anew = re.match(r"\* |  \w+ {2,}\S| {7}python|$", following)
        if line and not starts_anew:
            yield line, following.strip(), num_columns


@pytest.mark.parametrize("num_columns", [80, 140])
def test_help__of_every_command_fits_the_terminal(num_columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(num_columns))
    num_in_boxes = num_outside = 0
    for main, arguments in HELPS:
        said = help_of(main, arguments)
        assert max(len(line) for line in said.splitlines() if not line.startswith("usage:")) <= num_columns
        in_boxes, outside = list(breaks_in_boxes(said)), list(breaks_outside(said, num_columns))
        for line, following, width in (*in_boxes, *outside):
            word = following.split(" ")[0]
            assert len(line) + 1 + len(word) > width, f"{arguments}: {word!r} fits after {line!r}"
        num_in_boxes, num_outside = num_in_boxes + len(in_boxes), num_outside + len(outside)
    assert num_in_boxes > 100 and num_outside > 30
