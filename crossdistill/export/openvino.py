"""OpenVINO: the fastest runtime on Intel and AMD processors, with int8 convolutions of two and three dimensions.

The file is OpenVINO's IR: a graph (``.xml``) and its weights (``.bin``) beside it. It is made from the graph of
``onnx.py``, so names, inputs and outputs are the same. ``simplify.py`` changes the graph of a quantised student.
OpenVINO also reads ``.onnx`` files of this package.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossdistill.encoders import Encoder
from crossdistill.errors import UserError, require_package
from crossdistill.export import onnx
from crossdistill.export.metadata import INPUT, METADATA_KEY, ExportMetadata
from crossdistill.export.network import ExportedStudent, Forward, Outputs
from crossdistill.export.simplify import simplify
from crossdistill.utils.files import sha256_of

WEIGHTS_SUFFIX = ".bin"
WEIGHTS_KEY = "crossdistill_weights_sha256"  # in the graph: which weights belong to it
LEAST_VERSION = "2025.0"
PRODUCTS = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")

require = functools.partial(require_package, "openvino", target="OpenVINO", extra="openvino", least=LEAST_VERSION)


def check(encoder: Encoder) -> None:
    """Raise a ``UserError`` if a package is missing or too old."""
    require()
    onnx.check(encoder)


def write(student: ExportedStudent, path: Path, examples: Tensor, metadata: ExportMetadata) -> None:
    """Write the graph to ``path`` and the weights beside it. A quantised student is changed."""
    openvino = require()
    with tempfile.TemporaryDirectory(prefix="crossdistill-") as folder:
        onnx.write(student, Path(folder, "student.onnx"), examples, metadata)
        model = read_onnx(Path(folder, "student.onnx"))
        model.set_rt_info(metadata.to_text(), METADATA_KEY)
        graph, weights = Path(folder, "student.xml"), Path(folder, "student.bin")
        # Written once for the digest of the weights, and once with it.
        openvino.save_model(model, graph, compress_to_fp16=False)
        model.set_rt_info(sha256_of(weights), WEIGHTS_KEY)
        openvino.save_model(model, graph, compress_to_fp16=False)
        path.write_bytes(graph.read_bytes())
        path.with_suffix(WEIGHTS_SUFFIX).write_bytes(weights.read_bytes())


def read_onnx(path: Path) -> Any:
    """Read an ONNX file of this package as OpenVINO's model, with its metadata."""
    openvino, library = require(), onnx.require("onnx")
    try:
        proto = simplify(library.load(str(path)))
        model = openvino.Core().read_model(proto.SerializeToString())
    except (RuntimeError, library.onnx_cpp2py_export.checker.ValidationError, _decode_error()) as error:
        raise _unreadable(path, error) from error
    for entry in proto.metadata_props:
        if entry.key == METADATA_KEY:
            model.set_rt_info(entry.value, METADATA_KEY)
    return model


def read_ir(path: Path) -> Any:
    """Read a graph and the weights beside it; weights of another export are a ``UserError``."""
    openvino = require()
    weights_path = path.with_suffix(WEIGHTS_SUFFIX)
    for file in (path, weights_path):
        if not file.is_file():
            raise UserError(
                f"there is no OpenVINO file {file}: a graph (.xml) and its weights ({WEIGHTS_SUFFIX}) belong together; "
                "write them with crossdistill export --to openvino"
            )
    try:
        # By their names: of weights that are given as bytes OpenVINO keeps the address, and Python frees them.
        model = openvino.Core().read_model(str(path), str(weights_path))
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    if model.has_rt_info(WEIGHTS_KEY) and _text(model, WEIGHTS_KEY) != sha256_of(weights_path):
        raise UserError(f"{weights_path} does not hold the weights of {path.name}: export the student again")
    return model


def _decode_error() -> type[Exception]:
    error: type[Exception] = require_package("google.protobuf.message", target="ONNX", extra="export").DecodeError
    return error


def _unreadable(path: Path, error: Exception) -> UserError:
    # OpenVINO reports the place in its own code first; operators that it lacks come last.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("Exception from", "Check '", "FrontEnd API failed"))]
    reason = " ".join((kept or lines)[:3])
    return UserError(
        f"OpenVINO {require().__version__} cannot read {path} ({reason}): export the student again, update openvino, "
        "or use --runtime onnxruntime"
    )


def read_model(path: Path) -> Any:
    """Read a file of OpenVINO or an ONNX file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: write one with crossdistill export --to openvino")
    return read_onnx(path) if path.suffix == ".onnx" else read_ir(path)


def compile_model(model: Any, *, num_threads: int = 0) -> Any:
    """Compile a model for this processor; with 0 threads OpenVINO chooses their number."""
    # Without the hint OpenVINO computes in bf16 what is not int8, on processors that have bf16.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if num_threads:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    return require().Core().compile_model(model, "CPU", settings)


def run_compiled(compiled: Any, clips: Tensor) -> Outputs:
    """Return the outputs of normalised clips [B, C, T, H, W]."""
    found = compiled({INPUT: clips.contiguous().numpy()})
    # Copied: the next call writes into the same memory.
    return {output.get_any_name(): torch.from_numpy(found[output].copy()) for output in compiled.outputs}


def read_metadata(model: Any, path: Path) -> ExportMetadata:
    """Read the metadata of a model, or raise a ``UserError`` if it has none."""
    text = _text(model, METADATA_KEY) if model.has_rt_info(METADATA_KEY) else None
    return ExportMetadata.from_text(text, source=str(path))


def _text(model: Any, key: str) -> str:
    value = model.get_rt_info(key)
    return str(value.value if hasattr(value, "value") else value)


def open_model(path: Path, *, num_threads: int = 0) -> tuple[Forward, ExportMetadata]:
    """Open a file of OpenVINO or an ONNX file; return its forward pass and its metadata."""
    model = read_model(path)
    compiled = compile_model(model, num_threads=num_threads)
    return functools.partial(run_compiled, compiled), read_metadata(model, path)


def open_file(path: Path, encoder: Encoder) -> Forward:
    """Open the file in OpenVINO."""
    return functools.partial(run_compiled, compile_model(read_ir(path)))


def executed_operators(path: Path) -> dict[str, int]:
    """Count the convolutions and matrix products that OpenVINO executes for a file, by operator and precision."""
    nodes = compile_model(read_ir(path)).get_runtime_model().get_ops()
    facts = [
        {name: node.get_rt_info()[name].astype(str) for name in ("layerType", "runtimePrecision")} for node in nodes
    ]
    found = Counter(
        f"{fact['layerType']} {fact['runtimePrecision']}" for fact in facts if fact["layerType"] in PRODUCTS
    )
    return dict(sorted(found.items()))
