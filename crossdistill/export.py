"""``crossdistill export``: a trained student as a file for other runtimes.

The ONNX file maps normalised clips [B, C, T, H, W] (input ``clips``) to embeddings [B, D] (output ``embeddings``) for
any B. That of a quantised student is QCDQ: integers between QuantizeLinear and DequantizeLinear, with a Clip where they
have fewer than 8 bits. onnxruntime turns convolutions of both kinds, 2D and 3D, and linear layers into integer ones.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor

from crossdistill.console import console
from crossdistill.data.dataset import PairedClips, entries_of, make_loader
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.files import atomic_path
from crossdistill.precision import MAX_BITS, fold_norms, hand_on_scales, noise_clips, parse_bit_widths, quantise_biases
from crossdistill.student import load_student

OPSET = 17
MIN_COSINE = 0.99
"""Of a quantised student's embeddings in both runtimes. They are not equal: sums that end almost between two integers
go to one in PyTorch and to the other elsewhere."""
MIN_COSINE_OF_FEW_BITS = 0.9
"""Of one whose activations have fewer than 8 bits, so that each such step is larger."""
MAX_DIFFERENCE = 1e-3
"""Of a float student's, relative to the largest value."""
INTEGER_OPERATORS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")
FLOAT_OPERATORS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


@dataclass(frozen=True)
class Agreement:
    """How near the embeddings of an exported student are to those of PyTorch."""

    num_clips: int
    min_cosine: float
    max_difference: float
    """Largest absolute one, relative to PyTorch's largest value."""
    operators: dict[str, int]
    """Convolutions and products of matrices as the runtime executes them, and how many of each."""

    @property
    def num_integer(self) -> int:
        """Operators that compute with integers."""
        return sum(self.operators.get(name, 0) for name in INTEGER_OPERATORS)


def export_onnx(encoder: Encoder, path: Path, clips: Tensor, *, min_cosine: float | None = None) -> Agreement:
    """Write a student as ONNX, if onnxruntime then gives PyTorch's embeddings.

    Args:
        encoder: On the CPU, float or quantised; not changed.
        path: Written over; untouched where the embeddings differ.
        clips: [B, C, T, H, W], normalised, to compare on.
        min_cosine: Between both embeddings of every clip; if None ``MIN_COSINE``, or ``MIN_COSINE_OF_FEW_BITS``.

    Raises:
        UserError: A package is absent, PyTorch's exporter cannot write this network, or the embeddings differ.
    """
    onnx, runtime = _require("onnx"), _require("onnxruntime")
    if encoder.quantize is not None:
        _require("onnxoptimizer")  # brevitas' exporter wants it
    encoder = copy.deepcopy(encoder).eval()
    with torch.no_grad():
        expected = encoder(clips)
    with atomic_path(path) as temporary:
        _write(encoder, temporary, clips[:2])
        found, operators = _run(temporary, clips, onnx=onnx, runtime=runtime)
        agreement = Agreement(
            num_clips=len(clips),
            min_cosine=float(F.cosine_similarity(found, expected, eps=1e-12).min()),
            max_difference=float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)),
            operators=operators,
        )
        _require_agreement(encoder, agreement, min_cosine)
    return agreement


def _require(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(
            f"exports to ONNX need {package}, which cannot be imported ({error}): pip install 'crossdistill[export]'"
        ) from error


def _require_agreement(encoder: Encoder, agreement: Agreement, min_cosine: float | None) -> None:
    bits = MAX_BITS if encoder.quantize is None else parse_bit_widths(encoder.quantize).activation_bits
    if min_cosine is None:
        min_cosine = MIN_COSINE if bits == MAX_BITS else MIN_COSINE_OF_FEW_BITS
    max_difference = MAX_DIFFERENCE if encoder.quantize is None else float("inf")
    if agreement.min_cosine < min_cosine or agreement.max_difference > max_difference:
        raise UserError(
            f"onnxruntime's embeddings of {encoder.name} differ from PyTorch's (cosine {agreement.min_cosine:.4f}, "
            f"allowed {min_cosine}; largest difference {agreement.max_difference:.2g} of the largest value, allowed "
            f"{max_difference:g}), so nothing was written: compare on real clips (--data), train on, or allow it with "
            "--min-cosine"
        )


def _write(encoder: Encoder, path: Path, clips: Tensor) -> None:
    """Trace the network and write it; an encoder that is quantised is changed."""
    options: dict[str, Any] = {
        "input_names": ["clips"],
        "output_names": ["embeddings"],
        "dynamic_axes": {"clips": {0: "batch"}, "embeddings": {0: "batch"}},
        "opset_version": OPSET,
        "dynamo": False,  # the other exporter writes weights of brevitas in floating point
    }
    with _reasons(encoder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if encoder.quantize is None:
            torch.onnx.export(encoder, (clips,), str(path), **options)
            return
        fold_norms(encoder.body)
        quantise_biases(encoder.body)
        hand_on_scales(encoder, are_handed_on=True)
        write = importlib.import_module("brevitas.export").export_onnx_qcdq
        write(encoder, args=clips, export_path=str(path), **options)


@contextmanager
def _reasons(encoder: Encoder) -> Iterator[None]:
    """Say in one sentence what PyTorch's exporter says in pages."""
    try:
        yield
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = " ".join(str(error).partition("Please feel free")[0].split("\n", 1)[0].split())
        raise UserError(
            f"PyTorch cannot write {encoder.name} as ONNX at {encoder.view.num_frames} frames of "
            f"{encoder.view.size_px} pixels ({reason}): use the student in PyTorch, or train one of another view"
        ) from error


def _run(path: Path, clips: Tensor, *, onnx: ModuleType, runtime: ModuleType) -> tuple[Tensor, dict[str, int]]:
    """Embeddings of every clip in a batch of its own number, and what the runtime made of the network."""
    with tempfile.TemporaryDirectory() as folder:
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        nodes = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    embeddings = session.run(None, {"clips": clips.numpy()})[0]
    operators = {name: nodes[name] for name in (*INTEGER_OPERATORS, *FLOAT_OPERATORS) if nodes[name]}
    return torch.from_numpy(np.asarray(embeddings)), operators


def real_clips(encoder: Encoder, folder: Path, num_clips: int) -> Tensor:
    """[B, C, T, H, W] of a prepared dataset's first videos, normalised."""
    manifest = Manifest.load(folder)
    manifest.require_stream(encoder.view.kind.stream, wanted_by=f"a {encoder.view.modality} encoder")
    positions = [i for i, video in enumerate(manifest.videos) if video.is_usable][:num_clips]
    dataset = PairedClips(entries_of(manifest, positions), student_view=encoder.view)
    keys = [SampleKey(i, epoch=0) for i in range(len(dataset))]
    (batch,) = make_loader(dataset, [keys], num_workers=0, pin_memory=False)
    return normalise(batch.student, encoder.view)


@dataclass(frozen=True)
class Options:
    """Write a trained student as ONNX, and compare its embeddings in onnxruntime with those of PyTorch."""

    student: tyro.conf.Positional[Path]
    """A run's folder, or the folder with student.safetensors."""
    out: Path
    """The file to write."""
    to: Literal["onnx"] = "onnx"
    """The format; a quantised student is written as QCDQ."""
    data: Path | None = None
    """A prepared dataset whose clips are compared; noise if absent."""
    clips: int = 8
    """How many clips are compared."""
    min_cosine: float | None = None
    """Smallest allowed cosine between both embeddings of a clip; 0.99, or 0.9 if activations have fewer than 8 bits."""
    allow_code: bool = False
    """Run the Python file that a student of one's own network (path/to/file.py:function) names."""

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise UserError(f"--clips is {self.clips}: give 1 or more")


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    options = tyro.cli(Options, args=arguments, prog="crossdistill export", description=Options.__doc__)
    encoder = load_student(options.student, allow_code=options.allow_code)
    clips = (
        noise_clips(encoder, options.clips)
        if options.data is None
        else real_clips(encoder, options.data, options.clips)
    )
    agreement = export_onnx(encoder, options.out, clips, min_cosine=options.min_cosine)
    operators = ", ".join(f"{number} {name}" for name, number in agreement.operators.items())
    console.print(
        f"{options.out}: {encoder.name}{f' {encoder.quantize}' if encoder.quantize else ''}, "
        f"{options.out.stat().st_size / 1e6:.1f} MB; on {agreement.num_clips} clips of "
        f"{'noise' if options.data is None else options.data} cosine {agreement.min_cosine:.5f} at least, largest "
        f"difference {agreement.max_difference:.2g} of the largest value; onnxruntime executes {operators}",
        highlight=False,
        soft_wrap=True,
    )
