"""ONNX: for onnxruntime and the runtimes of vendors.

The file maps normalised clips [B, C, T, H, W] (input ``clips``) to ``embeddings`` [B, D] and, with a classifier, to
``logits`` [B, N], for any B. A quantised student is written as QCDQ: integers between QuantizeLinear and
DequantizeLinear, with a Clip below 8 bits. onnxruntime fuses them into integer convolutions, 2D and 3D, and integer
linear layers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError, require_package
from crossdistill.export.metadata import INPUT, METADATA_KEY, ExportMetadata
from crossdistill.export.network import ExportedStudent, Forward, Outputs, exporter_errors
from crossdistill.quantization.layers import return_scales
from crossdistill.quantization.stored import prepare_for_export

OPSET = 17
INTEGER_OPERATORS = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")
FLOAT_OPERATORS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_FATAL = 4  # onnxruntime's log level: it reports errors as exceptions as well


LEAST_RUNTIME = "1.20"

require = functools.partial(require_package, target="ONNX", extra="export")


def check(encoder: Encoder) -> None:
    """Raise a ``UserError`` if a package is missing."""
    # brevitas' exporter of quantised students needs onnxoptimizer.
    for name in ("onnx", "onnxruntime", *(() if encoder.bits is None else ("onnxoptimizer",))):
        require(name)


def write(student: ExportedStudent, path: Path, examples: Tensor, metadata: ExportMetadata) -> None:
    """Trace the network and write it. A quantised student is changed."""
    options: dict[str, Any] = {
        "input_names": [INPUT],
        "output_names": list(student.output_names),
        "dynamic_axes": {name: {0: "batch"} for name in (INPUT, *student.output_names)},
        "opset_version": OPSET,
        "dynamo": False,  # the dynamo exporter writes brevitas' weights in floating point
    }
    encoder = student.encoder
    errors = exporter_errors(encoder, "as ONNX", torch.onnx.errors.OnnxExporterError)
    with errors, warnings.catch_warnings(), _mute_stdout():
        warnings.simplefilter("ignore")
        if encoder.bits is None:
            torch.onnx.export(student, (examples,), str(path), **options)
        else:
            return_scales(encoder, enabled=True)
            prepare_for_export(encoder.body)
            export_qcdq = importlib.import_module("brevitas.export").export_onnx_qcdq
            with _large_biases():
                export_qcdq(student, args=examples, export_path=str(path), **options)
    onnx = require("onnx")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_text()})
    onnx.save(model, str(path))


@contextlib.contextmanager
def _large_biases() -> Iterator[None]:
    """Let brevitas export biases of millions of steps, where float32 gives a quotient by the scale to half a step.

    It refuses quotients that are not within its tolerance of an integer. The integer is then the nearest one: at most
    one step of 32 bits beside.
    """
    tolerance = importlib.import_module("brevitas.quant_tensor.base_quant_tensor").TOLERANCE
    kept = dict(tolerance)
    tolerance.update(dict.fromkeys(tolerance, 1.0))
    try:
        yield
    finally:
        tolerance.update(kept)


@contextlib.contextmanager
def _mute_stdout() -> Iterator[None]:
    """Discard what is written to file descriptor 1: on an error PyTorch prints its whole graph from C++."""
    # Python's redirect_stdout does not reach C++, so the descriptor itself is redirected.
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def open_session(path: Path, *, optimised: Path | None = None, num_threads: int = 0) -> Any:
    """Open a file in onnxruntime, on the CPU; a ``UserError`` if onnxruntime is missing or cannot run the file.

    onnxruntime writes the graph that it executes to ``optimised``, if given; with 0 threads it chooses their number.
    """
    runtime = require("onnxruntime", least=LEAST_RUNTIME)
    if not path.is_file():
        raise UserError(f"there is no ONNX file {path}: write one with crossdistill export --to onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = num_threads
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    errors = (state.Fail, state.InvalidProtobuf, state.InvalidGraph, state.NotImplemented, state.InvalidArgument)
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except errors as error:
        reason = " ".join(str(error).split("\n", 1)[0].split()).rsplit(" : ", 1)[-1]
        raise UserError(
            f"onnxruntime {runtime.__version__} cannot run the file {path} ({reason}): export the student again, or "
            "update onnxruntime"
        ) from error


def run_session(session: Any, clips: Tensor) -> Outputs:
    """Return the outputs of normalised clips [B, C, T, H, W]."""
    names = [output.name for output in session.get_outputs()]
    arrays = session.run(names, {INPUT: clips.contiguous().numpy()})
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


def read_metadata(session: Any, path: Path) -> ExportMetadata:
    """Read the metadata of an opened file, or raise a ``UserError`` if it has none."""
    return ExportMetadata.from_text(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), source=str(path))


def open_model(path: Path, *, num_threads: int = 0) -> tuple[Forward, ExportMetadata]:
    """Open a file in onnxruntime; return its forward pass and its metadata."""
    session = open_session(path, num_threads=num_threads)
    return functools.partial(run_session, session), read_metadata(session, path)


def open_file(path: Path, encoder: Encoder) -> Forward:
    """Open the file in onnxruntime."""
    session = open_session(path)
    return lambda clips: run_session(session, clips)


def executed_operators(path: Path) -> dict[str, int]:
    """Count the convolutions and matrix products that onnxruntime executes for a file, by operator."""
    onnx = require("onnx")
    with tempfile.TemporaryDirectory() as folder:
        # The fusions to integer operators happen when onnxruntime loads the file, so they are not in the file itself.
        optimised = Path(folder, "optimised.onnx")
        open_session(path, optimised=optimised)
        nodes = Counter(node.op_type for node in onnx.load(str(optimised)).graph.node)
    return {name: nodes[name] for name in (*INTEGER_OPERATORS, *FLOAT_OPERATORS) if nodes[name]}
