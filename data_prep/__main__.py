"""The command line: ``python -m data_prep <dataset> --help``."""

from __future__ import annotations

import importlib
import sys

from crossdistill.errors import friendly_errors, unknown_name
from crossdistill.utils.command_line import flowed, parse_options, rows_of
from data_prep.pipeline.prepare import PrepareOptions, check_out_is_apart

# Dataset to what it is, in one line. Each is a module of ``data_prep.datasets`` with a dataclass ``Options``
# (its fields are the command's options) and a function ``prepare(options) -> Manifest``.
DATASETS = {
    "toyactions": "rendered clips of moving bodies with exact flow and depth; needs no download",
    "ucf101": "UCF101 from its .avi files and official lists",
    "hmdb51": "HMDB51 from its .avi files and official lists",
    "kinetics": "Kinetics-400, 600 or 700 from cut clips and official lists",
    "ssv2": "Something-Something v2 from its .webm files and official lists",
    "ntu": "NTU RGB+D (60 or 120) from its RGB videos, depth pictures or both",
    "utd_mhad": "UTD-MHAD from its depth recordings",
    "folder": "your own videos, in folders by split and class or in any order",
    "list": "your own videos, from lists with a path and label per line",
}

# Command over a prepared dataset to its module and what it does, in one line. Each module has a dataclass
# ``Options`` and a function ``run(options)``.
COMMANDS = {
    "inspect": ("inspect", "shows what a prepared dataset holds, in numbers and in a picture of some clips"),
    "verify": (
        "verify",
        "decodes every stream of a prepared dataset and names the files that are not as they should be",
    ),
    "merge": ("merge", "joins the parts that --shard I/N runs prepared into one dataset"),
}

USAGE = """usage: python -m data_prep DATASET --out DIR [options]
       python -m data_prep COMMAND DIR [options]

{purpose}

datasets:
{datasets}

commands over a prepared dataset:
{commands}

{more}"""
PURPOSE = "Prepares a dataset: streams that decode fast (RGB, flow, depth) and a manifest that training reads."
MORE = "python -m data_prep DATASET --help says which files a dataset wants, and lists its options."


@friendly_errors
def main(arguments: list[str] | None = None) -> None:
    """Parse the command line; prepare a dataset, or do something with a prepared one."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            USAGE.format(
                purpose=flowed(PURPOSE),
                datasets=rows_of(DATASETS),
                commands=rows_of({name: what for name, (_, what) in COMMANDS.items()}),
                more=flowed(MORE),
            )
        )
        return
    name, *rest = arguments
    if name in COMMANDS:
        module = importlib.import_module(f"data_prep.{COMMANDS[name][0]}")
        act = module.run
    elif name in DATASETS:
        module = importlib.import_module(f"data_prep.datasets.{name}")
        act = module.prepare
    else:
        raise unknown_name("dataset or command", name, [*DATASETS, *COMMANDS])
    options = parse_options(module.Options, rest, prog=f"python -m data_prep {name}", description=module.__doc__)
    if isinstance(options, PrepareOptions):
        check_out_is_apart(options)
    act(options)


if __name__ == "__main__":
    main()
