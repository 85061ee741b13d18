"""Help and version of every command: at once, without the libraries that take seconds to import."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crossdistill import __version__
from crossdistill.commands.main import COMMANDS, main
from data_prep.__main__ import COMMANDS as DATA_COMMANDS
from data_prep.__main__ import DATASETS

ROOT = Path(__file__).resolve().parents[2]
# Reads command lines as JSON and prints, for each, what it printed and which slow libraries are imported after it.
HELP = """
import contextlib, io, json, sys
from crossdistill.commands.main import main as crossdistill
from data_prep.__main__ import main as data_prep
answers = []
for program, *words in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        {"crossdistill": crossdistill, "data_prep": data_prep}[program]([*words, "--help"])
    answers.append((printed.getvalue(), sorted({"torch", "accelerate", "sklearn", "timm"} & set(sys.modules))))
json.dump(answers, sys.stdout)
"""
HELP_OF = [
    ["crossdistill"],
    *(["crossdistill", name] for name in COMMANDS),
    ["crossdistill", "cache", "verify"],
    ["data_prep"],
    *(["data_prep", name] for name in [*DATASETS, *DATA_COMMANDS]),
]


@pytest.fixture(scope="module")
def helps():
    """Command line to its help and the slow libraries that it has imported; all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", HELP], input=json.dumps(HELP_OF), capture_output=True, text=True, check=True
    )
    return dict(zip(map(tuple, HELP_OF), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", HELP_OF, ids=" ".join)
def test_help__does_not_import_torch(line, helps):
    text, imported = helps[tuple(line)]
    program, *words = line
    assert re.search(rf"^usage: (python -m )?{' '.join([program, *words])}\b", text, flags=re.MULTILINE), text[:200]
    assert imported == []


@pytest.mark.parametrize(
    ("start", "program"),
    [
        (["-m", "crossdistill", "train"], "python -m crossdistill train"),
        ([str(ROOT / "train.py")], "python train.py"),
    ],
)
def test_usage__names_the_program_that_was_typed(start, program, tmp_path):
    """From any folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *start, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert f"\nusage: {program} [" in done.stdout


def test_version__names_what_is_installed(capsys):
    main(["--version"])
    assert re.fullmatch(
        rf"crossdistill {re.escape(__version__)}, torch \d\S+, torchvision \d\S+\n", capsys.readouterr().out
    )
