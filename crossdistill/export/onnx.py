"""ONNX: for onnxruntime and the runtimes of vendors.

The file maps normalised clips [B, C, T, H, W] (input ``clips``) to ``embeddings`` [B, D] and, of a student with a
classifier, ``logits`` [B, N] for any B. That of a quantised student is QCDQ: integers between QuantizeLinear and
DequantizeLinear, with a Clip where they have fewer than 8 bits. onnxruntime turns convolutions of both kinds, 2D and
3D, and linear layers into integer ones.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError
from crossdistill.export.agreement import INTEGER_OPERATORS
from crossdistill.export.description import INPUT, METADATA_KEY, Description
from crossdistill.export.network import ExportedStudent, Outputs, Runner, explained
from crossdistill.quantization.quantize import hand_on_scales, prepare_for_export

OPSET = 17
FLOAT_OPERATORS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_FATAL = 4


def require_package(name: str) -> ModuleType:
    """A package that ONNX needs, or a ``UserError`` that says how to get it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"ONNX needs {name}, which cannot be imported ({error}): pip install 'crossdistill[export]'"
        ) from error


def check(encoder: Encoder) -> None:
    """Raise a ``UserError`` if a package is absent."""
    for name in ("onnx", "onnxruntime", *(() if encoder.bits is None else ("onnxoptimizer",))):
        require_package(name)  # brevitas' exporter wants the third


def write(student: ExportedStudent, path: Path, examples: Tensor, description: Description) -> None:
    """Trace the network and write it; a quantised one is changed."""
    names = student.output_names
    options: dict[str, Any] = {
        "input_names": [INPUT],
        "output_names": list(names),
        "dynamic_axes": {name: {0: "batch"} for name in (INPUT, *names)},
        "opset_version": OPSET,
        "dynamo": False,  # the other exporter writes weights of brevitas in floating point
    }
    encoder = student.encoder
    with explained(encoder, "as ONNX", torch.onnx.errors.OnnxExporterError), warnings.catch_warnings(), _mute_stdout():
        warnings.simplefilter("ignore")
        if encoder.bits is None:
            torch.onnx.export(student, (examples,), str(path), **options)
        else:
            hand_on_scales(encoder, are_handed_on=True)
            prepare_for_export(encoder.body)
            export_qcdq = importlib.import_module("brevitas.export").export_onnx_qcdq
            export_qcdq(student, args=examples, export_path=str(path), **options)
    _add_metadata(path, description)


@contextlib.contextmanager
def _mute_stdout() -> Iterator[None]:
    """On an error PyTorch prints its whole graph, from C++, which helps nobody."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _add_metadata(path: Path, description: Description) -> None:
    onnx = require_package("onnx")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: description.to_text()})
    onnx.save(model, str(path))


def open_session(path: Path, *, optimised: Path | None = None, num_threads: int = 0) -> Any:
    """A file in onnxruntime, on the CPU.

    Args:
        path: The file.
        optimised: Where to write what the runtime made of it.
        num_threads: 0 for as many as it likes.

    Raises:
        UserError: onnxruntime is absent, or the file is none that it can run.
    """
    runtime = require_package("onnxruntime")
    if not path.is_file():
        raise UserError(f"there is no ONNX file {path}: make one with crossdistill export --to onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = num_threads
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    broken = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    errors = (broken.Fail, broken.InvalidProtobuf, broken.InvalidGraph, broken.NotImplemented, broken.InvalidArgument)
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except errors as error:
        reason = " ".join(str(error).split("\n", 1)[0].split()).rsplit(" : ", 1)[-1]
        raise UserError(
            f"{path} is no ONNX file that onnxruntime {runtime.__version__} can run ({reason}): export the student "
            "again, or update onnxruntime"
        ) from error


def run_session(session: Any, clips: Tensor) -> Outputs:
    """Outputs of clips [B, C, T, H, W] by name."""
    names = [output.name for output in session.get_outputs()]
    arrays = session.run(names, {INPUT: clips.contiguous().numpy()})
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


def read_description(session: Any, path: Path) -> Description:
    """What a file says of itself; a ``UserError`` if it says nothing."""
    return Description.from_text(session.get_modelmeta().custom_metadata_map.get(METADATA_KEY), source=str(path))


def open_file(path: Path, encoder: Encoder) -> Runner:
    """The file in onnxruntime."""
    session = open_session(path)
    return lambda clips: run_session(session, clips)


def operators_of(path: Path) -> dict[str, int]:
    """Convolutions and products of matrices that onnxruntime executes for a file, and how many of each."""
    onnx = require_package("onnx")
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder, "optimised.onnx")
        open_session(path, optimised=optimised)
        nodes = Counter(node.op_type for node in onnx.load(str(optimised)).graph.node)
    return {name: nodes[name] for name in (*INTEGER_OPERATORS, *FLOAT_OPERATORS) if nodes[name]}
