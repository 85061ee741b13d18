"""The files of a teacher cache: one safetensors file for each range of samples in each augmentation.

A file holds one or several parts, which are what a teacher computes: features, logits, tokens. Every part has R rows
of F values for each sample. In int8 each row has a scale beside it: value = scale · integer, with a scale of the
largest absolute value of the row divided by 127.

Shapes: n samples of a shard, R rows of a sample, F values of a row.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from crossdistill.errors import UserError
from crossdistill.utils.tensor_files import write_tensors

RECORD = "shard"
"""Field of the metadata with the record of a shard in JSON; one, because safetensors keeps no order of several."""
UNREADABLE, COSINES, CHECKSUM = "unreadable", "cosines", "sha256"
ADVICE = "free space there and start again: finished shards are kept"
INT8_MAX = 127


@dataclass(frozen=True)
class Storage:
    """How values are stored."""

    dtype: torch.dtype
    numpy_dtype: np.dtype[Any]
    safetensors_name: str
    min_cosine: float
    """A smaller cosine between a stored row and the original is no rounding error."""
    has_scales: bool = False
    """Whether each row has a scale of its own."""


_SCALES = Storage(torch.float32, np.dtype("<f4"), "F32", 0.0)
# fp16 keeps eleven bits of every value above 6e-5, but fewer below. The error of int8 grows with the largest value of a
# row over the root mean square of all: a cosine of 0.99 is that of a row in which this is 62.
STORAGE = {
    "fp16": Storage(torch.float16, np.dtype("<f2"), "F16", 0.9999),
    "fp32": Storage(torch.float32, np.dtype("<f4"), "F32", 0.9999),
    "int8": Storage(torch.int8, np.dtype("i1"), "I8", 0.99, has_scales=True),
}
"""Values of ``--dtype``."""


@dataclass(frozen=True)
class Shard:
    """The samples ``start`` to ``stop`` (exclusive) in one augmentation."""

    augmentation: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the shard's file."""
        return f"view-{self.augmentation:04d}-{self.start:09d}.safetensors"

    @property
    def num_clips(self) -> int:
        """Number of samples, n."""
        return self.stop - self.start


@dataclass(frozen=True)
class Part:
    """One kind of a teacher's outputs."""

    name: str
    num_rows: int
    """R."""
    width: int
    """F."""

    def num_bytes(self, storage: Storage) -> int:
        """Size of one sample on disk."""
        of_row = self.width * storage.numpy_dtype.itemsize + (_SCALES.numpy_dtype.itemsize if storage.has_scales else 0)
        return self.num_rows * of_row

    def tensors(self, num_clips: int, storage: Storage) -> dict[str, tuple[Storage, tuple[int, ...]]]:
        """Name of each tensor of this part in a file to how it is stored and to its shape."""
        rows = (num_clips,) if self.num_rows == 1 else (num_clips, self.num_rows)
        found = {self.name: (storage, (*rows, self.width))}
        return found | ({f"{self.name}_scale": (_SCALES, rows)} if storage.has_scales else {})


def cosines(stored: Tensor, live: Tensor) -> Tensor:
    """Compute the cosine [n] between rows [n, F] of a cache and of the live teacher in float64; 1 if both are zero."""
    stored, live = stored.double(), live.double()
    both_zero = (stored == 0).all(dim=1) & (live == 0).all(dim=1)
    return F.cosine_similarity(stored, live, dim=1, eps=1e-300).masked_fill(both_zero, 1.0)


def encode(rows: Tensor, storage: Storage) -> tuple[Tensor, Tensor | None]:
    """Turn rows [..., F] into what is stored of them: values [..., F], and scales [...] if the storage has some.

    Example:
        >>> values, scales = encode(torch.tensor([[0.5, -1.27]]), STORAGE["int8"])
        >>> values, scales
        (tensor([[  50, -127]], dtype=torch.int8), tensor([0.0100]))
    """
    if not storage.has_scales:
        return rows.to(storage.dtype), None
    scales = rows.abs().amax(dim=-1) / INT8_MAX
    safe = torch.where(scales > 0, scales, torch.ones_like(scales))  # a row of zeros has the scale zero
    return (rows / safe[..., None]).round().clamp(-INT8_MAX, INT8_MAX).to(storage.dtype), scales


def decode(values: Tensor, scales: Tensor | None) -> Tensor:
    """Return rows [..., F] float32 from what ``encode`` returned."""
    return values.float() if scales is None else values.float() * scales[..., None]


def write_shard(
    path: Path,
    parts: Mapping[Part, tuple[Tensor, Tensor | None]],
    *,
    unreadable: Mapping[int, str],
    measured: Mapping[str, Tensor],
) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: Its file.
        parts: What ``encode`` returned for the rows [n, R, F] of each part.
        unreadable: Sample to the reason why it could not be read.
        measured: Name of a part to the cosines of its stored rows to the originals, see ``ShardFile.cosines``.
    """
    tensors: dict[str, Tensor] = {}
    for part, (values, scales) in parts.items():
        rows = values.shape[:1] if part.num_rows == 1 else values.shape[:2]
        tensors[part.name] = values.reshape(*rows, part.width)
        if scales is not None:
            tensors[f"{part.name}_scale"] = scales.reshape(rows)
    reasons = {str(sample): reason for sample, reason in unreadable.items()}
    found = {name: [float(c.min()), float(c.mean()), len(c)] for name, c in measured.items() if len(c)}
    digest = _digest(reasons, ((name, tensor.numpy()) for name, tensor in tensors.items()))
    record = json.dumps({UNREADABLE: reasons, COSINES: found, CHECKSUM: digest})
    write_tensors(path, tensors, metadata={RECORD: record}, advice=ADVICE)


def _digest(reasons: Mapping[str, str], tensors: Iterable[tuple[str, NDArray[Any]]]) -> str:
    digest = hashlib.sha256(json.dumps(reasons).encode())
    for name, values in sorted(tensors, key=lambda each: each[0]):
        digest.update(name.encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


class ShardFile:
    """A shard's file: its header is read at once, its rows when they are needed.

    The file is mapped into memory by hand, because safetensors has no view of one tensor without a copy. Layout: 8
    bytes length of the header, the header in JSON, the values.

    Args:
        path: The file.
        parts: What it holds.
        storage: How it holds them.
        num_clips: n.

    Raises:
        UserError: The file is not an intact shard.
    """

    def __init__(self, path: Path, parts: Iterable[Part], storage: Storage, num_clips: int) -> None:
        self.path = path
        self._parts = {part.name: part for part in parts}
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, path.stat().st_size)))
            metadata = header["__metadata__"]
            # Version 0.1 wrote the reasons alone.
            former = {UNREADABLE: json.loads(metadata.get(UNREADABLE, "{}"))}
            record = json.loads(metadata[RECORD]) if RECORD in metadata else former
            self.unreadable: dict[str, str] = record[UNREADABLE]
            self.cosines: dict[str, tuple[float, float, int]] = record.get(COSINES, {})
            """Part to the smallest and the mean cosine of its stored rows to the originals, and their number. Shards of
            version 0.1 do not say it."""
            self._checksum: str | None = record.get(CHECKSUM)
            self._tensors: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
            num_bytes = 8 + length
            for part in self._parts.values():
                for name, (kind, shape) in part.tensors(num_clips, storage).items():
                    facts = header[name]
                    start, stop = facts["data_offsets"]
                    size = int(np.prod(shape)) * kind.numpy_dtype.itemsize
                    if (facts["dtype"], tuple(facts["shape"]), stop - start) != (kind.safetensors_name, shape, size):
                        raise ValueError(name)
                    self._tensors[name] = (8 + length + start, kind.numpy_dtype, shape)
                    num_bytes += size
            if path.stat().st_size != num_bytes:
                raise ValueError("length")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not an intact shard: delete it, and start the command that makes the cache"
            ) from error

    @functools.cached_property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Name to a view of each tensor in the file."""
        raw = np.memmap(self.path, dtype=np.uint8, mode="r")
        return {
            name: raw[start : start + int(np.prod(shape)) * dtype.itemsize].view(dtype).reshape(shape)
            for name, (start, dtype, shape) in self._tensors.items()
        }

    def read_into(self, row: NDArray[np.float32], part: str, position: int) -> None:
        """Read the rows of one sample into an array [R · F] float32."""
        values, scales = self._arrays[part][position], self._arrays.get(f"{part}_scale")
        if scales is None:
            row[:] = values.reshape(-1)
        else:
            row[:] = (values.astype(np.float32) * scales[position, ..., None]).reshape(-1)

    @property
    def has_checksum(self) -> bool:
        """Whether the file says its checksum; those of version 0.1 do not."""
        return self._checksum is not None

    def check(self) -> None:
        """Raise a ``UserError`` if the content is not what was written."""
        if self._checksum is not None and _digest(self.unreadable, self._arrays.items()) != self._checksum:
            raise UserError(
                f"{self.path} has been changed since it was written (its checksum differs): delete it, and start the "
                "command that makes the cache"
            )
