"""Formats in which a trained student leaves, each in a file of its own; every file is compared before it is kept.

A new format is one ``Format`` in ``FORMATS``: how a network is written, and how the file is opened again.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError, unknown_name
from crossdistill.export import hf, onnx, safetensors, torch_export, torchscript
from crossdistill.export.agreement import MIN_COSINE, Agreement, measure, require_agreement
from crossdistill.export.description import Description, describe
from crossdistill.export.network import NUM_EXAMPLES, ExportedStudent, Runner, cycled, torch_runner
from crossdistill.utils.files import atomic_path

__all__ = ["FORMATS", "Agreement", "Format", "export_student"]

OTHER_BATCH = 3
"""Clips of a second batch, of another size than the traced one."""


def _nothing(encoder: Encoder) -> None:
    """Every student can be written."""


def _no_operators(path: Path) -> dict[str, int]:
    """The runtime does not say."""
    return {}


@dataclass(frozen=True)
class Format:
    """One way to write a student."""

    default_name: str
    """Of the file, in the run's folder."""
    runtime: str
    """Whose outputs are compared with PyTorch's, for people."""
    write: Callable[[ExportedStudent, Path, Tensor, Description], None]
    """Gets two clips to trace with; may change the student, which is a copy."""
    open: Callable[[Path, Encoder], Runner]
    """Gets the student that the file was made of."""
    check: Callable[[Encoder], None] = _nothing
    """Raises a ``UserError`` before any work if this student cannot be written."""
    is_folder: bool = False
    beside: Callable[[Encoder, Path], None] | None = None
    """Writes what lies beside the file once that is in its place."""
    operators: Callable[[Path], dict[str, int]] = _no_operators
    """What the runtime executes."""


FORMATS: dict[str, Format] = {
    "onnx": Format(
        "export.onnx", "onnxruntime", onnx.write, onnx.open_file, check=onnx.check, operators=onnx.operators_of
    ),
    "torchscript": Format("export.torchscript.pt", "TorchScript", torchscript.write, torchscript.open_file),
    "torch-export": Format("export.pt2", "the exported program", torch_export.write, torch_export.open_file),
    "safetensors": Format(
        "export.safetensors",
        "the reloaded network",
        safetensors.write,
        safetensors.open_file,
        beside=safetensors.write_classifier,
    ),
    "hf": Format("export-hf", "transformers' model", hf.write, hf.open_file, check=hf.check, is_folder=True),
}


def export_student(
    encoder: Encoder,
    path: Path,
    clips: Tensor,
    *,
    to: str = "onnx",
    classes: Sequence[str] = (),
    min_cosine: float = MIN_COSINE,
) -> Agreement:
    """Write a student in one format, if what is read back then gives PyTorch's outputs.

    They are compared on all clips in one batch and on three in another, while networks are traced with two.

    Args:
        encoder: On the CPU, float or quantised; not changed.
        path: A file, written over; untouched where the outputs differ. For ``hf`` a folder that is not there yet.
        clips: [B, C, T, H, W], normalised, to compare on.
        to: One of ``FORMATS``.
        classes: Names of the classifier's classes, if they are known.
        min_cosine: Between both rows of every clip, the smallest that is allowed.

    Raises:
        UserError: A package is absent, the network cannot be written in this format, or the outputs differ.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    chosen = FORMATS[to]
    chosen.check(encoder)
    description = describe(encoder, classes)
    student = ExportedStudent(copy.deepcopy(encoder)).eval()
    batches = (clips, cycled(clips, OTHER_BATCH))
    expected = [torch_runner(student)(batch) for batch in batches]
    with _new_folder(path) if chosen.is_folder else atomic_path(path) as temporary:
        chosen.write(student, temporary, cycled(clips, NUM_EXAMPLES), description)
        run = chosen.open(temporary, encoder)
        found = [measure(outputs, run(batch)) for outputs, batch in zip(expected, batches, strict=True)]
        agreement = Agreement(
            num_clips=len(clips),
            min_cosine=min(cosine for cosine, _ in found),
            max_difference=max(difference for _, difference in found),
            operators=chosen.operators(temporary),
        )
        require_agreement(encoder, agreement, where=chosen.runtime, min_cosine=min_cosine)
    if chosen.beside is not None:
        chosen.beside(encoder, path)
    return agreement


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside the path; it becomes the path when the block succeeds, else it is removed."""
    if path.exists():
        raise UserError(f"{path} is there already: remove it, or give another folder as --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def size_of(path: Path) -> int:
    """Bytes of a file or a folder's files."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
