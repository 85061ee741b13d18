"""Simplify the ONNX graph of a quantised student, for runtimes that look for a fixed pattern of nodes.

A student's file (see ``onnx.py``) rounds the output of a convolution, applies the activation function and rounds again
for the next convolution, exactly as PyTorch evaluates it. Two things keep OpenVINO from integer convolutions or make
them slow: a Clip between the stored integers of a weight and their DequantizeLinear, and the double rounding.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from crossdistill.errors import require_package

ACTIVATIONS = ("Relu", "Clip")


def simplify(model: Any) -> Any:
    """Fold Clips of constants and remove double roundings, in place; return the model.

    - The Clip of a stored weight is computed now. The values do not change.
    - Where all that reads a rounded convolution's output rounds again, directly or after an activation function, the
      first rounding is removed. Values that lay outside of the first range keep more of their size, and others move by
      at most half a step of the first range.
    """
    _fold_clips(model.graph)
    _remove_double_roundings(model.graph)
    return model


def _fold_clips(graph: Any) -> None:
    """Replace every Clip whose inputs are all constant by its result."""
    onnx = require_package("onnx", target="ONNX", extra="export")
    to_array = onnx.numpy_helper.to_array
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    folded = [node for node in graph.node if node.op_type == "Clip" and constants.keys() >= set(node.input)]
    for node in folded:
        values, low, high = (to_array(constants[name]) for name in node.input)
        graph.initializer.append(onnx.numpy_helper.from_array(values.clip(low, high), node.output[0]))
        graph.node.remove(node)


def _remove_double_roundings(graph: Any) -> None:
    """Remove QuantizeLinear and DequantizeLinear after a convolution where the next step rounds as well."""
    maker = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {output.name for output in graph.output}

    def rounds(node: Any) -> bool:
        if node.op_type in ACTIVATIONS:
            name = node.output[0]
            return name not in outputs and all(reader.op_type == "QuantizeLinear" for reader in readers[name])
        return bool(node.op_type == "QuantizeLinear")

    for node in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        rounding, name = maker.get(node.input[0]), node.output[0]
        if rounding is None or rounding.op_type != "QuantizeLinear" or name in outputs:
            continue
        source = maker.get(rounding.input[0])
        if source is None or source.op_type != "Conv" or not all(rounds(reader) for reader in readers[name]):
            continue
        for reader in readers[name]:
            reader.input[list(reader.input).index(name)] = rounding.input[0]
        graph.node.remove(node)
        graph.node.remove(rounding)
