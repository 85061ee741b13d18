"""Compare ways to store optical flow and depth: size, error, and the time that a random clip takes to read.

Flow is estimated between the neighbouring frames of real videos (OpenCV's DIS, as ``python -m data_prep``
does), quantised and stored by every candidate; its error is that of the stored vectors against the estimated
ones, quantisation included, over the vectors within the bound. Depth comes from .mat files and must come back as
it was. The yardstick is the RGB stream of the same videos: reading flow or depth should cost no more than that.

A clip is 16 frames from a random place: file opened, frames found and decoded with one thread. Candidates take
turns clip by clip, so that other work on the machine slows them all alike; medians of processor time are shown.
Files are in the disk's cache: this measures decoding, not disks.

    python scripts/bench_storage.py --videos folder/of/videos --depth folder/of/mat --clips 40
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from crossdistill.data.decode import index_video, read_frames
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import STREAM_FORMATS, StreamWriter, quantise_flow, stack_channels
from crossdistill.modalities import FLOW, FLOW_BOUND_PX
from crossdistill.utils.console import console
from data_prep.flow.opencv import dis_flow
from data_prep.pipeline.readers import read_depth, read_video
from data_prep.pipeline.sources import VIDEO_SUFFIXES
from data_prep.recipe import Recipe

Picture = NDArray[Any]
"""[H, W], uint8 or uint16; for the RGB yardstick [H, W, 3]."""

CLIP_FRAMES = 16
STRIDES = (1, 4)
TIME_BASE = Fraction(1001, 30000)
# A frame rate that no round number of milliseconds fits, and one frame that comes late.
AWKWARD_TIMES = tuple(1001 * i + 7 * (i > 5) for i in range(12))
CONTAINERS = ("mp4", "mov", "nut", "matroska", "avi")


class Store(Protocol):
    """A way to keep the pictures of one clip."""

    @property
    def name(self) -> str:
        """What the table calls it."""

    def write(self, base: Path, pictures: Sequence[Picture]) -> Path:
        """Write all pictures to a file or folder that starts with ``base``; give its path."""

    def read(self, path: Path, positions: Sequence[int]) -> list[Picture]:
        """Read some, in increasing order."""


def _same(picture: Picture) -> Picture:
    return picture


@dataclass(frozen=True)
class VideoStore:
    """A video file with a given codec; its luma plane holds the picture, unconverted."""

    name: str
    codec: str
    pixel_format: str
    container: str
    keyframe_every: int = 1
    options: dict[str, str] = field(default_factory=dict)
    pack: Callable[[Picture], Picture] = _same
    unpack: Callable[[Picture], Picture] = _same

    def write(self, base: Path, pictures: Sequence[Picture]) -> Path:
        """One file."""
        path = base.with_suffix(f".{self.container}")
        options = {"g": str(self.keyframe_every), **self.options}
        write_video(path, self, [self.pack(p) for p in pictures], range(len(pictures)), TIME_BASE, options)
        return path

    def read(self, path: Path, positions: Sequence[int]) -> list[Picture]:
        """Seek to each keyframe that is needed, decode forward."""
        found: dict[int, Picture] = {}
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            video.thread_type, video.codec_context.thread_count = "SLICE", 1
            assert video.time_base is not None
            unit = TIME_BASE / video.time_base
            wanted = {round(position * unit): position for position in positions}
            for start, run in runs_between_keyframes(list(wanted), self.keyframe_every * unit):
                container.seek(start, stream=video, backward=True)
                for frame in container.decode(video):
                    if frame.pts in wanted:
                        found[wanted[frame.pts]] = self.unpack(luma(frame))
                    if frame.pts is not None and frame.pts >= run[-1]:
                        break
        return [found[position] for position in positions]


def runs_between_keyframes(wanted: Sequence[int], spacing: Fraction) -> list[tuple[int, list[int]]]:
    """Wanted timestamps in runs that are decoded without seeking, each with its keyframe's timestamp."""
    runs: list[tuple[int, list[int]]] = []
    previous = None
    for pts in wanted:
        group = int(pts / spacing)
        if previous is None or group > previous + 1:
            runs.append((round(group * spacing), []))
        runs[-1][1].append(pts)
        previous = group
    return runs


def luma(frame: av.VideoFrame) -> Picture:
    """The first plane as it was decoded: 8 or 16 bit by the pixel format, no change of range."""
    plane = frame.planes[0]
    dtype = {"16be": ">u2", "16le": "<u2", "10le": "<u2", "12le": "<u2"}.get(frame.format.name[-4:], "u1")
    rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, plane.line_size)
    values = rows[: frame.height, : frame.width * np.dtype(dtype).itemsize].view(dtype)
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def write_video(
    path: Path,
    store: VideoStore,
    pictures: Iterable[Picture],
    times: Iterable[int],
    time_base: Fraction,
    options: dict[str, str],
) -> None:
    """Encode gray pictures at given times with one thread."""
    with av.open(str(path), "w", format=store.container, options={"fflags": "+bitexact"}) as container:
        video: Any = None
        for picture, pts in zip(pictures, times, strict=True):
            if video is None:
                video = container.add_stream(store.codec, options=options)
                video.height, video.width = picture.shape
                video.pix_fmt = store.pixel_format
                video.time_base = video.codec_context.time_base = time_base
                video.codec_context.thread_count = 1
                video.codec_context.color_range = ColorRange.JPEG
            frame = gray_frame(picture, store.pixel_format)
            frame.pts, frame.time_base = pts, time_base
            container.mux(video.encode(frame))
        container.mux(video.encode())


def gray_frame(picture: Picture, pixel_format: str) -> av.VideoFrame:
    """A frame whose luma is the picture and whose chroma, if the codec insists on any, is constant."""
    if pixel_format.endswith("420p"):
        height, width = picture.shape
        picture = np.concatenate([picture, np.full((height // 2, width), 128, np.uint8)])
        frame = av.VideoFrame.from_ndarray(picture, format=pixel_format)
    elif pixel_format == "yuv422p":
        picture = np.concatenate([picture, np.full_like(picture, 128)])  # both chroma planes, half as wide each
        frame = av.VideoFrame.from_ndarray(picture, format=pixel_format)
    elif pixel_format in ("gray10le", "gray12le"):  # the same bytes as 16 bit, under another name
        frame = av.VideoFrame(picture.shape[1], picture.shape[0], pixel_format)
        rows = np.frombuffer(memoryview(frame.planes[0]), np.uint8).reshape(-1, frame.planes[0].line_size)
        rows[:, : picture.shape[1] * 2] = picture.astype("<u2").view(np.uint8)
    else:
        frame = av.VideoFrame.from_ndarray(picture, format=pixel_format)
    frame.color_range = ColorRange.JPEG
    return frame


@dataclass(frozen=True)
class PreparedStore:
    """A stream as ``python -m data_prep`` stores it, written and read by the project's own code."""

    stream_name: str
    indexes: dict[Path, Stream] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """With what the stream is made of."""
        chosen = STREAM_FORMATS[self.stream_name]
        options = " ".join(f"{key} {value}" for key, value in chosen.codec_options.items())
        return f"**crossdistill's {self.stream_name}**: {chosen.codec} {options}"

    def write(self, base: Path, pictures: Sequence[Picture]) -> Path:
        """One file; its index is kept, as the manifest does."""
        path, stream_format = base.with_suffix(".mp4"), STREAM_FORMATS[self.stream_name]
        with StreamWriter(path, stream_format, time_base=TIME_BASE) as writer:
            for pts, picture in enumerate(pictures):
                writer.write(picture if picture.ndim == 3 else stream_format.unpack(picture), pts)
        self.indexes[path] = index_video(path, stream_format=stream_format)
        return path

    def read(self, path: Path, positions: Sequence[int]) -> list[Picture]:
        """As training does."""
        frames_thwc = read_frames(path.parent, self.indexes[path], positions, stream_name=self.stream_name)
        return [frame if self.stream_name == "rgb" else stack_channels(frame) for frame in frames_thwc]


@dataclass(frozen=True)
class PictureStore:
    """One compressed picture per frame, in a folder, a zip archive, or one file with an index in front."""

    name: str
    encode: Callable[[Picture], bytes]
    decode: Callable[[bytes], Picture]
    holder: str
    """``folder``, ``zip`` or ``pack``."""

    def write(self, base: Path, pictures: Sequence[Picture]) -> Path:
        """Encode and lay out."""
        blobs = [self.encode(picture) for picture in pictures]
        if self.holder == "folder":
            base.mkdir()
            for i, blob in enumerate(blobs):
                (base / f"{i:06d}").write_bytes(blob)
            return base
        path = base.with_suffix(f".{self.holder}")
        if self.holder == "zip":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                for i, blob in enumerate(blobs):
                    archive.writestr(f"{i:06d}", blob)
        else:
            ends = np.cumsum([len(blob) for blob in blobs], dtype="<u8")
            path.write_bytes(np.uint64(len(blobs)).tobytes() + ends.tobytes() + b"".join(blobs))
        return path

    def read(self, path: Path, positions: Sequence[int]) -> list[Picture]:
        """Only the pictures that are asked for are touched."""
        if self.holder == "folder":
            return [self.decode((path / f"{i:06d}").read_bytes()) for i in positions]
        if self.holder == "zip":
            with zipfile.ZipFile(path) as archive:
                return [self.decode(archive.read(f"{i:06d}")) for i in positions]
        with open(path, "rb") as file:
            count = int(np.frombuffer(file.read(8), "<u8")[0])
            ends = [0, *np.frombuffer(file.read(8 * count), "<u8").tolist()]
            pictures = []
            for i in positions:
                file.seek(8 + 8 * count + ends[i])
                pictures.append(self.decode(file.read(ends[i + 1] - ends[i])))
        return pictures


def with_opencv(suffix: str, *parameters: int) -> tuple[Callable[[Picture], bytes], Callable[[bytes], Picture]]:
    """OpenCV's encoder and decoder of a picture format."""

    def decode(data: bytes) -> Picture:
        return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))

    return lambda picture: cv2.imencode(suffix, picture, parameters)[1].tobytes(), decode


def with_zlib(level: int) -> tuple[Callable[[Picture], bytes], Callable[[bytes], Picture]]:
    """NumPy's array file, deflated whole."""

    def encode(picture: Picture) -> bytes:
        file = io.BytesIO()
        np.save(file, picture)
        return zlib.compress(file.getvalue(), level)

    return encode, lambda data: np.load(io.BytesIO(zlib.decompress(data)))


def with_zstd(level: int) -> tuple[Callable[[Picture], bytes], Callable[[bytes], Picture]] | None:
    """Bytes of the array, high and low bytes apart, under Zstandard; None where the library is not there."""
    try:
        import zstandard  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    packer, unpacker = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()

    def encode(picture: Picture) -> bytes:
        planes = picture.view(np.uint8).reshape(*picture.shape, -1).transpose(2, 0, 1)
        head = json.dumps([*picture.shape, picture.dtype.str]).ljust(64).encode()
        return head + packer.compress(np.ascontiguousarray(planes).tobytes())

    def decode(data: bytes) -> Picture:
        height, width, dtype = json.loads(data[:64])
        planes = np.frombuffer(unpacker.decompress(data[64:]), np.uint8).reshape(-1, height, width)
        return np.ascontiguousarray(planes.transpose(1, 2, 0)).view(dtype)[:, :, 0]

    return encode, decode


def split_bytes(depth: Picture) -> Picture:
    """[H, W] of 16 bit to [2 H, W] of 8: high bytes over low bytes."""
    return np.concatenate([(depth >> 8).astype(np.uint8), (depth & 255).astype(np.uint8)])


def join_bytes(picture: Picture) -> Picture:
    """The inverse of ``split_bytes``."""
    high, low = np.split(picture, 2)
    return (high.astype(np.uint16) << 8) | low


X264_FAST = {"bf": "0", "tune": "fastdecode", "mbtree": "0"}
X264_PLAIN = {**X264_FAST, "psy": "0", "aq-mode": "0"}


def flow_stores() -> list[Store]:
    """The candidates for flow."""
    stores: list[Store] = [
        PreparedStore("flow"),
        VideoStore("FFV1", "ffv1", "gray", "mp4"),
        VideoStore("FFV1 range coder", "ffv1", "gray", "mp4", options={"coder": "range_def"}),
        VideoStore("FFV1 level 3, 16 slices", "ffv1", "gray", "mp4", options={"level": "3", "slices": "16"}),
        VideoStore("FFV1 large context", "ffv1", "gray", "mp4", options={"context": "1"}),
        VideoStore("FFVHUFF median", "ffvhuff", "gray", "nut", options={"pred": "median"}),
        VideoStore("HuffYUV left", "huffyuv", "yuv422p", "nut", options={"pred": "left"}),
        VideoStore("Ut Video median", "utvideo", "yuv420p", "nut", options={"pred": "median"}),
        VideoStore("MagicYUV left", "magicyuv", "gray", "mov", options={"pred": "left"}),
        VideoStore("MagicYUV median", "magicyuv", "gray", "mov", options={"pred": "median"}),
        VideoStore("JPEG-LS", "jpegls", "gray", "nut"),
    ]
    for filter_name, level in (("up", "6"), ("up", "9"), ("sub", "6"), ("mixed", "6")):
        options = {"pred": filter_name, "compression_level": level}
        stores.append(VideoStore(f"PNG {filter_name} level {level}", "png", "gray", "mp4", options=options))
    for quality in (1, 2, 4):
        options = {"qmin": "1", "qmax": str(quality)}
        stores.append(VideoStore(f"MJPEG qscale {quality}", "mjpeg", "yuvj420p", "mp4", options=options))
    for gop, options in itertools.product((1, 4, 16), ({"qp": "0"}, {"crf": "6"}, {"crf": "10"}, {"crf": "14"})):
        level = " ".join(f"{key} {value}" for key, value in options.items())
        name = f"x264 {level} GOP {gop}" + (" (lossless)" if options == {"qp": "0"} else "")
        stores.append(VideoStore(name, "libx264", "gray", "mp4", gop, {**X264_FAST, **options}))
    for qp in ("8", "10", "12", "16", "18"):
        name = f"x264 qp {qp} GOP 1, psy and aq off"
        stores.append(VideoStore(name, "libx264", "gray", "mp4", 1, {**X264_PLAIN, "qp": qp}))
    for quality, holder in itertools.product((90, 95), ("folder", "zip", "pack")):
        coder = with_opencv(".jpg", cv2.IMWRITE_JPEG_QUALITY, quality)
        stores.append(PictureStore(f"JPEG q{quality}", *coder, holder))
    return [*stores, *_picture_stores()]


def depth_stores() -> list[Store]:
    """The candidates for depth."""
    lossless = {"x265-params": "lossless=1:keyint=16:min-keyint=16:bframes=0:log-level=none:pools=none"}
    stores: list[Store] = [
        PreparedStore("depth"),
        VideoStore("FFV1 gray16", "ffv1", "gray16le", "mp4"),
        VideoStore("FFV1 gray12 (values < 4096)", "ffv1", "gray12le", "mp4"),
        VideoStore("FFVHUFF gray16 left", "ffvhuff", "gray16le", "nut", options={"pred": "left"}),
        VideoStore("FFVHUFF gray16 median", "ffvhuff", "gray16le", "nut", options={"pred": "median"}),
        VideoStore("JPEG-LS gray16", "jpegls", "gray16le", "nut"),
        VideoStore("TIFF deflate gray16", "tiff", "gray16le", "mov", options={"compression_algo": "deflate"}),
        VideoStore("x265 lossless gray12 (values < 4096) GOP 16", "libx265", "gray12le", "mp4", 16, lossless),
    ]
    for filter_name, level in itertools.product(("none", "sub", "up", "paeth"), ("6", "9")):
        options = {"pred": filter_name, "compression_level": level}
        stores.append(VideoStore(f"PNG {filter_name} level {level}", "png", "gray16be", "mp4", options=options))
    split: dict[str, Any] = {"pack": split_bytes, "unpack": join_bytes}
    for gop in (1, 16):
        options = {**X264_FAST, "qp": "0"}
        name = f"x264 lossless, bytes apart, GOP {gop}"
        stores.append(VideoStore(name, "libx264", "gray", "mp4", gop, options, **split))
    for filter_name in ("left", "median"):
        options = {"pred": filter_name}
        name = f"MagicYUV {filter_name}, bytes apart"
        stores.append(VideoStore(name, "magicyuv", "gray", "mov", options=options, **split))
    for filter_name in ("sub", "up", "paeth"):
        options = {"pred": filter_name, "compression_level": "9"}
        name = f"PNG {filter_name}, bytes apart"
        stores.append(VideoStore(name, "png", "gray", "mp4", options=options, **split))
    return [*stores, *_picture_stores()]


def _picture_stores() -> list[Store]:
    """Lossless pictures of any depth, one by one."""
    png = with_opencv(".png", cv2.IMWRITE_PNG_COMPRESSION, 9)
    stores: list[Store] = [PictureStore("PNG (OpenCV)", *png, holder) for holder in ("folder", "zip", "pack")]
    stores.append(PictureStore("zlib level 1", *with_zlib(1), "pack"))
    stores.append(PictureStore("zlib level 9", *with_zlib(9), "pack"))
    zstd = with_zstd(12)
    return [*stores, PictureStore("Zstandard level 12", *zstd, "pack")] if zstd else stores


@dataclass
class Result:
    """What was measured of one candidate."""

    store: Store
    paths: list[Path]
    bytes_per_frame: float
    write_ms: float
    error: str = ""
    clip_ms: dict[int, list[float]] = field(default_factory=lambda: {stride: [] for stride in STRIDES})

    def median_ms(self, stride: int) -> float:
        """Of all clips that were read."""
        return statistics.median(self.clip_ms[stride])


def write_all(store: Store, clips: Sequence[Sequence[Picture]], folder: Path) -> Result:
    """Store all clips."""
    folder.mkdir()
    started = time.perf_counter()
    paths = [store.write(folder / f"{i}", clip) for i, clip in enumerate(clips)]
    seconds = time.perf_counter() - started
    files = [file for path in paths for file in ([path] if path.is_file() else path.iterdir())]
    num_frames = sum(len(clip) for clip in clips)
    return Result(store, paths, sum(f.stat().st_size for f in files) / num_frames, 1e3 * seconds / num_frames)


def time_clips(results: Sequence[Result], lengths: Sequence[int], num_clips: int) -> None:
    """Read random clips, the candidates in turns; the first, which warms the disk's cache, does not count."""
    random = np.random.default_rng(0)
    for n in range(num_clips + 1):
        clip = int(random.integers(len(lengths)))
        for stride in STRIDES:
            span = (CLIP_FRAMES - 1) * stride + 1
            start = int(random.integers(max(1, lengths[clip] - span + 1)))
            positions = [i for i in range(start, start + span, stride) if i < lengths[clip]]
            for result in results:
                began = time.process_time()
                result.store.read(result.paths[clip], positions)
                if n:
                    result.clip_ms[stride].append(1e3 * (time.process_time() - began))


def flow_error(result: Result, flows: Sequence[Sequence[NDArray[np.float32]]]) -> str:
    """|stored - estimated| in pixels over the components within the bound, mean and largest; flow is [H, W, 2]."""
    total, count, largest = 0.0, 0, 0.0
    for path, clip in zip(result.paths, flows, strict=True):
        for stored, flow in zip(result.store.read(path, range(len(clip))), clip, strict=True):
            exact = stack_channels(flow)
            inside = np.abs(exact) <= FLOW_BOUND_PX
            errors = np.abs(stored[inside] * FLOW.value_scale + FLOW.value_offset - exact[inside])
            total, count, largest = total + float(errors.sum()), count + errors.size, max(largest, float(errors.max()))
    return f"{total / count:.4f}, max {largest:.2f}"


def depth_error(result: Result, depths: Sequence[Sequence[Picture]]) -> str:
    """Largest difference in the sensor's unit."""
    worst = 0
    for path, clip in zip(result.paths, depths, strict=True):
        for stored, exact in zip(result.store.read(path, range(len(clip))), clip, strict=True):
            worst = max(worst, int(np.abs(stored.astype(np.int64) - exact).max()))
    return f"max {worst}"


def keeps_times(store: VideoStore, folder: Path) -> dict[str, str]:
    """Container to whether the codec is taken and awkward timestamps come back exactly."""
    random = np.random.default_rng(0)
    dtype, top = (np.uint16, 4096) if store.pixel_format[-4:] in ("16le", "16be", "12le") else (np.uint8, 256)
    pictures = [store.pack(random.integers(0, top, (64, 64)).astype(dtype)) for _ in AWKWARD_TIMES]
    answers = {}
    for container in CONTAINERS:
        path, unit = folder / f"times.{container}", Fraction(1, 30000)
        tried = VideoStore(store.name, store.codec, store.pixel_format, container)
        try:
            write_video(path, tried, pictures, AWKWARD_TIMES, unit, {**store.options, "g": str(store.keyframe_every)})
            with av.open(str(path)) as opened:
                video = opened.streams.video[0]
                times = [(frame.pts or 0) * (video.time_base or 0) for frame in opened.decode(video)]
            answers[container] = "exact" if times == [t * unit for t in AWKWARD_TIMES] else "rounded"
        except (av.FFmpegError, ValueError):
            answers[container] = "refused"
    return answers


def print_times(stores: Sequence[VideoStore], folder: Path) -> None:
    """One row per codec, because its options make no difference."""
    print(f"\n### Timestamps\n\n| codec | {' | '.join(CONTAINERS)} |\n|{'---|' * (len(CONTAINERS) + 1)}")
    for store in {(store.codec, store.pixel_format): store for store in stores}.values():
        answers = keeps_times(store, folder)
        print(f"| {store.codec} {store.pixel_format} | {' | '.join(answers.values())} |")


def print_markdown(title: str, results: Sequence[Result], yardstick: Result) -> None:
    """One row per candidate, the fastest at stride 4 first."""
    header = ("stored as", "container", "error", "bytes/frame", "clip ms, stride 1", "stride 4", "write ms/frame")
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for result in [yardstick, *sorted(results, key=lambda r: r.median_ms(4))]:
        store = result.store
        container = getattr(store, "container", getattr(store, "holder", "mp4"))
        times = " | ".join(f"{result.median_ms(stride):.1f}" for stride in STRIDES)
        size = f"{result.bytes_per_frame:.0f}"
        print(f"| {store.name} | {container} | {result.error} | {size} | {times} | {result.write_ms:.2f} |")


def read_colour(path: Path, num_frames: int) -> tuple[list[Picture], list[NDArray[np.float32]]]:
    """RGB pictures and the flow between neighbours."""
    estimate, frames = dis_flow(), []
    for frame in read_video(path, Recipe()):
        frames.append(frame)
        if len(frames) == num_frames:
            break
    return [f.rgb for f in frames], [estimate(a.gray, b.gray) for a, b in itertools.pairwise(frames)]


def parse_arguments() -> argparse.Namespace:
    """Read folders and sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True, help="folder of real videos, searched through")
    parser.add_argument("--depth", type=Path, help="folder of .mat files with depth under d_depth")
    parser.add_argument("--files", type=int, default=6, help="files of each kind")
    parser.add_argument("--frames", type=int, default=150, help="frames of each file, at most")
    parser.add_argument("--clips", type=int, default=30, help="random clips read from each candidate")
    parser.add_argument("--only", default="", help="only candidates whose name contains this")
    return parser.parse_args()


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """Some of many, evenly."""
    return [paths[i * len(paths) // count] for i in range(min(count, len(paths)))]


def measure(
    stores: Sequence[Store], clips: Sequence[Sequence[Picture]], folder: Path, error: Callable[[Result], str]
) -> list[Result]:
    """Write with every candidate and check what comes back; candidates that fail are named and left out."""
    folder.mkdir()
    results = []
    for i, store in enumerate(stores):
        try:
            result = write_all(store, clips, folder / f"{i:02d}")
            result.error = error(result)
        except (av.FFmpegError, KeyError, ValueError) as failure:
            console.print(f"{store.name} cannot be used: {type(failure).__name__}: {failure}", highlight=False)
            continue
        results.append(result)
    return results


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    cv2.setNumThreads(1)
    av.logging.set_level(av.logging.PANIC)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        videos = spread(sorted(p for p in args.videos.rglob("*") if p.suffix in VIDEO_SUFFIXES), args.files)
        colour = [read_colour(path, args.frames) for path in videos]
        flows = [flow for _, flow in colour]
        yardstick = write_all(PreparedStore("rgb"), [rgb for rgb, _ in colour], folder / "rgb")
        stores = [store for store in flow_stores() if args.only in store.name]
        stacked = [[stack_channels(quantise_flow(f)) for f in clip] for clip in flows]
        results = measure(stores, stacked, folder / "flow", lambda result: flow_error(result, flows))
        time_clips([yardstick, *results], [len(clip) for clip in flows], args.clips)
        print_markdown(f"Flow, {len(videos)} videos", results, yardstick)
        if args.depth:
            mats = spread(sorted(args.depth.rglob("*.mat")), args.files)
            depths = [[f.stored[:, :, 0] for f in read_depth(path, Recipe())][: args.frames] for path in mats]
            chosen = [store for store in depth_stores() if args.only in store.name]
            results = measure(chosen, depths, folder / "depth", lambda result: depth_error(result, depths))
            time_clips(results, [len(clip) for clip in depths], args.clips)
            print_markdown(f"Depth, {len(mats)} sequences", results, yardstick)
            stores += chosen
        print_times([store for store in stores if isinstance(store, VideoStore)], folder)


if __name__ == "__main__":
    main()
