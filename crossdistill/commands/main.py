"""``crossdistill <command>``: every command of the package but data preparation."""

from __future__ import annotations

import importlib
import sys

from crossdistill.errors import friendly_errors, unknown_name
from crossdistill.utils.command_line import flowed, rows_of
from crossdistill.utils.environment import require_matched_torch

# Command to module with main(arguments), and what it does in one line.
COMMANDS = {
    "train": ("crossdistill.recipes.run", "train a student from a teacher, or with labels"),
    "evaluate": (
        "crossdistill.commands.evaluate",
        "k-NN, linear, retrieval, few labels, fine-tuning: what a trained student is worth",
    ),
    "report": ("crossdistill.commands.report", "write an HTML page about a run, or a comparison of several runs"),
    "transfer": ("crossdistill.recipes.agreement", "will it help? teacher and student compared on a sample of clips"),
    "cache": (
        "crossdistill.recipes.cache",
        "keep a teacher's embeddings for train --teacher-cache; cache verify checks them",
    ),
    "export": (
        "crossdistill.commands.export",
        "a trained student as ONNX, TorchScript, .pt2, safetensors or for transformers",
    ),
    "predict": ("crossdistill.commands.predict", "classes or nearest training clips of any video file or camera"),
    "encoders": ("crossdistill.commands.encoders", "list the encoders with view, size and source"),
}


@friendly_errors
def main(arguments: list[str] | None = None) -> None:
    """Dispatch to a command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        meanings = rows_of({name: what for name, (_, what) in COMMANDS.items()})
        more = flowed("crossdistill COMMAND --help lists its options; python -m data_prep prepares datasets.")
        print(f"usage: crossdistill COMMAND [options]\n\ncommands:\n{meanings}\n\n{more}")
        return
    command, *rest = arguments
    if command not in COMMANDS:
        raise unknown_name("command", command, COMMANDS)
    require_matched_torch()
    importlib.import_module(COMMANDS[command][0]).main(rest)


if __name__ == "__main__":
    main()
