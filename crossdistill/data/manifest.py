"""The manifest of a prepared dataset: everything that reading its videos needs, in one file.

``manifest.arrow`` is a table that is mapped into memory; ``video_table`` describes it. ``manifest.jsonl``, which former
versions wrote, has a header line and then one JSON object per video. It is read into such a table.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crossdistill.data.columns import Layout, numbers_of
from crossdistill.data.video_table import (
    ADVICE,
    ROW_ERRORS,
    Header,
    VideoTable,
    check_version,
    digested_header,
    layout_of,
    outside_error,
    save_table,
)
from crossdistill.data.videos import (
    STATUSES,
    VIDEO,
    Row,
    Stream,
    Video,
    content_digest,
    decode_steps,
    encode_steps,
    rows_of,
)
from crossdistill.errors import UserError

__all__ = [
    "MANIFEST_NAME",
    "STATUSES",
    "VIDEO",
    "Manifest",
    "Stream",
    "Video",
    "decode_steps",
    "encode_steps",
    "is_prepared",
    "require_unique_names",
]

MANIFEST_NAME = "manifest.arrow"
LINES_SUFFIX = ".jsonl"
LINES_FORMAT, LINES_VERSION = "crossdistill-manifest", 1
HELD_OUT_MARK = "@"
"""Between the name of a split and what is held out of its train part, as in ``1@s3``."""


@dataclass(frozen=True)
class Manifest:
    """A prepared dataset: a folder, its classes and its videos."""

    root: Path
    dataset: str
    """Name of the dataset, for example ``ucf101``."""
    classes: tuple[str, ...]
    """Names of the classes in the dataset's official order; empty for unlabelled data."""
    videos: Sequence[Video]
    """The videos. Those of a loaded manifest are built when they are asked for: keep positions rather than videos."""
    flip_keeps_label: bool = True
    """Whether a mirrored clip keeps its class. False if classes differ by "left" and "right"."""
    facts: dict[str, Any] = field(default_factory=dict)
    """How the dataset was prepared: command, options, versions."""

    @cached_property
    def table(self) -> VideoTable:
        """The videos in columns, for questions about all of them."""
        if isinstance(self.videos, VideoTable):
            return self.videos
        layout = layout_of(self.videos)
        return VideoTable.of_rows(
            self._header, lambda: rows_of(self.videos), layout, name=f"the manifest of {self.root}"
        )

    @property
    def _header(self) -> Header:
        return {
            "dataset": self.dataset,
            "classes": list(self.classes),
            "flip_keeps_label": self.flip_keeps_label,
            "facts": self.facts,
        }

    @cached_property
    def noun(self) -> str:
        """What its entries are called in messages: videos or pictures."""
        layout = self.table.layout
        if layout.kinds in ((), (VIDEO,)):
            return "videos"
        first, stream = min((int(self.table.has_stream(name).argmax()), name) for name in layout.streams)
        return "videos" if self.table.stream_column(stream, "stored_as")[first].as_py() == VIDEO else "pictures"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, sorted."""
        return self.table.layout.splits

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that every usable video has, sorted."""
        if not self.is_usable.any():
            return ()
        return tuple(name for name in self.table.layout.streams if self.table.has_stream(name)[self.is_usable].all())

    @cached_property
    def is_usable(self) -> NDArray[np.bool_]:
        """[videos] whether a video has streams that can be read."""
        return self.table.is_usable

    @cached_property
    def content_digest(self) -> str:
        """Digest of what the dataset holds: its videos in their order, labels, splits, and the content of the streams.

        It does not depend on the folder, nor on how the dataset was prepared.
        """
        header = digested_header(self._header)
        if header == digested_header(self.table.header):
            return self.table.content_digest
        return content_digest(*header, self.table.rows())

    def select(self, *, split: str, part: str) -> list[int]:
        """Return the positions of the videos in one part (``train``) of a split (``1``), including unusable videos.

        ``1@s3``, ``1@25%`` and ``1@2of3`` (the second of three folds) hold out a part of the training videos of split
        ``1``, which is then the ``test`` part.
        An unknown split is a ``UserError``.
        """
        return self.positions(split=split, part=part).tolist()

    def positions(self, *, split: str, part: str) -> NDArray[np.int64]:
        """Return what ``select`` returns as an array, which takes a fifth of the memory."""
        layout = self.table.layout
        if split in layout.splits:
            # No video has the code of a part that is in no split.
            code = layout.parts.index(part) if part in layout.parts else len(layout.parts)
            return np.flatnonzero(self.table.part_codes(split) == code)
        if not self.has_split(split):
            raise UserError(f"{self.root} has no split {split!r}: choose one of {', '.join(sorted(self.splits))}")
        train = self.positions(split=split.rpartition(HELD_OUT_MARK)[0], part="train")
        if split not in self._held_out:
            self._held_out[split] = self._find_held_out(train, split)
        held = self._held_out[split]
        return {"train": train[~held], "test": train[held]}.get(part, train[:0])

    @cached_property
    def _held_out(self) -> dict[str, NDArray[np.bool_]]:
        """Split to what ``_find_held_out`` found. A run asks several times, and millions of groups take seconds."""
        return {}

    def _find_held_out(self, train: NDArray[np.int64], split: str) -> NDArray[np.bool_]:
        """[train] whether a video of the train part of the whole split is in the test part of ``1@s3``."""
        from crossdistill.data.held_out import is_held_out  # torch: data_prep does not wait for it

        # One text for all videos of a group.
        groups = pc.dictionary_encode(self.table.column("group").take(pa.array(train))).combine_chunks()
        names = np.array([*groups.dictionary.to_pylist(), None], dtype=object)
        codes = numbers_of(groups.indices, null=-1)
        part = split.rpartition(HELD_OUT_MARK)[2]
        return np.asarray(
            is_held_out(self.table.labels[train].tolist(), names[codes].tolist(), part, split=split), dtype=bool
        )

    def find(self, video: str) -> int:
        """Return the position of the video with a name; raise a ``KeyError`` if there is none."""
        position = self.table.find(self.table.column("name"), video)
        if position is None:
            raise KeyError(video)
        return position

    @property
    def without_split(self) -> NDArray[np.int64]:
        """[n] positions of the videos that are in no split."""
        is_in_one = np.zeros(len(self.table), dtype=bool)
        for split in self.splits:
            is_in_one |= self.table.part_codes(split) >= 0
        return np.flatnonzero(~is_in_one)

    def has_split(self, split: str) -> bool:
        """Whether the dataset has a split, or the split of which ``1@s3`` or ``1@s3@25%`` holds out a part."""
        whole = split.rpartition(HELD_OUT_MARK)[0]
        return split in self.splits or (bool(whole) and self.has_split(whole))

    def require_stream(self, stream: str, *, wanted_by: str) -> None:
        """Raise a ``UserError`` that names who wants the stream, unless every usable video has it."""
        if stream not in self.streams and self.noun == "pictures":
            raise UserError(
                f"{wanted_by} needs the stream {stream!r}, and {self.root} holds still pictures: choose an image "
                "encoder"
            )
        if stream not in self.streams:
            raise UserError(
                f"{wanted_by} needs the stream {stream!r}, but the dataset {self.root} has only "
                f"{', '.join(self.streams) or 'no stream'}: prepare it again with --modalities {stream}"
            )

    def lines(self) -> Iterator[str]:
        """Yield the manifest as lines of JSON, a header and then one video each, as ``manifest.jsonl`` has them."""
        header = {"format": LINES_FORMAT, "version": LINES_VERSION, **self._header}
        # Sorted keys make the lines of equal manifests equal.
        return (json.dumps(line, sort_keys=True) for line in itertools.chain([header], rows_of(self.videos)))

    def save(self, name: str = MANIFEST_NAME) -> Path:
        """Write the manifest to ``root`` atomically, and return its path. A former ``manifest.jsonl`` is removed.

        Parts of a dataset that are prepared separately have a ``name`` of their own.
        """
        path = self.root / name
        save_table(path, self._header, self.videos)
        path.with_suffix(LINES_SUFFIX).unlink(missing_ok=True)
        return path

    @staticmethod
    def load(root: str | Path, name: str = MANIFEST_NAME) -> Manifest:
        """Open the manifest of a prepared dataset in the folder ``root``.

        Raises:
            UserError: There is no manifest, it is damaged, or a newer version of crossdistill wrote it.
        """
        root = Path(root)
        if not root.exists():
            raise UserError(
                f"there is no folder {root}: correct the path, or prepare a dataset with python -m data_prep"
            )
        path = _find(root / name)
        if path is None:
            raise UserError(f"{root} is not a prepared dataset (no {name}): make one with python -m data_prep")
        table = read_lines(path) if path.suffix == LINES_SUFFIX else VideoTable.open(path)
        if table.outside is not None:
            raise outside_error(str(path), table.outside)
        return Manifest.of_table(root, table)

    @staticmethod
    def of_table(root: Path, table: VideoTable) -> Manifest:
        """Return the manifest of a dataset in a folder whose videos are in a table."""
        header = table.header
        classes = tuple(header["classes"])
        return Manifest(root, header["dataset"], classes, table, header["flip_keeps_label"], header["facts"])


def is_prepared(folder: Path) -> bool:
    """Whether a folder has the manifest of a whole dataset."""
    path = folder / MANIFEST_NAME
    return path.is_file() or path.with_suffix(LINES_SUFFIX).is_file()


def _find(path: Path) -> Path | None:
    """Return the file of a manifest: ``path``, or that of a former version in its place; None if there is none."""
    lines = path.with_suffix(LINES_SUFFIX)
    if not lines.is_file():
        return path if path.is_file() else None
    if not path.is_file():
        return lines
    # ``save`` leaves one of them. A kill may leave both, and then the table is the newer one.
    if lines.stat().st_mtime_ns > path.stat().st_mtime_ns:
        raise UserError(
            f"{path.parent} has {path.name} and a newer {lines.name}, which another version of crossdistill wrote: "
            f"take the newer one with python -m data_prep convert {path.parent}, or delete {lines.name}"
        )
    return path


def read_lines(path: Path) -> VideoTable:
    """Read a manifest of JSON lines into a table in memory.

    Raises:
        UserError: The file is damaged, is no manifest, or a newer version of crossdistill wrote it.
    """
    header = next(_read_objects(path))
    if header.get("format") != LINES_FORMAT:
        raise UserError(f"{path} is not a manifest of crossdistill: prepare the dataset again")
    try:
        check_version(header["version"], LINES_VERSION, str(path))
        layout = Layout.of(_read_rows(path))
        header = {name: header[name] for name in ("dataset", "classes", "flip_keeps_label", "facts")}
    except ROW_ERRORS as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): {ADVICE}") from error
    return VideoTable.of_rows(header, lambda: _read_rows(path), layout, name=str(path))


def _read_rows(path: Path) -> Iterator[Row]:
    return itertools.islice(_read_objects(path), 1, None)


def _read_objects(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects one by one, because those of a million pictures take gigabytes."""
    number = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                found = json.loads(line)
            except ValueError as error:  # no JSON, or no text
                reason = getattr(error, "msg", None) or getattr(error, "reason", error)
                raise UserError(f"{path} line {number} is damaged ({reason}): prepare the dataset again") from error
            if not isinstance(found, dict):
                raise UserError(f"{path} line {number} is damaged (it is no object): prepare the dataset again")
            yield found
    if not number:
        raise UserError(f"{path} is empty: prepare the dataset again")


def require_unique_names(names: Sequence[str] | pa.ChunkedArray) -> None:
    """Raise a ``UserError`` if two videos have the same name, which identifies a video in files and caches."""
    counts = pc.value_counts(names if isinstance(names, pa.ChunkedArray) else pa.array(names, pa.string()))
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(several):
        raise UserError(f"two videos are named {several[0].as_py()!r}: names must be unique in a dataset")
