"""Checks every stream of a prepared dataset against the manifest by decoding it whole.

For each file: whether it is there, decodes to its end without an error, has the size, number of
frames and timestamps that the manifest says, and a keyframe wherever the manifest says that decoding
can start. Flow that was estimated from colour is estimated again for a few pairs of frames, to find files
of another video. Ends with exit status 1 if anything is amiss, 0 otherwise. A few changed bits that
decode without an error are not noticed.

Damaged files can crash a decoder or make it hang: each file is decoded in a child process that is
replaced when that happens.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Protocol

import av
import cv2
import numpy as np
import tyro
from numpy.typing import NDArray

from crossdistill.console import console, print_table
from crossdistill.data.decode import DECODE_ERRORS, decode_frames, nearest_frames, read_frames
from crossdistill.data.manifest import Manifest, Stream
from crossdistill.data.streams import STREAM_FORMATS, Picture, StreamFormat
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.modalities import FLOW
from data_prep.executor import Engine, run_jobs
from data_prep.flow.dis import dis_flow

OK = "ok"
NOT_COMPARED = "not compared"
TIME_LIMIT = "time limit"
CRASHED = "crashed"
# Importing the libraries takes seconds on a laptop and longer from a busy network disk.
START_LIMIT_SECONDS = 300.0
LOST_STATUS = 255
"""What multiprocessing gives as the status of a process that its server knows nothing of."""
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


# Flow of the right video and flow estimated from the stored colour were alike by 0.73 to 0.99 in 18 clips of
# UCF101 at 128 pixels; flow of wrong videos by -0.51 to 0.41, by more than 0.25 in 5 of 100 pairs.
LIKENESS_PAIRS = 6
LEAST_LIKENESS = 0.25
LEAST_MOTION_PX = 0.1
"""Mean of both: of less, noise is a large part."""


@dataclass(frozen=True)
class Finding:
    """What is the matter with one file."""

    kind: str
    """``ok``, or a category for the table."""
    details: str = ""

    @property
    def is_bad(self) -> bool:
        """Whether the file must be made anew."""
        return self.kind not in (OK, NOT_COMPARED)


class Check(Protocol):
    """Something to find out in a child process."""

    @property
    def column(self) -> str:
        """Of the table of findings."""

    @property
    def path(self) -> str:
        """The file that is to blame."""

    @property
    def time_limit_seconds(self) -> float:
        """Longer means that the decoder hangs."""

    def find(self) -> Finding:
        """Decode and compare; never raises on a damaged file."""


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
            unit="checks",
            after_stop="nothing was found out; the same command starts anew",
        )
    finally:
        _stop_children()
    _report(manifest, checks, findings)
    bad = {check.path for check, finding in zip(checks, findings, strict=True) if finding.is_bad}
    if bad:
        raise SystemExit(
            f"crossdistill: error: {len(bad)} files of {options.folder} are not as the manifest says: remove them and "
            "prepare the dataset again with the same command, which makes only them anew"
        )


def _checks(manifest: Manifest, time_limit_seconds: float) -> list[Check]:
    flow_method = manifest.facts.get("recipe", {}).get("flow", "motion-vectors")
    checks: list[Check] = []
    for video in manifest.videos:
        streams = video.streams if video.is_usable else {}
        for name, stream in streams.items():
            checks.append(StreamCheck(manifest.root, name, stream, time_limit_seconds))
        if {"rgb", "flow"} <= streams.keys() and flow_method != "motion-vectors":
            rgb, flow = streams["rgb"], streams["flow"]
            # Of another size, flow was estimated from another stream, or from colour that is not stored.
            if (rgb.width_px, rgb.height_px) == (flow.width_px, flow.height_px):
                checks.append(LikenessCheck(manifest.root, rgb, flow, time_limit_seconds))
    return checks


def _report(manifest: Manifest, checks: Sequence[Check], findings: Sequence[Finding]) -> None:
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
        return _compare_index(self.stream, pts, time_bases, keyframes)

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


# Two streams of one video.


@dataclass(frozen=True)
class LikenessCheck:
    """Whether the flow of a video is that of its colour stream; both have one size."""

    root: Path
    rgb: Stream
    flow: Stream
    time_limit_seconds: float
    column: str = "flow against rgb"

    @property
    def path(self) -> str:
        """The flow's, though the colour may be the wrong one."""
        return self.flow.path

    def find(self) -> Finding:
        """Estimate the flow of some pairs of stored frames and correlate it with the stored flow."""
        estimate = dis_flow()
        shares = (np.arange(LIKENESS_PAIRS) + 0.5) / LIKENESS_PAIRS
        positions = np.unique((shares * self.flow.num_frames).astype(np.int64))
        try:
            stored_thwc = read_frames(self.root, self.flow, positions.tolist(), stream_name="flow")
            firsts = nearest_frames(self.rgb, self.flow.times_seconds[positions])
            pairs = np.stack([firsts, np.minimum(firsts + 1, self.rgb.num_frames - 1)], axis=1)
            rgb_thwc = read_frames(self.root, self.rgb, pairs.ravel().tolist())
        except DAMAGE as error:
            return Finding(NOT_COMPARED, _said(error, self.root / self.path))
        gray_thw = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in rgb_thwc]
        estimated_thwc = np.stack([estimate(a, b) for a, b in zip(gray_thw[::2], gray_thw[1::2], strict=True)])
        return _compare_flow(stored_thwc * FLOW.value_scale + FLOW.value_offset, estimated_thwc)


def _compare_flow(stored_px: NDArray[Any], estimated_px: NDArray[Any]) -> Finding:
    if stored_px.shape != estimated_px.shape:
        return Finding(NOT_COMPARED, "the pictures differ in size")
    if min(np.abs(stored_px).mean(), np.abs(estimated_px).mean()) < LEAST_MOTION_PX:
        return Finding(NOT_COMPARED, "too little motion")
    norms = np.linalg.norm(stored_px) * np.linalg.norm(estimated_px)
    likeness = float((stored_px * estimated_px).sum() / norms)
    if likeness < LEAST_LIKENESS:
        return Finding("of another video", f"flow and rgb do not belong together (likeness {likeness:.2f} of 1)")
    return Finding(OK)


# In a child process, because decoders are native code.


class _Child:
    """A process that checks one stream at a time, replaced when it crashes or hangs."""

    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Connection | None = None

    def check(self, check: Check) -> Finding:
        """Check in the process; its death and a check that takes too long are findings too."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._connection is not None
        try:
            self._connection.send(check)
            if self._connection.poll(check.time_limit_seconds):
                finding: Finding = self._connection.recv()
                return finding
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join()
            status = self._process.exitcode
            self.stop()
            if 0 < status < LOST_STATUS:  # a Python error: ours, not the file's
                raise RuntimeError(f"checking {check.path} failed; the stack trace stands above") from None
            return Finding(CRASHED, signal.Signals(-status).name if status < 0 else "of an unknown cause")
        self.stop()
        return Finding(TIME_LIMIT, f"took longer than {check.time_limit_seconds:g} s")

    def _start(self) -> None:
        # Forked from a server that has the libraries and no threads: quick, and safe beside other threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(START_LIMIT_SECONDS):
            raise UserError("a worker process did not start: try again with fewer --workers")
        self._connection.recv()

    def stop(self) -> None:
        """Kill the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            assert self._connection is not None
            self._connection.close()
            self._process = self._connection = None


def _serve(connection: Connection) -> None:
    """The child's loop, until its keeper is gone. Ctrl-C is the keeper's to react to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    av.logging.set_level(av.logging.PANIC)  # what decoders print about damage becomes a finding instead
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send("ready")
        while True:
            connection.send(connection.recv().find())


_children = threading.local()
_all_children: list[_Child] = []


def _check_in_child(check: Check) -> Finding:
    """Check in this thread's child process, which stays for the next check."""
    if not hasattr(_children, "mine") or _children.mine not in _all_children:
        _children.mine = _Child()
        _all_children.append(_children.mine)
    child: _Child = _children.mine
    return child.check(check)


def _stop_children() -> None:
    while _all_children:
        _all_children.pop().stop()
