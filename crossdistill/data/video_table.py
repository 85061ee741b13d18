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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from crossdistill.data.videos import (
    LATER_FIELDS,
    SKIPPED,
    STATUSES,
    VIDEO,
    ContentDigest,
    LazyVideos,
    Row,
    Video,
    count_values,
    leaves_folder,
    rows_of,
)
from crossdistill.errors import UserError
from crossdistill.utils.files import atomic_path

ROWS_PER_BATCH = 16_384
HEADER, SUMMARY = b"crossdistill-manifest", b"crossdistill-summary"
SPLIT, STREAM = "split.", "stream."
ROW_ERRORS = (KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What a row raises that is none: errors of pyarrow are among them."""
FORMAT_VERSION = 2
"""Version 1 is the manifest of JSON lines."""
DAMAGED = "is damaged or cut short"
ADVICE = "give the command that prepared the dataset again, which keeps finished videos"
_ABSENT: Row = {"path": "", "width_px": 0, "height_px": 0, "time_base": [0, 1], "pts": [], "keyframes": []}
_MEMORY_FORMATS: dict[pa.DataType, Literal["b", "h", "i", "q"]] = {
    pa.int8(): "b",
    pa.int16(): "h",
    pa.int32(): "i",
    pa.int64(): "q",
}

Header = dict[str, Any]
"""Dataset, classes and facts of a manifest."""


@dataclass(frozen=True)
class Layout:
    """What the schema of a table is made of, which is known before the first row is written. Names are sorted."""

    splits: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    """Values of ``Stream.stored_as``."""
    num_bits: int = 16
    """Bits of the numbers in ``pts`` and ``keyframes``: the fewest of 16, 32 and 64 that hold all of them."""

    @staticmethod
    def of(rows: Iterable[Row]) -> Layout:
        """Find the smallest schema that holds all rows."""
        splits: set[tuple[str, str]] = set()
        streams: set[tuple[str, str]] = set()
        lowest, highest = 0, 0
        for row in rows:
            splits.update(row["splits"].items())
            for name, stream in row["streams"].items():
                streams.add((name, stream.get("stored_as", VIDEO)))
                lowest = min(lowest, *stream["pts"], *stream["keyframes"], 0)
                highest = max(highest, *stream["pts"], *stream["keyframes"], 0)
        num_bits = next((bits for bits in (16, 32) if max(-lowest - 1, highest) < 2 ** (bits - 1)), 64)

        def side(pairs: set[tuple[str, str]], number: int) -> tuple[str, ...]:
            return tuple(sorted({pair[number] for pair in pairs}))

        return Layout(side(splits, 0), side(splits, 1), side(streams, 0), side(streams, 1), num_bits)


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
    schema = _batch([], layout).schema.with_metadata({HEADER: json.dumps(header, sort_keys=True)})
    iterator = iter(rows)
    with pa.ipc.new_file(sink, schema) as writer:
        while chunk := list(itertools.islice(iterator, ROWS_PER_BATCH)):
            try:
                for row in chunk:
                    digest.add(row)
                    outside = outside or find_outside(row, keeps_originals=keeps_originals)
                writer.write_batch(_batch(chunk, layout))
            except ROW_ERRORS as error:
                which = f"one of its videos {num_videos + 1} to {num_videos + len(chunk)} is invalid"
                raise UserError(f"{name} is damaged, {which} ({_said(error)}): {ADVICE}") from error
            num_videos += len(chunk)
        summary = {"content_digest": digest.hexdigest(), "outside": outside}
        writer.write_batch(_batch([], layout), custom_metadata={SUMMARY: json.dumps(summary, sort_keys=True)})


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


# Rows to columns.


def _batch(rows: Sequence[Row], layout: Layout) -> pa.RecordBatch:
    columns = {
        "name": pa.array([row["name"] for row in rows], pa.string()),
        "label": pa.array([row["label"] for row in rows], pa.int32()),
        "group": pa.array([row["group"] for row in rows], pa.string()),
        "status": _dictionary([row["status"] for row in rows], STATUSES),
        "reason": pa.array([row["reason"] for row in rows], pa.string()),
    }
    columns |= {
        SPLIT + name: _dictionary([row["splits"].get(name) for row in rows], layout.parts) for name in layout.splits
    }
    columns |= {STREAM + name: _structs([row["streams"].get(name) for row in rows], layout) for name in layout.streams}
    return pa.RecordBatch.from_pydict(columns)


def _dictionary(values: Sequence[str | None], words: Sequence[str]) -> pa.DictionaryArray:
    codes: dict[str | None, int | None] = {**{word: code for code, word in enumerate(words)}, None: None}
    kind = pa.int8() if len(words) <= np.iinfo(np.int8).max else pa.int32()
    indices = pa.array([codes[value] for value in values], kind)
    return pa.DictionaryArray.from_arrays(indices, pa.array(words, pa.string()))


def _structs(streams: Sequence[Row | None], layout: Layout) -> pa.StructArray:
    present = [stream or _ABSENT for stream in streams]

    def plain(name: str, kind: pa.DataType, default: Any = None) -> pa.Array:
        return pa.array([stream.get(name, default) for stream in present], kind)

    default = layout.kinds[0]  # of rows without the stream, too
    numbers = pa.list_({16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[layout.num_bits])
    fields = {
        "path": plain("path", pa.string()),
        "width_px": plain("width_px", pa.int32()),
        "height_px": plain("height_px", pa.int32()),
        "num_frames": pa.array([count_values(stream["pts"]) for stream in present], pa.int32()),
        "time_base_numerator": pa.array([stream["time_base"][0] for stream in present], pa.int32()),
        "time_base_denominator": pa.array([stream["time_base"][1] for stream in present], pa.int32()),
        "pts": plain("pts", numbers),
        "keyframes": plain("keyframes", numbers),
        "is_seekable": plain("is_seekable", pa.bool_(), True),
        "is_plain": plain("is_plain", pa.bool_(), True),
        "num_bytes": plain("num_bytes", pa.int64(), 0),
        "sha256": pa.array([_checksum(stream.get("sha256", "")) for stream in present], pa.binary()),
        "stored_as": _dictionary(
            [default if stream is None else stream.get("stored_as", VIDEO) for stream in streams], layout.kinds
        ),
        "offset": plain("offset", pa.int64(), 0),
    }
    mask = pa.array([stream is None for stream in streams], pa.bool_())
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields), mask=mask)


def _checksum(text: str) -> bytes:
    digits = bytes.fromhex(text)
    if digits.hex() != text:
        raise ValueError(f"{text!r} is no checksum in lower-case hexadecimal digits")
    return digits


# Columns to rows. An Arrow scalar takes a microsecond, an item of a memory view a twentieth of it.

Read = Callable[[int], Any]


def _view(buffer: pa.Buffer | None, kind: Literal["b", "h", "i", "q"], number: int) -> memoryview[int]:
    """View the first numbers of a buffer."""
    whole = memoryview(b"" if buffer is None else buffer).cast("B")
    return whole[: number * np.dtype(kind).itemsize].cast(kind)


def _reader(array: pa.Array) -> Read:
    """Return the function from a position to a value of a column of one batch; None for null."""
    read, bits = _reader_of_values(array), array.buffers()[0]
    if not array.null_count:
        return read
    valid = memoryview(bits).cast("B")
    return lambda i: read(i) if valid[i >> 3] >> (i & 7) & 1 else None


def _reader_of_values(array: pa.Array) -> Read:
    kind, buffers, size = array.type, array.buffers(), len(array)
    if pa.types.is_dictionary(kind):
        words = array.dictionary.to_pylist()
        codes = _view(array.indices.buffers()[1], _MEMORY_FORMATS[kind.index_type], size)
        return lambda i: words[codes[i]]
    if pa.types.is_struct(kind):
        return _stream_reader(array)
    if pa.types.is_boolean(kind):
        bits = memoryview(buffers[1]).cast("B")
        return lambda i: bool(bits[i >> 3] >> (i & 7) & 1)
    if kind in _MEMORY_FORMATS:
        return _view(buffers[1], _MEMORY_FORMATS[kind], size).__getitem__
    ends = _view(buffers[1], "i", size + 1)
    if pa.types.is_list(kind):
        numbers = _view(array.values.buffers()[1], _MEMORY_FORMATS[kind.value_type], len(array.values))
        return lambda i: numbers[ends[i] : ends[i + 1]].tolist()
    content = memoryview(b"" if buffers[2] is None else buffers[2]).cast("B")
    if pa.types.is_string(kind):
        return lambda i: str(content[ends[i] : ends[i + 1]], "utf-8")
    if pa.types.is_binary(kind):
        return lambda i: content[ends[i] : ends[i + 1]].hex()
    raise TypeError(f"a column of the type {kind}")


def _stream_reader(array: pa.StructArray) -> Read:
    """Return the function from a position to the JSON object of a stream."""
    reads = {array.type.field(i).name: _reader(array.field(i)) for i in range(array.type.num_fields)}
    numerator, denominator = reads.pop("time_base_numerator"), reads.pop("time_base_denominator")
    later = [(name, reads.pop(name), default) for name, default in LATER_FIELDS.items()]
    always = list(reads.items())

    def read(i: int) -> Row:
        row = {name: read(i) for name, read in always}
        row["time_base"] = [numerator(i), denominator(i)]
        for name, read_later, default in later:
            if (value := read_later(i)) != default:
                row[name] = value
        return row

    return read


@dataclass(frozen=True)
class _BatchReader:
    """Reads the rows of one batch."""

    plain: list[tuple[str, Read]]
    splits: list[tuple[str, Read]]
    streams: list[tuple[str, Read]]

    @staticmethod
    def of(batch: pa.RecordBatch) -> _BatchReader:
        reads = {name: _reader(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}

        def below(prefix: str) -> list[tuple[str, Read]]:
            return [(name.removeprefix(prefix), read) for name, read in reads.items() if name.startswith(prefix)]

        plain = [(name, reads[name]) for name in ("name", "label", "group", "status", "reason")]
        return _BatchReader(plain, below(SPLIT), below(STREAM))

    def row(self, i: int) -> Row:
        row = {name: read(i) for name, read in self.plain}
        row["splits"] = {name: part for name, read in self.splits if (part := read(i)) is not None}
        row["streams"] = {name: stream for name, read in self.streams if (stream := read(i)) is not None}
        return row


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
        except UserError:
            raise
        except (pa.ArrowException, OSError, *ROW_ERRORS) as error:
            raise self._damage(error) from error
        self._batches: list[pa.RecordBatch] = batches
        self._schema: pa.Schema = file.schema
        self._empty: pa.RecordBatch = last
        self._starts = [0, *itertools.accumulate(batch.num_rows for batch in batches)]
        self._readers: dict[int, _BatchReader] = {}
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

    def _open_batch(self, number: int) -> _BatchReader:
        try:
            # A damaged file must not crash the process: offsets and codes are checked before they are followed.
            self._batches[number].validate(full=True)
            self._readers[number] = _BatchReader.of(self._batches[number])
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
            num_bits=16 if fields is None else fields.field("pts").type.value_type.bit_width,
        )

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of all videos, which is not copied; raise a ``UserError`` if it is damaged."""
        return self._undamaged(name, lambda batch: batch.column(name))

    def stream_column(self, stream: str, field: str) -> pa.ChunkedArray:
        """Return a field of a stream of all videos. Its values are without meaning where ``has_stream`` is false."""
        return self._undamaged(f"{STREAM}{stream}.{field}", lambda batch: batch.column(STREAM + stream).field(field))

    def _column(self, name: str) -> pa.ChunkedArray:
        return pa.chunked_array([batch.column(name) for batch in [*self._batches, self._empty]])

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

    def has_stream(self, stream: str) -> NDArray[np.bool_]:
        """[videos] whether a video has this stream."""
        return _numbers(self._column(STREAM + stream).is_valid())

    @property
    def has_any_stream(self) -> NDArray[np.bool_]:
        """[videos] whether a video has a stream."""
        return np.logical_or.reduce([np.zeros(len(self), dtype=bool), *map(self.has_stream, self.layout.streams)])

    @property
    def labels(self) -> NDArray[np.int32]:
        """[videos] labels; -1 for a video without one."""
        return _numbers(self._column("label").fill_null(-1))

    @property
    def status_codes(self) -> NDArray[np.int8]:
        """[videos] positions in ``STATUSES``."""
        return _codes(self._column("status"))

    @property
    def is_usable(self) -> NDArray[np.bool_]:
        """[videos] whether a video has streams that can be read."""
        return np.not_equal(self.status_codes, STATUSES.index(SKIPPED))

    def part_codes(self, split: str) -> NDArray[np.int8]:
        """[videos] positions in ``layout.parts`` of the videos' parts of a split; -1 for a video that is not in it."""
        return _codes(self._column(SPLIT + split))

    def find(self, column: pa.ChunkedArray, value: str) -> int | None:
        """Return the position of the first video with a value in a column of text; None if there is none."""
        position = int(pc.index(column, pa.scalar(value, pa.string())).as_py())
        return None if position < 0 else position


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    array: NDArray[Any] = column.to_numpy()
    return array


def _codes(column: pa.ChunkedArray) -> NDArray[Any]:
    codes = pa.chunked_array([chunk.indices for chunk in column.chunks])
    return _numbers(codes.fill_null(-1))


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
