"""README's Python example runs as it stands and prints what its comments say; its commands are ones that exist."""

import importlib
import re
from pathlib import Path

import pytest
import tyro

from crossdistill import cache, transfer
from crossdistill.config import RunConfig
from crossdistill.config import parse as parse_config
from crossdistill.evaluation import evaluate
from data_prep.__main__ import COMMANDS, DATASETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_example__prints_what_it_says(toy_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toyactions").symlink_to(toy_folder)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    statements = [line for line in code.splitlines() if line and not line.startswith("import")]
    assert len(statements) <= 12
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.split("\n")[:-1]
    promised = [line.partition("  # ")[2] for line in statements if line.startswith("print(")]
    assert printed == promised and len(promised) == 2


def command_lines():
    """The indented commands, with continued lines joined and comments cut off."""
    text = README[: README.index("## Files")].replace("\\\n", " ")
    lines = [line.partition("  #")[0].split() for line in text.splitlines() if re.match(r"    \S", line)]
    return [" ".join(words) for words in lines]


def parse_train(arguments):
    parse_config(arguments)


def parse_data_prep(arguments):
    name, *rest = arguments
    module = COMMANDS[name][0] if name in COMMANDS else name
    assert name in COMMANDS or name in DATASETS, name
    tyro.cli(importlib.import_module(f"data_prep.{module}").Options, args=rest)


def parse_evaluate(arguments):
    tyro.cli(evaluate.Options, args=arguments)


def parse_transfer(arguments):
    tyro.cli(transfer.Options, args=arguments)


def parse_make(arguments):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(arguments) <= set(targets)


# How a command begins, to what parses the rest; None for what is not ours.
PARSERS = {
    "accelerate launch train.py": parse_train,
    "python -m data_prep": parse_data_prep,
    "crossdistill evaluate": parse_evaluate,
    "crossdistill transfer": parse_transfer,
    "make": parse_make,
    ". .venv/bin/activate": None,
    "python3 -m venv": None,
    ".venv/bin/pip install": None,
}


@pytest.mark.parametrize("line", command_lines())
def test_every_command__is_parsed_by_the_program_it_names(line):
    assert any(line.startswith(start) for start in PARSERS), "a command that no parser is known for"
    for start, parser in PARSERS.items():
        if line.startswith(start) and parser is not None:
            parser(line.removeprefix(start).split())


def test_command_lines__are_found():
    for start in PARSERS:
        assert any(line.startswith(start) for line in command_lines()), start


def test_commands__of_other_options_are_refused():
    for parser, arguments in ((parse_train, ["--videos", "x"]), (parse_data_prep, ["ucf101", "--lr", "1"])):
        with pytest.raises(SystemExit):
            parser(arguments)


def options_of(options, capsys):
    """What the help of a program lists."""
    with pytest.raises(SystemExit):
        tyro.cli(options, args=["--help"])
    return set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))


def test_text__names_files_and_options_that_exist(capsys):
    for path in re.findall(r"(?:configs|scripts)/[\w/]+\.\w+", README):
        assert (ROOT / path).is_file(), path
    modules = [*DATASETS, *(module for module, _ in COMMANDS.values())]
    classes = [
        RunConfig,
        evaluate.Options,
        transfer.Options,
        cache.Options,
        *(importlib.import_module(f"data_prep.{m}").Options for m in modules),
    ]
    known = set().union(*(options_of(options, capsys) for options in classes))
    others = {"--config", "--multi_gpu", "--nproc_per_node", "--quiet"}  # of the launchers
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", README)) - others
    assert len(named) > 10
    assert named <= known, named - known
