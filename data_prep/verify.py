"""Checks every stream of a prepared dataset against the manifest by decoding it whole.

For each file: whether it is there, decodes to its end without an error, has the size, number of
frames and timestamps that the manifest says, and a keyframe wherever the manifest says that decoding
can start, and whether its content is still that of the manifest's checksum. Ends with exit status 1 if anything
is amiss, 0 otherwise.

Damaged files can crash a decoder or make it hang: each file is decoded in a child process that is
replaced when that happens.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import tyro

from crossdistill.data.decode import DECODE_ERRORS, decode_frames
from crossdistill.data.manifest import Manifest, Stream
from crossdistill.data.streams import STREAM_FORMATS, Picture, StreamFormat
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.utils.console import console, print_table
from crossdistill.utils.files import sha256_of
from data_prep.pipeline.executor import Engine, run_jobs
from data_prep.pipeline.guard import Crashed, TookTooLong, ask, stop_children

OK = "ok"
TIME_LIMIT = "time limit"
CRASHED = "crashed"
SHOWN_EXTRA_FILES = 10
DAMAGE = (UnreadableVideoError, MemoryError, *DECODE_ERRORS)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of ``python -m data_prep verify``."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """A prepared dataset."""
    workers: int | None = None
    """Files decoded at a time; one per core if not given."""
    time_limit: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 600.0
    """A file that takes longer counts as bad: decoders can hang on damaged files."""


@dataclass(frozen=True)
class Finding:
    """What is the matter with one file."""

    kind: str
    """``ok``, or a category for the table."""
    details: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether the file must be made anew."""
        return self.kind != OK


def run(options: Options) -> None:
    """Check all streams, print a table of findings and every bad file.

    Raises:
        SystemExit: With status 1 if a stream is not as the manifest says.
        UserError: An option is out of range, or the folder is no prepared dataset.
    """
    if options.time_limit <= 0:
        raise UserError(f"--time-limit {options.time_limit:g} cannot work: give seconds, more than 0")
    manifest = Manifest.load(options.folder)
    checks = _checks(manifest, options.time_limit)
    try:
        engine = Engine("threads", workers=options.workers)
        findings = run_jobs(
            _check_in_child,
            checks,
            engine=engine,
            description="verifying",
            unit="files",
            after_stop="nothing was found out; the same command starts anew",
        )
    finally:
        stop_children()
    _report(manifest, checks, findings)
    bad = {check.path for check, finding in zip(checks, findings, strict=True) if finding.is_bad}
    if bad:
        raise SystemExit(
            f"crossdistill: error: {len(bad)} files of {options.folder} are not as the manifest says: remove those "
            "(or get originals again) and prepare the dataset again: the same command makes only them anew"
        )


def _checks(manifest: Manifest, time_limit_seconds: float) -> list[StreamCheck]:
    return [
        StreamCheck(manifest.root, name, stream, time_limit_seconds)
        for video in manifest.videos
        if video.is_usable
        for name, stream in video.streams.items()
    ]


def _report(manifest: Manifest, checks: Sequence[StreamCheck], findings: Sequence[Finding]) -> None:
    columns = sorted({check.column for check in checks})
    counts = Counter((finding.kind, check.column) for check, finding in zip(checks, findings, strict=True))
    kinds = sorted({finding.kind for finding in findings}, key=lambda kind: (kind != OK, kind))
    rows = [[kind, *(str(counts[kind, column]) for column in columns)] for kind in kinds]
    totals = Counter(check.column for check in checks)
    print_table(manifest.dataset, ["finding", *columns], [*rows, ["all", *(str(totals[c]) for c in columns)]])
    for check, finding in zip(checks, findings, strict=True):
        if finding.is_bad:
            said = f"{check.path}: {finding.kind}" + (f": {finding.details}" if finding.details else "")
            console.print(said, markup=False, highlight=False, soft_wrap=True)
    extra = extra_files(manifest)
    if extra:
        console.print(f"{len(extra)} files are in the streams' folders and in no line of the manifest:")
        shown = [str(path) for path in extra[:SHOWN_EXTRA_FILES]] + ["..."] * (len(extra) > SHOWN_EXTRA_FILES)
        console.print("  " + "\n  ".join(shown), markup=False, highlight=False, soft_wrap=True)


def extra_files(manifest: Manifest) -> list[Path]:
    """Files under the streams' folders that no video names, relative to the dataset's folder, sorted."""
    streams = [stream for video in manifest.videos for stream in video.streams.values()]
    named = {Path(stream.path) for stream in streams if not Path(stream.path).is_absolute()}
    folders = {path.parts[0] for path in named if len(path.parts) > 1} | set(STREAM_FORMATS)
    present = {
        path.relative_to(manifest.root)
        for folder in folders
        for path in (manifest.root / folder).rglob("*")
        if path.is_file()
    }
    return sorted(present - named)


# One stream.


@dataclass(frozen=True)
class StreamCheck:
    """Whether one stream of one video is as the manifest has it."""

    root: Path
    column: str
    """The stream's name."""
    stream: Stream
    time_limit_seconds: float

    @property
    def path(self) -> str:
        """Relative to the dataset's folder, mostly."""
        return self.stream.path

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` reads back."""
        return {
            "root": str(self.root),
            "column": self.column,
            "stream": self.stream.to_json(),
            "time_limit_seconds": self.time_limit_seconds,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> StreamCheck:
        """Read what ``to_json`` wrote."""
        stream = Stream.from_json(data["stream"])
        return cls(Path(data["root"]), data["column"], stream, data["time_limit_seconds"])

    @property
    def stream_format(self) -> StreamFormat | None:
        """How the file was written; None for an original that was only indexed, or an unknown stream."""
        return None if Path(self.stream.path).is_absolute() else STREAM_FORMATS.get(self.column)

    def find(self) -> Finding:
        """Decode the stream whole and compare it with the manifest."""
        path = self.root / self.path
        if not path.is_file():
            return Finding("missing")
        pts: list[int] = []
        keyframes: list[int] = []
        time_bases: set[Fraction | None] = set()
        decode = _decode_as_indexed if self.stream_format is None else _decode_strictly
        try:
            for found_pts, time_base, frame in decode(path):
                if not pts and (wrong := self._wrong_picture(frame)):
                    return Finding("other picture", wrong)
                if frame.is_corrupt:
                    return Finding("damaged", f"frame {len(pts)} is corrupt")
                if frame.key_frame:
                    keyframes.append(len(pts))
                pts.append(found_pts)
                time_bases.add(time_base)
        except DAMAGE as error:
            return Finding("damaged", f"{_said(error, path)}, after {len(pts)} frames")
        finding = _compare_index(self.stream, pts, time_bases, keyframes)
        if finding.kind == OK and self.stream.sha256 and sha256_of(path) != self.stream.sha256:
            return Finding("changed", "the content is not that of the manifest, though it decodes")
        return finding

    def _wrong_picture(self, frame: av.VideoFrame) -> str:
        """How the first picture differs from what the manifest and the stream's format say; empty if not."""
        is_turned = round(frame.rotation / 90) % 2 == 1
        size = (frame.width, frame.height) if is_turned else (frame.height, frame.width)
        if self.stream_format is not None:
            # The size that the unpacked frame has, found without decoding: unpack an empty picture.
            blank: Picture = np.empty(size, dtype=np.uint8)
            unpacked = self.stream_format.unpack(blank).shape
            size = (unpacked[0], unpacked[1])
            wanted_bits = av.VideoFormat(self.stream_format.pixel_format).components[0].bits
            bits = frame.format.components[0].bits
            if bits != wanted_bits:
                return f"{bits} bits per value instead of {wanted_bits}"
        if size != (self.stream.height_px, self.stream.width_px):
            return f"{size[1]}x{size[0]} pixels instead of {self.stream.width_px}x{self.stream.height_px}"
        return ""


def _decode_strictly(path: Path) -> Iterator[tuple[int, Fraction | None, av.VideoFrame]]:
    """Frames as they come, and an error where a usual decoder would patch up the damage and go on."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise UnreadableVideoError("has no video stream")
        video = container.streams.video[0]
        video.codec_context.thread_count = 1
        video.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
        for frame in container.decode(video):
            if frame.pts is None:
                raise UnreadableVideoError("holds a frame without a timestamp")
            yield frame.pts, video.time_base, frame


def _decode_as_indexed(path: Path) -> Iterator[tuple[int, Fraction | None, av.VideoFrame]]:
    """Frames of a foreign file, as forgiving of its faults as when it was indexed."""
    yield from decode_frames(path, num_threads=1)


def _said(error: BaseException, path: Path) -> str:
    reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{path}: ") or type(error).__name__
    return str(reason)


def _compare_index(stream: Stream, pts: list[int], time_bases: set[Fraction | None], keyframes: list[int]) -> Finding:
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
    absent = sorted(set(stream.keyframes.tolist()) - set(keyframes) - {0})
    if absent and stream.is_seekable:
        return Finding("keyframes differ", f"{len(absent)} of {len(stream.keyframes)}, the first is frame {absent[0]}")
    return Finding(OK)


# In a child process, because decoders are native code.


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Make one check, in the child."""
    return dataclasses.asdict(StreamCheck.from_json(request).find())


def _check_in_child(check: StreamCheck) -> Finding:
    """Check in this thread's child process; its death and a check that takes too long are findings too."""
    request = check.to_json()
    try:
        return Finding(**ask(__name__, request, time_limit_seconds=check.time_limit_seconds))
    except TookTooLong:
        return Finding(TIME_LIMIT, f"took longer than {check.time_limit_seconds:g} s")
    except Crashed as error:
        return Finding(CRASHED, f"the decoder ended with {error}")
