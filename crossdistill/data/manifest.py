"""The manifest: one line per video of a prepared dataset, with everything that reading needs.

``manifest.jsonl`` starts with a header line (format version, dataset, classes) and has one JSON
object per video after it. Timestamps are kept as runs of equal steps, so that a file with a constant
frame rate costs a few bytes however long it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import UserError
from crossdistill.utils.files import write_text_atomically

MANIFEST_NAME = "manifest.jsonl"
FORMAT_VERSION = 1


def encode_steps(values: Sequence[int]) -> list[int]:
    """Integers as [first, step, count, step, count, ...]; the inverse is ``decode_steps``."""
    if not len(values):
        return []
    coded = [int(values[0])]
    for step in np.diff(np.asarray(values, dtype=np.int64)).tolist():
        if len(coded) > 1 and coded[-2] == step:
            coded[-1] += 1
        else:
            coded += [step, 1]
    return coded


def decode_steps(coded: Sequence[int]) -> NDArray[np.int64]:
    """The inverse of ``encode_steps``."""
    if not coded:
        return np.empty(0, dtype=np.int64)
    steps = np.repeat(np.asarray(coded[1::2], dtype=np.int64), np.asarray(coded[2::2], dtype=np.int64))
    return np.concatenate([[coded[0]], coded[0] + np.cumsum(steps)]).astype(np.int64)


@dataclass(frozen=True)
class Stream:
    """One modality of one video: a file, its size, and when each of its frames is shown."""

    path: str
    """Relative to the dataset's folder; absolute where the source itself is the stream (``--keep-original``)."""
    width_px: int
    height_px: int
    time_base: Fraction
    """Seconds per unit of ``pts``."""
    pts: NDArray[np.int64]
    """[frames], increasing: the frame is shown at ``pts * time_base`` seconds."""
    keyframes: NDArray[np.int64]
    """Positions in ``pts`` at which decoding can start."""
    is_seekable: bool = True
    """False where the file's own timestamps are out of order: it is read from its start."""
    num_bytes: int = 0
    """Of the file; 0 if not known."""
    sha256: str = ""
    """Of the file, in hexadecimal digits; empty if not known."""

    @property
    def num_frames(self) -> int:
        """How many frames the file really holds."""
        return len(self.pts)

    @cached_property
    def times_seconds(self) -> NDArray[np.float64]:
        """[frames], when each frame is shown."""
        return np.asarray(self.pts * float(self.time_base), dtype=np.float64)

    def at(self, path: str) -> Stream:
        """The same stream under another path."""
        return dataclasses.replace(self, path=path)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back."""
        return {
            "path": self.path,
            "width_px": self.width_px,
            "height_px": self.height_px,
            "time_base": [self.time_base.numerator, self.time_base.denominator],
            "num_frames": self.num_frames,
            "pts": encode_steps(self.pts.tolist()),
            "keyframes": encode_steps(self.keyframes.tolist()),
            "is_seekable": self.is_seekable,
            "num_bytes": self.num_bytes,
            "sha256": self.sha256,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Stream:
        """Read what ``to_json`` wrote."""
        return Stream(
            path=data["path"],
            width_px=data["width_px"],
            height_px=data["height_px"],
            time_base=Fraction(*data["time_base"]),
            pts=decode_steps(data["pts"]),
            keyframes=decode_steps(data["keyframes"]),
            is_seekable=data["is_seekable"],
            num_bytes=data.get("num_bytes", 0),
            sha256=data.get("sha256", ""),
        )


@dataclass(frozen=True)
class Video:
    """One video of a dataset: its class, its place in the splits, and its streams."""

    name: str
    """Unique in the dataset, for example ``v_Archery_g01_c01``."""
    label: int | None = None
    """Index into ``Manifest.classes``."""
    group: str | None = None
    """Videos of one group are near-duplicates and must never be parted by a split."""
    splits: dict[str, str] = field(default_factory=dict)
    """Split to part, for example ``{"1": "train", "2": "test"}``."""
    status: str = "ok"
    """``ok``, ``repaired`` (readable, but not all of it) or ``skipped``."""
    reason: str = ""
    """Why the status is not ``ok``."""
    streams: dict[str, Stream] = field(default_factory=dict)

    @property
    def is_usable(self) -> bool:
        """Whether the video was prepared and can be read."""
        return self.status != "skipped"

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back."""
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["streams"] = {name: stream.to_json() for name, stream in self.streams.items()}
        return data

    @staticmethod
    def from_json(data: dict[str, Any]) -> Video:
        """Read what ``to_json`` wrote."""
        return Video(**{**data, "streams": {k: Stream.from_json(v) for k, v in data["streams"].items()}})


@dataclass(frozen=True)
class Manifest:
    """A prepared dataset."""

    root: Path
    dataset: str
    """What was prepared, for example ``ucf101``."""
    classes: tuple[str, ...]
    """In the dataset's official order; empty for unlabelled data."""
    videos: tuple[Video, ...]
    flip_keeps_label: bool = True
    """Whether a mirrored clip still belongs to its class ("left" and "right" do not)."""
    facts: dict[str, Any] = field(default_factory=dict)
    """How it was prepared: command, options, versions."""

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, sorted."""
        return tuple(sorted({split for video in self.videos for split in video.splits}))

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """The names of the streams that every usable video has, sorted."""
        usable = [set(video.streams) for video in self.videos if video.is_usable]
        return tuple(sorted(set.intersection(*usable))) if usable else ()

    def select(self, *, split: str, part: str) -> list[int]:
        """Positions of the videos of one part of one split, unusable ones included.

        Args:
            split: For example ``"1"``; an unknown split is a ``UserError``.
            part: For example ``"train"``.
        """
        if split not in self.splits:
            raise UserError(f"{self.root} has no split {split!r}: choose one of {', '.join(sorted(self.splits))}")
        return [i for i, video in enumerate(self.videos) if video.splits.get(split) == part]

    def require_stream(self, stream: str, *, wanted_by: str) -> None:
        """Raise a ``UserError`` unless the dataset has a stream."""
        if stream not in self.streams:
            raise UserError(
                f"{wanted_by} needs the stream {stream!r}, but the dataset {self.root} has only "
                f"{', '.join(self.streams) or 'no stream'}: prepare it again with --modalities {stream}"
            )

    def save(self, name: str = MANIFEST_NAME) -> Path:
        """Write the manifest into ``root``, whole or not at all; ``name`` is another for a part of a dataset."""
        header = {
            "format": "crossdistill-manifest",
            "version": FORMAT_VERSION,
            "dataset": self.dataset,
            "classes": list(self.classes),
            "flip_keeps_label": self.flip_keeps_label,
            "facts": self.facts,
        }
        lines = [header, *(video.to_json() for video in self.videos)]
        path = self.root / name
        write_text_atomically(path, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
        return path

    @staticmethod
    def load(root: str | Path, name: str = MANIFEST_NAME) -> Manifest:
        """Read the manifest of a prepared dataset.

        Raises:
            UserError: There is no manifest, it is damaged, or a newer version wrote it.
        """
        root = Path(root)
        path = root / name
        if not path.is_file():
            raise UserError(f"{root} is not a prepared dataset (no {name}): make one with python -m data_prep")
        header, *rows = _read_json_lines(path)
        if header.get("format") != "crossdistill-manifest":
            raise UserError(f"{path} is not a manifest of crossdistill: prepare the dataset again")
        if header["version"] > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {header['version']}, this crossdistill reads up to "
                f"{FORMAT_VERSION}: update crossdistill"
            )
        return Manifest(
            root=root,
            dataset=header["dataset"],
            classes=tuple(header["classes"]),
            videos=tuple(Video.from_json(row) for row in rows),
            flip_keeps_label=header["flip_keeps_label"],
            facts=header["facts"],
        )


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is damaged ({error.msg}): prepare the dataset again") from error
    if not rows:
        raise UserError(f"{path} is empty: prepare the dataset again")
    return rows


def unique_names(videos: Iterable[Video]) -> None:
    """Raise a ``UserError`` if two videos share a name, because everything is keyed by it."""
    seen: set[str] = set()
    for video in videos:
        if video.name in seen:
            raise UserError(f"two videos are named {video.name!r}: names must be unique in a dataset")
        seen.add(video.name)
