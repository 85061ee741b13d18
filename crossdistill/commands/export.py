"""``crossdistill export``: write a trained student for another runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from crossdistill.export.limits import MIN_COSINE
from crossdistill.utils.command_line import parse_options
from crossdistill.utils.console import console


@dataclass(frozen=True)
class Options:
    """Write a trained student for another runtime, and compare the file's outputs with PyTorch's."""

    student: tyro.conf.Positional[Path]
    """A run's folder, the folder with student.safetensors, or a repository of the Hugging Face hub."""
    to: Literal["onnx", "openvino", "torchscript", "torch-export", "safetensors", "hf"] | None = None
    """The format; by default that of the suffix of --out, and otherwise onnx. onnx: for onnxruntime and others; a
    quantised student runs on integers (QCDQ). openvino: a graph (.xml) and its weights (.bin), for OpenVINO.
    torchscript, torch-export: for PyTorch without this package. safetensors: the weights for the source library's own
    class. hf: a folder for transformers' from_pretrained, and for timm.create_model if the network is timm's."""
    out: Path | None = None
    """The file (hf: folder) to write; by default export.onnx or the like in the run's folder."""
    data: Path | None = None
    """A prepared dataset to compare on its clips; by default training clips of --calibrate, and noise without it."""
    clips: int = 8
    """Number of clips to compare."""
    min_cosine: float = MIN_COSINE
    """Smallest allowed cosine similarity between the exported and the PyTorch embedding of a clip."""
    int8: bool = False
    """Turn a float student into int8 first, without training; for onnx and openvino."""
    calibrate: Path | None = None
    """For --int8: the prepared dataset whose training clips set the ranges of the activations."""
    calibration_clips: int = 128
    """For --int8: number of these clips."""
    split: str = "1"
    """For --int8: the split whose training clips are taken, never its test clips. A dataset without splits gives any of
    its clips."""
    allow_code: bool = False
    """Run the Python file that a student of a custom network (path/to/file.py:function) names."""


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog=prog)
    from crossdistill.export.export import export_file

    console.print(str(export_file(**vars(options))), highlight=False, soft_wrap=True)
