"""Memory of a process that reads clips, for each decoder: a plot and the slope in KiB per clip.

Each decoder runs in a process of its own, as a DataLoader's worker does, over random clips (16 frames, stride 4) of
the same prepared videos. The slope is that of a straight line through the resident size after the first fifth of
the clips. ``decord, one reader`` keeps a reader per video and seeks in it, which is the usual way of using decord and
the one that is known to grow; crossdistill opens a reader for each clip instead.

    python scripts/bench_memory.py --out memory.png
    python scripts/bench_memory.py --videos UCF-101 --clips 2000 --out docs/pictures/memory.png

Reads the size of a process from /proc: Linux only.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import matplotlib
import numpy as np
from numpy.typing import NDArray

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from crossdistill.data.decode import index_video, read_frames
from crossdistill.data.decoders import DECODERS, get_decoder
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import StreamWriter, get_stream_format
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.utils.console import print_table
from data_prep.pipeline.readers import read_video
from data_prep.recipe import Recipe

NUM_FRAMES, STRIDE = 16, 4
NUM_MADE_VIDEOS, NUM_MADE_FRAMES = 6, 120
ONE_READER = "decord, one reader"
SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg"}

Read = Callable[[Path, Stream, list[int]], object]


def resident_kib() -> int:
    """Resident size of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def reader_of(name: str) -> Read:
    """How a case reads one clip."""
    if name != ONE_READER:
        return lambda root, stream, frames: read_frames(root, stream, frames, decoder=name)
    import decord

    readers: dict[str, decord.VideoReader] = {}

    def read(root: Path, stream: Stream, frames: list[int]) -> object:
        if stream.path not in readers:
            readers[stream.path] = decord.VideoReader(str(root / stream.path), num_threads=1)
        return readers[stream.path].get_batch(frames).asnumpy()

    return read


def measure(name: str, root: Path, streams: list[Stream], num_clips: int) -> list[int]:
    """Resident KiB after each clip."""
    read, generator, sizes = reader_of(name), np.random.default_rng(0), []
    for _ in range(num_clips):
        stream = streams[int(generator.integers(len(streams)))]
        first = int(generator.integers(max(1, stream.num_frames - NUM_FRAMES * STRIDE)))
        frames = np.minimum(first + STRIDE * np.arange(NUM_FRAMES), stream.num_frames - 1)
        read(root, stream, frames.tolist())
        sizes.append(resident_kib())
    gc.collect()
    return sizes


def slope_kib_per_clip(sizes_kib: list[int]) -> float:
    """Of a straight line through all but the first fifth, in which libraries fill their pools."""
    start = len(sizes_kib) // 5
    clips: NDArray[np.float64] = np.arange(start, len(sizes_kib), dtype=np.float64)
    return float(np.polyfit(clips, sizes_kib[start:], 1)[0])


def prepare(videos: list[Path], folder: Path) -> list[Stream]:
    """Small prepared RGB streams of the videos, or of made ones."""
    rgb, streams = get_stream_format("rgb"), []
    for n, path in enumerate(videos or make_videos(folder)):
        target = folder / f"{n}.mp4"
        try:
            frames = read_video(path, Recipe())
            first = next(frames)
            with StreamWriter(target, rgb, time_base=first.time_base) as writer:
                shift = max(0, -first.pts)
                writer.write(first.stored, first.pts + shift)
                for frame in frames:
                    writer.write(frame.stored, frame.pts + shift)
        except (UnreadableVideoError, StopIteration):
            continue
        streams.append(index_video(target, relative_to=folder, stream_format=rgb))
    if not streams:
        raise SystemExit("--videos holds no readable video: give a folder with some")
    return streams


def make_videos(folder: Path) -> list[Path]:
    """Videos of 320x240 pixels whose noise moves."""
    paths = []
    for n in range(NUM_MADE_VIDEOS):
        picture = np.random.default_rng(n).integers(0, 255, (30, 40, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        paths.append(folder / f"made{n}.mp4")
        with av.open(str(paths[-1]), "w") as container:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
            for t in range(NUM_MADE_FRAMES):
                moved = np.ascontiguousarray(np.roll(picture, t, axis=1))
                container.mux(video.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
            container.mux(video.encode())
    return paths


def cases() -> dict[str, str]:
    """Case to the reason why it cannot run here, empty if it can."""
    reasons = {}
    for name in DECODERS:
        try:
            get_decoder(name)
            reasons[name] = ""
        except UserError as error:
            reasons[name] = str(error)
    return {**reasons, ONE_READER: reasons["decord"]}


def plot(results: dict[str, list[int]], path: Path) -> None:
    """Growth over clips."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, sizes in results.items():
        label = f"{name}: {slope_kib_per_clip(sizes):+.1f} KiB a clip"
        axes.plot((np.asarray(sizes) - sizes[0]) / 1024, label=label)
    axes.set(xlabel="clips read", ylabel="growth of the resident size, MiB")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos, searched to the bottom; made ones if absent")
    parser.add_argument("--num-videos", type=int, default=12, help="at most so many of them")
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("memory.png"), help="where the plot goes")
    args = parser.parse_args()
    videos = sorted(p for p in args.videos.rglob("*") if p.suffix.lower() in SUFFIXES) if args.videos else []
    if args.videos and not videos:
        raise SystemExit(f"--videos {args.videos} holds no video: give a folder with some")
    results: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as name:
        streams = prepare(videos[: args.num_videos], Path(name))
        for case, reason in cases().items():
            if reason:
                print(f"left out: {reason}")
                continue
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results[case] = pool.apply(measure, (case, Path(name), streams, args.clips))
    print_table(
        f"resident size over {args.clips} clips",
        ("", "first clip, MiB", "last clip, MiB", "slope, KiB a clip"),
        [
            (case, f"{sizes[0] / 1024:.0f}", f"{sizes[-1] / 1024:.0f}", f"{slope_kib_per_clip(sizes):+.2f}")
            for case, sizes in results.items()
        ],
    )
    plot(results, args.out)
    print(f"plot: {args.out}")


if __name__ == "__main__":
    main()
