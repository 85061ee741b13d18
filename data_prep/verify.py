"""Checks every stream of a prepared dataset against the manifest by decoding the whole file.

A file is good if it exists, decodes to its end without an error, has the frame size, number of frames, timestamps,
keyframes and checksum of the manifest, and if its frames can be read as training reads them. Prints a table of the
findings and the path of every bad file. Exits with status 1 if a file is bad, with 0 otherwise.

Damaged files can crash a decoder or make it hang, so each file is decoded in a child process, which is then replaced.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, overload

import av
import numpy as np
import tyro

from crossdistill.data.containers import DECODE_ERRORS, Orientation, OrientationReader, open_video
from crossdistill.data.decode import read_frames
from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Manifest, Stream
from crossdistill.data.pictures import index_picture
from crossdistill.data.sequential import decode_frames
from crossdistill.data.stores import StoreError, locate
from crossdistill.data.streams import STREAM_FORMATS, Picture, StreamFormat
from crossdistill.data.video_table import digested_header
from crossdistill.data.videos import content_digest
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.utils.console import console, print_table
from data_prep.pipeline.executor import Engine, run_jobs
from data_prep.pipeline.guard import Crashed, TookTooLong, ask, stop_children

OK = "ok"
NOT_ASKED = "store"
"""Kind of the finding with which a child says that the store does not answer: it ends the check of all files."""
SHOWN_EXTRA_FILES = 10
NUM_READ_FRAMES = 5
DAMAGE = (UnreadableVideoError, MemoryError, *DECODE_ERRORS)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Options of ``python -m data_prep verify``."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder of a prepared dataset."""
    workers: int | None = None
    """Number of files decoded in parallel. Default: one per core."""
    time_limit: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 600.0
    """Longest time for one file. A file that needs longer counts as bad, because decoders can hang on damaged files."""


@dataclass(frozen=True)
class Finding:
    """Result of the check of one file."""

    kind: str
    """``ok``, or the kind of fault: a row of the table."""
    details: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether the file must be prepared again."""
        return self.kind != OK


def verify_dataset(options: VerifyOptions) -> None:
    """Check all streams, print a table of findings and every bad file.

    Raises:
        SystemExit: A file is bad; the status is 1.
        UserError: An option is out of range, or the folder is not a prepared dataset, or its manifest is damaged, or
            the store of a linked dataset refuses or does not answer.
    """
    if options.time_limit <= 0:
        raise UserError(f"--time-limit {options.time_limit:g} is out of range: give a number of seconds above 0")
    manifest = Manifest.load(options.folder)
    _require_same_digest(manifest)
    checks = StreamChecks(manifest)
    check = partial(_check_in_child, time_limit_seconds=options.time_limit)
    engine, hint = Engine("threads", workers=options.workers), "repeat the command to check all files again"
    try:
        findings = run_jobs(check, checks, engine=engine, description="verifying", unit="files", after_stop=hint)
    finally:
        stop_children()
    _report(manifest, checks, findings)
    bad = {checks[i].path for i, finding in enumerate(findings) if finding.is_bad}
    if bad:
        raise SystemExit(f"crossdistill: error: {_remedy(manifest, len(bad))}")


def _require_same_digest(manifest: Manifest) -> None:
    """Raise a ``UserError`` if a name, a label, a split or an entry of a stream changed after it was written."""
    table = manifest.table
    if content_digest(*digested_header(table.header), table.rows()) != table.content_digest:
        raise UserError(
            f"the manifest of {manifest.root} is damaged: a name, label, split or entry of a file is not what was "
            "written; bring it back from a copy, or prepare the dataset again"
        )


def _remedy(manifest: Manifest, num_bad: int) -> str:
    if shards := manifest.facts.get("shards"):
        return (
            f"{num_bad} of the {len(shards)} shards of {manifest.root} differ from the manifest: copy or upload them "
            "again, or delete them where they were packed and repeat python -m data_prep pack, which writes only these"
        )
    return (
        f"{num_bad} files of {manifest.root} differ from the manifest: delete them (or download them again) and repeat "
        "the command that prepared the dataset, which prepares only these files"
    )


def _report(manifest: Manifest, checks: StreamChecks, findings: Sequence[Finding]) -> None:
    columns = sorted(set(checks.columns()))
    counts = Counter((finding.kind, column) for column, finding in zip(checks.columns(), findings, strict=True))
    counts.update(("all", column) for column in checks.columns())
    kinds = sorted({finding.kind for finding in findings}, key=lambda kind: (kind != OK, kind))
    rows = [[kind, *(str(counts[kind, column]) for column in columns)] for kind in [*kinds, "all"]]
    print_table(manifest.dataset, ["finding", *columns], rows)
    for i, finding in enumerate(findings):
        if finding.is_bad:
            line = f"{checks[i]}: {finding.kind}" + (f": {finding.details}" if finding.details else "")
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    extra = extra_files(manifest)
    if extra:
        console.print(f"{len(extra)} files in the streams' folders are not in the manifest:")
        shown = [str(path) for path in extra[:SHOWN_EXTRA_FILES]] + ["..."] * (len(extra) > SHOWN_EXTRA_FILES)
        console.print("  " + "\n  ".join(shown), markup=False, highlight=False, soft_wrap=True)


def extra_files(manifest: Manifest) -> list[Path]:
    """Return files in the streams' folders that no video has, relative to the dataset's folder, sorted."""
    table = manifest.table
    paths = {path for name in table.layout.streams for path in table.stream_column(name, "path").to_pylist()}
    named = {os.path.normpath(path) for path in paths if path and not path.startswith("/")}
    folders = {path.split("/")[0] for path in named if "/" in path} | set(STREAM_FORMATS)
    present = (path for folder in folders for path in (manifest.root / folder).rglob("*") if path.is_file())
    relative = (path.relative_to(manifest.root) for path in present)
    return sorted(path for path in relative if path.as_posix() not in named)


class StreamChecks(Sequence["StreamCheck"]):
    """The checks of all streams of the usable videos, each made when it is asked for."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest, self._names = manifest, manifest.table.layout.streams
        self._are_originals = bool(manifest.facts.get("recipe", {}).get("keep_original"))
        has_stream = [manifest.table.has_stream(name) & manifest.is_usable for name in self._names]
        # [checks, 2] position of the video, position of the stream's name; video after video.
        self._wanted = np.argwhere(np.stack(has_stream, axis=1)) if has_stream else np.empty((0, 2), dtype=np.int64)
        # Row of ``_wanted`` to the positions of the videos that are segments of the same file.
        self._segments: dict[int, list[int]] = {}
        if manifest.table.layout.has_segments:
            self._merge_segments()

    def _merge_segments(self) -> None:
        """Keep one check for each file; it is decoded once for all of its segments."""
        by_file: dict[tuple[int, str, int], list[int]] = {}
        paths = [self._manifest.table.stream_column(name, "path").to_pylist() for name in self._names]
        offsets = [self._manifest.table.stream_numbers(name, "offset") for name in self._names]
        for position, number in self._wanted.tolist():
            file = (number, paths[number][position], int(offsets[number][position]))
            by_file.setdefault(file, []).append(position)
        rows = [(positions[0], number) for (number, _, _), positions in by_file.items()]
        self._wanted = np.asarray(rows, dtype=np.int64).reshape(-1, 2)
        self._segments = dict(enumerate(by_file.values()))

    def __len__(self) -> int:
        return len(self._wanted)

    @overload
    def __getitem__(self, key: int) -> StreamCheck: ...
    @overload
    def __getitem__(self, key: slice) -> list[StreamCheck]: ...
    def __getitem__(self, key: int | slice) -> StreamCheck | list[StreamCheck]:
        if isinstance(key, slice):
            return [self[i] for i in range(len(self))[key]]
        position, number = self._wanted[key].tolist()
        name = self._names[number]
        videos = self._manifest.videos
        segments = tuple(videos[i].streams[name] for i in self._segments.get(key % len(self), ()))
        stream = videos[position].streams[name]
        return StreamCheck(self._manifest.root, name, stream, self._are_originals, segments)

    def columns(self) -> Iterator[str]:
        """Yield the name of the stream of each check."""
        return map(self._names.__getitem__, self._wanted[:, 1].tolist())


@dataclass
class _FoundIndex:
    """Timestamps and keyframes of a file."""

    pts: list[int] = field(default_factory=list)
    time_bases: set[Fraction | None] = field(default_factory=set)
    keyframes: list[int] = field(default_factory=list)

    def within(self, stream: Stream) -> _FoundIndex:
        """Return the part that a stream should have: that of its segment, or all."""
        if not stream.is_segment:
            return self
        first, stop = np.searchsorted(self.pts, [stream.pts[0], stream.pts[-1] + 1]).tolist()
        keyframes = [position - first for position in self.keyframes if first <= position < stop]
        return _FoundIndex(self.pts[first:stop], self.time_bases, keyframes)

    def add(self, pts: int, time_base: Fraction | None, frame: av.VideoFrame) -> None:
        """Append a frame."""
        if frame.key_frame:
            self.keyframes.append(len(self.pts))
        self.pts.append(pts)
        self.time_bases.add(time_base)


@dataclass(frozen=True)
class StreamCheck:
    """Check of one stream of one video against the manifest."""

    root: Path
    column: str
    """Name of the stream."""
    stream: Stream
    is_original: bool = False
    """Whether the stream was taken over as it was, although it is in the dataset's folder, as in a shard."""
    segments: tuple[Stream, ...] = ()
    """All streams that are segments of this file, ``stream`` among them; empty if the stream is the whole file."""

    @property
    def path(self) -> str:
        """Path of the file: relative to the dataset's folder, or absolute for an indexed original."""
        return self.stream.path

    def __str__(self) -> str:
        return str(FileRange(Path(self.path), self.stream.offset, self.stream.num_bytes))

    @property
    def stream_format(self) -> StreamFormat | None:
        """Format that the file was written in; None for an indexed original and for an unknown stream."""
        is_original = self.is_original or Path(self.stream.path).is_absolute()
        return None if is_original else STREAM_FORMATS.get(self.column)

    def find(self) -> Finding:
        """Decode the whole stream and compare it with the manifest."""
        try:
            source = locate(self.root, self.stream)
        except StoreError as error:
            return Finding(NOT_ASKED, str(error))
        except (UnreadableVideoError, UserError) as error:
            return Finding("damaged", str(error))
        if not source.path.is_file():
            return Finding("missing")
        if not self.stream.is_video:
            return self._find_in_picture(source)
        damage = ""
        index, orientations = _FoundIndex(), OrientationReader()
        try:
            for pts, time_base, frame in self._frames(source):
                if (not index.pts or self.stream.is_plain) and (
                    wrong := self._wrong_picture(frame, orientations.read(frame))
                ):
                    return Finding("other picture", f"frame {len(index.pts)}: {wrong}" if index.pts else wrong)
                if frame.is_corrupt and self.stream_format is not None:
                    return Finding("damaged", f"frame {len(index.pts)} is corrupt")
                index.add(pts, time_base, frame)
        except DAMAGE as error:
            damage = _reason(error, source)
            if self.stream_format is not None:
                return Finding("damaged", f"{damage}, after {len(index.pts)} frames")
        # An original may have faults that its indexing passed over. It must then have the same frames as then.
        for stream in self.segments or (self.stream,):
            finding = _compare_index(stream, index.within(stream))
            if finding.kind != OK:
                return Finding("damaged", f"{damage}, after {len(index.pts)} frames") if damage else finding
            if unreadable := self._read_clip(stream):
                return unreadable
        return self._compare_checksum(source)

    def _find_in_picture(self, source: FileRange) -> Finding:
        stream, num_bytes = self.stream, source.path.stat().st_size
        if not (stream.fits(num_bytes) if source.offset else stream.num_bytes == num_bytes):
            return Finding("changed", f"its file has {num_bytes} bytes")
        try:
            found = index_picture(source.path, offset=source.offset, num_bytes=stream.num_bytes)
        except UnreadableVideoError as error:
            return Finding("damaged", _reason(error, source))
        if (found.width_px, found.height_px) != (stream.width_px, stream.height_px):
            size = f"{stream.width_px}x{stream.height_px}"
            return Finding("other picture", f"{found.width_px}x{found.height_px} pixels instead of {size}")
        if stream.sha256 and found.sha256 != stream.sha256:
            return Finding("changed", "decodes, but differs from the manifest's checksum")
        return Finding(OK)

    def _frames(self, source: FileRange) -> Iterator[tuple[int, Fraction | None, av.VideoFrame]]:
        return decode_frames(source, num_threads=1) if self.stream_format is None else _decode_strictly(source)

    def _read_clip(self, stream: Stream) -> Finding | None:
        """Read some frames as training reads them; return a finding if that fails."""
        if self.column not in STREAM_FORMATS:
            return None
        frames = np.linspace(0, stream.num_frames - 1, NUM_READ_FRAMES).round().astype(int).tolist()
        try:
            read_frames(self.root, stream, frames, stream_name=self.column)
        except DAMAGE as error:
            return Finding("clips unreadable", _reason(error, locate(self.root, stream)))
        return None

    def _compare_checksum(self, source: FileRange) -> Finding:
        if self.stream.sha256 and source.sha256() != self.stream.sha256:
            return Finding("changed", "decodes, but differs from the manifest's checksum")
        return Finding(OK)

    def _wrong_picture(self, frame: av.VideoFrame, orientation: Orientation) -> str:
        """Say how a frame differs from the manifest and the stream's format; empty if it does not."""
        size = orientation.size_px(frame.height, frame.width)
        if self.stream_format is not None:
            # Files pack several channels into one plane. Unpack an empty picture to find the size of the frame.
            blank: Picture = np.empty(size, dtype=np.uint8)
            height_px, width_px, *_ = self.stream_format.unpack(blank).shape
            size = (height_px, width_px)
            wanted_bits = av.VideoFormat(self.stream_format.pixel_format).components[0].bits
            if (bits := frame.format.components[0].bits) != wanted_bits:
                return f"{bits} bits per value instead of {wanted_bits}"
        if size != (self.stream.height_px, self.stream.width_px):
            return f"{size[1]}x{size[0]} pixels instead of {self.stream.width_px}x{self.stream.height_px}"
        return ""


def _decode_strictly(source: FileRange) -> Iterator[tuple[int, Fraction | None, av.VideoFrame]]:
    """Decode frames; raise an error at damage that decoders conceal by default."""
    container, video = open_video(source)
    with container:
        video.codec_context.thread_count = 1
        video.codec_context.options |= {"err_detect": "crccheck+bitstream+buffer+explode"}
        for frame in container.decode(video):
            if frame.pts is None:
                raise UnreadableVideoError("contains a frame without a timestamp")
            yield frame.pts, video.time_base, frame


def _reason(error: BaseException, source: FileRange) -> str:
    """Return the message of an error without the path, which the report prints anyway."""
    message = str(error).removeprefix(f"{source}: ").removeprefix(f"{source.path}: ")
    return str(getattr(error, "strerror", None) or message or type(error).__name__)


def _compare_index(stream: Stream, index: _FoundIndex) -> Finding:
    pts, time_bases = index.pts, index.time_bases
    if len(pts) != stream.num_frames:
        return Finding("frames differ", f"{len(pts)} frames instead of {stream.num_frames}")
    if time_bases != {stream.time_base}:
        units = " and ".join(str(unit) for unit in time_bases)
        return Finding("timestamps differ", f"in units of {units} s instead of {stream.time_base} s")
    differing = np.flatnonzero(np.asarray(pts) != stream.pts)
    if len(differing):
        i = int(differing[0])
        times = f"{float(pts[i] * stream.time_base):.6g} s instead of {stream.times_seconds[i]:.6g} s"
        return Finding("timestamps differ", f"{len(differing)} of {len(pts)}, the first is frame {i}: {times}")
    # Decoding can start at frame 0, whether or not it is marked as a keyframe.
    absent = sorted(set(stream.keyframes.tolist()) - set(index.keyframes) - {0})
    if absent and stream.is_seekable:
        return Finding("keyframes differ", f"{len(absent)} of {len(stream.keyframes)}, the first is frame {absent[0]}")
    return Finding(OK)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one check in the child process."""
    stream = Stream.from_json(request["stream"])
    segments = tuple(map(Stream.from_json, request["segments"]))
    check = StreamCheck(Path(request["root"]), request["column"], stream, request["is_original"], segments)
    return dataclasses.asdict(check.find())


def _check_in_child(check: StreamCheck, *, time_limit_seconds: float) -> Finding:
    """Run a check in this thread's child process. A crash and an exceeded time limit are findings too.

    Raises:
        StoreError: The store refuses or does not answer: it would say the same of every other file.
    """
    request = {
        "root": str(check.root),
        "column": check.column,
        "stream": check.stream.to_json(),
        "is_original": check.is_original,
        "segments": [segment.to_json() for segment in check.segments],
    }
    try:
        finding = Finding(**ask(__name__, request, time_limit_seconds=time_limit_seconds))
    except TookTooLong:
        return Finding("time limit", f"decoding took longer than {time_limit_seconds:g} s")
    except Crashed as error:
        return Finding("crashed", f"the decoder ended with {error}")
    if finding.kind == NOT_ASKED:
        raise StoreError(finding.details)
    return finding
