"""What a student says of a video: classes by its own classifier, or by the nearest training clips.

Shapes: N clips of one video, G clips of the gallery, C classes, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.data.transforms import normalise
from crossdistill.distillation.student import class_name
from crossdistill.encoders import Encoder
from crossdistill.encoders.base import Classifier
from crossdistill.encoders.execution import Execution
from crossdistill.evaluation.neighbours import nearest_neighbours
from crossdistill.export.metadata import EMBEDDINGS, LOGITS
from crossdistill.export.network import Outputs, with_logits
from crossdistill.export.onnx import open_session, read_metadata, run_session
from crossdistill.types import View, ViewSpec

CLIPS_AT_ONCE = 8


class Network(Protocol):
    """A student in some runtime."""

    name: str
    view: ViewSpec
    num_classes: int
    """Of its classifier; 0 where there is none."""
    classes: tuple[str, ...]
    """Their names, as far as the student itself knows them."""

    def run(self, view: View) -> Outputs:
        """Embeddings [N, D] and, with a classifier, logits [N, C] of clips as stored."""
        ...


class TorchNetwork:
    """A student in PyTorch, on a GPU if there is one.

    Args:
        encoder: As ``load_student`` gives it.
        classes: Names of its classifier's classes.
    """

    def __init__(self, encoder: Encoder, classes: tuple[str, ...] = ()) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.execution = Execution.choose(encoder, device=device, precision="fp32", layout="auto")
        self.encoder = encoder.eval()
        layer = encoder.classifier
        self._layer = None if layer is None else Classifier(layer.weight.cpu(), layer.bias.cpu())
        self.name, self.view, self.classes = encoder.name, encoder.view, classes
        self.num_classes = 0 if layer is None else len(layer.bias)

    def run(self, view: View) -> Outputs:
        """See ``Network``."""
        with torch.inference_mode():
            embeddings = self.execution.embed(self.encoder, view.to(self.execution.device)).cpu()
            return with_logits(embeddings, self._layer)


class OnnxNetwork:
    """A student in onnxruntime: everything that is known of it is in the file.

    Args:
        path: What ``crossdistill export --to onnx`` wrote.

    Raises:
        UserError: onnxruntime is absent, or the file is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)
        description = read_metadata(self._session, path)
        self.name, self.view = description.encoder, description.view
        self.num_classes, self.classes = description.num_classes, description.classes
        self.path, self.embed_dim = path, description.embed_dim

    def run(self, view: View) -> Outputs:
        """See ``Network``."""
        return run_session(self._session, normalise(view, self.view))


def run_in_parts(network: Network, view: View) -> Outputs:
    """Outputs of any number of clips, a few at a time."""
    parts = [
        network.run(View(values, scale))
        for values, scale in zip(view.values.split(CLIPS_AT_ONCE), view.channel_scale.split(CLIPS_AT_ONCE), strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class Guess:
    """A class, and how much speaks for it."""

    name: str
    share: float
    """A classifier's probability, or the share of the nearest clips."""


@dataclass(frozen=True)
class NearClip:
    """A clip of the gallery."""

    name: str
    class_name: str | None
    similarity: float
    """Cosine."""


@dataclass(frozen=True)
class Prediction:
    """What is said of one video, best first."""

    basis: str
    """What the shares are of."""
    classes: tuple[Guess, ...] = ()
    nearest: tuple[NearClip, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "basis": self.basis,
            "classes": [{"name": guess.name, "share": guess.share} for guess in self.classes],
            "nearest": [{"name": n.name, "class": n.class_name, "similarity": n.similarity} for n in self.nearest],
        }


class Judge(Protocol):
    """Makes predictions of a network's outputs."""

    def predict(self, outputs: Mapping[str, Tensor], *, top: int) -> Prediction:
        """What is said of a video, of whose clips the outputs are."""
        ...


@dataclass(frozen=True)
class ByClassifier:
    """The mean over clips of the classifier's probabilities."""

    names: tuple[str, ...]
    """Of the classes; numbers stand in for those that are not known."""

    def predict(self, outputs: Mapping[str, Tensor], *, top: int) -> Prediction:
        """See ``Judge``."""
        probabilities_c = outputs[LOGITS].double().softmax(dim=1).mean(dim=0)
        best = probabilities_c.topk(min(top, len(probabilities_c)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        guesses = tuple(Guess(class_name(position, self.names), share) for position, share in pairs)
        return Prediction("probabilities of the classifier", classes=guesses)


@dataclass(frozen=True)
class ByNeighbours:
    """The vote of the k clips of a gallery that are nearest to the mean of the video's unit embeddings."""

    features_gd: Tensor
    labels: Sequence[int]
    """[G], -1 where a clip has none."""
    names: Sequence[str]
    """[G], of the clips."""
    classes: tuple[str, ...]
    k: int

    def predict(self, outputs: Mapping[str, Tensor], *, top: int) -> Prediction:
        """See ``Judge``; of equal votes the class of the nearer clip comes first."""
        query_1d = F.normalize(outputs[EMBEDDINGS].double(), dim=1).mean(dim=0, keepdim=True).float()
        found = nearest_neighbours(queries_bd=query_1d, gallery_nd=self.features_gd, k=self.k)
        positions, similarities = found.indices_bk[0].tolist(), found.similarities_bk[0].tolist()
        nearest = tuple(
            NearClip(self.names[i], self._class_of(i), similarity)
            for i, similarity in zip(positions, similarities, strict=True)
        )
        votes = Counter(clip.class_name for clip in nearest if clip.class_name is not None)  # in order of nearness
        guesses = tuple(Guess(name, count / len(nearest)) for name, count in votes.most_common(top))
        basis = f"votes of the {len(nearest)} nearest of {len(self.names)} training clips"
        return Prediction(basis, classes=guesses, nearest=nearest[:top])

    def _class_of(self, position: int) -> str | None:
        label = self.labels[position]
        return None if label < 0 else class_name(label, self.classes)
