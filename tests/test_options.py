"""What a command line cannot be is one sentence."""

from dataclasses import dataclass

import pytest

from crossdistill.errors import UserError
from crossdistill.options import parse_options


@dataclass(frozen=True)
class Options:
    """Do something."""

    data: str
    """Where the data is."""
    draws: int = 3
    """How many times."""


def parse(*arguments):
    return parse_options(Options, arguments, prog="some command")


def test_right_ones__become_the_dataclass():
    assert parse("--data", "x", "--draws", "4") == Options("x", 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], r"^missing from some command: --data STR Where the data is\.; some command --help lists the options$"),
        (["--data", "x", "--drows", "1"], r"^unrecognized options: --drows, 1; did you mean --draws\?; some command"),
        (["--data", "x", "--draws", "a"], r"^--draws: invalid literal for int\(\) with base 10: 'a'; some command"),
        (["--data"], r"^missing value for argument '--data'"),
    ],
)
def test_wrong_ones__are_one_sentence(arguments, sentence, capfd):
    with pytest.raises(UserError, match=sentence) as error_info:
        parse(*arguments)
    assert "\n" not in str(error_info.value) and "".join(capfd.readouterr()) == ""


def test_help__is_printed(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse("--help")
    assert exit_info.value.code == 0 and "Where the data is" in capsys.readouterr().out
