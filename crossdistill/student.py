"""The trained student as files that other people can use.

``student.safetensors`` holds the plain body: it loads strictly into the source library's own class.
``student.json`` says which encoder it is, what it wants to see, and how it was trained.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from crossdistill.encoders import Encoder, create_encoder
from crossdistill.encoders.weights import load_weights
from crossdistill.errors import UserError
from crossdistill.files import atomic_path, write_text_atomically
from crossdistill.types import ViewSpec

FORMAT_VERSION = 1
WEIGHTS_NAME = "student.safetensors"
FACTS_NAME = "student.json"


def save_student(encoder: Encoder, folder: Path, *, facts: dict[str, Any]) -> None:
    """Write an encoder's weights and what a reader has to know.

    Args:
        encoder: Adapters and classifiers are not part of it and are not written.
        folder: Made if absent.
        facts: How it was trained; anything JSON can hold.
    """
    body = {name: value.detach().cpu().contiguous().clone() for name, value in encoder.body.state_dict().items()}
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file(body, temporary, metadata={"format": "pt"})
    description = {
        "format": "crossdistill-student",
        "version": FORMAT_VERSION,
        "encoder": encoder.name,
        "embed_dim": encoder.embed_dim,
        "num_parameters": encoder.num_parameters,
        "view": dataclasses.asdict(encoder.view),
        "training": facts,
    }
    write_text_atomically(folder / FACTS_NAME, json.dumps(description, indent=2) + "\n")


def find_student(path: str | Path) -> Path | None:
    """The folder with a student at or under a path (a run keeps its in ``student/``), if there is one."""
    for folder in (Path(path), Path(path) / "student"):
        if (folder / FACTS_NAME).is_file():
            return folder
    return None


def read_facts(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """Find a student and read its ``student.json``.

    Raises:
        UserError: There is none, it is damaged, or a newer version wrote it.
    """
    folder = find_student(path)
    if folder is None:
        raise UserError(f"there is no student in {path} (no {FACTS_NAME}): give a run's folder or its student folder")
    try:
        description: dict[str, Any] = json.loads((folder / FACTS_NAME).read_text(encoding="utf-8"))
        version = int(description["version"])
    except (json.JSONDecodeError, KeyError, ValueError) as error:
        raise UserError(f"{folder / FACTS_NAME} is damaged ({error}): export the student again") from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {version}, this crossdistill reads up to {FORMAT_VERSION}: update it"
        )
    return folder, description


def load_student(path: str | Path) -> Encoder:
    """Load a trained student: an ``Encoder`` in eval mode that maps views [B, C, T, H, W] to [B, D].

    Args:
        path: A run's folder, or the folder with ``student.safetensors`` and ``student.json``.
    """
    folder, description = read_facts(path)
    view = description["view"]
    encoder = create_encoder(
        description["encoder"], num_frames=view["num_frames"], stride=view["stride"], size_px=view["size_px"]
    )
    encoder.view = ViewSpec(**{**view, "mean": tuple(view["mean"]), "std": tuple(view["std"])})
    load_weights(encoder, folder / WEIGHTS_NAME)
    return encoder.eval()
