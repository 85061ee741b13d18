"""Teachers on one scale, found on the training clips before training starts.

Shapes: N clips, E teacher features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import PairedClips, make_loader
from crossdistill.data.sampling import SampleKey
from crossdistill.distillation.standardize import Method, Standardizer, fit_standardizer
from crossdistill.distillation.teachers import StandardizedTeacher, Teacher
from crossdistill.errors import UserError
from crossdistill.utils.console import progress_bar
from crossdistill.utils.distributed import decide_on_first, gather_objects
from crossdistill.utils.tensor_files import read_weights, write_tensors

# Enough for a covariance of a few hundred features; more features than clips leave directions without variance.
MAX_CLIPS = 4096


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
