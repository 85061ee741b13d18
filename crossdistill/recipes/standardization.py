"""Standardise teachers: fit the maps (``distillation/standardizer.py``) by training clips and keep them in a file.

Shapes: N clips, E teacher features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import PairedClips
from crossdistill.data.entries import keys_of
from crossdistill.distillation.standardizer import Method, Standardizer, fit_standardizer
from crossdistill.distillation.teachers import StandardizedTeacher, Teacher
from crossdistill.errors import UserError
from crossdistill.recipes.training_features import TeacherEmbedder, embed_training_clips, spread_positions
from crossdistill.utils.distributed import decide_on_first
from crossdistill.utils.tensor_files import write_tensors
from crossdistill.utils.weight_files import read_weights


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

    The features of teachers with a cache are read from it, of the same clips.

    The first process finds the maps and keeps them in a file: another machine, or another number of threads, may turn
    the principal axes differently, and a resumed run must continue with the maps that it started with.

    Args:
        teachers: Teachers whose views are those of the dataset.
        dataset: The training clips. At most ``MAX_CLIPS`` of them are embedded, as they look in the first epoch.
        method: See ``fit_standardizer``.
        accelerator: Identifies the process.
        batch_size: Number of clips per forward pass.
        num_workers: Number of decoding processes.
        folder: The run's folder. The maps are stored there, in a file named after teachers, clips and method.
    """
    path = folder / f"standardize-{_key(teachers, dataset, method)}.safetensors"
    maps = decide_on_first(accelerator, lambda: read_weights(path) if path.is_file() else {})
    if not maps:
        found = _read_features(teachers, dataset)
        if found is None:
            _, found = embed_training_clips(
                [TeacherEmbedder(teacher, accelerator.device) for teacher in teachers],
                dataset,
                accelerator,
                batch_size=batch_size,
                num_workers=num_workers,
                option="--standardize",
                description="scale of the teachers",
            )
        features = found
        maps = decide_on_first(accelerator, lambda: _fit_and_write(features, method, path))
    return [
        StandardizedTeacher(teacher, Standardizer(maps[f"{i}.mean"], maps[f"{i}.matrix"]).to(accelerator.device))
        for i, teacher in enumerate(teachers)
    ]


def _read_features(teachers: Sequence[Teacher], dataset: PairedClips) -> list[Tensor] | None:
    """Return the stored features [N, E] of teachers with a cache; None for teachers that run."""
    found = [teacher.stored_features(spread_positions(len(dataset))) for teacher in teachers]
    stored = [features for features in found if features is not None]
    if stored and not all(map(len, stored)):
        raise UserError(
            "none of the clips that --standardize needs could be read when the teacher cache was made: make it again"
        )
    return stored or None  # a run has teachers of one kind


def _key(teachers: Sequence[Teacher], dataset: PairedClips, method: Method) -> str:
    """Return a key of everything that determines the maps, so that maps of another configuration are not reused."""
    facts: list[object] = [method, dataset.seed, [teacher.identity for teacher in teachers]]
    facts += [keys_of(dataset.entries), [asdict(view) for view in dataset.views]]
    facts += [repr(dataset.augmentation), dataset.short_clips]
    # In the order of the fields, as version 0.1 did: its runs find their maps.
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]


def _fit_and_write(found: Sequence[Tensor], method: Method, path: Path) -> dict[str, Tensor]:
    maps: dict[str, Tensor] = {}
    for i, features in enumerate(found):
        standardizer = fit_standardizer(features, method=method)
        maps |= {f"{i}.mean": standardizer.mean.float(), f"{i}.matrix": standardizer.matrix.float()}
    write_tensors(path, maps, metadata={"format": "pt"}, advice="free space there and start again")
    return maps
