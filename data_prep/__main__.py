"""Command line of data preparation: ``python -m data_prep``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

from crossdistill.errors import friendly_errors, unknown_name
from crossdistill.utils.command_line import flowed, parse_options, rows_of
from data_prep.pipeline.prepare import RunOptions, check_out_is_apart


@dataclass(frozen=True)
class Command:
    """Module of a command. It is imported only when the command runs, because importing torch takes seconds."""

    summary: str
    """Description of the command in one line."""
    module: str
    """Module in ``data_prep``. Its docstring is the command's help."""
    function_name: str = "prepare"
    """Function in the module. Its parameter ``options`` is a dataclass whose fields are the command's options."""

    def load(self) -> tuple[type, Callable[[Any], object], str]:
        """Import the module; return the class of the options, the function and the help text."""
        module = importlib.import_module(f"data_prep.{self.module}")
        function = getattr(module, self.function_name)
        return get_type_hints(function)["options"], function, module.__doc__ or ""


DATASETS = {
    "toyactions": Command("rendered clips with exact flow and depth; needs no download", "datasets.toyactions"),
    "ucf101": Command("UCF101, from its .avi files and official lists", "datasets.ucf101"),
    "hmdb51": Command("HMDB51, from its .avi files and official lists", "datasets.hmdb51"),
    "kinetics": Command("Kinetics-400, 600 or 700, from trimmed clips and official lists", "datasets.kinetics"),
    "ssv2": Command("Something-Something v2, from its .webm files and official lists", "datasets.ssv2"),
    "ntu": Command("NTU RGB+D 60 or 120, from RGB videos, depth maps, skeletons or several of them", "datasets.ntu"),
    "epic_kitchens": Command(
        "EPIC-KITCHENS-100, segments of long videos, from its videos and CSV lists", "datasets.epic_kitchens"
    ),
    "diving48": Command("Diving48, from its .mp4 files and lists of version 2", "datasets.diving48"),
    "ucf101_ds": Command("UCF101 with clips under shifts as test sets, from folders", "datasets.ucf101_ds"),
    "utd_mhad": Command("UTD-MHAD, from depth and skeleton recordings", "datasets.utd_mhad"),
    "folder": Command("your own videos, in class folders or without labels", "datasets.folder"),
    "imagenet": Command("ImageNet (ILSVRC 2012), from its folders or tar shards", "datasets.imagenet"),
    "images": Command("your own pictures, in class folders, tar shards or without labels", "datasets.images"),
    "image_list": Command("your own pictures, from a CSV or text file of path, label and split", "datasets.image_list"),
    "list": Command("your own videos, from text files with one path and label per line", "datasets.list"),
}
"""Dataset name to its command."""

COMMANDS = {
    "inspect": Command("prints statistics and draws a contact sheet of sample clips", "inspect", "inspect_dataset"),
    "verify": Command(
        "decodes every stream and reports missing, damaged and changed files", "verify", "verify_dataset"
    ),
    "convert": Command(
        "rewrites the manifest of a former version, so that it opens at once", "convert", "convert_dataset"
    ),
    "merge": Command("joins the parts that runs with --shard I/N prepared into one dataset", "merge", "merge_parts"),
    "pack": Command("copies the streams into tar shards, which WebDataset reads too", "pack", "pack_dataset"),
    "link": Command("makes a packed dataset in an object store or on a web server usable here", "link", "link_dataset"),
}
"""Name to the command, for commands that work on a prepared dataset."""

USAGE = """usage: python -m data_prep DATASET --out DIR [options]
       python -m data_prep COMMAND DIR [options]

{purpose}

datasets:
{datasets}

commands for a prepared dataset:
{commands}

{more}"""
PURPOSE = (
    "Prepares a dataset for training: converts videos to streams that decode fast (RGB, optical flow, depth), indexes "
    "pictures, and writes the manifest that crossdistill train reads."
)
MORE = (
    "Run python -m data_prep DATASET --help to see which files a dataset needs, and its options. Repeat a command to "
    "resume it after an interruption: finished videos are kept."
)


@friendly_errors
def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, then prepare a dataset or run a command on a prepared one."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        datasets, commands = (
            rows_of({name: command.summary for name, command in group.items()}) for group in (DATASETS, COMMANDS)
        )
        print(USAGE.format(purpose=flowed(PURPOSE), datasets=datasets, commands=commands, more=flowed(MORE)))
        return
    name, *rest = arguments
    known = {**DATASETS, **COMMANDS}
    if name not in known:
        raise unknown_name("dataset or command", name, known)
    options_class, function, description = known[name].load()
    options: object = parse_options(options_class, rest, prog=f"python -m data_prep {name}", description=description)
    if isinstance(options, RunOptions):
        check_out_is_apart(options)
    function(options)


if __name__ == "__main__":
    main()
