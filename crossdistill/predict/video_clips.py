"""Clips of any file: a colour video, a picture, or a stream of a prepared dataset.

A modality that the file does not hold is computed as ``python -m data_prep`` does, into a temporary folder.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from crossdistill.data.clip_reader import ClipReader
from crossdistill.data.manifest import Manifest, Stream, is_prepared
from crossdistill.data.pictures import PICTURE_SUFFIXES, index_picture
from crossdistill.data.sampling import missing_seconds
from crossdistill.data.transforms import centre_crop
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.types import View, ViewSpec
from data_prep.pipeline.readers import Input
from data_prep.pipeline.transcode import DERIVED, source_of, transcode
from data_prep.recipe import Recipe

COLOUR_VIDEO = "rgb"  # stream of any file that is not part of a prepared dataset


@dataclass(frozen=True)
class VideoClips:
    """Clips of one video, spread evenly over it."""

    view: View
    note: str = ""
    """Defect of the file that does not prevent reading it; empty if there is none."""


@dataclass(frozen=True)
class StoredStream:
    """A stream of the prepared dataset in the folder ``root``."""

    root: Path
    name: str
    stream: Stream


# Every video of a dataset asks for the same manifest.
@functools.lru_cache(maxsize=4)
def _manifest(root: Path) -> Manifest:
    return Manifest.load(root)


def find_stored(path: Path) -> StoredStream | None:
    """Return the prepared stream that is stored in a file; None if the file is not part of a prepared dataset."""
    path = path.resolve()
    for root in path.parents:
        if not is_prepared(root):
            continue
        manifest, relative = _manifest(root), path.relative_to(root).as_posix()
        for name in manifest.table.layout.streams:
            position = manifest.table.find(manifest.table.stream_column(name, "path"), relative)
            if position is not None:
                return StoredStream(root, name, manifest.videos[position].streams[name])
    return None


def is_picture(path: Path) -> bool:
    """Whether a file is a still picture by its name."""
    return path.suffix.lower() in PICTURE_SUFFIXES


def recipe_for(view: ViewSpec, manifest: Manifest | None) -> Recipe:
    """Return the recipe that computes a view's stream: that of the student's dataset, or the default of ``data_prep``.

    A video needs as many frames as the view has, but never more than the default recipe asks for.
    """
    # Another version of data_prep may have written fields that this one does not have.
    known = {field.name for field in dataclasses.fields(Recipe)}
    kept = {} if manifest is None else manifest.facts.get("recipe", {})
    recipe = Recipe(**{name: value for name, value in kept.items() if name in known})
    return dataclasses.replace(recipe, min_frames=min(Recipe.min_frames, view.num_frames))


def require_source(path: Path, view: ViewSpec, recipe: Recipe) -> None:
    """Raise a ``UserError`` if the view's stream cannot be computed from a file of this kind."""
    stored = find_stored(path)
    name, stream = stored.name if stored else COLOUR_VIDEO, view.kind.stream
    if is_picture(path) and stream != name:
        raise UserError(
            f"{path} is a still picture, and this student sees {stream}, which needs a video: give video files"
        )
    try:
        if source_of(stream, {name: None}) != stream:
            DERIVED[stream].check(recipe)
            DERIVED[stream].check_source(recipe, name)
    except UserError as error:
        raise UserError(
            f"{path} holds {name}, but this student sees {stream}, which cannot be computed from it: give a file of "
            f"the stream {stream!r} of a prepared dataset (python -m data_prep prepares recordings)"
        ) from error


def read_video_clips(path: Path, view: ViewSpec, *, num_clips: int, recipe: Recipe) -> VideoClips:
    """Read clips of a video file, or of a file of a prepared dataset, spread evenly over it.

    A short video has fewer than ``num_clips``, because clips with equal frames count once. The recipe computes the
    view's stream if the file holds another one.

    Raises:
        UnreadableVideoError: The file is missing, damaged or too short.
        UserError: The view's stream cannot be computed from it.
    """
    if not path.is_file():
        raise UnreadableVideoError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    stored, wanted = find_stored(path), view.kind.stream
    if stored is not None and stored.name == wanted:
        return _read_clips(stored.root, stored.stream, view, num_clips=num_clips)
    if is_picture(path):
        return _read_clips(path.parent, index_picture(path.absolute()), view, num_clips=num_clips)
    source = stored.name if stored else COLOUR_VIDEO
    # A file of the wanted stream keeps its size: shrinking it before the view is cropped would only take time.
    recipe = dataclasses.replace(recipe, keep_original=source == wanted)
    with tempfile.TemporaryDirectory(prefix="crossdistill-") as folder:
        root = Path(folder)
        outcome = transcode({source: Input(str(path))}, {wanted: f"{wanted}.mp4"}, root=root, recipe=recipe)
        if outcome.status == "skipped":
            raise UnreadableVideoError(f"{path}: {outcome.reason}")
        return _read_clips(root, outcome.streams[wanted], view, num_clips=num_clips, note=outcome.reason)


def _read_clips(root: Path, stream: Stream, view: ViewSpec, *, num_clips: int, note: str = "") -> VideoClips:
    reader = ClipReader(root, {view.kind.stream: stream}, [view])
    # In a short video many centres give clips with equal frames.
    centres = {tuple(reader.frames(0, centre)): centre for centre in reader.spread_centres(num_clips)}
    crop = centre_crop(width_px=stream.width_px, height_px=stream.height_px, fraction=view.centre_fraction)
    # One by one, because the decoded pictures of all clips together may not fit into memory.
    clips = [cut for centre in centres.values() for cut in reader.read([centre], [[crop]])[0]]
    is_short = missing_seconds([stream], [view]) > 0
    short = "shorter than a clip, so its end frames repeat" if stream.is_video else "a still picture, which repeats"
    notes = [note, short if is_short else ""]
    values = torch.stack([clip.values for clip in clips])
    channel_scale = torch.from_numpy(np.stack([clip.channel_scale for clip in clips]))
    return VideoClips(View(values, channel_scale), "; ".join(text for text in notes if text))
