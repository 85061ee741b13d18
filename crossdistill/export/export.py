"""Export of a student's folder: load the student, find clips to compare on, write one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from crossdistill.data.dataset import PairedClips, make_loader
from crossdistill.data.entries import entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.distillation.student import find_class_names, load_student
from crossdistill.encoders import Encoder
from crossdistill.errors import UserError, require_at_least, unknown_name
from crossdistill.export.agreement import ExportAgreement
from crossdistill.export.formats import FORMATS, export_student
from crossdistill.export.limits import MIN_COSINE
from crossdistill.export.metadata import ExportMetadata
from crossdistill.quantization.quantize import noise_clips
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.files import require_writable


@dataclass(frozen=True)
class ExportedFile:
    """An exported file in a format of ``FORMATS``, and how well its outputs agree with PyTorch's."""

    path: Path
    to: str
    metadata: ExportMetadata
    agreement: ExportAgreement
    compared_on: str
    """Source of the compared clips: ``noise``, or the prepared dataset."""

    @property
    def num_bytes(self) -> int:
        """Size of the file, or of all files in the folder."""
        files = [self.path] if self.path.is_file() else self.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def __str__(self) -> str:
        outputs = ", ".join(f"{name} [B, {width}]" for name, width in self.metadata.outputs.items())
        operators = ", ".join(f"{number} {name}" for name, number in self.agreement.operators.items())
        bits = f" {self.metadata.bits}" if self.metadata.bits else ""
        return (
            f"{self.path}: {self.metadata.encoder}{bits}, {self.to}, {self.num_bytes / 1e6:.1f} MB, outputs {outputs}; "
            f"on {self.agreement.num_clips} clips of {self.compared_on}, in batches of two sizes, smallest cosine "
            f"{self.agreement.min_cosine:.5f}, largest difference {self.agreement.max_difference:.2g} of the largest "
            f"value{f'; onnxruntime executes {operators}' if operators else ''}"
        )


def export_file(
    student: str | Path,
    out: str | Path | None = None,
    *,
    to: str | None = None,
    data: str | Path | None = None,
    clips: int = 8,
    min_cosine: float = MIN_COSINE,
    allow_code: bool = False,
) -> ExportedFile:
    """Write a trained student for another runtime, and compare the file's outputs with PyTorch's.

    Args:
        student: A run's folder, or the folder with ``student.safetensors``.
        out: The file to write (for ``hf`` a folder); if None, ``export.onnx`` or the like in the run's folder.
        to: Format: ``onnx``, ``torchscript``, ``torch-export``, ``safetensors`` or ``hf``; by default that of the
            suffix of ``out``, and otherwise ``onnx``.
        data: A prepared dataset to compare on its clips; noise if None.
        clips: Number of clips to compare.
        min_cosine: Smallest allowed cosine similarity between the exported and the PyTorch embedding of a clip.
        allow_code: Whether to run the Python file that a student of a custom network (path/to/file.py:function) names.

    Raises:
        UserError: An argument is invalid, the student cannot be loaded or written, or the outputs differ.
    """
    student = Path(student)
    to = _format_of(out, to)
    require_at_least("--clips", clips, 1)
    if not -1 < min_cosine <= 1:
        raise UserError(f"--min-cosine is {min_cosine}: give a cosine above -1 and at most 1")
    path = default_path(student, to) if out is None else Path(out)
    # Before the student is loaded. A folder is checked when it is made.
    if not FORMATS[to].is_folder:
        require_writable(path)
    encoder = load_student(student, allow_code=allow_code)
    manifest = None if data is None else Manifest.load(Path(data))
    classes = find_class_names(student, encoder.classifier, manifest)
    compared = noise_clips(encoder, clips) if manifest is None else dataset_clips(encoder, manifest, clips)
    agreement = export_student(encoder, path, compared, to=to, classes=classes, min_cosine=min_cosine)
    source = "noise" if manifest is None else str(manifest.root)
    return ExportedFile(path, to, ExportMetadata.from_encoder(encoder, classes), agreement, source)


def _format_of(out: str | Path | None, to: str | None) -> str:
    """Return the format of ``--to``, or of the suffix of ``--out``; raise a ``UserError`` if the two differ."""
    if to is not None and to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    suffixes = {Path(known.default_name).suffix: name for name, known in FORMATS.items() if not known.is_folder}
    by_suffix = None if out is None else suffixes.get(Path(out).suffix)
    if to is not None and by_suffix not in (None, to):
        raise UserError(f"--out {out} has the suffix of {by_suffix}, and --to is {to}: change one of the two")
    return to or by_suffix or "onnx"


def default_path(student: Path, to: str) -> Path:
    """Return the default path of an exported file: in the run's folder, or in the student's folder without a run."""
    return RunFolder.of_student(student).path / FORMATS[to].default_name


def dataset_clips(encoder: Encoder, manifest: Manifest, num_clips: int) -> Tensor:
    """Return normalised clips [B, C, T, H, W] of the first readable videos of a prepared dataset.

    Raise a ``UserError`` if the dataset has no stream for the encoder, or if none of these videos can be decoded.
    """
    manifest.require_stream(encoder.view.kind.stream, wanted_by=f"a {encoder.view.modality} encoder")
    positions = np.flatnonzero(manifest.is_usable)[:num_clips]
    dataset = PairedClips(entries_of(manifest, positions), student_view=encoder.view)
    keys = [SampleKey(i, epoch=0) for i in range(len(dataset))]
    (batch,) = make_loader(dataset, [keys], num_workers=0)  # all clips in one batch
    if len(batch) == 0:
        raise UserError(
            f"none of the first {len(keys)} videos of {manifest.root} can be decoded ({batch.unreadable[0][1]}): check "
            "them with python -m data_prep verify"
        )
    return normalise(batch.student, encoder.view)
