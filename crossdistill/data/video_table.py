"""The videos of a manifest in columns: an Arrow file that is mapped into memory, so that opening it reads no row.

Processes that map the same file share its memory. A row becomes a ``Video`` when it is asked for, and questions about
all videos read the columns that they need. The columns:

* ``name``, ``label``, ``group``, ``status``, ``reason`` as in ``Video``; a label or group that is unknown is null
* ``split.NAME``: the video's part of a split, or null
* ``stream.NAME``: a struct with the fields of ``Stream``, or null. ``pts`` and ``keyframes`` are coded as
  ``encode_steps`` returns them, and ``sha256`` is bytes.

Texts that repeat are dictionaries. Nothing is compressed, because a compressed column would have to be decompressed
into the private memory of each process. The header is in the schema's metadata. What is known only after the last row
is in the metadata of an empty batch at the end.
"""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crossdistill.data.columns import SPLIT, STREAM, BatchReader, Layout, is_present, make_batch, numbers_of
from crossdistill.data.videos import (
    SKIPPED,
    STATUSES,
    VIDEO,
    ContentDigest,
    LazyVideos,
    Row,
    Video,
    leaves_folder,
    rows_of,
)
from crossdistill.errors import UserError
from crossdistill.utils.files import atomic_path

ROWS_PER_BATCH = 16_384
HEADER, SUMMARY = b"crossdistill-manifest", b"crossdistill-summary"
ROW_ERRORS = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What a row raises that is none: errors of pyarrow are among them."""
FORMAT_VERSION = 2
"""Version 1 is the manifest of JSON lines."""
DAMAGED = "is damaged or cut short"
ADVICE = "give the command that prepared the dataset again, which keeps finished videos"

Header = dict[str, Any]
"""Dataset, classes and facts of a manifest."""


def write_table(sink: pa.NativeFile, header: Header, rows: Iterable[Row], layout: Layout, *, name: str) -> None:
    """Write rows batch by batch; only one batch is in memory. Equal rows and headers give equal bytes.

    Args:
        sink: The file.
        header: Dataset, classes and facts.
        rows: The videos.
        layout: Layout that these rows have.
        name: Name of the file in errors.

    Raises:
        UserError: A row lacks a field, or has a value of another type.
    """
    digest = ContentDigest(*digested_header(header))
    keeps_originals = header["facts"].get("recipe", {}).get("keep_original", False)
    num_videos, outside = 0, None
    header = {"version": FORMAT_VERSION, **header}
    schema = make_batch([], layout).schema.with_metadata({HEADER: json.dumps(header, sort_keys=True)})
    iterator = iter(rows)
    with pa.ipc.new_file(sink, schema) as writer:
        while chunk := list(itertools.islice(iterator, ROWS_PER_BATCH)):
            try:
                for row in chunk:
                    digest.add(row)
                    outside = outside or find_outside(row, keeps_originals=keeps_originals)
                batch = make_batch(chunk, layout)
            except ROW_ERRORS as error:
                which = f"one of its videos {num_videos + 1} to {num_videos + len(chunk)} is invalid"
                raise UserError(f"{name} is damaged, {which} ({_said(error)}): {ADVICE}") from error
            writer.write_batch(batch)
            num_videos += len(chunk)
        summary = {"content_digest": digest.hexdigest(), "outside": outside}
        writer.write_batch(make_batch([], layout), custom_metadata={SUMMARY: json.dumps(summary, sort_keys=True)})


def digested_header(header: Header) -> tuple[str, Sequence[str], bool]:
    """Return the fields of a header that a content digest begins with."""
    return header["dataset"], header["classes"], header["flip_keeps_label"]


def find_outside(row: Row, *, keeps_originals: bool) -> str | None:
    """Return the path of a stream that is outside the folder and is no original that is used in place."""
    for stream in row["streams"].values():
        path = stream["path"]
        is_away = path.startswith("/") and stream.get("stored_as", VIDEO) == VIDEO and not keeps_originals
        if is_away or leaves_folder(path):
            return str(path)
    return None


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


class VideoTable(LazyVideos):
    """The videos of an Arrow file, or of such a file in memory.

    It is pickled by its path: another process maps the same file.

    Args:
        source: The content of the file.
        name: Name of the file in errors.
        path: The file; None if it is in memory.

    Raises:
        UserError: It is no manifest, or it is damaged.
    """

    def __init__(self, source: pa.Buffer | pa.NativeFile, *, name: str, path: Path | None = None) -> None:
        self._source, self._name, self._path = source, name, path
        try:
            file = pa.ipc.open_file(source)
            metadata = file.schema.metadata or {}
            if HEADER not in metadata:
                raise UserError(f"{name} is not a manifest of crossdistill: {ADVICE}")
            self.header: Header = json.loads(metadata[HEADER])
            check_version(self.header["version"], FORMAT_VERSION, name)
            *batches, last = (file.get_batch(i) for i in range(file.num_record_batches))
            trailer = file.get_batch_with_custom_metadata(file.num_record_batches - 1)
            summary = json.loads(trailer.custom_metadata[SUMMARY])
            self._schema: pa.Schema = file.schema
            self._empty: pa.RecordBatch = last
            self._empty.validate(full=True)
            _ = self.layout  # names and codes of the schema
        except UserError:
            raise
        except (pa.ArrowException, OSError, *ROW_ERRORS) as error:
            raise self._damage(error) from error
        self._batches: list[pa.RecordBatch] = batches
        self._starts = [0, *itertools.accumulate(batch.num_rows for batch in batches)]
        self._readers: dict[int, BatchReader] = {}
        self._columns: dict[str, pa.ChunkedArray] = {}
        self.content_digest: str = summary["content_digest"]
        self.outside: str | None = summary["outside"]
        """Path of a stream that is outside the dataset and must not be; None if there is none."""

    @staticmethod
    def open(path: Path) -> VideoTable:
        """Map a file. It stays as it is when another file takes its name."""
        if not path.stat().st_size:
            raise UserError(f"{path} is empty: {ADVICE}")
        return VideoTable(pa.memory_map(str(path)), name=str(path), path=path.absolute())

    @staticmethod
    def of_rows(header: Header, rows: Callable[[], Iterable[Row]], layout: Layout, *, name: str) -> VideoTable:
        """Put rows into columns in memory. ``name`` stands for a file in errors."""
        sink = pa.BufferOutputStream()
        write_table(sink, header, rows(), layout, name=name)
        return VideoTable(sink.getvalue(), name=name)

    def __reduce__(self) -> tuple[Callable[..., VideoTable], tuple[Any, ...]]:
        if self._path is None:
            return _open_again, (None, self._name, self._source)
        return _open_again, (self._path, self.content_digest, None)

    def __len__(self) -> int:
        return self._starts[-1]

    def __repr__(self) -> str:
        return f"<{len(self)} videos of {self._name}>"

    def row(self, position: int) -> Row:
        """Return the JSON object of one video; raise a ``UserError`` if its batch is damaged."""
        number = bisect_right(self._starts, position) - 1
        row = (self._readers.get(number) or self._open_batch(number)).row(position - self._starts[number])
        if (path := find_outside(row, keeps_originals=self.keeps_originals)) is not None:
            raise outside_error(self._name, path)
        return row

    def _video(self, row: Row) -> Video:
        try:
            return super()._video(row)
        except ROW_ERRORS as error:
            raise self._damage(error) from error

    def _open_batch(self, number: int) -> BatchReader:
        try:
            # A damaged file must not crash the process: offsets and codes are checked before they are followed.
            self._batches[number].validate(full=True)
            self._readers[number] = BatchReader.of(self._batches[number])
        except (pa.ArrowException, *ROW_ERRORS) as error:
            raise self._damage(error) from error
        return self._readers[number]

    @cached_property
    def keeps_originals(self) -> bool:
        """Whether videos may be originals outside the folder."""
        return bool(self.header["facts"].get("recipe", {}).get("keep_original", False))

    # Columns.

    @cached_property
    def layout(self) -> Layout:
        """What the schema is made of."""
        splits, streams = (
            [name for name in self._schema.names if name.startswith(prefix)] for prefix in (SPLIT, STREAM)
        )

        def words(column: pa.DictionaryArray) -> tuple[str, ...]:
            return tuple(column.dictionary.to_pylist())

        fields = self._empty.column(streams[0]) if streams else None
        return Layout(
            splits=tuple(name.removeprefix(SPLIT) for name in splits),
            parts=words(self._empty.column(splits[0])) if splits else (),
            streams=tuple(name.removeprefix(STREAM) for name in streams),
            kinds=() if fields is None else words(fields.field("stored_as")),
            has_segments=fields is not None and fields.type.get_field_index("is_segment") >= 0,
            num_bits=16 if fields is None else fields.field("pts").type.value_type.bit_width,
        )

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of all videos, which is not copied; raise a ``UserError`` if it is damaged."""
        return self._undamaged(name, lambda batch: batch.column(name))

    def stream_column(self, stream: str, field: str) -> pa.ChunkedArray:
        """Return a field of a stream of all videos. Its values are without meaning where ``has_stream`` is false."""
        return self._undamaged(f"{STREAM}{stream}.{field}", lambda batch: batch.column(STREAM + stream).field(field))

    def _undamaged(self, key: str, column_of: Callable[[pa.RecordBatch], pa.Array]) -> pa.ChunkedArray:
        """Check a column when it is first asked for."""
        if key not in self._columns:
            column = pa.chunked_array([column_of(batch) for batch in [*self._batches, self._empty]])
            try:
                column.validate(full=True)
            except pa.ArrowException as error:
                raise self._damage(error) from error
            self._columns[key] = column
        return self._columns[key]

    def _damage(self, error: BaseException) -> UserError:
        return UserError(f"{self._name} {DAMAGED} ({_said(error)}): {ADVICE}")

    def stream_numbers(self, stream: str, field: str) -> NDArray[Any]:
        """[videos] a field of a stream that is a number; 0 for a video without the stream."""
        return self._collect(lambda batch: numbers_of(batch.column(STREAM + stream).field(field)), np.int64)

    def has_stream(self, stream: str) -> NDArray[np.bool_]:
        """[videos] whether a video has this stream."""
        return self._collect(lambda batch: is_present(batch.column(STREAM + stream)), np.bool_)

    @property
    def has_any_stream(self) -> NDArray[np.bool_]:
        """[videos] whether a video has a stream."""
        return np.logical_or.reduce([np.zeros(len(self), dtype=bool), *map(self.has_stream, self.layout.streams)])

    @property
    def labels(self) -> NDArray[np.int32]:
        """[videos] labels; -1 for a video without one."""
        return self._collect(lambda batch: numbers_of(batch.column("label"), null=-1), np.int32)

    @property
    def status_codes(self) -> NDArray[np.int8]:
        """[videos] positions in ``STATUSES``."""
        return self._collect(lambda batch: numbers_of(batch.column("status").indices), np.int8)

    @property
    def is_usable(self) -> NDArray[np.bool_]:
        """[videos] whether a video has streams that can be read."""
        return np.not_equal(self.status_codes, STATUSES.index(SKIPPED))

    def part_codes(self, split: str) -> NDArray[Any]:
        """[videos] positions in ``layout.parts`` of the videos' parts of a split; -1 for a video that is not in it."""
        return self._collect(lambda batch: numbers_of(batch.column(SPLIT + split).indices, null=-1), np.int8)

    def _collect(self, values_of: Callable[[pa.RecordBatch], NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
        """Join the values of all batches; ``kind`` is the type of none."""
        return np.concatenate([np.empty(0, dtype=kind), *map(values_of, self._batches)])

    def find(self, column: pa.ChunkedArray, value: str) -> int | None:
        """Return the position of the first video with a value in a column of text; None if there is none."""
        position = int(pc.index(column, pa.scalar(value, pa.string())).as_py())
        return None if position < 0 else position


def _open_again(path: Path | None, known: str, content: pa.Buffer | None) -> VideoTable:
    """Open a table in another process: the file at ``path`` if it has the digest ``known``, or the given content."""
    if path is None:
        return VideoTable(content, name=known)
    table = VideoTable.open(path)
    if table.content_digest != known:
        raise UserError(f"{path} was written again while a run read it: start the run again")
    return table


def check_version(found: int, known: int, name: str) -> None:
    """Raise a ``UserError`` if a newer crossdistill wrote a file."""
    if found > known:
        raise UserError(
            f"{name} has format version {found}, this crossdistill reads up to {known}: update crossdistill"
        )


def outside_error(name: str, path: str) -> UserError:
    """Return the error for a path that leaves the dataset."""
    return UserError(
        f"{name} names the file {path} outside the dataset, which only originals that are used in place may be: "
        "prepare the dataset again"
    )


def layout_of(videos: Sequence[Video]) -> Layout:
    """Return the layout of a table of videos."""
    return videos.layout if isinstance(videos, VideoTable) else Layout.of(rows_of(videos))


def save_table(path: Path, header: Header, videos: Sequence[Video]) -> None:
    """Write videos to a file atomically; see ``write_table``."""
    layout = layout_of(videos)
    with atomic_path(path) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        write_table(sink, header, rows_of(videos), layout, name=str(path))
