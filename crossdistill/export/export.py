"""Export of a student's folder: load the student, find clips to compare on, write one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import find_class_names, load_student
from crossdistill.errors import UserError, require_at_least, unknown_name
from crossdistill.export.agreement import ExportAgreement
from crossdistill.export.formats import FORMATS, export_student
from crossdistill.export.int8 import INT8_FORMATS, Calibration, KnownClips, dataset_clips, quantise_with
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
    calibration: Calibration | None = None
    """How a float student became int8; None for any other."""

    @property
    def num_bytes(self) -> int:
        """Size of the file, of the pair of files, or of all files in the folder."""
        second = FORMATS[self.to].second_suffix
        pair = [self.path] if second is None else [self.path, self.path.with_suffix(second)]
        files = pair if self.path.is_file() else self.path.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def __str__(self) -> str:
        outputs = ", ".join(f"{name} [B, {width}]" for name, width in self.metadata.outputs.items())
        operators = ", ".join(f"{number} {name}" for name, number in self.agreement.operators.items())
        bits = f" {self.metadata.bits}" if self.metadata.bits else ""
        return (
            f"{self.path}: {self.metadata.encoder}{bits}, {self.to}, {self.num_bytes / 1e6:.1f} MB, outputs {outputs}; "
            f"on {self.agreement.num_clips} clips of {self.compared_on}, in batches of two sizes, smallest cosine "
            f"{self.agreement.min_cosine:.5f}, largest difference {self.agreement.max_difference:.2g} of the largest "
            f"value{f'; {FORMATS[self.to].runtime} executes {operators}' if operators else ''}{self.calibration or ''}"
        )


def export_file(
    student: str | Path,
    out: str | Path | None = None,
    *,
    to: str | None = None,
    data: str | Path | None = None,
    clips: int = 8,
    min_cosine: float = MIN_COSINE,
    int8: bool = False,
    calibrate: str | Path | None = None,
    calibration_clips: int = 128,
    split: str = "1",
    allow_code: bool = False,
) -> ExportedFile:
    """Write a trained student for another runtime, and compare the file's outputs with PyTorch's.

    Args:
        student: A run's folder, or the folder with ``student.safetensors``.
        out: The file to write (for ``hf`` a folder); if None, ``export.onnx`` or the like in the run's folder.
        to: Format: ``onnx``, ``openvino``, ``torchscript``, ``torch-export``, ``safetensors`` or ``hf``; by default
            that of the suffix of ``out``, and otherwise ``onnx``.
        data: A prepared dataset to compare on its clips; if None, training clips of ``calibrate``, otherwise noise.
        clips: Number of clips to compare.
        min_cosine: Smallest allowed cosine similarity between the exported and the PyTorch embedding of a clip.
        int8: Whether to turn a float student into int8 first, without training: ``onnx`` and ``openvino`` only.
        calibrate: The prepared dataset whose training clips set the ranges of the activations; required for ``int8``.
        calibration_clips: Number of these clips.
        split: Split whose training clips are taken; a dataset without splits gives any of its clips.
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
    _check_int8(to, int8=int8, calibrate=calibrate, calibration_clips=calibration_clips)
    encoder = load_student(student, allow_code=allow_code)
    manifest = None if data is None else Manifest.load(Path(data))
    classes = find_class_names(student, encoder.classifier, manifest)
    known = None if calibrate is None else KnownClips.find(encoder, Manifest.load(Path(calibrate)), split)
    if manifest is not None:
        compared, source = dataset_clips(encoder, manifest, clips), str(manifest.root)
    elif known is not None:
        compared, source = known.read(clips), str(known.manifest.root)
    else:
        compared, source = noise_clips(encoder, clips), "noise"
    calibration = None
    if known is not None:
        calibration = quantise_with(known, calibration_clips, compared, min_cosine=min_cosine)
    agreement = export_student(encoder, path, compared, to=to, classes=classes, min_cosine=min_cosine)
    return ExportedFile(path, to, ExportMetadata.from_encoder(encoder, classes), agreement, source, calibration)


def _check_int8(to: str, *, int8: bool, calibrate: str | Path | None, calibration_clips: int) -> None:
    if int8 and to not in INT8_FORMATS:
        raise UserError(f"--int8 has no effect with --to {to}: give --to {' or '.join(INT8_FORMATS)}, or remove it")
    if int8 and calibrate is None:
        raise UserError(
            "--int8 needs clips to measure the ranges of activations on: give --calibrate with a prepared dataset of "
            "the student's modality"
        )
    if calibrate is not None and not int8:
        raise UserError("--calibrate has no effect without --int8: add it, or remove --calibrate")
    require_at_least("--calibration-clips", calibration_clips, 1)


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
