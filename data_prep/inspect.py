"""Shows what a prepared dataset contains: tables, and a contact sheet of some clips.

The tables: clips by class and part of each split, files by status, and the size of every stream. The contact sheet is a
PNG with a few frames of some clips, with the streams of a clip one below the other: RGB; flow, coloured by direction
(hue) and speed (saturation); depth from near (bright) to far (dark), black where it was not measured; the skeleton as
sticks, its two sides in two colours.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import tyro
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from crossdistill.data.decode import nearest_frames, read_frames
from crossdistill.data.manifest import Manifest, Stream, Video
from crossdistill.data.stores import find_store
from crossdistill.errors import FULL_DISK_ERRORS, UnreadableVideoError, UserError
from crossdistill.modalities import FLOW, SKELETON
from crossdistill.utils.console import console, print_table
from crossdistill.utils.environment import require_matched_torch
from crossdistill.utils.files import atomic_path
from data_prep.pipeline.summary import outcomes

SHEET_NAME = "inspect.png"
SHEET_FRAMES = 6
SHOWN_NAMES = 3
SHOWN_LETTERS = 28
FACTS_OF_VIDEOS = ("frames", "hours", "MB per hour", "frames per second")
PICTURE_WIDTH_INCHES = 1.7
LARGEST_SHEET_CLIPS = 30
STICKS_PX = 160
# Chains of a Kinect's joints: spine and head in grey, then arm and leg of each side in the colour of the side.
STICKS = (
    ((0, 1, 2, 3), (90, 90, 90)),
    ((1, 4, 5, 6, 7), (200, 60, 40)),
    ((3, 12, 13, 14, 15), (200, 60, 40)),
    ((1, 8, 9, 10, 11), (40, 90, 200)),
    ((3, 16, 17, 18, 19), (40, 90, 200)),
)

Pictures = NDArray[np.uint8]
"""[T, H, W, 3]."""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of ``python -m data_prep inspect``."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Folder of a prepared dataset."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="SHEET.png")] = None
    """File of the contact sheet. Default: inspect.png in the dataset's folder."""
    clips: int = 6
    """Number of clips or pictures on the contact sheet, from 1 to 30, spread over the classes."""
    seed: int = 0
    """Seed of the choice of clips."""
    json: bool = False
    """Print the manifest as lines of JSON, a header and then one line for each video, and nothing else."""


def inspect_dataset(options: InspectOptions) -> None:
    """Print the tables and write the contact sheet, or print the manifest as JSON.

    Raise a ``UserError`` if an option or the folder is invalid.
    """
    if options.json and options.out is not None:
        raise UserError(f"--json writes no contact sheet: remove --out {options.out}, or remove --json")
    out = options.out or options.folder / SHEET_NAME
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out} is not a PNG file: give a name that ends in .png")
    if not 1 <= options.clips <= LARGEST_SHEET_CLIPS:
        raise UserError(f"--clips {options.clips} is out of range: give a number from 1 to {LARGEST_SHEET_CLIPS}")
    manifest = Manifest.load(options.folder)
    if options.json:
        for line in manifest.lines():
            print(line)
        return
    require_matched_torch()  # flow is coloured by torchvision
    print_clips(manifest)
    print_statuses(manifest)
    usable = np.flatnonzero(manifest.is_usable & manifest.table.has_any_stream)
    if not len(usable):
        cause = f"{options.folder} has no usable {item_of(manifest)}, so there is no contact sheet"
        advice = "fix the files above and prepare the dataset again with --retry"
        console.print(f"{cause}: {advice}", highlight=False, soft_wrap=True)
        return
    print_streams(manifest)
    draw = draw_pictures if manifest.noun == "pictures" else draw_sheet
    figure = draw(manifest, choose_clips(manifest, usable, options.clips, seed=options.seed))
    try:
        with atomic_path(out) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        if error.errno in FULL_DISK_ERRORS:
            raise
        raise UserError(f"{out} cannot be written ({error.strerror}): give another path with --out") from error
    console.print(f"contact sheet: {out}", highlight=False, soft_wrap=True)


# Tables.


def print_clips(manifest: Manifest) -> None:
    """Print usable clips by class and part of each split. The totals come first, because lists of classes are long."""
    parts_of_splits, codes = (
        manifest.table.layout.parts,
        {split: manifest.table.part_codes(split) for split in manifest.splits},
    )
    parts = {
        split: sorted(
            (parts_of_splits[code] for code in np.unique(of_split[of_split >= 0])),
            key=lambda name: (name != "train", name),
        )
        for split, of_split in codes.items()
    }  # training first
    labels, num_labels = manifest.table.labels + 1, len(manifest.classes) + 1  # 0 is unlabelled

    def count(is_counted: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(labels[is_counted & manifest.is_usable], minlength=num_labels)

    whole = count(np.ones(len(labels), dtype=bool))
    by_part = [[count(codes[split] == parts_of_splits.index(part)) for part in parts[split]] for split in parts]

    def row(name: str, chosen: slice) -> list[str]:
        cells = ["/".join(str(counts[chosen].sum()) for counts in of_split) for of_split in by_part]
        return [name, str(whole[chosen].sum()), *cells]

    rows = [row("all", slice(None))]
    if whole[0]:
        rows.append(row("unlabelled", slice(1)))
    rows += [row(name, slice(label, label + 1)) for label, name in enumerate(manifest.classes, start=1)]
    item = item_of(manifest)
    header = ["class", f"{item}s", *(f"split {split}\n{'/'.join(parts[split])}" for split in parts)]
    num_classes = _count(len(manifest.classes), "class", "classes")
    title = f"{manifest.dataset}: {num_classes}, {_count(int(whole.sum()), f'usable {item}', f'usable {item}s')}"
    print_table(title, header, rows)


def item_of(manifest: Manifest) -> str:
    """Return what one entry of a dataset is called: clip or picture."""
    return "picture" if manifest.noun == "pictures" else "clip"


def _count(number: int, one: str, many: str) -> str:
    return f"{number or 'no'} {one if number == 1 else many}"


def print_statuses(manifest: Manifest) -> None:
    """Print the number of files by status and reason, with the first few names of bad files."""
    rows = []
    for kind, positions in outcomes(manifest).items():
        names = [] if str(kind) == "ok" else [manifest.videos[i].name for i in positions[:SHOWN_NAMES]]
        more = ["..."] * (bool(names) and len(positions) > SHOWN_NAMES)
        rows.append([str(kind), str(len(positions)), ", ".join(names + more)])
    print_table(f"{len(manifest.videos)} files", ["status", "files", "for example"], rows)


def print_streams(manifest: Manifest) -> None:
    """Print number, duration, size on disk, frame size and frame rate of every stream's files."""
    found: dict[str, _StreamFacts] = {}
    for video in manifest.videos:
        for name, stream in video.streams.items() if video.is_usable else ():
            found.setdefault(name, _StreamFacts(is_video=stream.is_video)).add(stream, manifest.root)
    columns = {name: facts.rows() for name, facts in sorted(found.items())}
    facts = next(iter(columns.values()))
    print_table("streams", ["", *columns], [[fact, *(column[fact] for column in columns.values())] for fact in facts])


@dataclass
class _StreamFacts:
    """Sums over the files of one stream. Deleted files are counted and have no size."""

    is_video: bool
    num_files: int = 0
    num_lost: int = 0
    num_frames: int = 0
    seconds: float = 0.0
    num_bytes: int = 0
    shared: set[tuple[str, int]] = field(default_factory=set)
    """Path and offset of the files that were counted and that several segments share."""
    sizes_px: Counter[str] = field(default_factory=Counter)
    rates: Counter[str] = field(default_factory=Counter)

    def add(self, stream: Stream, root: Path) -> None:
        """Count one file."""
        self.num_frames += stream.num_frames
        self.seconds += _seconds(stream)
        self.sizes_px[f"{stream.width_px}x{stream.height_px}"] += 1
        self.rates[_rate(stream)] += 1
        path, file = root / stream.path, (stream.path, stream.offset)
        if stream.is_segment and file in self.shared:
            return
        if stream.is_segment:
            self.shared.add(file)
        self.num_files += 1
        # A picture of a tar shard has the size of its range; what a store has is not asked for.
        if stream.offset or find_store(root) is not None:
            self.num_bytes += stream.num_bytes
        elif path.is_file():
            self.num_bytes += path.stat().st_size
        else:
            self.num_lost += 1

    def rows(self) -> dict[str, str]:
        """Return the rows of the table."""
        hours, size_mb = self.seconds / 3600, self.num_bytes / 1e6
        facts = {
            "files": f"{self.num_files}" + (f", {self.num_lost} are missing" if self.num_lost else ""),
            "frames": str(self.num_frames),
            "hours": f"{hours:.3g}",
            "MB": f"{size_mb:.1f}",
            "KB per file": f"{1e3 * size_mb / max(1, self.num_files - self.num_lost):.1f}",
            "MB per hour": f"{size_mb / hours:.0f}" if hours else "",
            "pixels": _most_common(self.sizes_px),
            "frames per second": _most_common(self.rates),
        }
        if self.is_video:
            return facts
        return {name: fact for name, fact in facts.items() if name not in FACTS_OF_VIDEOS}


def _seconds(stream: Stream) -> float:
    """Return the duration. The last frame is taken to last for the median time between frames."""
    times = stream.times_seconds
    usual_step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return float(times[-1] - times[0] + usual_step) if len(times) else 0.0


def _rate(stream: Stream) -> str:
    """Return frames per second, or "varying" if the steps differ by more than the timestamps' rounding."""
    steps = np.diff(stream.pts)
    if not len(steps):
        return "one frame"
    if steps.max() - steps.min() > 1:
        return "varying"
    return f"{1 / (steps.mean() * float(stream.time_base)):.4g}"


def _most_common(counts: Counter[str]) -> str:
    """Return the most frequent value, and the number of files that have it unless all do."""
    ((value, count),) = counts.most_common(1)
    return value if count == counts.total() else f"{value} in {count} of {counts.total()}"


# Contact sheet.


def choose_clips(manifest: Manifest, positions: NDArray[np.int64], count: int, *, seed: int) -> list[Video]:
    """Choose some of the videos at random, one of each class before a second of any; return them sorted by class."""
    shuffled = positions[np.random.default_rng(seed).permutation(len(positions))]
    by_label: dict[int, list[int]] = {}
    for position, label in zip(shuffled.tolist(), manifest.table.labels[shuffled].tolist(), strict=True):
        by_label.setdefault(label, []).append(position)
    ranked = [(rank, position) for group in by_label.values() for rank, position in enumerate(group)]
    chosen = [manifest.videos[position] for _, position in sorted(ranked, key=lambda pair: pair[0])[:count]]
    return sorted(chosen, key=lambda video: (video.label is None, video.label or 0, video.name))


def paint_flow(frames: NDArray[Any]) -> tuple[Pictures, str]:
    """Colour flow [T, H, W, 2] as Baker et al. (IJCV 2011) do; white is no motion. The clip has one scale."""
    import torch  # takes a second, for which --help need not wait
    from torchvision.utils import flow_to_image

    flow_tchw = torch.from_numpy(frames * np.float32(FLOW.value_scale) + np.float32(FLOW.value_offset)).movedim(3, 1)
    fastest_px = float(flow_tchw.square().sum(dim=1).sqrt().max())
    if not fastest_px:
        return np.full((*frames.shape[:3], 3), 255, np.uint8), "flow\nno motion"
    pictures: Pictures = flow_to_image(flow_tchw.float()).movedim(1, 3).numpy()
    return pictures, f"flow\nup to {fastest_px:.1f} px"


def paint_depth(frames: NDArray[Any]) -> tuple[Pictures, str]:
    """Colour depth [T, H, W, 1]: bright is near, black was not measured. The clip has one range."""
    depth_mm = frames[..., 0].astype(np.float32)
    measured = depth_mm > 0
    if not measured.any():
        return np.zeros((*depth_mm.shape, 3), np.uint8), "depth\nnothing measured"
    nearest, farthest = float(depth_mm[measured].min()), float(depth_mm[measured].max())
    nearness = (farthest - depth_mm) / max(1.0, farthest - nearest)
    # Skips the darkest tenth of the colour map, so that the farthest point differs from no measurement.
    coloured = colormaps["viridis"](0.1 + 0.9 * nearness.clip(0, 1))[..., :3]
    pictures = np.where(measured[..., None], np.rint(coloured * 255), 0).astype(np.uint8)
    return pictures, f"depth\n{nearest / 1000:.2f}–{farthest / 1000:.2f} m"


def paint_skeleton(frames: NDArray[Any]) -> tuple[Pictures, str]:
    """Draw joints [T, J, M, 3] of M bodies as sticks, from the camera without perspective. The clip has one scale."""
    metres = frames.astype(np.float32) * np.float32(SKELETON.value_scale) + np.float32(SKELETON.value_offset)
    lowest, highest = metres.min(axis=(0, 1, 2)), metres.max(axis=(0, 1, 2))
    scale = STICKS_PX / (1.1 * max(0.1, *(highest - lowest)[:2]))
    centre = STICKS_PX / 2 / scale - (lowest + highest) / 2
    x, y = (metres[..., 0] + centre[0]) * scale, STICKS_PX - (metres[..., 1] + centre[1]) * scale
    pictures = np.full((len(frames), STICKS_PX, STICKS_PX, 3), 255, np.uint8)
    for picture, bodies in zip(pictures, np.rint(np.stack([x, y], axis=-1)).astype(int).swapaxes(1, 2), strict=True):
        for joints, (chain, colour) in itertools.product(bodies, STICKS):
            cv2.polylines(picture, [joints[list(chain)]], False, colour, 2, cv2.LINE_AA)
    return pictures, f"skeleton\n{highest[1] - lowest[1]:.2f} m high"


PAINTERS: dict[str, Callable[[NDArray[Any]], tuple[Pictures, str]]] = {
    "rgb": lambda frames: (frames, "colour"),
    "flow": paint_flow,
    "depth": paint_depth,
    "skeleton": paint_skeleton,
}
"""Stream to the function that turns its stored frames into pictures and a label."""


@dataclass(frozen=True)
class _Strip:
    """Sampled frames of one stream of one clip."""

    label: str
    times_seconds: NDArray[np.float64]
    pictures: Pictures
    """[T, H, W, 3]; T is 0 if the file cannot be read."""


def read_strips(manifest: Manifest, video: Video) -> list[_Strip]:
    """Read frames of all streams of a clip at the same times, evenly spread over the clip."""
    names = [name for name in PAINTERS if name in video.streams]
    if not names:
        return []
    first = video.streams[names[0]].times_seconds
    times = first[0] + (np.arange(SHEET_FRAMES) + 0.5) / SHEET_FRAMES * (first[-1] - first[0])
    # Rounded to the times of frames, so that the other streams are paired with the frames on the sheet.
    times = first[np.unique(nearest_frames(video.streams[names[0]], times))]
    strips = []
    for name in names:
        stream = video.streams[name]
        positions = nearest_frames(stream, times)
        try:
            pictures, label = PAINTERS[name](read_frames(manifest.root, stream, positions.tolist(), stream_name=name))
        except UnreadableVideoError:
            pictures, label = np.zeros((0, stream.height_px, stream.width_px, 3), np.uint8), f"{name}\nunreadable"
        strips.append(_Strip(label, stream.times_seconds[positions], pictures))
    return strips


def draw_sheet(manifest: Manifest, videos: Sequence[Video]) -> Figure:
    """Draw a block of rows per clip, a row of frames per stream, and legends that explain colours."""
    blocks = [(video, read_strips(manifest, video)) for video in videos]
    blocks = [(video, strips) for video, strips in blocks if strips]
    label_inches, title_inches, gap_inches, top_inches = 0.95, 0.42, 0.04, 0.75
    heights = [
        [PICTURE_WIDTH_INCHES * strip.pictures.shape[1] / strip.pictures.shape[2] for strip in strips]
        for _, strips in blocks
    ]
    width = label_inches + SHEET_FRAMES * (PICTURE_WIDTH_INCHES + gap_inches) + gap_inches
    height = top_inches + sum(title_inches + sum(rows) + gap_inches * len(rows) for rows in heights) + 0.1
    figure = Figure(figsize=(width, height), facecolor="white")

    def add_axes(left: float, top: float, wide: float, high: float, *, is_framed: bool = True) -> Axes:
        axes: Axes = figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))
        axes.set(xticks=[], yticks=[], frame_on=is_framed)
        for spine in axes.spines.values():  # white flow would have no edge on the white sheet
            spine.set(color="0.75", linewidth=0.5)
        return axes

    def write(left: float, top: float, text: str, **style: Any) -> None:
        figure.text(left / width, 1 - top / height, text, **{"fontsize": 7, "va": "center", **style})

    write(0.1, 0.3, f"{manifest.dataset}: {_count(len(blocks), 'clip', 'clips')}", fontsize=12, weight="bold")
    shown = [LEGENDS[name] for name in LEGENDS if any(name in video.streams for video, _ in blocks)]
    for i, (draw, label) in enumerate(shown):
        right = width - 2.2 * i
        add_axes(right - 0.72, 0.06, 0.62, 0.62, is_framed=False).imshow(draw(), interpolation="bilinear")
        write(right - 0.8, 0.37, label, ha="right")
    top = top_inches
    for (video, strips), rows in zip(blocks, heights, strict=True):
        write(0.1, top + 0.12, class_of(manifest, video), fontsize=9, weight="bold")
        places = ", ".join(f"split {split} {part}" for split, part in video.splits.items())
        facts = "   ".join(word for word in (video.name, places, video.reason) if word)
        write(width - gap_inches, top + 0.12, facts, color="0.35", ha="right")
        for j, seconds in enumerate(strips[0].times_seconds):
            centre = label_inches + j * (PICTURE_WIDTH_INCHES + gap_inches) + PICTURE_WIDTH_INCHES / 2
            write(centre, top + title_inches - 0.09, f"{seconds:.2f} s", ha="center")
        top += title_inches
        for strip, row in zip(strips, rows, strict=True):
            write(0.1, top + row / 2, strip.label)
            for j, picture in enumerate(strip.pictures):
                left = label_inches + j * (PICTURE_WIDTH_INCHES + gap_inches)
                add_axes(left, top, PICTURE_WIDTH_INCHES, row).imshow(picture, aspect="auto")
            top += row + gap_inches
    return figure


def draw_pictures(manifest: Manifest, videos: Sequence[Video]) -> Figure:
    """Draw still pictures in a grid, each whole, below its class and name."""
    columns = min(SHEET_FRAMES, len(videos))
    figure = Figure(figsize=(PICTURE_WIDTH_INCHES * columns, 0.4 + 2.1 * -(-len(videos) // columns)), layout="tight")
    figure.suptitle(f"{manifest.dataset}: {_count(len(videos), 'picture', 'pictures')}", fontsize=11, weight="bold")
    for i, video in enumerate(videos):
        axes = figure.add_subplot(-(-len(videos) // columns), columns, i + 1)
        axes.axis("off")
        axes.set_title(f"{class_of(manifest, video)}\n{video.name[-SHOWN_LETTERS:]}", fontsize=6)
        stream = video.streams["rgb"]
        try:
            axes.imshow(read_frames(manifest.root, stream, [0])[0])
        except UnreadableVideoError:
            axes.text(0.5, 0.5, "unreadable", ha="center", fontsize=7)
    return figure


def class_of(manifest: Manifest, video: Video) -> str:
    """Return the name of a video's class, or "unlabelled"."""
    return "unlabelled" if video.label is None else manifest.classes[video.label]


def flow_wheel(side_px: int = 160) -> NDArray[np.uint8]:
    """Return RGBA [side, side, 4]: at each place the colour of a motion from the centre to it, in a circle."""
    import torch
    from torchvision.utils import flow_to_image

    axis = np.linspace(-1, 1, side_px, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    is_inside = x**2 + y**2 <= 1
    flow_chw = torch.from_numpy(np.stack([x, y]) * is_inside)
    colours = flow_to_image(flow_chw).movedim(0, 2).numpy()
    return np.concatenate([colours, 255 * is_inside[..., None].astype(np.uint8)], axis=2)


LEGENDS = {"flow": (flow_wheel, "direction of flow")}
"""Stream to the function that draws the legend of its colours, and what the legend explains."""
