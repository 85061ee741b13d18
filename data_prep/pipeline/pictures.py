"""Store one still picture: find out how it is read, and write it at another size if the recipe says so."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import cv2

from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Stream
from crossdistill.data.pictures import READERS, index_picture, picture_stream, shrink_for
from crossdistill.errors import UnreadableVideoError
from crossdistill.utils.files import atomic_path
from data_prep.pipeline.readers import Input
from data_prep.recipe import Outcome, PictureRecipe


def store_picture(
    inputs: Mapping[str, Input], stream_paths: Mapping[str, str], *, root: Path, recipe: PictureRecipe
) -> Outcome:
    """Decode one picture whole and return its stream, or a ``skipped`` outcome if it cannot be used.

    Args:
        inputs: The stream's name to the source.
        stream_paths: The stream's name to the path below ``root`` where it is written if the recipe has a size.
        root: Folder of the prepared dataset.
        recipe: Whether and how the picture is written.
    """
    cv2.setNumThreads(1)
    streams = {}
    for name, target in stream_paths.items():
        source = inputs[name]
        path = Path(source.path).absolute()
        try:
            # A folder or a pipe would not be read to an end.
            if not path.is_file():
                return Outcome("skipped", "no regular file")
            stream = index_picture(path, offset=source.offset, num_bytes=source.num_bytes)
            streams[name] = stream if recipe.short_side_px is None else _write(stream, root, target, recipe)
        except UnreadableVideoError as error:
            return Outcome("skipped", str(error).removeprefix(f"{path}: "))
    return Outcome("ok", "", streams)


def _write(stream: Stream, root: Path, target: str, recipe: PictureRecipe) -> Stream:
    """Write a picture as JPEG with the recipe's short side, or a copy of a JPEG that is small enough."""
    assert recipe.short_side_px is not None
    source = FileRange(Path(stream.path), stream.offset, stream.num_bytes).read()
    short_px = min(stream.width_px, stream.height_px)
    scale = min(1.0, recipe.short_side_px / short_px)
    size_px = round(stream.width_px * scale), round(stream.height_px * scale)
    content = source
    if scale < 1.0 or stream.stored_as != "jpeg":
        rgb = READERS[stream.stored_as](source, shrink_for(short_px, recipe.short_side_px))
        if scale < 1.0:
            rgb = cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA)
        _, encoded = cv2.imencode(
            ".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, recipe.quality]
        )
        content = encoded.tobytes()
    with atomic_path(root / target) as temporary:
        temporary.write_bytes(content)
    return picture_stream(
        target, size_px=size_px, stored_as="jpeg", num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
