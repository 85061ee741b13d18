"""TorchScript: for PyTorch without Python (libtorch), phones and older servers; loads without this package.

A trace: the operators that one batch ran through, for any batch of the same view. PyTorch keeps the format and no
longer extends it; ``torch-export`` is what follows it. A quantised student computes as in training: in floating point,
with values that integers can hold.
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
"""The description, among the file's ``_extra_files``."""


def write(student: ExportedStudent, path: Path, examples: Tensor, description: Description) -> None:
    """Trace the network and write it."""
    with explained(student.encoder, "as TorchScript", torch.jit.TracingCheckError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():  # the check of tracing compares on the same batch; ours does on others
            traced = torch.jit.trace(student, (examples,), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files={EXTRA_FILE: description.to_text()})


def open_file(path: Path, encoder: Encoder) -> Runner:
    """The file in PyTorch, without the classes that it was made of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_runner(torch.jit.load(str(path)))


def read_description(path: Path) -> Description:
    """What a file says of itself; a ``UserError`` if it says nothing."""
    extra_files: dict[str, bytes | str] = {EXTRA_FILE: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(str(path), _extra_files=extra_files)
    text = extra_files[EXTRA_FILE]
    return Description.from_text((text.decode() if isinstance(text, bytes) else text) or None, source=str(path))
