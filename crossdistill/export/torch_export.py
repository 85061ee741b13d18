"""torch.export: the graph of PyTorch 2 (``.pt2``), for ``torch.export.load``, AOTInductor and ExecuTorch.

It loads without this package and takes any batch. A quantised student computes as in training: in floating point, with
values that integers can hold.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.export.description import Description
from crossdistill.export.network import ExportedStudent, Runner, explained, torch_runner

EXTRA_FILE = "crossdistill.json"
"""The description, among the file's ``extra_files``."""


def write(student: ExportedStudent, path: Path, examples: Tensor, description: Description) -> None:
    """Capture the graph with a batch of any size and write it."""
    batch = torch.export.Dim("batch")
    with (
        explained(student.encoder, "by torch.export", ValueError, TypeError),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        program = torch.export.export(student, (examples,), dynamic_shapes=({0: batch},))
        with open(path, "wb") as file:  # given a path, it wants that to end in .pt2
            torch.export.save(program, file, extra_files={EXTRA_FILE: description.to_text()})


def open_file(path: Path, encoder: Encoder) -> Runner:
    """The file in PyTorch, without the classes that it was made of."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_runner(torch.export.load(file).module())


def read_description(path: Path) -> Description:
    """What a file says of itself; a ``UserError`` if it says nothing."""
    extra_files = {EXTRA_FILE: ""}
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.load(file, extra_files=extra_files)
    return Description.from_text(extra_files[EXTRA_FILE] or None, source=str(path))
