"""TorchScript: for PyTorch without Python (libtorch), phones and older servers. The file loads without this package.

A trace: the operators that one batch ran through, for any batch of the same view. PyTorch no longer extends this
format; ``torch-export`` is its successor. A quantised student computes as in training: in floating point, with values
that integers can hold.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.export.metadata import METADATA_FILE, ExportMetadata
from crossdistill.export.network import ExportedStudent, Forward, exporter_errors, module_forward


def write(student: ExportedStudent, path: Path, examples: Tensor, metadata: ExportMetadata) -> None:
    """Trace the network and write it."""
    errors = exporter_errors(student.encoder, "as TorchScript", torch.jit.TracingCheckError)
    with errors, warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        # check_trace would compare on the traced batch; export_student compares on other batches.
        traced = torch.jit.trace(student, (examples,), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={METADATA_FILE: metadata.to_text()})


def open_file(path: Path, encoder: Encoder) -> Forward:
    """Open the file in PyTorch, without this package's classes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recent PyTorch warns that TorchScript is deprecated
        return module_forward(torch.jit.load(str(path)))


def open_model(path: Path) -> tuple[Forward, ExportMetadata]:
    """Open a file in PyTorch; return its forward pass and its metadata, or raise a ``UserError``.

    A pickle is refused and never run.
    """
    extra = {METADATA_FILE: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except RuntimeError as error:
        raise UserError(
            f"{path} is not a complete TorchScript file: write one with crossdistill export --to torchscript"
        ) from error
    text: Any = extra[METADATA_FILE]  # bytes, whatever was given
    return module_forward(module), ExportMetadata.from_text(text.decode() if text else None, source=str(path))
