"""Segments of long videos: the videos to prepare, and the frames of each segment. No file is cut.

A long video is prepared once, as one file for each stream. A segment is an entry of the manifest with its frames alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from crossdistill.data.manifest import Stream
from crossdistill.errors import UserError
from data_prep.pipeline.tasks import Segment, SourceVideo
from data_prep.recipe import Outcome


def sources_to_prepare(sources: Sequence[SourceVideo]) -> Sequence[SourceVideo]:
    """Return the sources with each long video once in place of its segments.

    Raises:
        UserError: A segment ends before it starts.
    """
    if all(source.segment is None for source in sources):
        return sources
    found: dict[str, SourceVideo] = {}
    for source in sources:
        if source.segment is not None:
            _check(source.name, source.segment)
        whole = dataclasses.replace(source, name=source.prepared_as, label=None, splits={}, segment=None)
        found.setdefault(whole.name, whole)
    return list(found.values())


def segments_of(prepared: Sequence[SourceVideo], sources: Sequence[SourceVideo]) -> list[int]:
    """Return the positions of the sources that the prepared videos hold: their segments, or the videos themselves."""
    names = {video.name for video in prepared}
    return [i for i, source in enumerate(sources) if source.prepared_as in names]


def _check(name: str, segment: Segment) -> None:
    if not 0 <= segment.start_seconds < segment.stop_seconds:
        raise UserError(
            f"the segment {name} is from {segment.start_seconds:g} s to {segment.stop_seconds:g} s of {segment.video}: "
            "give a start of 0 or more and a later stop"
        )


def cut(whole: Outcome, segment: Segment, *, min_frames: int) -> Outcome:
    """Return the outcome of a segment, from that of its long video.

    A segment that begins after its video's end, or has too few frames, is ``skipped``. One that ends later than its
    video is ``repaired``: it has the frames that there are.
    """
    if not whole.streams:
        return whole
    frame_seconds = max(map(_mean_frame_seconds, whole.streams.values()))
    end_seconds = max(float(s.times_seconds[-1]) + _mean_frame_seconds(s) for s in whole.streams.values())
    place = f"the segment is from {segment.start_seconds:g} s to {segment.stop_seconds:g} s"
    missing = f"{place}, and {segment.video} ends after {end_seconds:.2f} s"
    if segment.start_seconds >= end_seconds:
        return Outcome("skipped", f"outside its video: {missing}")
    parts = {n: s.segment(segment.start_seconds, segment.stop_seconds) for n, s in whole.streams.items()}
    num_frames = max(part.num_frames for part in parts.values())
    if num_frames < min_frames or not all(part.num_frames for part in parts.values()):
        return Outcome("skipped", f"too short: {num_frames} frames, fewer than {min_frames}")
    # Lists round, and a video's last frame is shown for a while: one frame is no damage.
    if segment.stop_seconds <= end_seconds + frame_seconds:
        return dataclasses.replace(whole, streams=parts)
    reason = "; ".join(filter(None, [whole.reason, f"ends early: {missing}"]))
    return Outcome("repaired", reason, parts)


def _mean_frame_seconds(stream: Stream) -> float:
    times = stream.times_seconds
    return float(times[-1] - times[0]) / max(1, len(times) - 1)
