"""TorchScript: for PyTorch without Python (libtorch), phones and older servers. The file loads without this package.

A trace: the operators that one batch ran through, for any batch of the same view. PyTorch no longer extends this
format; ``torch-export`` is its successor. A quantised student computes as in training: in floating point, with values
that integers can hold.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.encoders import Encoder
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
