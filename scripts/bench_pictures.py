"""How fast still pictures are decoded and cropped, by library, and the loader against a bare loop.

Decoding: pictures per second of processor time, one thread: decode a JPEG in memory, cut a random crop, and resize it
to 64, 112 and 224 pixels. "reduced" decodes at a half, a quarter or an eighth where the crop keeps enough pixels.
Libraries that are not installed are left out (pip install simplejpeg PyTurboJPEG; the second needs libturbojpeg 3).

Loader: pictures/s of the DataLoader (no workers, random-resized-crop and mirroring, batches of 64) against a loop that
reads the same files, draws the same crops, decodes reduced with OpenCV, cuts, mirrors and stacks them.

Compared things take turns within each repeat; medians are shown, and the median of the ratios of each repeat.

    python scripts/bench_pictures.py
    python scripts/bench_pictures.py --pictures caltech101 --num-pictures 400 --repeats 5
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from crossdistill.data.dataset import Entry, PairedClips
from crossdistill.data.manifest import Video
from crossdistill.data.pictures import PICTURE_SUFFIXES, REDUCED, index_picture, shrink_for
from crossdistill.data.sampling import SampleKey, sample_generator
from crossdistill.data.streams import Picture
from crossdistill.data.transforms import Augmentation, Crop
from crossdistill.types import ViewSpec
from crossdistill.utils.environment import describe_environment

SIZES_PX = (64, 112, 224)
BATCH = 64
MADE_SIZE_PX = (500, 375)
Decode = Callable[[bytes, int], Picture]


def with_opencv(content: bytes, shrink: int) -> Picture:
    """Decode with OpenCV."""
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), REDUCED[shrink] | cv2.IMREAD_IGNORE_ORIENTATION)
    assert bgr is not None
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr)


def with_torchvision(content: bytes, shrink: int) -> Picture:
    """Decode with torchvision.io, which has no reduced decoding."""
    from torchvision.io import ImageReadMode, decode_jpeg

    picture: Picture = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB).numpy()
    return picture.transpose(1, 2, 0)


def with_pillow(content: bytes, shrink: int) -> Picture:
    """Decode with Pillow."""
    image = Image.open(io.BytesIO(content))
    if shrink > 1:
        image.draft("RGB", (image.width // shrink, image.height // shrink))
    return np.asarray(image.convert("RGB"))


def with_simplejpeg(content: bytes, shrink: int) -> Picture:
    """Decode with simplejpeg."""
    import simplejpeg

    if shrink == 1:
        return simplejpeg.decode_jpeg(content, "RGB")
    height, width, *_ = simplejpeg.decode_jpeg_header(content)
    return simplejpeg.decode_jpeg(content, "RGB", min_height=height // shrink, min_width=width // shrink)


def with_turbojpeg() -> Decode:
    """Return a decoder of PyTurboJPEG."""
    from turbojpeg import TJPF_RGB, TurboJPEG

    library = TurboJPEG()
    return lambda content, shrink: library.decode(content, pixel_format=TJPF_RGB, scaling_factor=(1, shrink))


def decoders() -> dict[str, tuple[Decode, bool]]:
    """Return the installed libraries by name: the function, and whether it decodes at a reduced size."""
    found: dict[str, tuple[Decode, bool]] = {
        "OpenCV": (with_opencv, False),
        "OpenCV, reduced": (with_opencv, True),
        "torchvision.io": (with_torchvision, False),
        "Pillow": (with_pillow, False),
        "Pillow, reduced": (with_pillow, True),
    }
    if importlib.util.find_spec("simplejpeg"):
        found |= {"simplejpeg": (with_simplejpeg, False), "simplejpeg, reduced": (with_simplejpeg, True)}
    if importlib.util.find_spec("turbojpeg"):
        try:
            decode = with_turbojpeg()
            found |= {"PyTurboJPEG": (decode, False), "PyTurboJPEG, reduced": (decode, True)}
        except RuntimeError as error:
            print(f"PyTurboJPEG is left out: {str(error).splitlines()[0]}")
    return found


def cut(picture: Picture, crop: Crop, size_px: int) -> Picture:
    """Cut, resize and mirror with bare OpenCV."""
    height, width, _ = picture.shape
    left, top = round(crop.left * width), round(crop.top * height)
    part = picture[top : top + max(1, round(crop.height * height)), left : left + max(1, round(crop.width * width))]
    method = cv2.INTER_AREA if min(part.shape[:2]) > size_px else cv2.INTER_LINEAR
    part = cv2.resize(part, (size_px, size_px), interpolation=method)
    return cv2.flip(part, 1) if crop.is_mirrored else part


def crop_shrink(crop: Crop, width_px: int, height_px: int, size_px: int) -> int:
    """By how much the picture can be reduced for a crop."""
    return shrink_for(min(crop.width * width_px, crop.height * height_px), size_px)


def bench_decoding(entries: Sequence[Entry], *, repeats: int) -> None:
    """Print a table of pictures/s by library and size."""
    streams = [entry.video.streams["rgb"] for entry in entries]
    contents = [(entry.root / stream.path).read_bytes() for entry, stream in zip(entries, streams, strict=True)]
    found = decoders()
    rates: dict[tuple[str, int], list[float]] = {}
    for repeat in range(repeats):
        for size_px in SIZES_PX:
            crops = [
                Augmentation().draw(
                    sample_generator(repeat, SampleKey(i, 0)), width_px=s.width_px, height_px=s.height_px
                )
                for i, s in enumerate(streams)
            ]
            for name, (decode, is_reduced) in found.items():
                started = time.process_time()
                for content, stream, crop in zip(contents, streams, crops, strict=True):
                    shrink = crop_shrink(crop, stream.width_px, stream.height_px, size_px) if is_reduced else 1
                    cut(decode(content, shrink), crop, size_px)
                rates.setdefault((name, size_px), []).append(len(contents) / (time.process_time() - started))
    print("| library | " + " | ".join(f"to {size_px}" for size_px in SIZES_PX) + " |")
    print("|---|" + "--:|" * len(SIZES_PX))
    for name in found:
        print(f"| {name} | " + " | ".join(f"{statistics.median(rates[name, s]):,.0f}" for s in SIZES_PX) + " |")


def bare_batch(entries: Sequence[Entry], keys: Sequence[SampleKey], size_px: int) -> Picture:
    """Read, draw, decode, cut and stack one batch."""
    batch = np.empty((len(keys), 1, size_px, size_px, 3), np.uint8)
    for row, key in enumerate(keys):
        entry = entries[key.index]
        stream = entry.video.streams["rgb"]
        crop = Augmentation().draw(sample_generator(0, key), width_px=stream.width_px, height_px=stream.height_px)
        with open(entry.root / stream.path, "rb", buffering=0) as file:
            content = file.read()
        shrink = crop_shrink(crop, stream.width_px, stream.height_px, size_px)
        batch[row, 0] = cut(with_opencv(content, shrink), crop, size_px)
    return batch


def bench_loader(entries: Sequence[Entry], *, repeats: int) -> None:
    """Print pictures/s of the loader and of the bare loop, and the ratio."""
    print("\n| to | loader | bare loop | ratio |\n|--:|--:|--:|--:|")
    for size_px in SIZES_PX:
        view = ViewSpec("image", 1, 1, size_px, mean=(0.5,) * 3, std=(0.5,) * 3)
        clips = PairedClips(entries, student_view=view, augmentation=Augmentation())
        rates: list[tuple[float, float]] = []
        for repeat in range(repeats + 1):
            seconds = [0.0, 0.0]
            for start in range(0, len(entries), BATCH):
                keys = [SampleKey(i, repeat) for i in range(start, min(start + BATCH, len(entries)))]
                reads = (partial(clips.read_batch, keys), partial(bare_batch, entries, keys, size_px))
                for which in (0, 1) if repeat % 2 else (1, 0):
                    started = time.process_time()
                    reads[which]()
                    seconds[which] += time.process_time() - started
            if repeat:  # the first is a warm-up
                rates.append((len(entries) / seconds[0], len(entries) / seconds[1]))
        loader, bare = (statistics.median(rate[i] for rate in rates) for i in (0, 1))
        ratio = statistics.median(a / b for a, b in rates)
        print(f"| {size_px} | {loader:,.0f} | {bare:,.0f} | {ratio:.2f} |")


def make_pictures(folder: Path, num_pictures: int) -> list[Path]:
    """Write JPEGs of 500x375 pixels, of the usual size of ImageNet's: about 100 kB each."""
    paths = []
    for seed in range(num_pictures):
        generator = np.random.default_rng(seed)
        smooth = cv2.resize(generator.integers(0, 255, (15, 20, 3)).astype(np.float32), MADE_SIZE_PX)
        noisy = (smooth + generator.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
        paths.append(folder / f"{seed}.jpg")
        cv2.imwrite(str(paths[-1]), noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths


def main() -> None:
    """Measure the pictures of a folder, and synthetic ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder of JPEG files; only synthetic ones if not given")
    parser.add_argument("--num-pictures", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(describe_environment())
    with tempfile.TemporaryDirectory() as folder:
        sets = {f"synthetic {MADE_SIZE_PX[0]}x{MADE_SIZE_PX[1]}": make_pictures(Path(folder), given.num_pictures)}
        if given.pictures:
            files = [path for path in sorted(given.pictures.rglob("*")) if path.suffix.lower() in PICTURE_SUFFIXES]
            sets[given.pictures.name] = files[:: max(1, len(files) // given.num_pictures)][: given.num_pictures]
        for name, paths in sets.items():
            entries = [Entry(Path("/"), Video(str(p), streams={"rgb": index_picture(p.absolute())}), -1) for p in paths]
            size_kb = statistics.mean(entry.video.streams["rgb"].num_bytes for entry in entries) / 1e3
            print(f"\n{name}: {len(entries)} pictures, {size_kb:.0f} kB each, pictures/s of one thread\n")
            bench_decoding(entries, repeats=given.repeats)
            bench_loader(entries, repeats=given.repeats)


if __name__ == "__main__":
    main()
