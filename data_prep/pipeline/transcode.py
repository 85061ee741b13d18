"""Turns the inputs of one video into the streams of a prepared dataset, in one pass each and constant memory.

A stream is made by a track: a callable that is shown every frame of one input once and gives the
frames to write, if any. A stream that is an input itself is copied; a further one that can be computed
from an input is one entry in ``DERIVED``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2

from crossdistill.data.decode import index_video
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import StreamWriter, get_stream_format, quantise_flow
from crossdistill.errors import UnreadableVideoError, UserError
from data_prep.depth.transformers_depth import check_depth, check_depth_source, depth_track
from data_prep.flow import FLOW_METHODS, check_flow, check_flow_source
from data_prep.frames import Frame
from data_prep.pipeline.readers import READERS, Input, declared_length
from data_prep.recipe import Outcome, Recipe, UnusableVideo

Track = Callable[[Frame], tuple[Any, int] | None]
"""Takes a frame; gives what the stream's writer takes with its timestamp, or None."""


def _copy_track(recipe: Recipe) -> Track:
    return lambda frame: (frame.stored, frame.pts)


def _flow_track(recipe: Recipe) -> Track:
    """Flow between neighbours, stamped with the first of the two: N frames give N - 1 flows."""
    estimate = FLOW_METHODS[recipe.flow].create(recipe)
    previous: Frame | None = None

    def track(frame: Frame) -> tuple[Any, int] | None:
        nonlocal previous
        first, previous = previous, frame
        if first is None:
            return None
        return quantise_flow(estimate(first, frame)), first.pts

    return track


@dataclass(frozen=True)
class Derived:
    """A stream that is computed from another modality."""

    sources: tuple[str, ...]
    """Inputs that it can be computed from, the best first."""
    create: Callable[[Recipe], Track]
    """Called once per video, in the worker."""
    check: Callable[[Recipe], None]
    """Raises a ``UserError`` before any work starts if it cannot be computed as the recipe says."""
    check_source: Callable[[Recipe, str], None]
    """Raises a ``UserError`` if it cannot be computed from this input as the recipe says; quick."""


DERIVED: dict[str, Derived] = {
    "flow": Derived(("rgb", "depth"), _flow_track, check_flow, check_flow_source),
    "depth": Derived(("rgb",), depth_track, check_depth, check_depth_source),
}


def source_of(stream: str, inputs: Mapping[str, object]) -> str:
    """The input that a stream is made from: itself if it is there, else the best that it can be computed from.

    Raises:
        UserError: The stream cannot be made from these inputs.
    """
    candidates = (stream, *(DERIVED[stream].sources if stream in DERIVED else ()))
    for candidate in candidates:
        if candidate in inputs:
            return candidate
    raise UserError(
        f"the stream {stream!r} cannot be made: it needs {' or '.join(candidates)}, and there is only "
        f"{', '.join(inputs) or 'nothing'}: leave {stream} out of --modalities"
    )


def check_source(stream: str, inputs: Mapping[str, object], recipe: Recipe) -> None:
    """Raise a ``UserError`` if the stream cannot be made from these inputs as the recipe says."""
    source = source_of(stream, inputs)
    if source != stream:
        DERIVED[stream].check_source(recipe, source)


def transcode(inputs: Mapping[str, Input], stream_paths: Mapping[str, str], *, root: Path, recipe: Recipe) -> Outcome:
    """Write streams of one video; what cannot be read becomes the outcome's status and reason.

    Args:
        inputs: Modality to the source.
        stream_paths: Stream to its path under ``root``.
        root: The prepared dataset's folder.
        recipe: How.

    Raises:
        UserError: A stream cannot be made from these inputs.
    """
    for stream in stream_paths:
        check_source(stream, inputs, recipe)
    cv2.setNumThreads(1)  # one video is one job: the jobs are the parallelism
    damages: list[str] = []
    streams: dict[str, Stream] = {}
    try:
        for modality, source in inputs.items():
            wanted = {name: path for name, path in stream_paths.items() if source_of(name, inputs) == modality}
            if wanted:
                made, damage = _transcode_input(modality, source, wanted, root=root, recipe=recipe)
                streams.update(made)
                damages += [damage] if damage else []
    except UnusableVideo as error:
        for path in stream_paths.values():
            (root / path).unlink(missing_ok=True)
        return Outcome("skipped", str(error))
    return Outcome("repaired" if damages else "ok", "; ".join(damages), dict(sorted(streams.items())))


def _transcode_input(
    modality: str, source: Input, stream_paths: dict[str, str], *, root: Path, recipe: Recipe
) -> tuple[dict[str, Stream], str]:
    """Make the streams that come from one input; give them and the damage met, if any."""
    path = Path(source.path)
    _check_is_file(path)
    streams: dict[str, Stream] = {}
    damage = ""
    is_kept = recipe.keep_original and modality == "rgb"
    if is_kept and modality in stream_paths:
        streams[modality], damage = _index_original(path, recipe)
        stream_paths = {name: made for name, made in stream_paths.items() if name != modality}
    if not stream_paths:
        return streams, damage
    targets = {name: root / stream_path for name, stream_path in stream_paths.items()}
    damage = _write_streams(modality, source, targets, recipe, starts_at_zero=not is_kept)
    for name, stream_path in stream_paths.items():
        made = index_video(root / stream_path, relative_to=root, stream_format=get_stream_format(name))
        streams[name] = made
    return streams, damage


def _check_is_file(path: Path) -> None:
    try:
        if path.is_dir():
            return
        if not path.is_file():
            raise UnusableVideo("no regular file")
        if path.stat().st_size == 0:
            raise UnusableVideo("empty")
    except OSError as error:
        raise UnusableVideo(f"unreadable: {error.strerror}") from error


def _index_original(path: Path, recipe: Recipe) -> tuple[Stream, str]:
    """The source itself as a stream, found readable to its end by decoding it, and what is amiss."""
    try:
        stream = index_video(path.resolve(), relative_to=Path("/")).at(str(path.resolve()))
    except UnreadableVideoError as error:
        raise UnusableVideo(f"unreadable: {str(error).removeprefix(f'{path.resolve()}: ')}") from error
    if stream.num_frames < recipe.min_frames:
        raise UnusableVideo(f"too short: {stream.num_frames} frames, fewer than {recipe.min_frames}")
    times = stream.times_seconds
    shortfall = declared_length(path).falls_short(len(times), _covered_seconds(times[0], times[-1], len(times)))
    return stream, f"ends early: {shortfall}" if shortfall else ""


def _covered_seconds(first_seconds: float, last_seconds: float, num_frames: int) -> float:
    """From the first frame to the end of the last, which is shown as long as the others on average."""
    return float(last_seconds - first_seconds) * num_frames / max(1, num_frames - 1)


def _write_streams(
    modality: str, source: Input, targets: dict[str, Path], recipe: Recipe, *, starts_at_zero: bool
) -> str:
    """Write all that can be read; give the damage met, if any.

    Args:
        modality: Of the source.
        source: What is read.
        targets: Stream to the file to write.
        recipe: How.
        starts_at_zero: Streams cannot hold negative times. Whether a video that has some is moved to start at
            0, or else (beside an original that stays as it is) its frames before 0 are left out.
    """
    path = Path(source.path)
    rate = Fraction(source.frames_per_second).limit_denominator(1001) if source.frames_per_second else None
    tracks = {name: (_copy_track if name == modality else DERIVED[name].create)(recipe) for name in targets}
    writers: dict[str, StreamWriter] = {}
    num_frames, damage, shift, first_seconds, last_seconds = 0, "", 0, 0.0, 0.0
    with ExitStack() as stack:
        try:
            for frame in READERS[modality](path, recipe, rate):
                last_seconds = float(frame.pts * frame.time_base)
                if not writers:
                    first_seconds, shift = last_seconds, max(0, -frame.pts) if starts_at_zero else 0
                    for name, target in targets.items():
                        writer = StreamWriter(target, get_stream_format(name), time_base=frame.time_base)
                        writers[name] = stack.enter_context(writer)
                num_frames += 1
                for name, track in tracks.items():
                    made = track(frame)
                    if made is not None and made[1] + shift >= 0:
                        writers[name].write(made[0], made[1] + shift)
        except UnreadableVideoError as error:
            damage = str(error).removeprefix(f"{path}: ")
        declared = declared_length(path)
        shortfall = declared.falls_short(num_frames, _covered_seconds(first_seconds, last_seconds, num_frames))
        if not damage and shortfall:
            damage = "ends early"
        if damage:
            total = declared.num_frames or "an unknown number of"
            damage += f": {shortfall or f'{num_frames} of {total} frames'}"
        if num_frames < recipe.min_frames:  # raised inside the block, so that no stream is left behind
            raise UnusableVideo(_describe_shortage(damage, num_frames, recipe.min_frames))
    return damage


def _describe_shortage(damage: str, num_frames: int, min_frames: int) -> str:
    if damage:
        return f"unreadable: {damage if num_frames else damage.rsplit(': ', 1)[0]}"
    return f"too short: {num_frames} frames, fewer than {min_frames}" if num_frames else "unreadable: holds no frame"
