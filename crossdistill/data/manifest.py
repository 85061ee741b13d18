"""The manifest of a prepared dataset: everything that reading its videos needs, in one file.

``manifest.jsonl`` has a header line (format version, dataset, classes) and then one JSON object per video. Timestamps
are stored as runs of equal steps, so a file with a constant frame rate takes a few bytes at any length.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.utils.files import write_lines_atomically

MANIFEST_NAME = "manifest.jsonl"
FORMAT_VERSION = 1
HELD_OUT_MARK = "@"
"""Between the name of a split and what is held out of its train part, as in ``1@s3``."""
VIDEO = "video"


def encode_steps(values: Sequence[int]) -> list[int]:
    """Encode integers as [first, step, count, step, count, ...].

    Example:
        >>> encode_steps([0, 2, 4, 6, 7])
        [0, 2, 3, 1, 1]
        >>> decode_steps([0, 2, 3, 1, 1]).tolist()
        [0, 2, 4, 6, 7]
    """
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
    """Decode what ``encode_steps`` returned."""
    if not coded:
        return np.empty(0, dtype=np.int64)
    if len(coded) == 1:
        return _one_value(coded[0])
    steps = np.repeat(np.asarray(coded[1::2], dtype=np.int64), np.asarray(coded[2::2], dtype=np.int64))
    return np.concatenate([[coded[0]], coded[0] + np.cumsum(steps)]).astype(np.int64)


@functools.lru_cache(maxsize=1024)
def _one_value(value: int) -> NDArray[np.int64]:
    """Array of one value, shared by the still pictures of a dataset, which may be a million."""
    array = np.asarray([value], dtype=np.int64)
    array.flags.writeable = False
    return array


_time_base = functools.lru_cache(maxsize=1024)(Fraction)


@functools.lru_cache(maxsize=1024)
def _splits(*items: tuple[str, str]) -> dict[str, str]:
    """Splits of a video, shared by all that have the same."""
    return dict(items)


def _fields(record: Stream | Video) -> dict[str, Any]:
    """Map field to value. ``dataclasses.asdict`` would also convert streams, whose arrays JSON cannot hold."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}


@dataclass(frozen=True)
class Stream:
    """One stream of one video: its file, the size of its frames, and their timestamps."""

    path: str
    """Path relative to the dataset's folder. Absolute if the source file is the stream (``--keep-original``)."""
    width_px: int
    height_px: int
    time_base: Fraction
    """Seconds per unit of ``pts``."""
    pts: NDArray[np.int64]
    """[frames] timestamps, increasing. A frame is shown at ``pts * time_base`` seconds."""
    keyframes: NDArray[np.int64]
    """Positions in ``pts`` of the frames at which decoding can start."""
    is_seekable: bool = True
    """False if the timestamps in the file are not ``pts``, because they are out of order. It is read from its start."""
    is_plain: bool = True
    """False if the file mirrors its pictures or changes their size. Only PyAV then reads them as they are shown."""
    num_bytes: int = 0
    """Size of the file; 0 if unknown."""
    sha256: str = ""
    """SHA-256 of the file (or range) in hexadecimal digits; empty if unknown."""
    stored_as: str = VIDEO
    """``video``, or how a still picture is read: a key of ``crossdistill.data.pictures.READERS``."""
    offset: int = 0
    """First byte of a picture in a tar shard, where it has ``num_bytes`` bytes; 0 for a file of its own."""

    @property
    def is_video(self) -> bool:
        """Whether it is a video file. If not, it is a still picture: one frame at the time 0."""
        return self.stored_as == VIDEO

    def fits(self, file_bytes: int) -> bool:
        """Whether a file of this size can be the stream's: of the same size, or a shard that holds its range."""
        return file_bytes >= self.offset + self.num_bytes if self.offset else file_bytes == self.num_bytes

    @property
    def num_frames(self) -> int:
        """Number of frames that can be decoded."""
        return len(self.pts)

    @cached_property
    def times_seconds(self) -> NDArray[np.float64]:
        """[frames] times at which the frames are shown."""
        return np.asarray(self.pts * float(self.time_base), dtype=np.float64)

    @property
    def leaves_folder(self) -> bool:
        """Whether the path is relative and leads out of the dataset's folder."""
        return not self.path.startswith("/") and ".." in self.path.split("/")

    def file(self, root: Path) -> Path:
        """Return the path of the file for a dataset in the folder ``root``.

        Raise ``UnreadableVideoError`` for a relative path that leaves the folder.
        """
        if self.leaves_folder:
            raise UnreadableVideoError(f"{self.path}: leaves the folder of the dataset")
        return root / self.path

    @property
    def content(self) -> list[Any]:
        """What tells the frames of the stream apart from others, wherever the file is."""
        # Manifests of early versions have no checksum.
        pts = hashlib.sha256(self.pts.tobytes()).hexdigest()
        return [self.sha256 or [self.num_bytes, self.width_px, self.height_px], str(self.time_base), pts]

    def at(self, path: str) -> Stream:
        """Return the stream with another path."""
        return dataclasses.replace(self, path=path)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back."""
        # Fields that version 0.1 lacks are written where they say something: its teacher caches hold a digest of this.
        defaults = {"stored_as": VIDEO, "offset": 0, "is_plain": True}
        return {
            **{name: value for name, value in _fields(self).items() if name not in defaults or value != defaults[name]},
            "time_base": [self.time_base.numerator, self.time_base.denominator],
            "num_frames": self.num_frames,
            "pts": encode_steps(self.pts.tolist()),
            "keyframes": encode_steps(self.keyframes.tolist()),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Stream:
        """Read what ``to_json`` wrote."""
        # Manifests of early versions have neither size nor checksum, which then keep their defaults.
        known = {f.name: data[f.name] for f in dataclasses.fields(Stream) if f.name in data}
        arrays = {name: decode_steps(data[name]) for name in ("pts", "keyframes")}
        return Stream(**{**known, **arrays, "time_base": _time_base(*data["time_base"])})


@dataclass(frozen=True, slots=True)
class Video:
    """One video of a dataset: its class, its splits and its streams."""

    name: str
    """Name, unique in the dataset, for example ``v_Archery_g01_c01``."""
    label: int | None = None
    """Index into ``Manifest.classes``; None if unlabelled."""
    group: str | None = None
    """Group of near-duplicates, which a split must keep in one part; None if unknown."""
    splits: dict[str, str] = field(default_factory=dict)
    """Name of each split to the video's part of it, for example ``{"1": "train", "2": "test"}``."""
    status: str = "ok"
    """``ok``, ``repaired`` (only partly readable, or its timestamps were repaired) or ``skipped`` (not prepared)."""
    reason: str = ""
    """Reason if the status is not ``ok``."""
    streams: dict[str, Stream] = field(default_factory=dict)

    @property
    def is_usable(self) -> bool:
        """Whether the video has streams that can be read."""
        return self.status != "skipped"

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back."""
        return {**_fields(self), "streams": {name: stream.to_json() for name, stream in self.streams.items()}}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Video:
        """Read what ``to_json`` wrote."""
        streams = {name: Stream.from_json(stream) for name, stream in data["streams"].items()}
        return Video(**{**data, "splits": _splits(*data["splits"].items()), "streams": streams})


@dataclass(frozen=True)
class Manifest:
    """A prepared dataset: a folder, its classes and its videos."""

    root: Path
    dataset: str
    """Name of the dataset, for example ``ucf101``."""
    classes: tuple[str, ...]
    """Names of the classes in the dataset's official order; empty for unlabelled data."""
    videos: tuple[Video, ...]
    flip_keeps_label: bool = True
    """Whether a mirrored clip keeps its class. False if classes differ by "left" and "right"."""
    facts: dict[str, Any] = field(default_factory=dict)
    """How the dataset was prepared: command, options, versions."""

    @cached_property
    def noun(self) -> str:
        """What its entries are called in messages: videos or pictures."""
        streams = (stream for video in self.videos for stream in video.streams.values())
        return "videos" if next((stream.is_video for stream in streams), True) else "pictures"

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, sorted."""
        return tuple(sorted({split for video in self.videos for split in video.splits}))

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that every usable video has, sorted."""
        usable = [set(video.streams) for video in self.videos if video.is_usable]
        return tuple(sorted(set.intersection(*usable))) if usable else ()

    @cached_property
    def content_digest(self) -> str:
        """Digest of what the dataset holds: its videos in their order, labels, splits, and the content of the streams.

        It does not depend on the folder, nor on how the dataset was prepared.
        """
        digest = hashlib.sha256(json.dumps([self.dataset, self.classes, self.flip_keeps_label]).encode())
        for video in self.videos:
            streams = {name: stream.content for name, stream in sorted(video.streams.items())}
            facts = [video.name, video.label, sorted(video.splits.items()), video.is_usable, streams]
            digest.update(json.dumps(facts).encode())
        return digest.hexdigest()[:16]

    def select(self, *, split: str, part: str) -> list[int]:
        """Return the positions of the videos in one part (``train``) of a split (``1``), including unusable videos.

        ``1@s3``, ``1@25%`` and ``1@2of3`` (the second of three folds) hold out a part of the training videos of split
        ``1``, which is then the ``test`` part.
        An unknown split is a ``UserError``.
        """
        if split in self.splits:
            return [i for i, video in enumerate(self.videos) if video.splits.get(split) == part]
        if not self.has_split(split):
            raise UserError(f"{self.root} has no split {split!r}: choose one of {', '.join(sorted(self.splits))}")
        from crossdistill.data.held_out import is_held_out  # torch: data_prep does not wait for it

        whole, _, held_out = split.rpartition(HELD_OUT_MARK)
        train = self.select(split=whole, part="train")
        videos = [self.videos[i] for i in train]
        labels = [-1 if video.label is None else video.label for video in videos]
        held = is_held_out(labels, [video.group for video in videos], held_out, split=split)
        wanted = {"train": False, "test": True}.get(part)
        return [i for i, is_held in zip(train, held, strict=True) if is_held is wanted]

    def has_split(self, split: str) -> bool:
        """Whether the dataset has a split, or the split of which ``1@s3`` or ``1@s3@25%`` holds out a part."""
        whole = split.rpartition(HELD_OUT_MARK)[0]
        return split in self.splits or (bool(whole) and self.has_split(whole))

    def require_stream(self, stream: str, *, wanted_by: str) -> None:
        """Raise a ``UserError`` that names who wants the stream, unless every usable video has it."""
        if stream not in self.streams:
            raise UserError(
                f"{wanted_by} needs the stream {stream!r}, but the dataset {self.root} has only "
                f"{', '.join(self.streams) or 'no stream'}: prepare it again with --modalities {stream}"
            )

    def save(self, name: str = MANIFEST_NAME) -> Path:
        """Write the manifest to ``root`` atomically, and return its path.

        Parts of a dataset that are prepared separately have a ``name`` of their own.
        """
        header = {
            "format": "crossdistill-manifest",
            "version": FORMAT_VERSION,
            "dataset": self.dataset,
            "classes": list(self.classes),
            "flip_keeps_label": self.flip_keeps_label,
            "facts": self.facts,
        }
        # Sorted keys make the files of equal manifests equal.
        lines = itertools.chain([header], (video.to_json() for video in self.videos))
        path = self.root / name
        write_lines_atomically(path, (json.dumps(line, sort_keys=True) for line in lines))
        return path

    @staticmethod
    def load(root: str | Path, name: str = MANIFEST_NAME) -> Manifest:
        """Read the manifest of a prepared dataset in the folder ``root``.

        Raises:
            UserError: There is no manifest, it is damaged, or a newer version of crossdistill wrote it.
        """
        root = Path(root)
        path = root / name
        if not root.exists():
            raise UserError(
                f"there is no folder {root}: correct the path, or prepare a dataset with python -m data_prep"
            )
        if not path.is_file():
            raise UserError(f"{root} is not a prepared dataset (no {name}): make one with python -m data_prep")
        rows = _read_json_lines(path)
        header = next(rows)
        if header.get("format") != "crossdistill-manifest":
            raise UserError(f"{path} is not a manifest of crossdistill: prepare the dataset again")
        if header["version"] > FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {header['version']}, this crossdistill reads up to "
                f"{FORMAT_VERSION}: update crossdistill"
            )
        classes, videos = tuple(header["classes"]), tuple(Video.from_json(row) for row in rows)
        manifest = Manifest(root, header["dataset"], classes, videos, header["flip_keeps_label"], header["facts"])
        manifest._check_paths(path)
        return manifest

    def _check_paths(self, path: Path) -> None:
        """Raise a ``UserError`` if a video is outside the folder and is no original that is used in place."""
        keeps_originals = self.facts.get("recipe", {}).get("keep_original", False)
        for video in self.videos:
            for stream in video.streams.values():
                if stream.leaves_folder or (stream.is_video and stream.path.startswith("/") and not keeps_originals):
                    raise UserError(
                        f"{path} names the file {stream.path} outside the dataset, which only originals that are used "
                        "in place may be: prepare the dataset again"
                    )


def _read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects one by one, because those of a million pictures take gigabytes."""
    number = 0
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path} line {number} is damaged ({error.msg}): prepare the dataset again") from error
    if not number:
        raise UserError(f"{path} is empty: prepare the dataset again")


def require_unique_names(videos: Iterable[Video]) -> None:
    """Raise a ``UserError`` if two videos have the same name, which identifies a video in files and caches."""
    seen: set[str] = set()
    for video in videos:
        if video.name in seen:
            raise UserError(f"two videos are named {video.name!r}: names must be unique in a dataset")
        seen.add(video.name)
