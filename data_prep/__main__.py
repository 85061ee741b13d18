"""The command line: ``python -m data_prep <dataset> --help``."""

from __future__ import annotations

import importlib
import sys

import tyro

from crossdistill.errors import friendly_errors, unknown_name

# Dataset to what it is, in one line. Each is a module of this package with a dataclass ``Options``
# (its fields are the command's options) and a function ``prepare(options) -> Manifest``.
DATASETS = {
    "toyactions": "rendered clips of moving bodies with exact flow and depth; needs no download",
    "ucf101": "UCF101 from its .avi files and official lists",
}

USAGE = """usage: python -m data_prep DATASET --out DIR [options]

Prepares a dataset: streams that decode fast (RGB, flow, depth) and a manifest that training reads.

datasets:
{datasets}

python -m data_prep DATASET --help says which files a dataset wants, and lists its options."""


@friendly_errors
def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and prepare a dataset."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(datasets="\n".join(f"  {name:<12} {what}" for name, what in DATASETS.items())))
        return
    name, *rest = arguments
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    module = importlib.import_module(f"data_prep.{name}")
    options = tyro.cli(module.Options, args=rest, prog=f"python -m data_prep {name}", description=module.__doc__)
    module.prepare(options)


if __name__ == "__main__":
    main()
