"""What a teacher cache is made of, in JSON: everything that decides its clips and what is stored of them.

``TeacherCache.require`` compares these fields with those of a run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdistill.data.dataset import PairedClips
from crossdistill.data.entries import video_rows_of
from crossdistill.data.videos import stream_content
from crossdistill.distillation.student import WEIGHTS_NAME, locate_student
from crossdistill.encoders import Encoder
from crossdistill.encoders.tokens import Grid, grid_text, parse_grid
from crossdistill.errors import UserError
from crossdistill.modalities import get_modality
from crossdistill.types import ViewSpec
from crossdistill.utils.files import sha256_of

OWN_GRID = "own"
"""Value of ``--tokens``: the grid that the network itself has."""


def weights_source(weights: str) -> str:
    """Identify given weights without building a network: by the hash of their file, or by their published name."""
    folder = locate_student(weights)
    path = Path(weights) if folder is None else folder / WEIGHTS_NAME
    return sha256_of(path)[:16] if path.is_file() else weights


def absolute_if_path(weights: str) -> str:
    """Return weights as any working directory finds them: a file or folder as an absolute path, a name as it is."""
    return str(Path(weights).absolute()) if Path(weights).exists() else weights


def moment_of(view: ViewSpec) -> dict[str, Any]:
    """Describe what of a view decides the moment of a clip."""
    return {key: getattr(view, key) for key in ("modality", "num_frames", "stride")}


def view_of_moment(moment: Mapping[str, Any]) -> ViewSpec:
    """Return a view with which the same moments are drawn as with the view that ``moment_of`` described."""
    kind = get_modality(moment["modality"])
    return ViewSpec(**moment, size_px=1, mean=kind.mean, std=kind.std)  # its pictures are not read


def describe_clips(clips: PairedClips, *, split: str) -> dict[str, Any]:
    """Describe everything that decides the moments and crops of training clips. The decoder does not decide them.

    Args:
        clips: Training clips with an augmentation, one student's view and the views of all teachers.
        split: The split that the videos were taken from.
    """
    student, *teachers = clips.views
    assert clips.augmentation is not None
    content, paths = hashlib.sha256(), hashlib.sha256()
    for row in video_rows_of(clips.entries):
        streams = [row["streams"][view.kind.stream] for view in clips.views]
        content.update(json.dumps([row["name"], [stream_content(stream) for stream in streams]]).encode())
        paths.update(json.dumps([row["name"], streams], sort_keys=True).encode())
    return {
        "student_view": moment_of(student),
        "teacher_views": [moment_of(view) for view in teachers] if len(teachers) > 1 else None,
        "split": split,
        "crop_area_min": clips.augmentation.area_min,
        "mirror": clips.augmentation.mirror_probability > 0,
        # With "error" no video is too short, so it gives the same clips as "repeat".
        "short_clips": "repeat" if clips.short_clips == "error" else clips.short_clips,
        "num_clips": len(clips),
        "content": content.hexdigest()[:16],
        "dataset": paths.hexdigest()[:16],  # by which caches of version 0.1 know their videos
    }


def describe_teacher(teacher: Encoder, *, weights: Sequence[str], weights_hashes: Sequence[str]) -> dict[str, Any]:
    """Describe everything that decides an embedding besides the clip.

    Args:
        teacher: The teacher with loaded weights, or the first of the networks that folds have.
        weights: The weights as the command line named them; with folds those of each network.
        weights_hashes: SHA-256 of the weights, see ``encoders.weights.weights_hash``; with folds of each network.
    """
    return {
        "teacher": teacher.name,
        "teacher_weights": one_or_all([weights_source(each) for each in weights]),
        "teacher_weights_sha256": one_or_all(weights_hashes),
        "teacher_view": dataclasses.asdict(teacher.view),
        "embed_dim": teacher.embed_dim,
    }


def describe_parts(teacher: Encoder, *, tokens: str | None, logits: bool) -> dict[str, Any]:
    """Describe what a cache holds of a teacher besides its features.

    Args:
        teacher: The teacher with loaded weights, or the first of the networks that folds have.
        tokens: The grid that the tokens are pooled to, such as ``1x4x4``; ``own`` for the network's own; None for none.
        logits: Whether logits are stored.

    Raises:
        UserError: The teacher has no tokens, fewer of them than the grid, or no classifier.
    """
    found: dict[str, Any] = {"tokens": None, "token_grid": None, "token_channels": None, "num_logits": None}
    if tokens is not None:
        wanted = None if tokens == OWN_GRID else parse_grid(tokens, option="--tokens")
        channels, *sides = teacher.token_shape()
        own: Grid = (sides[0], sides[1], sides[2])
        if wanted is not None and any(side > most for side, most in zip(wanted, own, strict=True)):
            raise UserError(
                f"--tokens {tokens} is finer than the tokens of {teacher.name}, {grid_text(own)}: give a grid of at "
                "most so many, or own"
            )
        found |= {"tokens": grid_text(wanted or own), "token_grid": grid_text(own), "token_channels": channels}
    if logits:
        if teacher.num_classes is None:
            raise UserError(
                f"--logits stores the logits of a linear classifier, and the weights of {teacher.name} came without "
                "one: remove --logits, or give weights with a classifier"
            )
        found["num_logits"] = teacher.num_classes
    return found


def one_or_all(values: Sequence[str]) -> str | list[str]:
    """Return what ``as_tuple`` reads."""
    return values[0] if len(values) == 1 else list(values)


def as_tuple(stored: str | list[str]) -> tuple[str, ...]:
    """Return what the description says of one network, or of one for each fold."""
    return tuple(stored) if isinstance(stored, list) else (stored,)
