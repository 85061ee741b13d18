"""README's Python example runs as it stands there; the commands of all pages exist and are run by tests."""

import functools
import re
import sys
from pathlib import Path

import pytest
import tyro
import yaml
from torch.distributed.run import get_args_parser

from crossdistill import api
from crossdistill.commands.main import COMMANDS
from crossdistill.commands.main import main as crossdistill
from crossdistill.errors import UserError
from crossdistill.recipes.config import RunConfig
from crossdistill.recipes.config import parse as parse_config
from data_prep.__main__ import COMMANDS as DATA_COMMANDS
from data_prep.__main__ import DATASETS
from data_prep.__main__ import main as data_prep

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from make_reference import SUBCOMMANDS, record  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").glob("**/*.md"))
DOCUMENTS = [ROOT / "README.md", *(path for path in PAGES if path.name != "LOG.md")]
LISTED = yaml.safe_load((ROOT / "tests" / "docs_commands.yaml").read_text(encoding="utf-8"))


def test_python_example__runs_from_top_to_bottom(toy_folder, tmp_path, monkeypatch, capsys):
    """As it stands there, but on few small clips and for one epoch."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toyactions").symlink_to(toy_folder)
    monkeypatch.chdir(tmp_path)
    small = {"teacher_frames": 4, "teacher_size": 32, "student_frames": 4, "student_size": 32, "workers": 0}
    short = {"epochs": 1, "teacher_epochs": 1, "batch_size": 16, "bank_size": 40, "knn_clips": 0, "tracker": "none"}
    parse = api.from_keywords
    monkeypatch.setattr(api, "from_keywords", lambda **given: parse(**{**small, **short, **given}))
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) == 4
    exec(compile(code, "README.md", "exec"), {})
    assert code in (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), "the home page shows the same"
    assert "linear" in capsys.readouterr().out
    assert (tmp_path / "flow.onnx").is_file() and (tmp_path / "flow.html").is_file()


# Options of accelerate, torchrun, pytest, tensorboard, pip and our scripts.
OTHERS_OPTIONS = {
    *("--config", "--config_file", "--multi_gpu", "--nproc_per_node", "--quiet", "--num_processes", "--cpu"),
    *("--threads", "--repeats", "--num-pictures", "--num-videos", "--repeat", "--starts", "--lookups", "--batch"),
    "--parts",
    *("--machine_rank", "--main_process_ip", "--mixed_precision", "--logdir"),
    *("--step-batch", "--no-deps"),
    *("--time", "--signal", "--requeue", "--open-mode"),
    *("--nnodes", "--max-restarts", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--nodes"),
    "--signals-to-handle",
    *("--fp", "--opt", "--min", "--max", "--save"),  # beginnings of trtexec's --fp16, --optShapes, --saveEngine …
    *("--ntasks-per-node", "--gpus-per-node", "--cpus-per-task"),
}


def once_per_value(loop):
    """The body of a shell loop for each of its values."""
    name, values, body = loop.groups()
    return "".join(body.replace(f"${name}", value) for value in values.split())


def command_lines():
    """The commands in the bash blocks of all documents, with continued lines joined, loops run, comments cut off."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            block = re.sub(
                r"^for (\w+) in (.+); do\n(.*?)^done\n", once_per_value, block, flags=re.DOTALL | re.MULTILINE
            )
            for line in block.replace("\\\n", " ").splitlines():
                words = re.sub(r"^(\w+=\S+ )+", "", line.partition("  #")[0]).split()
                if words:
                    found.append(" ".join(words))
    return sorted(set(found))


@functools.cache
def command_of(program, *words):
    """What a command parses."""
    return record({"crossdistill": crossdistill, "data_prep": data_prep}[program], program, words)


def kind_of(program, *words):
    """The dataclass of a command's options."""
    return command_of(program, *words).kind


def parse_train(arguments):
    parse_config(arguments)


def parse_command(arguments):
    name, *rest = arguments
    if name == "train":
        return parse_train(rest)
    if rest and rest[0] in SUBCOMMANDS.get(name, ()):
        return tyro.cli(kind_of("crossdistill", name, rest[0]), args=rest[1:])
    command = command_of("crossdistill", name)
    if not command.takes_training_options:
        return tyro.cli(command.kind, args=rest)
    _, others = tyro.cli(command.kind, args=rest, return_unknown_args=True)
    return parse_train(others)


def parse_data_prep(arguments):
    name, *rest = arguments
    assert name in DATA_COMMANDS or name in DATASETS, name
    tyro.cli(kind_of("data_prep", name), args=rest)


def parse_torchrun(arguments):
    launch = get_args_parser().parse_args(arguments)
    assert launch.module and launch.training_script == "crossdistill" and launch.training_script_args[0] == "train"
    parse_train(launch.training_script_args[1:])


def parse_make(arguments):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(arguments) <= set(targets)


def parse_script(arguments):
    """A script of ours: it exists, and its text names the options."""
    script, *rest = arguments
    text = (ROOT / "scripts" / script).read_text(encoding="utf-8")
    for option in rest:
        if option.startswith("--"):
            name = option.removeprefix("--")
            assert re.search(rf"[\"'](--)?{name}[\"']|\b{name.replace('-', '_')}=", text), option


# How a command begins, to what parses the rest; None for programs of others.
PARSERS = {
    "accelerate launch train.py": parse_train,
    "accelerate launch --multi_gpu --num_processes 8 -m crossdistill train": parse_train,
    "torchrun": parse_torchrun,
    "python -m data_prep": parse_data_prep,
    "python scripts/": parse_script,
    "crossdistill": parse_command,
    "make": parse_make,
    ". .venv/bin/activate": None,
    "python3 -m venv": None,
    ".venv/bin/pip install": None,
    "pip install": None,
    "pip wheel": None,
}


@pytest.mark.parametrize("line", command_lines())
def test_every_command__is_parsed_by_the_program_it_names(line):
    assert any(line.startswith(start) for start in PARSERS), "no parser is known for this command"
    for start, parser in PARSERS.items():
        if line.startswith(start) and parser is not None:
            parser(line.removeprefix(start).split())


def test_command_lines__are_found():
    for start in PARSERS:
        assert any(line.startswith(start) for line in command_lines()), start
    for name in COMMANDS.keys() - {"train", "encoders"}:
        assert any(line.startswith(f"crossdistill {name}") for line in command_lines()), name


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


def test_commands__refuse_options_of_other_commands():
    for parser, arguments in (
        (parse_train, ["--videos", "x"]),
        (parse_data_prep, ["ucf101", "--lr", "1"]),
        (parse_command, ["evaluate", "runs/x", "--lr", "1"]),
    ):
        with pytest.raises((SystemExit, UserError)):
            parser(arguments)
    with pytest.raises(AssertionError):
        parse_script(["bench_knn.py", "--no-such-option"])


def options_of(kind, capsys):
    """The options that the help of a program lists."""
    with pytest.raises(SystemExit):
        tyro.cli(kind, args=["--help"])
    return set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))


def test_text__names_files_and_options_that_exist(capsys):
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    for path in set(re.findall(r"(?:configs|examples|scripts|tests|docs)/[\w/]+\.\w+", text)):
        assert (ROOT / path).is_file(), path
    kinds = [
        RunConfig,
        *(kind_of("crossdistill", name) for name in COMMANDS if name != "train"),
        *(kind_of("crossdistill", name, sub) for name, subs in SUBCOMMANDS.items() for sub in subs),
        *(kind_of("data_prep", name) for name in [*DATASETS, *DATA_COMMANDS]),
    ]
    known = set().union(*(options_of(kind, capsys) for kind in kinds))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", text)) - OTHERS_OPTIONS
    assert len(named) > 30
    assert named <= known, named - known


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links__lead_to_files(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
