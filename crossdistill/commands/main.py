"""``crossdistill COMMAND``: find the command's module, check the installation and run the command."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Sequence

from crossdistill.errors import UserError, friendly_errors, unknown_name
from crossdistill.utils.command_line import flowed, rows_of
from crossdistill.utils.environment import installed_version, require_matched_torch

# Command to its module, which has main(arguments, prog=...), and what it does in one line.
COMMANDS = {
    "train": ("crossdistill.commands.train", "train a student from a teacher, or with labels"),
    "evaluate": (
        "crossdistill.commands.evaluate",
        "evaluate a trained student: k-NN, linear, retrieval, few labels, fine-tuning",
    ),
    "report": ("crossdistill.commands.report", "write an HTML page about a run, or compare several runs"),
    "agreement": ("crossdistill.commands.agreement", "compare teacher and student on a sample of clips: will it help?"),
    "cache": (
        "crossdistill.commands.cache",
        "store teachers' embeddings for train --teacher-cache; cache verify checks them",
    ),
    "export": (
        "crossdistill.commands.export",
        "write a trained student as ONNX, TorchScript, .pt2, safetensors or for transformers",
    ),
    "predict": ("crossdistill.commands.predict", "name the classes or the nearest clips of a video file or a camera"),
    "push": ("crossdistill.commands.push", "send a student or a teacher cache to the Hugging Face hub, with a card"),
    "encoders": ("crossdistill.commands.encoders", "list the encoders with view, size and source"),
}
# Old name to new name: an old command runs and says that it has a new name.
RENAMED_COMMANDS = {"transfer": "agreement"}
RENAMED_OPTIONS = {"--mixed-precision": "--precision", "--twin": "--baseline"}


@friendly_errors
def main(arguments: Sequence[str] | None = None, *, command: str | None = None, prog: str = "crossdistill") -> None:
    """Run a command.

    Args:
        arguments: The command line; ``sys.argv[1:]`` if None.
        command: The command's name; the first argument if None.
        prog: The program as it was typed, for help and errors; without the command's name if the first argument has it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if command is None:
        if not arguments or arguments[0] in ("-h", "--help"):
            _print_help(prog)
            return
        if arguments[0] == "--version":
            print(", ".join(f"{name} {installed_version(name)}" for name in ("crossdistill", "torch", "torchvision")))
            return
        command, *arguments = arguments
        prog = f"{prog} {RENAMED_COMMANDS.get(command, command)}"
    if command in RENAMED_COMMANDS:
        print(f"crossdistill {command} is now called crossdistill {RENAMED_COMMANDS[command]}", file=sys.stderr)
        command = RENAMED_COMMANDS[command]
    if command not in COMMANDS:
        raise unknown_name("command", command, COMMANDS)
    _require_current_options(arguments)
    with contextlib.ExitStack() as ending:
        if not {"-h", "--help"} & set(arguments):  # help need not wait for torch
            require_matched_torch()
            from crossdistill.utils.distributed import ending_processes

            ending.enter_context(ending_processes())
        importlib.import_module(COMMANDS[command][0]).main(arguments, prog=prog)


def _print_help(prog: str) -> None:
    meanings = rows_of({name: what for name, (_, what) in COMMANDS.items()})
    more = flowed(
        f"{prog} COMMAND --help lists its options; {prog} --version names the versions; python -m data_prep "
        "prepares datasets."
    )
    print(f"usage: {prog} COMMAND [options]\n\ncommands:\n{meanings}\n\n{more}")


def _require_current_options(arguments: Sequence[str]) -> None:
    """Raise a ``UserError`` that names the new option for an option of version 0.1."""
    for argument in arguments:
        option = argument.partition("=")[0].replace("_", "-")
        if option in RENAMED_OPTIONS:
            raise UserError(f"{option} is now called {RENAMED_OPTIONS[option]}: use that")
    text = " ".join(arguments)
    bits = re.search(r"--precision[ =](w\d+a\d+)\b", text)
    if bits is not None:
        raise UserError(
            f"--precision is now auto, fp32, bf16 or fp16, and quantisation is --bits: use --bits {bits[1]}"
        )
