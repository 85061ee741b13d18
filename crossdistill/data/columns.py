"""Videos as rows of columns, and back: the schema of ``video_table`` and the values of one batch.

A row is the JSON object of a video. ``make_batch`` and ``BatchReader`` are inverse to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crossdistill.data.videos import LATER_FIELDS, STATUSES, VIDEO, Row, count_values

SPLIT, STREAM = "split.", "stream."
"""What the names of columns begin with."""
_ABSENT: Row = {"path": "", "width_px": 0, "height_px": 0, "time_base": [0, 1], "pts": [], "keyframes": []}
_MEMORY_FORMATS: dict[pa.DataType, Literal["b", "h", "i", "q"]] = {
    pa.int8(): "b",
    pa.int16(): "h",
    pa.int32(): "i",
    pa.int64(): "q",
}


@dataclass(frozen=True)
class Layout:
    """What the schema of a table is made of, which is known before the first row is written. Names are sorted."""

    splits: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    streams: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    """Values of ``Stream.stored_as``."""
    has_segments: bool = False
    """Whether a stream is a segment of its file. Only then there is a column of it, so that files of other datasets
    keep their bytes."""
    num_bits: int = 16
    """Bits of the numbers in ``pts`` and ``keyframes``: the fewest of 16, 32 and 64 that hold all of them."""

    @staticmethod
    def of(rows: Iterable[Row]) -> Layout:
        """Find the smallest schema that holds all rows."""
        splits: set[tuple[str, str]] = set()
        streams: set[tuple[str, str]] = set()
        lowest, highest, has_segments = 0, 0, False
        for row in rows:
            splits.update(row["splits"].items())
            for name, stream in row["streams"].items():
                streams.add((name, stream.get("stored_as", VIDEO)))
                has_segments |= stream.get("is_segment", False)
                lowest = min(lowest, *stream["pts"], *stream["keyframes"], 0)
                highest = max(highest, *stream["pts"], *stream["keyframes"], 0)
        num_bits = next((bits for bits in (16, 32) if max(-lowest - 1, highest) < 2 ** (bits - 1)), 64)

        def side(pairs: set[tuple[str, str]], number: int) -> tuple[str, ...]:
            return tuple(sorted({pair[number] for pair in pairs}))

        names = side(splits, 0), side(splits, 1), side(streams, 0), side(streams, 1)
        return Layout(*names, has_segments=has_segments, num_bits=num_bits)


# Rows to columns.


def make_batch(rows: Sequence[Row], layout: Layout) -> pa.RecordBatch:
    """Put rows into columns; raise one of ``ROW_ERRORS`` if a row lacks a field or has a value of another type."""
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
    if layout.has_segments:
        fields["is_segment"] = plain("is_segment", pa.bool_(), False)
    mask = pa.array([stream is None for stream in streams], pa.bool_())
    return pa.StructArray.from_arrays(list(fields.values()), names=list(fields), mask=mask)


def _checksum(text: str) -> bytes:
    digits = bytes.fromhex(text)
    if digits.hex() != text:
        raise ValueError(f"{text!r} is no checksum in lower-case hexadecimal digits")
    return digits


# Columns to arrays. Much in pyarrow imports pandas first, which takes a second and 40 MB; this does not.


def numbers_of(array: pa.Array, *, null: int = 0) -> NDArray[Any]:
    """View the numbers of a column of one batch; if some are null, copy them with ``null`` in their place."""
    if not len(array):
        return np.empty(0, dtype=_MEMORY_FORMATS[array.type])
    numbers = np.frombuffer(array.buffers()[1], dtype=_MEMORY_FORMATS[array.type], count=len(array))
    return numbers if not array.null_count else np.where(is_present(array), numbers, numbers.dtype.type(null))


def is_present(array: pa.Array) -> NDArray[np.bool_]:
    """[rows] whether a value of a column of one batch is not null."""
    if not array.null_count:
        return np.ones(len(array), dtype=bool)
    bits = np.frombuffer(array.buffers()[0], dtype=np.uint8)
    return np.unpackbits(bits, count=len(array), bitorder="little").astype(bool)


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
    later = [(name, reads.pop(name), default) for name, default in LATER_FIELDS.items() if name in reads]
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
class BatchReader:
    """Reads the rows of one batch."""

    plain: list[tuple[str, Read]]
    splits: list[tuple[str, Read]]
    streams: list[tuple[str, Read]]

    @staticmethod
    def of(batch: pa.RecordBatch) -> BatchReader:
        """Make the functions that read a batch whose offsets and codes are valid."""
        reads = {name: _reader(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}

        def below(prefix: str) -> list[tuple[str, Read]]:
            return [(name.removeprefix(prefix), read) for name, read in reads.items() if name.startswith(prefix)]

        plain = [(name, reads[name]) for name in ("name", "label", "group", "status", "reason")]
        return BatchReader(plain, below(SPLIT), below(STREAM))

    def row(self, i: int) -> Row:
        """Return row i of the batch as a JSON object."""
        row = {name: read(i) for name, read in self.plain}
        row["splits"] = {name: part for name, read in self.splits if (part := read(i)) is not None}
        row["streams"] = {name: stream for name, read in self.streams if (stream := read(i)) is not None}
        return row
