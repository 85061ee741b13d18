"""``crossdistill export``: a trained student as a file for other runtimes; the formats are in ``exports/``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from torch import Tensor

from crossdistill.data.dataset import PairedClips, entries_of, make_loader
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.distillation.class_names import find_class_names
from crossdistill.distillation.student import FACTS_NAME, find_student, load_student
from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.export import FORMATS, Agreement, export_student, size_of
from crossdistill.export.agreement import MIN_COSINE
from crossdistill.export.description import describe
from crossdistill.quantization.quantize import noise_clips
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.console import console
from crossdistill.utils.files import require_writable


def real_clips(encoder: Encoder, manifest: Manifest, num_clips: int) -> Tensor:
    """[B, C, T, H, W] of a prepared dataset's first videos, normalised.

    Raises:
        UserError: The dataset has no stream for the encoder, or none of these videos can be read.
    """
    manifest.require_stream(encoder.view.kind.stream, wanted_by=f"a {encoder.view.modality} encoder")
    positions = [i for i, video in enumerate(manifest.videos) if video.is_usable][:num_clips]
    dataset = PairedClips(entries_of(manifest, positions), student_view=encoder.view)
    keys = [SampleKey(i, epoch=0) for i in range(len(dataset))]
    (batch,) = make_loader(dataset, [keys], num_workers=0, pin_memory=False)
    if len(batch) == 0:
        raise UserError(
            f"none of the first {len(keys)} videos of {manifest.root} can be read ({batch.unreadable[0][1]}): check "
            "them with python -m data_prep verify"
        )
    return normalise(batch.student, encoder.view)


@dataclass(frozen=True)
class Options:
    """Write a trained student for other runtimes, and compare what the file gives with PyTorch."""

    student: tyro.conf.Positional[Path]
    """A run's folder, or the folder with student.safetensors."""
    to: Literal["onnx", "torchscript", "torch-export", "safetensors", "hf"] = "onnx"
    """onnx: for onnxruntime and others, of a quantised student with integers (QCDQ); torchscript, torch-export: for
    PyTorch without this package; safetensors: the weights for the source library's own class; hf: a folder for
    transformers' from_pretrained."""
    out: Path | None = None
    """The file (hf: folder) to write; export.onnx and the like beside the student's folder if absent."""
    data: Path | None = None
    """A prepared dataset whose clips are compared; noise if absent."""
    clips: int = 8
    """How many clips are compared."""
    min_cosine: float = MIN_COSINE
    """Smallest allowed cosine between both embeddings of a clip."""
    allow_code: bool = False
    """Run the Python file that a student of one's own network (path/to/file.py:function) names."""

    def check(self) -> None:
        """Raise a ``UserError`` for values that cannot work; after parsing, which would put its own words around it."""
        if self.clips < 1:
            raise UserError(f"--clips is {self.clips}: give 1 or more")
        if not -1 < self.min_cosine <= 1:
            raise UserError(f"--min-cosine is {self.min_cosine}: give a cosine, above -1 and at most 1")
        if self.out is not None and self.to != "hf":  # which is a folder
            require_writable(self.out)


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog="crossdistill export")
    options.check()
    encoder = load_student(options.student, allow_code=options.allow_code)
    out = options.out or default_path(options.student, options.to)
    manifest = None if options.data is None else Manifest.load(options.data)
    classes = find_class_names(options.student, encoder.classifier, manifest)
    clips = noise_clips(encoder, options.clips) if manifest is None else real_clips(encoder, manifest, options.clips)
    agreement = export_student(encoder, out, clips, to=options.to, classes=classes, min_cosine=options.min_cosine)
    _report(encoder, agreement, out, to=options.to, source="noise" if manifest is None else str(manifest.root))


def default_path(student: Path, to: str) -> Path:
    """Where a student goes if nobody says: into its run's folder, or beside its own files where it has no run."""
    folder = find_student(student) or student
    run = folder.parent if folder.name == "student" and not (folder.parent / FACTS_NAME).exists() else folder
    return run / FORMATS[to].default_name


def _report(encoder: Encoder, agreement: Agreement, out: Path, *, to: str, source: str) -> None:
    outputs = ", ".join(f"{name} [B, {width}]" for name, width in describe(encoder).outputs.items())
    operators = ", ".join(f"{number} {name}" for name, number in agreement.operators.items())
    name = f"{encoder.name}{f' {encoder.bits}' if encoder.bits else ''}"
    console.print(
        f"{out}: {name}, {to}, {size_of(out) / 1e6:.1f} MB, "
        f"gives {outputs}; on {agreement.num_clips} clips of {source}, in batches of two sizes, cosine "
        f"{agreement.min_cosine:.5f} at least, largest difference {agreement.max_difference:.2g} of the largest value"
        f"{f'; onnxruntime executes {operators}' if operators else ''}",
        highlight=False,
        soft_wrap=True,
    )
