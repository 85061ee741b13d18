"""One video of a prepared dataset and its streams, as objects and as the JSON objects that files hold.

Timestamps are stored as runs of equal steps, so a file with a constant frame rate takes a few bytes at any length.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import UnreadableVideoError

VIDEO = "video"
STATUSES = ("ok", "repaired", "skipped")
SKIPPED = "skipped"
ROUNDING_SECONDS = 1e-6
LONGEST_CACHED_CODE = 3
"""Numbers in the code of a constant frame rate, which many videos of a dataset share."""

Row = dict[str, Any]
"""A video as a JSON object: what ``Video.to_json`` returns and ``Video.from_json`` reads."""


def encode_steps(values: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Encode integers as [first, step, count, step, count, ...].

    Example:
        >>> encode_steps([0, 2, 4, 6, 7])
        [0, 2, 3, 1, 1]
        >>> decode_steps([0, 2, 3, 1, 1]).tolist()
        [0, 2, 4, 6, 7]
    """
    if len(values) < 2:
        return [int(value) for value in values]
    numbers = np.asarray(values, dtype=np.int64)
    steps = np.diff(numbers)
    starts = np.concatenate([[0], np.flatnonzero(steps[1:] != steps[:-1]) + 1])  # of the runs
    runs = np.stack([steps[starts], np.diff(starts, append=len(steps))], axis=1)
    return [int(numbers[0]), *runs.reshape(-1).tolist()]


def decode_steps(coded: Sequence[int]) -> NDArray[np.int64]:
    """Decode what ``encode_steps`` returned."""
    if not coded:
        return np.empty(0, dtype=np.int64)
    if len(coded) == 1:
        return _one_value(coded[0])
    if len(coded) == 3 and coded[1]:
        first, step, count = coded
        return np.arange(first, first + step * (count + 1), step, dtype=np.int64)
    runs = np.asarray(coded[1:], dtype=np.int64)
    steps = np.repeat(runs[0::2], runs[1::2])
    values = np.empty(len(steps) + 1, dtype=np.int64)
    values[0] = coded[0]
    np.cumsum(steps, out=values[1:])
    values[1:] += coded[0]
    return values


def count_values(coded: Sequence[int]) -> int:
    """Return the number of integers that a code stands for."""
    return 1 + sum(coded[2::2]) if coded else 0


@functools.lru_cache(maxsize=1024)
def _one_value(value: int) -> NDArray[np.int64]:
    """Array of one value, shared by the still pictures of a dataset, which may be a million."""
    array = np.asarray([value], dtype=np.int64)
    array.flags.writeable = False
    return array


_time_base = functools.lru_cache(maxsize=1024)(Fraction)


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

    is_segment: bool = False
    """True if the file has more frames than ``pts``: the video is a segment of a longer one, which others share."""

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

    @cached_property
    def frame_seconds(self) -> float:
        """Distance between two frames in seconds: the median, which a pause in the video does not change.

        Some containers round timestamps (Matroska to milliseconds), and so round the median. Over a long clip this
        error adds up to whole frames. So it is the mean if rounding explains the difference between the two.
        """
        if self.num_frames < 2:
            return 1.0
        steps = np.sort(self.pts[1:] - self.pts[:-1])  # np.median does the same, and takes longer than to cut a clip
        median = float(steps[(len(steps) - 1) // 2] + steps[len(steps) // 2]) / 2
        mean = float(self.pts[-1] - self.pts[0]) / len(steps)
        # Rounding moves a timestamp by less than one unit. A larger share of the step means a pause or a changing rate.
        is_rounding = abs(mean - median) <= min(1, 0.05 * median)
        return (mean if is_rounding else median) * float(self.time_base)

    def file(self, root: Path) -> Path:
        """Return the path of the file for a dataset in the folder ``root``.

        Raise ``UnreadableVideoError`` for a relative path that leaves the folder.
        """
        if leaves_folder(self.path):
            raise UnreadableVideoError(f"{self.path}: leaves the folder of the dataset")
        return root / self.path

    def segment(self, start_seconds: float, stop_seconds: float) -> Stream:
        """Return the frames that are shown at ``start_seconds`` or later and before ``stop_seconds``; maybe none.

        The file stays as it is. Decoding seeks to the keyframe before the first frame.

        Example:
            >>> pts = np.arange(100)
            >>> video = Stream("a.mp4", 64, 48, Fraction(1, 10), pts=pts, keyframes=pts[::12])
            >>> part = video.segment(2.0, 5.0)
            >>> part.num_frames, part.times_seconds[[0, -1]].tolist(), part.keyframes.tolist()
            (30, [2.0, 4.9], [0, 4, 16, 28])
        """
        # Lists round times to milliseconds or to hundredths, and sums of floats to less.
        first, stop = np.searchsorted(self.times_seconds, np.asarray([start_seconds, stop_seconds]) - ROUNDING_SECONDS)
        inside = self.keyframes[(self.keyframes > first) & (self.keyframes < stop)] - first
        pts, keyframes = self.pts[first:stop], np.concatenate([[0], inside]).astype(np.int64)
        return dataclasses.replace(self, pts=pts, keyframes=keyframes, is_segment=True)

    def at(self, path: str) -> Stream:
        """Return the stream with another path."""
        return dataclasses.replace(self, path=path)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that ``from_json`` reads back."""
        return {
            **{name: getattr(self, name) for name in PLAIN_FIELDS},
            # Version 0.1 lacks these fields: its teacher caches hold a digest of this object.
            **{name: value for name, default in LATER_FIELDS.items() if (value := getattr(self, name)) != default},
            "time_base": [self.time_base.numerator, self.time_base.denominator],
            "num_frames": self.num_frames,
            "pts": encode_steps(self.pts),
            "keyframes": encode_steps(self.keyframes),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Stream:
        """Read what ``to_json`` wrote."""
        # Manifests of early versions have neither size nor checksum, which then keep their defaults.
        known = {name: data[name] for name in (*PLAIN_FIELDS, *LATER_FIELDS) if name in data}
        return Stream(
            **known,
            time_base=_time_base(*data["time_base"]),
            pts=decode_steps(data["pts"]),
            keyframes=decode_steps(data["keyframes"]),
        )


LATER_FIELDS: dict[str, Any] = {"stored_as": VIDEO, "offset": 0, "is_plain": True, "is_segment": False}
"""Fields of a stream that are written where they differ from these values."""
PLAIN_FIELDS = tuple(
    f.name for f in dataclasses.fields(Stream) if f.name not in {*LATER_FIELDS, "time_base", "pts", "keyframes"}
)
"""Fields of a stream that are in its JSON object as they are."""


def leaves_folder(path: str) -> bool:
    """Whether a path is relative and leads out of the dataset's folder."""
    return ".." in path and not path.startswith("/") and ".." in path.split("/")


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
        return self.status != SKIPPED

    def to_json(self) -> Row:
        """A JSON object that ``from_json`` reads back."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**plain, "streams": {name: stream.to_json() for name, stream in self.streams.items()}}

    @staticmethod
    def from_json(data: Row) -> Video:
        """Read what ``to_json`` wrote."""
        return Video(**{**data, "streams": {name: Stream.from_json(row) for name, row in data["streams"].items()}})


class LazyVideos(Sequence[Video]):
    """Videos of which each is built when it is asked for, from its JSON object."""

    @abstractmethod
    def row(self, position: int) -> Row:
        """Return the JSON object of one video; ``position`` is from 0 to ``len(self) - 1``."""

    @overload
    def __getitem__(self, key: int) -> Video: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[Video]: ...
    def __getitem__(self, key: int | slice) -> Video | Sequence[Video]:
        if isinstance(key, slice):
            return ChosenVideos(self, range(len(self))[key])
        return self._video(self.row(range(len(self))[key]))

    def rows(self) -> Iterator[Row]:
        """Yield the JSON objects of all videos."""
        return map(self.row, range(len(self)))

    def __iter__(self) -> Iterator[Video]:
        return map(self._video, self.rows())

    def _video(self, row: Row) -> Video:
        return Video.from_json(row)


@dataclass(frozen=True)
class ChosenVideos(LazyVideos):
    """Some of the videos of another sequence, in any order."""

    videos: LazyVideos
    positions: Sequence[int]

    def row(self, position: int) -> Row:
        """Return the JSON object of one video."""
        return self.videos.row(self.positions[position])

    def __len__(self) -> int:
        return len(self.positions)


def rows_of(videos: Sequence[Video]) -> Iterator[Row]:
    """Yield videos as JSON objects, one by one."""
    return videos.rows() if isinstance(videos, LazyVideos) else (video.to_json() for video in videos)


def content_digest(dataset: str, classes: Sequence[str], flip_keeps_label: bool, rows: Iterable[Row]) -> str:
    """Return a digest of what a dataset holds: its videos in their order, labels, splits, and content of the streams.

    It does not depend on the folder, nor on how the dataset was prepared.
    """
    digest = ContentDigest(dataset, classes, flip_keeps_label)
    for row in rows:
        digest.add(row)
    return digest.hexdigest()


class ContentDigest:
    """The digest of ``content_digest``, to which videos are added one by one."""

    def __init__(self, dataset: str, classes: Sequence[str], flip_keeps_label: bool) -> None:
        self._digest = hashlib.sha256(json.dumps([dataset, classes, flip_keeps_label]).encode())

    def add(self, row: Row) -> None:
        """Add the next video."""
        streams = {name: stream_content(stream) for name, stream in sorted(row["streams"].items())}
        facts = [row["name"], row["label"], sorted(row["splits"].items()), row["status"] != SKIPPED, streams]
        self._digest.update(json.dumps(facts).encode())

    def hexdigest(self) -> str:
        """Return the digest of all videos so far."""
        return self._digest.hexdigest()[:16]


def stream_content(stream: Row) -> list[Any]:
    """Return what tells the frames of a stream apart from others, wherever the file is."""
    # Manifests of early versions have no checksum.
    file = stream.get("sha256") or [stream.get("num_bytes", 0), stream["width_px"], stream["height_px"]]
    return [file, str(_time_base(*stream["time_base"])), _timestamp_digest(stream["pts"])]


def _timestamp_digest(coded: Sequence[int]) -> str:
    if len(coded) <= LONGEST_CACHED_CODE:
        return _short_timestamp_digest(tuple(coded))
    return hashlib.sha256(decode_steps(coded).tobytes()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _short_timestamp_digest(coded: tuple[int, ...]) -> str:
    return hashlib.sha256(decode_steps(coded).tobytes()).hexdigest()
