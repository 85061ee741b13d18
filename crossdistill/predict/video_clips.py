"""Clips of any video file: of a colour video, or of a stream that a prepared dataset stores.

What an encoder sees and the file does not hold is computed as ``python -m data_prep`` does, into a folder that is
removed again.
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
from crossdistill.data.manifest import MANIFEST_NAME, Manifest, Stream
from crossdistill.data.sampling import missing_seconds
from crossdistill.data.transforms import CutClip, centre_crop
from crossdistill.errors import UnreadableVideoError, UserError
from crossdistill.types import View, ViewSpec
from data_prep.pipeline.readers import Input
from data_prep.pipeline.transcode import DERIVED, source_of, transcode
from data_prep.recipe import Recipe

COLOUR_VIDEO = "rgb"
"""What a file is that no prepared dataset stores."""


@dataclass(frozen=True)
class VideoClips:
    """Clips of one video, spread evenly over it."""

    view: View
    centres_seconds: tuple[float, ...]
    note: str = ""
    """What is amiss with the file, and yet no reason to do without it."""


@functools.lru_cache(maxsize=4)
def _manifest(root: Path) -> Manifest:
    return Manifest.load(root)


def find_stored(path: Path) -> tuple[Path, str, Stream] | None:
    """The prepared dataset, the stream's name and the stream, if a path is one that a dataset stores."""
    path = path.resolve()
    for root in path.parents:
        if not (root / MANIFEST_NAME).is_file():
            continue
        wanted = path.relative_to(root).as_posix()
        for video in _manifest(root).videos:
            for name, stream in video.streams.items():
                if stream.path == wanted:
                    return root, name, stream
    return None


def recipe_for(view: ViewSpec, manifest: Manifest | None) -> Recipe:
    """How a view's stream is made of a video: as a dataset's was, or else as ``data_prep`` does by default.

    Args:
        view: What the encoder sees; a video must have that many frames, or eight.
        manifest: The dataset that the student was trained on, if known.
    """
    known = {field.name for field in dataclasses.fields(Recipe)}
    kept = {} if manifest is None else manifest.facts.get("recipe", {})
    recipe = Recipe(**{name: value for name, value in kept.items() if name in known})
    return dataclasses.replace(recipe, min_frames=min(Recipe.min_frames, view.num_frames))


def require_source(path: Path, view: ViewSpec, recipe: Recipe) -> None:
    """Raise a ``UserError`` if what an encoder sees can never be had of such a file."""
    stored = find_stored(path)
    name, stream = stored[1] if stored else COLOUR_VIDEO, view.kind.stream
    try:
        if source_of(stream, {name: None}) != stream:
            DERIVED[stream].check(recipe)
            DERIVED[stream].check_source(recipe, name)
    except UserError as error:
        raise UserError(
            f"{path} holds {name}, from which the {stream} that this student sees cannot be had here: give a file of "
            f"the stream {stream!r} of a prepared dataset (python -m data_prep makes one of recordings)"
        ) from error


def read_video_clips(path: Path, view: ViewSpec, *, num_clips: int, recipe: Recipe) -> VideoClips:
    """Read clips of a video file, spread evenly over it.

    Args:
        path: Any video file, or one that a prepared dataset stores.
        view: What the encoder sees.
        num_clips: At most: a video that is no longer than a clip has one.
        recipe: How the view's stream is made if the file is not that stream.

    Raises:
        UnreadableVideoError: The file is missing, damaged or too short.
        UserError: The view's stream cannot be made of it.
    """
    if not path.is_file():
        raise UnreadableVideoError(f"{path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    stored, wanted = find_stored(path), view.kind.stream
    if stored is not None and stored[1] == wanted:
        return _cut(stored[0], stored[2], view, num_clips=num_clips, note="")
    source = stored[1] if stored else COLOUR_VIDEO
    # A colour video is read as it is: shrinking it before the view is cut would only cost.
    recipe = dataclasses.replace(recipe, keep_original=source == wanted)
    with tempfile.TemporaryDirectory(prefix="crossdistill-") as folder:
        root = Path(folder)
        outcome = transcode({source: Input(str(path))}, {wanted: f"{wanted}.mp4"}, root=root, recipe=recipe)
        if outcome.status == "skipped":
            raise UnreadableVideoError(f"{path}: {outcome.reason}")
        return _cut(root, outcome.streams[wanted], view, num_clips=num_clips, note=outcome.reason)


def _cut(root: Path, stream: Stream, view: ViewSpec, *, num_clips: int, note: str) -> VideoClips:
    reader = ClipReader(root, {view.kind.stream: stream}, [view])
    # By their frames: in a short video many centres give the same clip.
    centres = {tuple(reader.frames(0, centre)): centre for centre in reader.spread_centres(num_clips)}
    crop = centre_crop(width_px=stream.width_px, height_px=stream.height_px, fraction=view.centre_fraction)
    # One by one: the decoded pictures of all clips together may not fit into memory.
    clips = [cut for centre in centres.values() for cut in reader.read([centre], [[crop]])[0]]
    is_short = missing_seconds([stream], [view]) > 0
    notes = [note, "shorter than a clip, so its end frames repeat" if is_short else ""]
    return VideoClips(_batch(clips), tuple(centres.values()), "; ".join(text for text in notes if text))


def _batch(clips: list[CutClip]) -> View:
    values = torch.stack([clip.values for clip in clips])
    return View(values, torch.from_numpy(np.stack([clip.channel_scale for clip in clips])))
