"""Help and version of every command: at once, without the libraries that take seconds to import."""

import re
import subprocess
import sys

import pytest

from crossdistill import __version__
from crossdistill.commands.main import COMMANDS, main

HELP = """
import sys
from crossdistill.commands.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(sorted({"torch", "accelerate", "sklearn", "timm"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), ["cache", "verify"]], ids=" ".join)
def test_help__does_not_import_torch(command):
    done = subprocess.run([sys.executable, "-c", HELP, *command, "--help"], capture_output=True, text=True, check=True)
    assert re.search(rf"usage: (crossdistill|train\.py|-c) ?{'.*'.join(command)}", done.stdout), done.stdout[:200]
    assert done.stderr.strip() == "[]"


def test_version__names_what_is_installed(capsys):
    main(["--version"])
    assert re.fullmatch(
        rf"crossdistill {re.escape(__version__)}, torch \d\S+, torchvision \d\S+\n", capsys.readouterr().out
    )
