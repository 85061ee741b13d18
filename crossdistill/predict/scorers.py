"""Scores of a video: by the student's classifier, or by the nearest training clips.

Shapes: N clips of one video, G clips of the gallery, C classes, D features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from crossdistill.data.entries import entries_of
from crossdistill.data.manifest import Manifest
from crossdistill.distillation.student import class_name
from crossdistill.errors import UserError
from crossdistill.evaluation.neighbours import nearest_neighbours
from crossdistill.export.metadata import EMBEDDINGS, LOGITS
from crossdistill.predict.results import ClassScore, NearestClip, Scores
from crossdistill.predict.runtimes import Runtime
from crossdistill.utils.console import console


@dataclass(frozen=True)
class ClassifierScorer:
    """Mean over clips of the classifier's probabilities. A number replaces the name of an unknown class."""

    names: tuple[str, ...]

    def score(self, outputs: Mapping[str, Tensor], *, top: int) -> Scores:
        """Return the best ``top`` classes for the outputs of a video's clips."""
        probabilities_c = outputs[LOGITS].double().softmax(dim=1).mean(dim=0)
        best = probabilities_c.topk(min(top, len(probabilities_c)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        classes = tuple(ClassScore(class_name(position, self.names), share) for position, share in pairs)
        return Scores("probabilities of the classifier", classes=classes)


@dataclass(frozen=True)
class NeighbourScorer:
    """Votes of the k gallery clips that are nearest to the mean of the video's unit embeddings."""

    features_gd: Tensor
    labels: Sequence[int]
    """[G] labels, -1 for a clip without a label."""
    names: Sequence[str]
    """[G] names of the clips."""
    classes: tuple[str, ...]
    k: int

    def score(self, outputs: Mapping[str, Tensor], *, top: int) -> Scores:
        """Return the best ``top`` classes and nearest clips for the outputs of a video's clips.

        Of classes with equal votes, that of the nearest clip comes first.
        """
        # Unit length before the mean, so that every clip counts the same.
        query_1d = F.normalize(outputs[EMBEDDINGS].double(), dim=1).mean(dim=0, keepdim=True).float()
        found = nearest_neighbours(queries_bd=query_1d, gallery_nd=self.features_gd, k=self.k)
        pairs = zip(found.indices_bk[0].tolist(), found.similarities_bk[0].tolist(), strict=True)
        nearest = tuple(NearestClip(self.names[i], self._class_of(i), similarity) for i, similarity in pairs)
        # Counter keeps the order of insertion, which is the order of similarity, among equal counts.
        votes = Counter(clip.class_name for clip in nearest if clip.class_name is not None)
        classes = tuple(ClassScore(name, count / len(nearest)) for name, count in votes.most_common(top))
        basis = f"votes of the {len(nearest)} nearest of {len(self.names)} training clips"
        return Scores(basis, classes=classes, nearest=nearest[:top])

    def _class_of(self, position: int) -> str | None:
        label = self.labels[position]
        return None if label < 0 else class_name(label, self.classes)


Scorer = ClassifierScorer | NeighbourScorer


def choose_scorer(
    runtime: Runtime, manifest: Manifest | None, *, split: str, k: int, workers: int, features: Path | None
) -> Scorer:
    """Choose the student's classifier if it has one, otherwise the training clips of a dataset, and embed those.

    Raise a ``UserError`` if there is neither, or if the dataset is not the student's.
    """
    if runtime.num_classes:
        return ClassifierScorer(_class_names(runtime, manifest))
    if manifest is None:
        raise UserError(
            f"{runtime.name} was trained without labels and has no classes: give --data with a prepared dataset, whose "
            "nearest clips are then shown"
        )
    return embed_gallery(runtime, manifest, split=split, k=k, workers=workers, features=features)


def _class_names(runtime: Runtime, manifest: Manifest | None) -> tuple[str, ...]:
    """Return the names of the classifier's classes, and print a notice if they are unknown or not the dataset's."""
    names, notice = runtime.classes, ""
    if not names and manifest is not None and len(manifest.classes) == runtime.num_classes:
        names = manifest.classes
    if not names:
        notice = (
            f"the names of the {runtime.num_classes} classes of {runtime.name} are unknown, so numbers are shown: give "
            "--data with the dataset that the student was trained on"
        )
    elif manifest is not None and names != manifest.classes:
        notice = (
            f"{runtime.name} knows the names of the {len(names)} classes that it was trained on; --data, whose classes "
            "differ, --split and --k have no effect"
        )
    if notice:
        console.print(notice, soft_wrap=True, highlight=False)
    return names


def embed_gallery(
    runtime: Runtime, manifest: Manifest, *, split: str, k: int, workers: int, features: Path | None
) -> NeighbourScorer:
    """Embed the middle of every training clip of a split; of every clip if the dataset has no splits.

    ``k`` is the number of nearest clips that vote, ``features`` the folder of the feature store (None for no store).
    Raise a ``UserError`` if the dataset has no such split or stream, or if no clip can be read.
    """
    manifest.require_stream(runtime.view.kind.stream, wanted_by=runtime.name)
    whole = np.arange(len(manifest.videos))
    positions = manifest.positions(split=split, part="train") if manifest.splits else whole
    entries = entries_of(manifest, positions[manifest.is_usable[positions]])
    dataset, description = manifest.dataset, f"clips of {manifest.dataset}"
    found = runtime.embed_videos(entries, dataset=dataset, features=features, workers=workers, description=description)
    if not found.num_clips:
        raise UserError(f"no training clip of {manifest.root} can be read: check it with python -m data_prep verify")
    return NeighbourScorer(found.features, found.labels.tolist(), found.videos, manifest.classes, k=k)
