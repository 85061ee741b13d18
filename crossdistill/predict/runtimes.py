"""Runtimes of a student: PyTorch, and onnxruntime for an exported file.

Shapes: N clips, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.data.dataset import Entry, PairedClips
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import SampleKey
from crossdistill.data.transforms import normalise
from crossdistill.distillation.student import find_class_names, load_student
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation.embedder import EmbeddedBatches, Embedder, batches_of
from crossdistill.evaluation.feature_store import FeatureStore, complete, exported_key, kept_features
from crossdistill.evaluation.features import Features, assemble, no_features
from crossdistill.evaluation.settings import ReadSettings
from crossdistill.export.metadata import EMBEDDINGS
from crossdistill.export.network import Outputs, with_logits
from crossdistill.export.onnx import open_session, read_metadata, run_session
from crossdistill.types import PairedBatch, View
from crossdistill.utils.distributed import create_accelerator

CLIPS_AT_ONCE = 8  # in a batch; another number can change the last bits of the outputs


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
        """Return embeddings [N, D] and, with a classifier, logits [N, C] of stored clips."""
        with torch.inference_mode():
            return with_logits(self.embedder(view), self.classifier)

    def embed_videos(
        self, entries: Sequence[Entry], *, dataset: str, features: Path | None, workers: int, description: str
    ) -> Features:
        """Embed the middle clip of each readable video of a dataset. ``features`` is the folder of a feature store."""
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


class OnnxRuntime:
    """A student in onnxruntime, from a file of ``crossdistill export --to onnx``, whose metadata holds all facts.

    Opening it raises a ``UserError`` if onnxruntime is missing or cannot run the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._session = path, open_session(path)
        metadata = read_metadata(self._session, path)
        self.name, self.view, self.embed_dim = metadata.encoder, metadata.view, metadata.embed_dim
        self.num_classes, self.classes = metadata.num_classes, metadata.classes

    def run(self, view: View) -> Outputs:
        """See ``TorchRuntime``."""
        return run_session(self._session, normalise(view, self.view))

    def embed_batch(self, batch: PairedBatch) -> Tensor:
        """Embed a batch of one or more clips, as ``BatchEmbedder`` does: float32 [N, D]."""
        assert isinstance(batch.student, View)
        return self.run(batch.student)[EMBEDDINGS]

    def embed_videos(
        self, entries: Sequence[Entry], *, dataset: str, features: Path | None, workers: int, description: str
    ) -> Features:
        """See ``TorchRuntime``."""

        def extract(missing: Sequence[Entry]) -> Features:
            keys = batches_of([SampleKey(i, epoch=0) for i in range(len(missing))], CLIPS_AT_ONCE)
            clips = PairedClips(missing, student_view=self.view)
            walk = EmbeddedBatches(clips, keys, [self], num_workers=workers, description=description)
            rows: dict[int, Tensor] = {}
            for batch, (embedded_nd,) in walk:
                rows |= dict(zip(batch.sample_ids.tolist(), embedded_nd[:, None], strict=True))
            return assemble(rows, missing, walk.unreadable, no_features(self.embed_dim))

        if features is None:
            return extract(entries)
        key = exported_key(self._path, encoder=self.name, view=self.view, embed_dim=self.embed_dim, dataset=dataset)
        store, accelerator = FeatureStore(features, key), create_accelerator()
        return complete(store, entries, extract, accelerator=accelerator, view=self.view, description=description)


Runtime = TorchRuntime | OnnxRuntime


def open_runtime(student: Path | None, *, onnx: Path | None, manifest: Manifest | None, allow_code: bool) -> Runtime:
    """Open an exported file in onnxruntime if one is given, otherwise load the student in PyTorch.

    Raise a ``UserError`` if neither is given or if it cannot be loaded.
    """
    if onnx is not None:
        return OnnxRuntime(onnx)
    if student is None:
        raise UserError("no student was given: give a run's folder before the videos, or --onnx FILE")
    if student.is_file():
        raise UserError(f"{student} is a file: give the student's folder first, then the videos (or --onnx FILE)")
    encoder = load_student(student, allow_code=allow_code)
    return TorchRuntime(encoder, find_class_names(student, encoder.classifier, manifest))


def run_in_batches(runtime: Runtime, view: View) -> Outputs:
    """Run any number of clips, in batches of ``CLIPS_AT_ONCE``."""
    batches = zip(view.values.split(CLIPS_AT_ONCE), view.channel_scale.split(CLIPS_AT_ONCE), strict=True)
    outputs = [runtime.run(View(values, channel_scale)) for values, channel_scale in batches]
    return {name: torch.cat([output[name] for output in outputs]) for name in outputs[0]}
