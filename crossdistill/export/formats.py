"""The export formats, and the export of an encoder in one of them.

A new format is a module with ``write`` and ``open_file``, and one ``Format`` in ``FORMATS``. Every file is compared
with PyTorch before it is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError, unknown_name
from crossdistill.export import hf, onnx, openvino, safetensors, torch_export, torchscript
from crossdistill.export.agreement import ExportAgreement, compare_outputs, require_agreement
from crossdistill.export.limits import MIN_COSINE
from crossdistill.export.metadata import ExportMetadata
from crossdistill.export.network import NUM_EXAMPLES, ExportedStudent, Forward, module_forward, repeat_clips
from crossdistill.utils.files import atomic_folder, atomic_pair, atomic_path

# Number of clips in the second batch that is compared. It differs from the number of traced clips, so that a batch size
# that tracing has fixed is found.
OTHER_BATCH = 3


@dataclass(frozen=True)
class Format:
    """One format of exported files."""

    default_name: str
    runtime: str
    """Name of the runtime whose outputs are compared with PyTorch's."""
    write: Callable[[ExportedStudent, Path, Tensor, ExportMetadata], None]
    """Writes the student, which is a copy and may be changed. The tensor is a batch of clips to trace with."""
    open: Callable[[Path, Encoder], Forward]
    """Opens the file; receives the student that it was written from."""
    check: Callable[[Encoder], None] | None = None
    """Raises a ``UserError`` if this student cannot be written. Called before any work."""
    write_beside: Callable[[Encoder, Path], None] | None = None
    """Writes a second file beside the first, after the first has been accepted."""
    operators: Callable[[Path], dict[str, int]] | None = None
    """Counts the operators that the runtime executes."""
    is_folder: bool = False
    second_suffix: str | None = None
    """Suffix of a second file with the same name, which ``write`` writes too and without which the first is useless."""

    def temporary(self, path: Path) -> AbstractContextManager[Path]:
        """Return a context with a temporary path, whose file or folder takes the place of ``path`` at the end."""
        if self.second_suffix is not None:
            return atomic_pair(path, self.second_suffix)
        return atomic_folder(path) if self.is_folder else atomic_path(path)


FORMATS: dict[str, Format] = {
    "onnx": Format(
        "export.onnx", "onnxruntime", onnx.write, onnx.open_file, check=onnx.check, operators=onnx.executed_operators
    ),
    "openvino": Format(
        "export.xml",
        "OpenVINO",
        openvino.write,
        openvino.open_file,
        check=openvino.check,
        operators=openvino.executed_operators,
        second_suffix=openvino.WEIGHTS_SUFFIX,
    ),
    "torchscript": Format("export.torchscript.pt", "TorchScript", torchscript.write, torchscript.open_file),
    "torch-export": Format("export.pt2", "torch.export", torch_export.write, torch_export.open_file),
    "safetensors": Format(
        "export.safetensors",
        "the reloaded network",
        safetensors.write,
        safetensors.open_file,
        write_beside=safetensors.write_classifier,
    ),
    "hf": Format("export-hf", "transformers", hf.write, hf.open_file, check=hf.check, is_folder=True),
}


def export_student(
    encoder: Encoder,
    path: Path,
    clips: Tensor,
    *,
    to: str = "onnx",
    classes: Sequence[str] = (),
    min_cosine: float = MIN_COSINE,
) -> ExportAgreement:
    """Write a student in one format. Keep the file only if its outputs agree with PyTorch's, in batches of two sizes.

    The encoder, float or quantised, is on the CPU and is not changed. An existing file is replaced, or kept if the
    outputs differ; for ``hf`` the path is a new folder. The normalised clips [B, C, T, H, W] are compared, and
    ``min_cosine`` is the smallest allowed cosine of both embeddings of a clip. ``classes`` are the names of the
    classifier's classes, empty if unknown.

    Raises:
        UserError: A package is missing, the format cannot hold the network, or the outputs differ.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    chosen = FORMATS[to]
    if chosen.check is not None:
        chosen.check(encoder)
    metadata = ExportMetadata.from_encoder(encoder, classes)
    student = ExportedStudent(copy.deepcopy(encoder)).eval()
    batches = (clips, repeat_clips(clips, OTHER_BATCH))
    # Computed first, because writing may change the student.
    expected = [module_forward(student)(batch) for batch in batches]
    if chosen.is_folder and path.exists():
        raise UserError(f"{path} exists already: remove it, or give another folder with --out")
    with chosen.temporary(path) as temporary:
        chosen.write(student, temporary, repeat_clips(clips, NUM_EXAMPLES), metadata)
        forward = chosen.open(temporary, encoder)
        found = [compare_outputs(outputs, forward(batch)) for outputs, batch in zip(expected, batches, strict=True)]
        cosines, differences = zip(*found, strict=True)
        operators = {} if chosen.operators is None else chosen.operators(temporary)
        agreement = ExportAgreement(len(clips), min(cosines), max(differences), operators)
        # Inside the block: if this raises, the temporary file is removed and an earlier export stays.
        require_agreement(encoder, agreement, runtime=chosen.runtime, min_cosine=min_cosine)
    if chosen.write_beside is not None:
        chosen.write_beside(encoder, path)
    return agreement
