"""torch.export: the graph of PyTorch 2 (``.pt2``), for ``torch.export.load``, AOTInductor and ExecuTorch.

The file loads without this package and takes any batch size. A quantised student computes as in training: in floating
point, with values that integers can hold.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.export.metadata import METADATA_FILE, ExportMetadata
from crossdistill.export.network import ExportedStudent, Forward, exporter_errors, module_forward


def write(student: ExportedStudent, path: Path, examples: Tensor, metadata: ExportMetadata) -> None:
    """Capture the graph for any batch size and write it."""
    batch = torch.export.Dim("batch")
    errors = exporter_errors(student.encoder, "by torch.export", ValueError, TypeError)
    with errors, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(student, (examples,), dynamic_shapes=({0: batch},))
        with open(path, "wb") as file:  # torch.export.save refuses a path without the suffix .pt2
            torch.export.save(program, file, extra_files={METADATA_FILE: metadata.to_text()})


def open_file(path: Path, encoder: Encoder) -> Forward:
    """Open the file in PyTorch, without this package's classes."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module_forward(torch.export.load(file).module())


def open_model(path: Path) -> tuple[Forward, ExportMetadata]:
    """Open a file in PyTorch; return its forward pass and its metadata, or raise a ``UserError``."""
    extra = {METADATA_FILE: ""}
    if not zipfile.is_zipfile(path):  # PyTorch's own error depends on its version
        raise UserError(f"{path} is not a complete .pt2 file: write one with crossdistill export --to torch-export")
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.export.load(file, extra_files=extra).module()
    except (RuntimeError, KeyError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split("\n", 1)[0].split())
        raise UserError(
            f"PyTorch {torch.__version__} cannot load {path} ({reason}): export the student again with this version"
        ) from error
    return module_forward(module), ExportMetadata.from_text(extra[METADATA_FILE] or None, source=str(path))
