"""Picture files for tests, as cameras, editors and accidents make them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RED, GREEN, BLUE, WHITE = (220, 40, 30), (30, 190, 60), (40, 60, 210), (255, 255, 255)


def corners(width: int = 48, height: int = 32) -> NDArray[np.uint8]:
    """[H, W, 3]: red at the top left, green at the top right, blue at the bottom left, white at the bottom right."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2], picture[: height // 2, width // 2 :] = RED, GREEN
    picture[height // 2 :, : width // 2], picture[height // 2 :, width // 2 :] = BLUE, WHITE
    return picture


def encode(picture: Image.Image | NDArray[np.uint8], kind: str = "JPEG", **options: object) -> bytes:
    """Encode a picture; JPEG without visible loss."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95, "subsampling": 0, **options} if kind == "JPEG" else options))
    return file.getvalue()


def write_file(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_picture(path: Path, seed: int = 0, *, width: int = 48, height: int = 32) -> Path:
    """A picture of smooth noise; JPEG inside, whatever the name says."""
    small = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return write_file(path, encode(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)))


def write_shard(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
