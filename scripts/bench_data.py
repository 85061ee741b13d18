"""How fast clips are read and videos prepared, against bare loops over the same files.

Reading: clips/s of the DataLoader (16 frames, stride 4, a random moment, the centred square of full height, no
resizing, no workers) against a loop that opens the file, seeks, decodes and makes RGB arrays of the same frames with
the same library; from the original files, from prepared ones, and from tar shards of the prepared ones, which the bare
loop reads as files. Every library uses one thread. A file that a library cannot give exactly (see
crossdistill/data/decoders) is left out of that library's rows.

Preparation: files/s of ``data_prep`` (RGB) against a bare PyAV loop that decodes and encodes the same files with the
same codec options, one process per core, both started from nothing.

Compared things take turns within each repeat; medians are shown, and the median of the ratios of each repeat.

    python scripts/bench_data.py
    python scripts/bench_data.py --videos UCF-101 --num-videos 60 --clips 120 --repeats 5 --out bench_data.md
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from joblib import cpu_count

from crossdistill.data.dataset import Entry, PairedClips, make_loader
from crossdistill.data.decode import index_video
from crossdistill.data.decoders import DECODERS, CannotServeError, get_decoder
from crossdistill.data.manifest import Stream, Video
from crossdistill.data.sampling import SampleKey, centre_range_seconds, clip_frames, sample_generator
from crossdistill.data.stores import locate
from crossdistill.data.streams import STREAM_FORMATS, Picture
from crossdistill.data.transforms import Augmentation, Crop, centre_crop
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.modalities import RGB
from crossdistill.types import ViewSpec
from crossdistill.utils.environment import describe_environment
from data_prep.pack import PackOptions, pack_dataset
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos

RGB_FORMAT = STREAM_FORMATS["rgb"]
NUM_FRAMES, STRIDE, BATCH = 16, 4, 8
SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg"}
NUM_MADE_VIDEOS, NUM_MADE_FRAMES = 8, 120


class CentreCrop(Augmentation):
    """A random moment, but always the centred square: what is compared is the reading."""

    def draw(self, generator: np.random.Generator, *, width_px: int, height_px: int) -> Crop:
        """The same crop each time."""
        return centre_crop(width_px=width_px, height_px=height_px)


@dataclass(frozen=True)
class Clip:
    """What one sample of the DataLoader reads."""

    path: Path
    stream: Stream
    frames: list[int]


def bare_pyav(clip: Clip) -> Picture:
    """Open, seek, decode up to the last wanted frame, arrays of the wanted ones."""
    converter, found = VideoReformatter(), {}
    wanted = {int(clip.stream.pts[i]) for i in clip.frames}
    with av.open(str(clip.path)) as container:
        video = container.streams.video[0]
        video.thread_type = "SLICE"
        video.codec_context.thread_count = 1
        if clip.stream.is_seekable:
            container.seek(min(wanted), stream=video)
            frames = ((frame.pts, frame) for frame in container.decode(video))
        else:
            frames = zip(clip.stream.pts.tolist(), container.decode(video), strict=False)
        for pts, frame in frames:
            if pts in wanted:
                found[pts] = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                if len(found) == len(wanted):
                    break
    return np.stack([found[int(clip.stream.pts[i])] for i in clip.frames])


def bare_decord(clip: Clip) -> Picture:
    """Open and fetch."""
    import decord

    pictures: Picture = decord.VideoReader(str(clip.path), num_threads=1).get_batch(clip.frames).asnumpy()
    return pictures


def bare_torchcodec(clip: Clip) -> Picture:
    """Open and fetch."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(clip.path, dimension_order="NHWC", num_ffmpeg_threads=1)
    pictures: Picture = decoder.get_frames_at(clip.frames).data.numpy()
    return pictures


BARE: dict[str, Callable[[Clip], Picture]] = {
    "pyav": bare_pyav,
    "decord": bare_decord,
    "torchcodec": bare_torchcodec,
}


@dataclass(frozen=True)
class DecodingBenchmark:
    """The clips of one state of the files with one library."""

    state: str
    decoder: str
    entries: list[Entry]
    files: list[Entry]
    """The same videos as files of their own."""
    num_clips: int

    @property
    def view(self) -> ViewSpec:
        """The full height of the lowest video."""
        size_px = min(min(e.video.streams["rgb"].height_px, e.video.streams["rgb"].width_px) for e in self.entries)
        return ViewSpec("rgb", NUM_FRAMES, STRIDE, size_px, mean=RGB.mean, std=RGB.std)

    def keys(self) -> list[SampleKey]:
        """Return the samples: all videos in turn, with new random moments in each round."""
        return [SampleKey(i % len(self.entries), i // len(self.entries)) for i in range(self.num_clips)]

    def clips(self) -> list[Clip]:
        """The frames that the DataLoader reads for these samples."""
        clips = []
        for key in self.keys():
            entry = self.files[key.index]
            stream = entry.video.streams["rgb"]
            earliest, latest = centre_range_seconds([stream], [self.view])
            centre_seconds = float(sample_generator(0, key).uniform(earliest, latest))
            frames = clip_frames(stream, self.view, centre_seconds).tolist()
            clips.append(Clip(entry.root / stream.path, stream, frames))
        return clips

    def ours(self) -> Callable[[], object]:
        """One pass of the DataLoader over the samples."""
        dataset = PairedClips(self.entries, student_view=self.view, augmentation=CentreCrop(), decoder=self.decoder)
        keys = self.keys()
        loader = make_loader(dataset, [keys[i : i + BATCH] for i in range(0, len(keys), BATCH)], num_workers=0)
        return lambda: [batch.sample_ids for batch in loader]

    def bare(self) -> Callable[[], object]:
        """One pass of the bare loop over the same clips."""
        clips, read = self.clips(), BARE[self.decoder]
        return lambda: [read(clip).shape for clip in clips]


def seconds_of(action: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def take_turns(actions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each action in each repeat; the order is turned round every other time."""
    seconds: list[list[float]] = [[] for _ in actions]
    for repeat in range(repeats):
        for i in range(len(actions))[:: 1 if repeat % 2 else -1]:
            seconds[i].append(seconds_of(actions[i]))
    return seconds


def row(name: str, ours: list[float], bare: list[float], amount: int, extra: str) -> str:
    """A line of the table: amounts per second, and their ratio."""
    ratio = statistics.median(b / o for o, b in zip(ours, bare, strict=True))
    speeds = [amount / statistics.median(seconds) for seconds in (ours, bare)]
    return f"| {name} | {speeds[0]:.1f} | {speeds[1]:.1f} | {ratio:.2f} | {extra} |"


def is_served(decoder: str, entry: Entry) -> bool:
    """Whether a library gives a file's frames exactly."""
    stream = entry.video.streams["rgb"]
    try:
        get_decoder(decoder).read_pictures(locate(entry.root, stream), stream, [0, stream.num_frames - 1], RGB_FORMAT)
    except (CannotServeError, UnreadableVideoError):
        return False
    return True


def decoding_benchmarks(
    state: str, entries: list[Entry], files: list[Entry], num_clips: int
) -> Iterable[DecodingBenchmark | str]:
    """What is measured for one state of the files; a sentence for a library that is absent."""
    for decoder in DECODERS:
        try:
            get_decoder(decoder)
        except UserError as error:
            yield str(error)
            continue
        served = [i for i, entry in enumerate(entries) if is_served(decoder, entry)]
        if served:
            yield DecodingBenchmark(state, decoder, [entries[i] for i in served], [files[i] for i in served], num_clips)


def measure_reading(states: dict[str, tuple[list[Entry], list[Entry]]], *, num_clips: int, repeats: int) -> list[str]:
    """The first table: for each state what the loader reads, and what the bare loop reads."""
    lines = ["| reading | ours, clips/s | bare loop, clips/s | ratio | files |", "|---|---|---|---|---|"]
    for state, (entries, loose) in states.items():
        for reading in decoding_benchmarks(state, entries, loose, num_clips):
            if isinstance(reading, str):
                lines.append(f"| {state}: {reading} | | | | |")
                continue
            actions = [reading.ours(), reading.bare()]
            take_turns(actions, 1)  # opens libraries and fills the page cache
            ours, bare = take_turns(actions, repeats)
            files = f"{len(reading.entries)} of {len(entries)}"
            lines.append(row(f"{state}, {reading.decoder}", ours, bare, num_clips, files))
    return lines


def bare_transcode(job: tuple[str, str, int]) -> int:
    """Decode a file, shrink and encode it; give the last timestamp. What anybody would write."""
    source, target, short_side_px = job
    converter, pts = VideoReformatter(), -1
    with av.open(source) as container, av.open(target, "w", format="mp4") as output:
        video = container.streams.video[0]
        video.codec_context.thread_count = 1
        encoder = output.add_stream(RGB_FORMAT.codec, options=dict(RGB_FORMAT.codec_options))
        encoder.codec_context.thread_count = 1
        encoder.pix_fmt = RGB_FORMAT.pixel_format
        encoder.time_base = encoder.codec_context.time_base = video.time_base
        scale = min(1.0, short_side_px / min(video.width, video.height))
        encoder.width, encoder.height = (round(side * scale / 2) * 2 for side in (video.width, video.height))
        size = (encoder.width, encoder.height)
        for frame in container.decode(video):
            if (frame.width, frame.height, frame.format.name) != (*size, RGB_FORMAT.pixel_format):
                frame = converter.reformat(
                    frame, *size, RGB_FORMAT.pixel_format, interpolation=Interpolation.AREA, threads=1
                )
            pts = max(pts + 1, frame.pts or 0)
            frame.pts, frame.time_base, frame.pict_type = pts, video.time_base, 0
            output.mux(encoder.encode(frame))
        output.mux(encoder.encode())
    return pts


def measure_preparation(videos: list[Path], *, copies: int, repeats: int, folder: Path) -> list[str]:
    """The second table."""
    options = PrepareOptions(out=folder, modalities=("rgb",), max_bad=1.0)
    sources = [
        SourceVideo(name=f"{n}-{path.stem}-{copy}", inputs={"rgb": path})
        for copy in range(copies)
        for n, path in enumerate(videos)
    ]
    num_cores = cpu_count()
    runs = iter(range(2 * repeats + 2))

    def ours() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            prepare_videos("bench", sources, classes=(), options=dataclasses.replace(options, out=folder / next_name()))

    def bare() -> None:
        out = folder / next_name()
        out.mkdir(parents=True)
        jobs = [(str(s.inputs["rgb"]), str(out / f"{s.name}.mp4"), options.short_side_px) for s in sources]
        with multiprocessing.get_context("spawn").Pool(num_cores) as pool:
            sum(pool.imap_unordered(bare_transcode, jobs))

    def next_name() -> str:
        return f"run{next(runs)}"

    ours_seconds, bare_seconds = take_turns([ours, bare], repeats)
    return [
        "| preparation | ours, files/s | bare loop, files/s | ratio | files |",
        "|---|---|---|---|---|",
        row(f"rgb, {num_cores} processes", ours_seconds, bare_seconds, len(sources), f"{len(sources)}"),
    ]


def make_videos(folder: Path) -> list[Path]:
    """Videos of 456x256 pixels as most files come: H.264, a keyframe every 250 frames, B-frames."""
    paths = []
    generator = np.random.default_rng(0)
    for n in range(NUM_MADE_VIDEOS):
        noise = generator.normal(size=(300, 500, 3)).astype(np.float32)
        texture = cv2.GaussianBlur(noise, (0, 0), 4)
        texture = np.clip(128 + texture * (50 / texture.std()), 0, 255).astype(np.uint8)
        paths.append(folder / f"made{n}.mp4")
        with av.open(str(paths[-1]), "w") as container:
            video = container.add_stream("libx264", rate=25)
            video.width, video.height, video.pix_fmt = 456, 256, "yuv420p"
            for t in range(NUM_MADE_FRAMES):
                left, top = t % 44, (t // 2) % 44
                picture = np.ascontiguousarray(texture[top : top + 256, left : left + 456])
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(video.encode())
    return paths


def original_entries(videos: Sequence[Path]) -> list[Entry]:
    """The files as they are, indexed; unreadable ones are left out."""
    entries = []
    for n, path in enumerate(videos):
        try:
            stream = index_video(path.resolve(), relative_to=Path("/")).at(str(path.resolve()))
        except UnreadableVideoError:
            continue
        entries.append(Entry(Path("/"), Video(f"{n}-{path.stem}", streams={"rgb": stream}), -1))
    return entries


def prepared_entries(entries: Sequence[Entry], folder: Path) -> list[Entry]:
    """The same videos after ``data_prep``."""
    sources = [SourceVideo(e.video.name, {"rgb": Path(e.video.streams["rgb"].path)}) for e in entries]
    options = PrepareOptions(out=folder, modalities=("rgb",), max_bad=1.0)
    with contextlib.redirect_stdout(io.StringIO()):
        manifest = prepare_videos("bench", sources, classes=(), options=options)
    return [Entry(manifest.root, video, -1) for video in manifest.videos if video.is_usable]


def packed_entries(prepared: Path, folder: Path) -> list[Entry]:
    """The prepared videos in tar shards."""
    with contextlib.redirect_stdout(io.StringIO()):
        manifest = pack_dataset(PackOptions(folder=prepared, out=folder, shard_size="50MB"))
    return [Entry(manifest.root, video, -1) for video in manifest.videos if video.is_usable]


def parse_arguments() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="folder of videos, searched to the bottom; made ones if absent")
    parser.add_argument("--num-videos", type=int, default=40, help="at most so many, spread evenly over the folder")
    parser.add_argument("--clips", type=int, default=64, help="clips read in each repeat")
    parser.add_argument("--copies", type=int, default=2, help="how often each file is prepared in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=("reading", "preparation"), default=("reading", "preparation"))
    parser.add_argument("--out", type=Path, help="write the tables there as well")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    environment = describe_environment()
    lines = [f"{environment['cpu']}, {environment['num_cpu_cores']} cores, PyAV {av.__version__}", ""]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = sorted(p for p in (args.videos or folder).rglob("*") if p.suffix.lower() in SUFFIXES)
        videos = videos if args.videos else make_videos(folder)
        num_videos = min(args.num_videos, len(videos))
        entries = original_entries([videos[i * len(videos) // num_videos] for i in range(num_videos)])
        if not entries:
            raise SystemExit(f"--videos {args.videos} holds no readable video: give a folder with some")
        if "reading" in args.parts:
            prepared = prepared_entries(entries, folder / "prepared")
            packed = packed_entries(folder / "prepared", folder / "packed")
            states = {"original": (entries, entries), "prepared": (prepared, prepared), "packed": (packed, prepared)}
            lines += [*measure_reading(states, num_clips=args.clips, repeats=args.repeats), ""]
        if "preparation" in args.parts:
            paths = [Path(entry.video.streams["rgb"].path) for entry in entries]
            lines += measure_preparation(paths, copies=args.copies, repeats=args.repeats, folder=folder / "runs")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
