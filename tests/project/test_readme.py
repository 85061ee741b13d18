"""README's Python example runs as it stands and prints what its comments say; its commands are ones that exist."""

import re
from pathlib import Path

import pytest
import tyro
import yaml

from crossdistill.commands import evaluate, export, predict, report
from crossdistill.errors import UserError
from crossdistill.recipes import agreement as transfer
from crossdistill.recipes import cache
from crossdistill.recipes.config import RunConfig
from crossdistill.recipes.config import parse as parse_config
from data_prep.__main__ import COMMANDS, DATASETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "LOG.md")]
LISTED = yaml.safe_load((ROOT / "tests" / "docs_commands.yaml").read_text(encoding="utf-8"))


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


# Of accelerate, torchrun, pytest and our scripts.
OTHERS_OPTIONS = {"--config", "--config_file", "--multi_gpu", "--nproc_per_node", "--quiet", "--num_processes", "--cpu"}
OTHERS_OPTIONS |= {"--step-batch"}
OTHERS_OPTIONS |= {
    "--threads",
    "--repeats",
    "--num-videos",
    "--machine_rank",
    "--main_process_ip",
    "--mixed_precision",
    "--logdir",
}
PROGRAMS = ("python", "python3", "crossdistill", "train.py", "accelerate", "torchrun", "make", ".venv/bin/pip", ".")


def command_lines():
    """The indented commands of all documents, with continued lines joined and comments cut off."""
    found = []
    for path in DOCUMENTS:
        text = re.sub(r"```.*?```|## Files.*?\n## ", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for line in text.replace("\\\n", " ").splitlines():
            words = line.partition("  #")[0].split()
            if re.match(r"    \S", line) and words[0] in PROGRAMS:
                found.append(" ".join(words))
    return sorted(set(found))


def parse_train(arguments):
    parse_config(arguments)


def parse_data_prep(arguments):
    name, *rest = arguments
    options, _, _ = {**DATASETS, **COMMANDS}[name].load()
    tyro.cli(options, args=rest)


def parse_make(arguments):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(arguments) <= set(targets)


def options_parser(options):
    """Parses what follows a command by the class of its options."""
    return lambda arguments: tyro.cli(options, args=arguments)


# How a command begins, to what parses the rest; None for what is not ours.
PARSERS = {
    "accelerate launch --config_file configs/accelerate/8_gpus.yaml train.py": parse_train,
    "accelerate launch train.py": parse_train,
    "torchrun --nproc_per_node 2 train.py": parse_train,
    "train.py": parse_train,
    "python -m data_prep": parse_data_prep,
    "crossdistill evaluate": options_parser(evaluate.Options),
    "crossdistill transfer": options_parser(transfer.Options),
    "crossdistill cache": options_parser(cache.Options),
    "crossdistill export": options_parser(export.Options),
    "crossdistill predict": options_parser(predict.Options),
    "crossdistill report": options_parser(report.Options),
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


@pytest.mark.parametrize("line", command_lines())
def test_every_command__is_run_by_a_test_or_says_why_not(line):
    assert any(re.search(entry["match"], line) for entry in LISTED), "add it to tests/docs_commands.yaml"


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry["match"])
def test_listed_commands__are_in_a_document_and_name_tests_that_exist(entry):
    assert any(re.search(entry["match"], line) for line in command_lines()), "no document has it any more"
    assert ("cannot" in entry) != ("run_by" in entry)
    if "run_by" in entry:
        path, _, function = entry["run_by"].partition("::")
        assert f"def {function}(" in (ROOT / path).read_text(encoding="utf-8") if function else (ROOT / path).is_file()


def test_commands__of_other_options_are_refused():
    for parser, arguments in ((parse_train, ["--videos", "x"]), (parse_data_prep, ["ucf101", "--lr", "1"])):
        with pytest.raises((SystemExit, UserError)):
            parser(arguments)


def options_of(options, capsys):
    """What the help of a program lists."""
    with pytest.raises(SystemExit):
        tyro.cli(options, args=["--help"])
    return set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))


def test_text__names_files_and_options_that_exist(capsys):
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for path in set(re.findall(r"(?:configs|scripts)/[\w/]+\.\w+", text)):
        assert (ROOT / path).is_file(), path
    commands = (cache, evaluate, export, predict, report, transfer)
    classes = [
        RunConfig,
        *(module.Options for module in commands),
        *(command.load()[0] for command in (*DATASETS.values(), *COMMANDS.values())),
    ]
    known = set().union(*(options_of(options, capsys) for options in classes))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) - OTHERS_OPTIONS
    assert len(named) > 30
    assert named <= known, named - known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links__lead_to_files(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
