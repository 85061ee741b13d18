"""Exported files in their runtimes, and the choice of the fastest runtime.

Shapes: N clips, C classes, D features.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.data.dataset import Entry
from crossdistill.data.transforms import normalise
from crossdistill.errors import UserError, unknown_name
from crossdistill.evaluation.feature_store import exported_features
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.settings import ReadSettings
from crossdistill.export import onnx, openvino, torch_export, torchscript
from crossdistill.export.agreement import compare_outputs
from crossdistill.export.limits import MIN_COSINE
from crossdistill.export.metadata import EMBEDDINGS, ExportMetadata
from crossdistill.export.network import Forward, Outputs
from crossdistill.quantization.quantize import noise_clips
from crossdistill.types import PairedBatch, View, ViewSpec
from crossdistill.utils.console import console
from crossdistill.utils.distributed import create_accelerator

AUTO, ONNXRUNTIME, OPENVINO, PYTORCH = "auto", "onnxruntime", "openvino", "pytorch"
NUM_PROBE_CLIPS = 4
NUM_PROBE_RUNS = 5

Opener = Callable[[Path], tuple[Forward, ExportMetadata]]
# The first runtime of a suffix is the default.
OPENERS: dict[str, dict[str, Opener]] = {
    ".onnx": {ONNXRUNTIME: onnx.open_model, OPENVINO: openvino.open_model},
    ".xml": {OPENVINO: openvino.open_model},
    ".pt2": {PYTORCH: torch_export.open_model},
    ".pt": {PYTORCH: torchscript.open_model},
}


@dataclass(frozen=True)
class ExportedRuntime:
    """A student in the runtime of an exported file, whose metadata holds all facts."""

    path: Path
    runtime: str
    """Name of the runtime."""
    forward: Forward
    metadata: ExportMetadata

    @property
    def name(self) -> str:
        """Name of the encoder."""
        return self.metadata.encoder

    @property
    def view(self) -> ViewSpec:
        """What the student sees."""
        return self.metadata.view

    @property
    def embed_dim(self) -> int:
        """Number of features, D."""
        return self.metadata.embed_dim

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if unknown."""
        return self.metadata.classes

    @property
    def num_classes(self) -> int:
        """Number of the classifier's classes; 0 without a classifier."""
        return self.metadata.num_classes

    def run(self, view: View) -> Outputs:
        """Return embeddings [N, D] and, with a classifier, logits [N, C] of stored clips."""
        return self.forward(normalise(view, self.view))

    def embed_batch(self, batch: PairedBatch) -> Tensor:
        """Embed a batch of one or more clips: float32 [N, D]."""
        assert isinstance(batch.student, View)
        return self.run(batch.student)[EMBEDDINGS]

    def embed_videos(
        self, entries: Sequence[Entry], *, dataset: str, features: Path | None, workers: int, description: str
    ) -> Features:
        """Embed the middle clip of each readable video of a dataset. ``features`` is the folder of a feature store."""
        return exported_features(
            self,
            entries,
            folder=features,
            dataset=dataset,
            accelerator=create_accelerator(),
            settings=ReadSettings(num_workers=workers),
            description=description,
        )


def open_exported(path: Path, runtime: str | None = None) -> ExportedRuntime:
    """Open a file of ``crossdistill export`` in a runtime.

    Args:
        path: The file; its suffix is one of ``OPENERS``.
        runtime: Name of the runtime; None for the default of the suffix, ``auto`` for the fastest.

    Raises:
        UserError: The file is missing, damaged, without metadata, or does not run there; the runtime is not installed
            or too old; for ``auto``, no runtime is installed, or two of them disagree.
    """
    if path.suffix not in OPENERS:
        raise UserError(f"{path} has no suffix of an exported file: give a file that ends in {', '.join(OPENERS)}")
    if not path.is_file():
        raise UserError(f"there is no exported file {path}: write one with crossdistill export")
    openers = OPENERS[path.suffix]
    if runtime == AUTO:
        return _fastest(path)
    runtime = runtime or next(iter(openers))
    if runtime not in (known := {name for names in OPENERS.values() for name in names}):
        raise unknown_name("runtime", runtime, {AUTO, *known})
    if runtime not in openers:
        raise UserError(
            f"{path} does not run in {runtime}: a {path.suffix} file runs in {' and '.join(openers)}; export the "
            "student in another format (crossdistill export --to)"
        )
    return _open(path, runtime)


def _open(path: Path, runtime: str) -> ExportedRuntime:
    return ExportedRuntime(path, runtime, *OPENERS[path.suffix][runtime](path))


def _fastest(path: Path) -> ExportedRuntime:
    """Open a file in every runtime, compare them on noise, and return the fastest; print what was measured."""
    opened, missing = open_in_all(path)
    clips = noise_clips(opened[0].view, NUM_PROBE_CLIPS)
    outputs = [runtime.forward(clips) for runtime in opened]
    for runtime, found in zip(opened[1:], outputs[1:], strict=True):
        cosine, _ = compare_outputs(outputs[0], found)
        if not cosine >= MIN_COSINE:
            raise UserError(
                f"{opened[0].runtime} and {runtime.runtime} disagree on {path} (cosine {cosine:.3f}, at least "
                f"{MIN_COSINE} is needed): choose one with --runtime, or export the student again"
            )
    seconds = {runtime.runtime: seconds_per_clip(runtime.forward, clips) for runtime in opened}
    best = min(opened, key=lambda runtime: seconds[runtime.runtime])
    measured = ", ".join(f"{name} {1e3 * each:.2g} ms" for name, each in seconds.items())
    left_out = "".join(f"; {name} is left out ({error})" for name, error in missing.items())
    console.print(f"{path} runs in {best.runtime} (a clip: {measured}{left_out})", soft_wrap=True, highlight=False)
    return best


def open_in_all(path: Path) -> tuple[list[ExportedRuntime], dict[str, UserError]]:
    """Open a file in every runtime of its suffix that is installed; return also why others cannot open it.

    Raise the ``UserError`` of the first if none can.
    """
    opened, missing = [], {}
    for name in OPENERS[path.suffix]:
        try:
            opened.append(_open(path, name))
        except UserError as error:
            missing[name] = error
    if not opened:
        raise next(iter(missing.values()))
    return opened, missing


def seconds_per_clip(forward: Forward, clips: Tensor) -> float:
    """Return the median over runs; the first call, which may allocate memory, has been made before."""
    seconds = []
    for _ in range(NUM_PROBE_RUNS):
        started = time.perf_counter()
        with torch.inference_mode():
            forward(clips)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) / len(clips)
