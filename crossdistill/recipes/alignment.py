"""Align cross-fitted teachers: embed training clips, fit the maps (``distillation/alignment.py``), keep them in a file.

Shapes: N clips, E teacher features.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from crossdistill.data.dataset import PairedClips
from crossdistill.distillation.alignment import Alignment, fit_alignments
from crossdistill.distillation.teachers import CrossFittedTeacher
from crossdistill.recipes.training_features import TeacherEmbedder, embed_training_clips
from crossdistill.utils.distributed import decide_on_first
from crossdistill.utils.records import fingerprint
from crossdistill.utils.tensor_files import write_tensors
from crossdistill.utils.weight_files import read_weights

PARTS = ("mean", "rotation", "target_mean")


def align_folds(
    teacher: CrossFittedTeacher,
    dataset: PairedClips,
    *,
    accelerator: Accelerator,
    batch_size: int,
    num_workers: int,
    folder: Path,
) -> CrossFittedTeacher:
    """Embed training clips by every network, in the middle of each video, and map all onto the first one's space.

    The first process fits the maps and keeps them in a file, as for ``standardize_teachers``: a resumed run continues
    with the maps that it started with.

    Args:
        teacher: The networks, which know the folds of the dataset.
        dataset: The training clips, with the view of this teacher alone beside the student's.
        accelerator: Its processes share the clips.
        batch_size: Number of clips per forward pass.
        num_workers: Number of decoding processes.
        folder: The folder of the run or of the cache. The maps are stored there, in a file named after networks, clips
            and folds.
    """
    path = folder / f"folds-{_key(teacher, dataset)}.safetensors"
    maps = decide_on_first(accelerator, lambda: read_weights(path) if path.is_file() else {})
    if not maps:
        sample_ids, features = embed_training_clips(
            [TeacherEmbedder(member, accelerator.device) for member in teacher.members],
            dataset.in_the_middle(),
            accelerator,
            batch_size=batch_size,
            num_workers=num_workers,
            option="--folds",
            description="spaces of the folds",
        )
        folds_n = teacher.folds_n[sample_ids]
        maps = decide_on_first(accelerator, lambda: _fit_and_write(features, folds_n, path))
    alignments = [
        Alignment(*(maps[f"{i}.{part}"] for part in PARTS)).to(accelerator.device) for i in range(len(teacher.members))
    ]
    return teacher.aligned(alignments)


def _key(teacher: CrossFittedTeacher, dataset: PairedClips) -> str:
    """Return a key of networks, folds and clips, wherever these are, so that maps of others are not reused."""
    clips = [[entry.video.name, fold] for entry, fold in zip(dataset.entries, teacher.folds_n.tolist(), strict=True)]
    return fingerprint([teacher.identity, asdict(teacher.encoder.view), clips], num_digits=8)


def _fit_and_write(features: list[Tensor], folds_n: Tensor, path: Path) -> dict[str, Tensor]:
    fitted = enumerate(fit_alignments(features, folds_n))
    maps = {f"{i}.{part}": getattr(alignment, part).float() for i, alignment in fitted for part in PARTS}
    write_tensors(path, maps, metadata={"format": "pt"}, advice="free space there and start again")
    return maps
