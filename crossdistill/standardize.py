"""Teachers on one scale: mean 0 and variance 1, found on the training clips before training starts.

Embeddings of different networks differ in scale by orders of magnitude, and in a sum of regressions the largest would
drown the others (Ranzinger et al., PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation, ICLR 2025,
arXiv 2410.01680). Objectives that compare angles do not mind the scale; for them what changes is the centre.

Shapes: N clips, E teacher features.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.adapters import Compares
from crossdistill.checkpoint import write_tensors
from crossdistill.console import progress_bar
from crossdistill.data.dataset import PairedClips, make_loader
from crossdistill.data.sampling import SampleKey
from crossdistill.distiller import Teacher
from crossdistill.distributed import decide_on_first, gather_objects
from crossdistill.encoders import Encoder
from crossdistill.encoders.weights import read_weights
from crossdistill.errors import UserError
from crossdistill.types import PairedBatch

Method = Literal["mean-variance", "phi-s"]
# Enough for a covariance of a few hundred features; more features than clips leave directions without variance.
MAX_CLIPS = 4096
# Share of the mean variance below which a feature is taken for constant.
MIN_VARIANCE_SHARE = 1e-6


@dataclass(frozen=True)
class Standardizer:
    """An affine map of embeddings."""

    mean: Tensor
    """[E]."""
    matrix: Tensor
    """[E, E], or [E] where features are only scaled."""

    def __call__(self, features: Tensor) -> Tensor:
        """[B, E] to [B, E]."""
        centred = features - self.mean
        return centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix.T

    def to(self, device: torch.device) -> Standardizer:
        """On a device, in float32."""
        return replace(self, mean=self.mean.float().to(device), matrix=self.matrix.float().to(device))


def fit_standardizer(features: Tensor, *, method: Method) -> Standardizer:
    """Find the map after which every feature has mean 0 and variance 1.

    ``mean-variance`` divides every feature by its own deviation. ``phi-s`` (Ranzinger et al.) turns the
    principal axes so that all features have the same variance, and divides by one deviation: distances keep their
    proportions.

    Args:
        features: [N, E].
        method: Which.
    """
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    if method == "mean-variance":
        variance = centred.square().mean(dim=0)
        usual = variance.mean().clamp(min=1e-12)
        # A feature that never moved has no scale of its own: with the usual one it stays small if it ever does.
        return Standardizer(mean, torch.where(variance < usual * MIN_VARIANCE_SHARE, usual, variance).rsqrt())
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    scale = variances.clamp(min=0).mean().clamp(min=1e-12).rsqrt()
    return Standardizer(mean, scale * equalising_rotation(variances.clamp(min=0)) @ axes.T)


def equalising_rotation(variances: Tensor) -> Tensor:
    """An orthogonal matrix after which features of these variances all have their mean.

    A Hadamard matrix where Sylvester's construction has one, as in PHI-S; for other sizes rotations of two features at
    a time, each of which gives one of them the mean (Schur and Horn: there always is such a matrix).

    Args:
        variances: [E], of uncorrelated features.

    Returns:
        [E, E] float64.
    """
    size = len(variances)
    if size & (size - 1) == 0:
        matrix = torch.ones(1, 1, dtype=torch.float64)
        while len(matrix) < size:
            matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
        return matrix / math.sqrt(size)
    return _rotate_pairs(variances.double())


def _rotate_pairs(variances: Tensor) -> Tensor:
    matrix = torch.eye(len(variances), dtype=torch.float64)
    covariance = torch.diag(variances)
    mean = float(variances.mean())
    left = list(range(len(variances)))
    while len(left) > 1:
        diagonal = covariance.diagonal()[left]
        low, high = left[int(diagonal.argmin())], left[int(diagonal.argmax())]
        if low == high:  # all that are left are equal
            break
        a, b, c = (float(covariance[i, j]) for i, j in ((low, low), (high, high), (low, high)))
        # (cos, sin) of the angle at which the lower one has the mean: a + 2 c t + b t² = mean (1 + t²), t = tan.
        tangent = (-c + math.sqrt(max(0.0, c * c - (b - mean) * (a - mean)))) / (b - mean) if b > mean else 0.0
        cosine = 1 / math.sqrt(1 + tangent * tangent)
        turn = torch.tensor([[cosine, tangent * cosine], [-tangent * cosine, cosine]], dtype=torch.float64)
        pair = [low, high]
        matrix[pair] = turn @ matrix[pair]
        covariance[pair] = turn @ covariance[pair]
        covariance[:, pair] = covariance[:, pair] @ turn.T
        left.remove(low)
    return matrix


class StandardizedTeacher:
    """A teacher whose embeddings are standardised; its logits and tokens stay as they are.

    Args:
        teacher: Of any kind.
        standardizer: For its features.
    """

    def __init__(self, teacher: Teacher, standardizer: Standardizer) -> None:
        self.teacher = teacher
        self.standardizer = standardizer
        self.encoder: Encoder = teacher.encoder
        self.identity = teacher.identity

    def embed(self, batch: PairedBatch, *, with_tokens: bool = False) -> dict[Compares, Tensor]:
        """See ``distiller.Teacher.embed``."""
        outputs = self.teacher.embed(batch, with_tokens=with_tokens)
        return {**outputs, "features": self.standardizer(outputs["features"])}


def standardize_teachers(
    teachers: Sequence[Teacher],
    dataset: PairedClips,
    *,
    method: Method,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    folder: Path,
) -> list[Teacher]:
    """Embed training clips once, shared among the processes, and standardise every teacher by them.

    The maps are found on the first process and kept in a file, because another machine, or another number of threads,
    may turn principal axes another way: a resumed run goes on with the very maps that it began with.

    Args:
        teachers: Which run on the views of the dataset.
        dataset: The training clips; at most ``MAX_CLIPS`` of them, as they look in the first epoch.
        method: See ``fit_standardizer``.
        accelerator: Tells the processes apart.
        batch_size: Clips at a time.
        num_workers: Processes that decode.
        folder: The run's, which keeps the maps in a file that is named after what they are of.
    """
    kept_in = folder / f"standardize-{_key(teachers, dataset, method)}.safetensors"
    kept = decide_on_first(accelerator, lambda: read_weights(kept_in) if kept_in.is_file() else {})
    if not kept:
        found = _embed_clips(teachers, dataset, accelerator, batch_size=batch_size, num_workers=num_workers)
        kept = decide_on_first(accelerator, lambda: _fit_and_keep(found, method, kept_in))
    return [
        StandardizedTeacher(teacher, Standardizer(kept[f"{i}.mean"], kept[f"{i}.matrix"]).to(accelerator.device))
        for i, teacher in enumerate(teachers)
    ]


def _key(teachers: Sequence[Teacher], dataset: PairedClips, method: Method) -> str:
    """What decides the maps: maps that another start in the same folder left are not taken for these."""
    facts: list[object] = [
        method,
        dataset.seed,
        [teacher.identity for teacher in teachers],
        [e.key for e in dataset.entries],
    ]
    facts += [[asdict(view) for view in dataset.views], repr(dataset.augmentation), dataset.short_clips]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def _embed_clips(
    teachers: Sequence[Teacher],
    dataset: PairedClips,
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
) -> list[Tensor]:
    """[N, E] of every teacher, of all processes."""
    num_clips = min(len(dataset), MAX_CLIPS)
    positions = [i * len(dataset) // num_clips for i in range(num_clips)]
    mine = [SampleKey(i, epoch=0) for i in positions[accelerator.process_index :: accelerator.num_processes]]
    batches = [mine[i : i + batch_size] for i in range(0, len(mine), batch_size)]
    found: list[list[Tensor]] = [[] for _ in teachers]
    loader = make_loader(dataset.of_teachers(), batches, num_workers=num_workers)
    with progress_bar(unit="batches", is_shown=accelerator.is_main_process) as bar:
        for batch in bar.track(loader, total=len(batches), description="scale of the teachers"):
            if len(batch):
                on_device = batch.to(accelerator.device)
                for features, teacher in zip(found, teachers, strict=True):
                    features.append(teacher.embed(on_device)["features"].cpu())
    of_all = [gather_objects(accelerator, features) for features in found]
    if not all(of_all):
        raise UserError(
            f"none of the {num_clips} clips by which --standardize would scale the teachers could be read: see "
            "python -m data_prep verify"
        )
    return [torch.cat(features) for features in of_all]


def _fit_and_keep(found: Sequence[Tensor], method: Method, path: Path) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}
    for i, features in enumerate(found):
        standardizer = fit_standardizer(features, method=method)
        maps |= {f"{i}.mean": standardizer.mean.float(), f"{i}.matrix": standardizer.matrix.float()}
    write_tensors(path, maps, metadata={"format": "pt"}, advice="free space there and start again")
    return maps
