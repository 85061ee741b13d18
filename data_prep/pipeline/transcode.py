"""Transcode the inputs of one video into the streams of a prepared dataset, in one pass and constant memory.

Each stream has a track: a function that takes every frame of one input in turn and returns what to write. A stream of
the same modality as an input is copied. Streams that are estimated from another modality are listed in ``DERIVED``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2

from crossdistill.data.decode import index_any_video, index_video
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import StreamWriter, get_stream_format, quantise_flow
from crossdistill.errors import UnreadableVideoError, UserError
from data_prep.depth import check_depth, check_depth_source, create_depth
from data_prep.flow import check_flow, check_flow_source, create_flow
from data_prep.frames import Frame
from data_prep.pipeline.readers import READERS, Input, declared_length
from data_prep.recipe import Outcome, Recipe, UnusableVideo

Track = Callable[[Frame], tuple[Any, int] | None]
"""Takes a frame. Returns the stored frame and its timestamp for ``StreamWriter.write``, or None."""


def _copy_track(recipe: Recipe) -> Track:
    return lambda frame: (frame.stored, frame.pts)


def _flow_track(recipe: Recipe) -> Track:
    """Flow between neighbouring frames, with the timestamp of the first one: N frames give N - 1 flows."""
    estimate = create_flow(recipe)
    previous: Frame | None = None

    def track(frame: Frame) -> tuple[Any, int] | None:
        nonlocal previous
        first, previous = previous, frame
        if first is None:
            return None
        return quantise_flow(estimate(first, frame)), first.pts

    return track


def _depth_track(recipe: Recipe) -> Track:
    estimate = create_depth(recipe)
    return lambda frame: (estimate(frame), frame.pts)


@dataclass(frozen=True)
class Derived:
    """A stream that is estimated from another modality."""

    sources: tuple[str, ...]
    """Modalities that it can be estimated from, the best one first."""
    create: Callable[[Recipe], Track]
    """Creates the track of one video, in the worker."""
    check: Callable[[Recipe], None]
    """Raises a ``UserError`` if the method of the recipe cannot run here. Called before any work starts."""
    check_source: Callable[[Recipe, str], None]
    """Raises a ``UserError`` if the method of the recipe cannot use this modality. It takes no time."""


DERIVED: dict[str, Derived] = {
    "flow": Derived(("rgb", "depth"), _flow_track, check_flow, check_flow_source),
    "depth": Derived(("rgb",), _depth_track, check_depth, check_depth_source),
}


def source_of(stream: str, inputs: Mapping[str, object]) -> str:
    """Choose the input (a key) that a stream is made from: the same modality, or else the best one for an estimate.

    Raise a ``UserError`` if the stream cannot be made from these inputs.

    Example:
        >>> source_of("flow", {"rgb": "a.avi", "depth": "a.mat"})
        'rgb'
    """
    candidates = (stream, *(DERIVED[stream].sources if stream in DERIVED else ()))
    for candidate in candidates:
        if candidate in inputs:
            return candidate
    needs, given = " or ".join(candidates), ", ".join(inputs) or "nothing"
    message = f"the stream {stream!r} cannot be made: it needs {needs}, and there is only {given}"
    raise UserError(f"{message}: remove {stream} from --modalities")


def check_source(stream: str, inputs: Mapping[str, object], recipe: Recipe) -> None:
    """Raise a ``UserError`` if a stream cannot be made from these inputs, or not with the method of the recipe."""
    source = source_of(stream, inputs)
    if source != stream:
        DERIVED[stream].check_source(recipe, source)


def transcode(inputs: Mapping[str, Input], stream_paths: Mapping[str, str], *, root: Path, recipe: Recipe) -> Outcome:
    """Write the streams of one video. Damage of the source is no exception but a ``repaired`` or ``skipped`` outcome.

    Args:
        inputs: Modality to its source. A ``UserError`` is raised if they do not suffice for a stream.
        stream_paths: Stream to make, to its path below ``root``.
        root: Folder of the prepared dataset.
        recipe: How streams are made.
    """
    for stream in stream_paths:
        check_source(stream, inputs, recipe)
    cv2.setNumThreads(1)  # videos are prepared in parallel, and flow depends on the number of threads
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
    """Make the streams that come from one input; return them and the damage of the source (empty if it is intact)."""
    path = Path(source.path)
    _check_is_file(path)
    streams: dict[str, Stream] = {}
    damage = ""
    keeps_original = recipe.keep_original and get_stream_format(modality).is_any_video
    if keeps_original and modality in stream_paths:
        streams[modality], damage = _index_original(path, recipe)
        stream_paths = {name: stream_path for name, stream_path in stream_paths.items() if name != modality}
    if not stream_paths:
        return streams, damage
    targets = {name: root / stream_path for name, stream_path in stream_paths.items()}
    damage = _write_streams(modality, source, targets, recipe, starts_at_zero=not keeps_original)
    for name, target in targets.items():
        streams[name] = index_video(target, relative_to=root, stream_format=get_stream_format(name))
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
    """Index the source file as a stream, which decodes it whole; return the stream and the damage (empty if intact)."""
    source = path.resolve()
    try:
        stream, damage = index_any_video(source, relative_to=Path("/"))
    except UnreadableVideoError as error:
        raise UnusableVideo(f"unreadable: {str(error).removeprefix(f'{source}: ')}") from error
    times = stream.times_seconds
    damage = _add_shortfall(path, damage, len(times), _covered_seconds(times[0], times[-1], len(times)))
    if stream.num_frames < recipe.min_frames:
        raise UnusableVideo(_reason_of_shortage(damage, stream.num_frames, recipe.min_frames))
    return stream.at(str(source)), damage


def _covered_seconds(first_seconds: float, last_seconds: float, num_frames: int) -> float:
    """Time from the first frame to the end of the last frame, which is shown for the average time of the others."""
    return float(last_seconds - first_seconds) * num_frames / max(1, num_frames - 1)


def _write_streams(
    modality: str, source: Input, targets: dict[str, Path], recipe: Recipe, *, starts_at_zero: bool
) -> str:
    """Write everything of one input that can be read; return the damage of the source (empty if it is intact).

    Streams cannot hold negative times. With ``starts_at_zero``, all times are shifted so that the video starts at 0.
    Otherwise frames before 0 are omitted, so that the times stay those of the original beside it.
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
                if not writers:  # the time base is known from the first frame on
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
            # The frames before the damage are kept, unless they are too few.
            damage = str(error).removeprefix(f"{path}: ")
        covered = _covered_seconds(first_seconds, last_seconds, num_frames)
        damage = _add_shortfall(path, damage, num_frames, covered)
        # Raise inside the block, so that the writers remove their files.
        if num_frames < recipe.min_frames:
            raise UnusableVideo(_reason_of_shortage(damage, num_frames, recipe.min_frames))
    return damage


def _add_shortfall(path: Path, damage: str, num_frames: int, seconds: float) -> str:
    """Add to the damage of a source how much of it was read. The result is empty if the source is intact."""
    # Decoders take a file that was cut between two frames for a shorter one. Only its header reveals the cut.
    declared = declared_length(path)
    shortfall = declared.shortfall(num_frames, seconds)
    if not damage:
        return f"ends early: {shortfall}" if shortfall else ""
    read = shortfall or f"{num_frames} of {declared.num_frames or 'an unknown number of'} frames"
    return f"{damage}{', ' if ': ' in damage else ': '}{read}"


def _reason_of_shortage(damage: str, num_frames: int, min_frames: int) -> str:
    if damage:
        return f"unreadable: {damage if num_frames else damage.split(': ', 1)[0]}"
    return f"too short: {num_frames} frames, fewer than {min_frames}" if num_frames else "unreadable: holds no frame"
