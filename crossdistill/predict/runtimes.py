"""Runtimes of a student: PyTorch for its folder, and the runtimes of ``exported.py`` for a file.

Shapes: N clips, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch

from crossdistill.data.dataset import Entry
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import find_class_names, load_student
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation.embedder import Embedder
from crossdistill.evaluation.feature_store import kept_features
from crossdistill.evaluation.features import Features
from crossdistill.evaluation.settings import ReadSettings
from crossdistill.export.network import Outputs, with_logits
from crossdistill.predict.exported import AUTO, PYTORCH, open_exported
from crossdistill.types import View, ViewSpec
from crossdistill.utils.distributed import create_accelerator

CLIPS_AT_ONCE = 8  # in a batch; another number can change the last bits of the outputs


class Runtime(Protocol):
    """A student that predicts: a ``TorchRuntime``, or an ``ExportedRuntime``."""

    @property
    def name(self) -> str:
        """Name of the encoder."""
        ...

    @property
    def view(self) -> ViewSpec:
        """What the student sees."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if unknown."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of the classifier's classes; 0 without a classifier."""
        ...

    def run(self, view: View) -> Outputs:
        """Return embeddings [N, D] and, with a classifier, logits [N, C] of stored clips."""
        ...

    def embed_videos(
        self, entries: Sequence[Entry], *, dataset: str, features: Path | None, workers: int, description: str
    ) -> Features:
        """Embed the middle clip of each readable video of a dataset. ``features`` is the folder of a feature store."""
        ...


class TorchRuntime:
    """A student in PyTorch, on a GPU if there is one, with the names of its classes if they are known."""

    def __init__(self, encoder: Encoder, classes: tuple[str, ...] = ()) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # fp32 on every device, so that the scores depend as little as possible on the machine.
        self.embedder = Embedder(encoder, Execution.choose(encoder, device=device, precision="fp32", layout="auto"))
        layer = encoder.classifier
        # On the CPU, where Embedder returns the embeddings.
        self.classifier = None if layer is None else Classifier(layer.weight.cpu(), layer.bias.cpu())
        self.name, self.view, self.classes = encoder.name, encoder.view, classes
        self.num_classes = 0 if layer is None else len(layer.bias)  # 0 without a classifier

    def run(self, view: View) -> Outputs:
        """See ``Runtime``."""
        with torch.inference_mode():
            return with_logits(self.embedder(view), self.classifier)

    def embed_videos(
        self, entries: Sequence[Entry], *, dataset: str, features: Path | None, workers: int, description: str
    ) -> Features:
        """See ``Runtime``."""
        return kept_features(
            self.embedder.encoder,
            entries,
            folder=features,
            dataset=dataset,
            execution=self.embedder.execution,
            accelerator=create_accelerator(),
            settings=ReadSettings(num_workers=workers),
            description=description,
        )


def open_runtime(
    student: Path | None, *, exported: Path | None, runtime: str | None, manifest: Manifest | None, allow_code: bool
) -> Runtime:
    """Open an exported file in a runtime if one is given, otherwise load the student in PyTorch.

    Raise a ``UserError`` if neither is given, if it cannot be loaded, or if it does not run in ``runtime``.
    """
    if exported is not None:
        return open_exported(exported, runtime)
    if student is None:
        raise UserError("no student was given: give a run's folder or an exported file before the videos")
    if student.is_file():
        raise UserError(f"{student} is a file: give the student's folder or exported file first, then the videos")
    if runtime not in (None, AUTO, PYTORCH):
        raise UserError(
            f"--runtime {runtime} needs an exported file, and {student} is a student's folder: run crossdistill export "
            f"and give the file in place of the folder, or --runtime {PYTORCH}"
        )
    encoder = load_student(student, allow_code=allow_code)
    return TorchRuntime(encoder, find_class_names(student, encoder.classifier, manifest))


def run_in_batches(runtime: Runtime, view: View) -> Outputs:
    """Run any number of clips, in batches of ``CLIPS_AT_ONCE``."""
    batches = zip(view.values.split(CLIPS_AT_ONCE), view.channel_scale.split(CLIPS_AT_ONCE), strict=True)
    outputs = [runtime.run(View(values, channel_scale)) for values, channel_scale in batches]
    return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
