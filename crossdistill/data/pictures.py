"""Still pictures: whole files, or ranges of tar shards, decoded to upright RGB as a viewer shows them.

A stored picture is a stream with one frame at the time 0. ``Stream.stored_as`` says how it is read:

* ``jpeg``: OpenCV, which can decode a JPEG at a half, a quarter or an eighth of its size in less time.
* ``picture``: Pillow, for all that needs more than decoding: other file formats, a rotation in the EXIF data, CMYK,
  16 bits, transparency (shown on white), palettes, animations (the first frame).

Shapes: H height, W width.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, TiffImageFile

from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture
from crossdistill.errors import UnreadableVideoError, first_line

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"),
    *(".jp2", ".tga"),
)
MIN_PICTURE_SIDE_PX = 8
"""Smallest side of a picture."""
SHRINKS = (8, 4, 2, 1)
"""By how much the sides of a JPEG can be divided while it is decoded, the largest first."""
REDUCED = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
REDUCED[8] = cv2.IMREAD_REDUCED_COLOR_8
ORIENTATION_TAG = 0x0112
# EXIF orientation to the operation that makes the picture upright. 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow raises all of these for damaged files; DecompressionBombError is not an OSError.
PICTURE_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, NotImplementedError),
    *(AttributeError, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError, cv2.error),
)
# A manifest may have a million pictures: they share these arrays.
_ONE_FRAME = np.zeros(1, dtype=np.int64)
_ONE_FRAME.flags.writeable = False
_SECOND = Fraction(1)


def picture_stream(
    path: str, *, size_px: tuple[int, int], stored_as: str, num_bytes: int, sha256: str, offset: int = 0
) -> Stream:
    """Return the manifest's entry of a picture of (width, height) ``size_px``."""
    width_px, height_px = size_px
    return Stream(
        path=path,
        width_px=width_px,
        height_px=height_px,
        time_base=_SECOND,
        pts=_ONE_FRAME,
        keyframes=_ONE_FRAME,
        num_bytes=num_bytes,
        sha256=sha256,
        stored_as=stored_as,
        offset=offset,
    )


def read_picture(source: FileRange, stream: Stream, *, shrink: int = 1) -> Picture:
    """Read a stored picture as [H, W, 3], uint8.

    Args:
        source: Where its bytes are; see ``locate``.
        stream: Entry of the picture in the manifest.
        shrink: One of ``SHRINKS``. A JPEG is decoded with sides that are this many times smaller (rounded up). Other
            pictures keep their size.

    Raises:
        UnreadableVideoError: The file is missing or damaged.
    """
    content = source.read()
    try:
        return READERS[stream.stored_as](content, shrink)
    except PICTURE_ERRORS as error:
        raise UnreadableVideoError(f"{source}: is damaged ({first_line(error)})") from error


def shrink_for(source_px: float, target_px: int) -> int:
    """Return the largest of ``SHRINKS`` that keeps at least ``target_px`` of a side of ``source_px``.

    Example:
        >>> [shrink_for(px, 112) for px in (100, 224, 500, 4000)]
        [1, 2, 4, 8]
    """
    return next((shrink for shrink in SHRINKS if source_px >= shrink * target_px), 1)


def _read_jpeg(content: bytes, shrink: int) -> Picture:
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), REDUCED[shrink] | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise ValueError("OpenCV cannot decode it")
    rgb: Picture = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB, dst=bgr)
    return rgb


@contextlib.contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Open a picture with Pillow, without its warnings about damaged EXIF data and sizes: it is read or refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content)) as image:
            yield image


def _read_any(content: bytes, shrink: int) -> Picture:
    with _opened(content) as image:
        if shrink > 1:
            image.draft("RGB", (image.width // shrink, image.height // shrink))  # only JPEG has it
        return upright_rgb(image)


READERS: dict[str, Callable[[bytes, int], Picture]] = {"jpeg": _read_jpeg, "picture": _read_any}
"""Values of ``Stream.stored_as`` that are pictures, to the function that decodes one."""


def upright_rgb(image: Image.Image) -> Picture:
    """Decode an opened picture to [H, W, 3], uint8, as a viewer shows it."""
    if image.mode == "F":
        raise ValueError("its values are floats, which have no white")
    if isinstance(image, TiffImageFile) and 32 in image.tag_v2.get(BITSPERSAMPLE, ()):
        raise ValueError("its values have 32 bits, which have no white")
    image.load()
    # After loading, because Pillow turns TIFF files by itself.
    turn = UPRIGHT.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):
        # 16 bits of gray. Pillow clips them at 255 if it converts them itself.
        gray = (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    return np.asarray(image.convert("RGB"))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 to 8; 1 (upright) if it has none or a damaged one."""
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except PICTURE_ERRORS:
        return 1


def index_picture(path: Path, *, offset: int = 0, num_bytes: int | None = None) -> Stream:
    """Decode a picture whole, and return its entry for the manifest, with ``path`` as it was given.

    Args:
        path: A file.
        offset: First byte of the picture, in a tar shard.
        num_bytes: Number of its bytes; None for a whole file.

    Raises:
        UnreadableVideoError: The picture is missing, damaged, incomplete, too small or too large.
    """
    content = FileRange(path, offset, num_bytes).read()
    if not content:
        raise UnreadableVideoError("empty")
    stored_as, size_px = inspect_content(content)
    return picture_stream(
        str(path),
        size_px=size_px,
        stored_as=stored_as,
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        offset=offset,
    )


def inspect_content(content: bytes) -> tuple[str, tuple[int, int]]:
    """Decode a picture whole; return how it is stored (a key of ``READERS``), and its upright width and height.

    Raise ``UnreadableVideoError`` with the reason if it cannot be used.
    """
    try:
        with _opened(content) as image:
            if min(image.size) < MIN_PICTURE_SIDE_PX:
                raise UnreadableVideoError(f"too small: {image.width}x{image.height} pixels")
            # A phone's MPO is a JPEG that other JPEGs follow.
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and orientation(image) not in UPRIGHT:
                size_px = image.size
                image.load()
                if is_read_by_opencv(content, size_px):
                    return "jpeg", size_px
            height_px, width_px, _ = upright_rgb(image).shape
            return "picture", (width_px, height_px)
    except Image.DecompressionBombError as error:
        raise UnreadableVideoError(f"too large: {first_line(error)}") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableVideoError(f"unreadable: {what_it_is(content)}") from error
    except PICTURE_ERRORS as error:
        raise UnreadableVideoError(f"unreadable: {first_line(error)}") from error


def is_read_by_opencv(content: bytes, size_px: tuple[int, int]) -> bool:
    """Whether OpenCV reads a JPEG: an eighth of its size, because a damage in the data was looked for before."""
    eighth = cv2.imdecode(np.frombuffer(content, np.uint8), REDUCED[8] | cv2.IMREAD_IGNORE_ORIENTATION)
    return eighth is not None and eighth.shape[:2] == (-(-size_px[1] // 8), -(-size_px[0] // 8))


def what_it_is(content: bytes) -> str:
    """Describe a file that Pillow does not know."""
    start = content[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page and no picture"
    if start.startswith((b"<?xml", b"<svg")):
        return "is a vector graphic or XML and no picture of pixels"
    return "is no picture of a known format"
