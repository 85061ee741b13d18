"""Read clips of one video: centre time -> frame positions -> decoded pictures -> cropped and resized clips.

Shapes: T frames, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossdistill.data.decode import read_pictures
from crossdistill.data.decoded import DecodedVideos
from crossdistill.data.decoders import DEFAULT_DECODER
from crossdistill.data.manifest import Stream
from crossdistill.data.pictures import shrink_for
from crossdistill.data.sampling import Loop, centre_range_seconds, clip_frames, video_loop
from crossdistill.data.streams import Picture
from crossdistill.data.transforms import Crop, CutClip, cut_view
from crossdistill.types import ViewSpec

_Source = tuple[str, int]
"""Name of a stream, and by how much its pictures are reduced."""


class ClipChange(Protocol):
    """A change of the clips of one video before they are cropped, such as a perturbation."""

    def steps(self, clip: int, num_frames: int) -> NDArray[np.float64] | None:
        """Return the moments [T] of the frames of the video's n-th clip, as ``clip_frames`` takes them, or None."""
        ...

    def pictures(self, clip: int, frames: Sequence[Picture]) -> Sequence[Picture]:
        """Change the decoded frames, T arrays [H, W, C], of the video's n-th clip."""
        ...


@dataclass(frozen=True)
class ClipReader:
    """Clips of one video, as one or several encoders see the same moment."""

    root: Path
    """Folder of the prepared dataset."""
    streams: Mapping[str, Stream]
    """Stream name to entry of the manifest, for example ``video.streams``."""
    views: Sequence[ViewSpec]
    """Views to read. Each takes its frames from the stream that its modality names."""
    short_clips: str = "repeat"
    """What happens if a clip is longer than the video: one of ``SHORT_CLIPS``."""
    decoder: str = DEFAULT_DECODER
    """Decoding library: one of ``DECODERS``."""
    change: ClipChange | None = None
    """Change of every clip after decoding; None for clips as they are."""
    decoded: DecodedVideos | None = None
    """Videos that are kept in memory; None to decode every clip."""

    @cached_property
    def view_streams(self) -> list[Stream]:
        """Stream of each view."""
        return [self.streams[view.kind.stream] for view in self.views]

    @cached_property
    def _loop(self) -> Loop | None:
        return video_loop(self.view_streams, self.views) if self.short_clips == "loop" else None

    @cached_property
    def centre_range_seconds(self) -> tuple[float, float]:
        """Earliest and latest centre of a clip; both are the same time if the video is too short."""
        if self._loop is not None:
            return self._loop.centre_seconds, self._loop.centre_seconds
        return centre_range_seconds(self.view_streams, self.views)

    @property
    def picture_size_px(self) -> tuple[int, int]:
        """(width, height) that crops refer to: those of the first view that is a picture."""
        pairs = zip(self.view_streams, self.views, strict=True)
        stream = next((stream for stream, view in pairs if view.kind.is_picture), self.view_streams[0])
        return stream.width_px, stream.height_px

    def spread_centres(self, num_clips: int) -> list[float]:
        """Spread centres evenly from the first clip that fits to the last, in seconds; one clip is in the middle."""
        earliest, latest = self.centre_range_seconds
        if num_clips == 1:
            return [(earliest + latest) / 2]
        return [float(centre) for centre in np.linspace(earliest, latest, num_clips)]

    def frames(self, position: int, centre_seconds: float, *, number: int = 0) -> list[int]:
        """Return the frame positions in its stream of the video's n-th clip, for the view ``views[position]``."""
        stream, view = self.view_streams[position], self.views[position]
        steps = None if self.change is None else self.change.steps(number, view.num_frames)
        return clip_frames(stream, view, centre_seconds, loop=self._loop, steps=steps).tolist()

    def read(self, centres_seconds: Sequence[float], crops: Sequence[Sequence[Crop]]) -> list[list[CutClip]]:
        """Read the clips around some centres and cut each with every crop of its view; errors as in ``read_pictures``.

        Args:
            centres_seconds: Times in the middle of the clips.
            crops: For each view its crops. A view without crops is not decoded.

        Returns:
            For each view ``len(centres_seconds) * len(crops)`` clips: all crops of the first clip, then of the second.
        """
        return self.plan(centres_seconds, crops).read()

    def plan(self, centres_seconds: Sequence[float], crops: Sequence[Sequence[Crop]]) -> ReadingPlan:
        """Choose the frames of ``read`` before anything is decoded."""
        frames: dict[_Source, list[int]] = {}
        sources: list[_Source] = []
        for position, (view, of_view) in enumerate(zip(self.views, crops, strict=True)):
            source = view.kind.stream, self._shrink(position, of_view)
            sources.append(source)
            if of_view:
                for number, centre_seconds in enumerate(centres_seconds):
                    frames.setdefault(source, []).extend(self.frames(position, centre_seconds, number=number))
        return ReadingPlan(self, len(centres_seconds), crops, sources, frames)

    def _shrink(self, position: int, crops: Sequence[Crop]) -> int:
        """By how much a still picture may be reduced before it is cut for a view: no crop is then enlarged by that.

        It depends on this view alone, so that what the student sees is the same with and without a teacher beside it.
        """
        stream, size_px = self.view_streams[position], self.views[position].size_px
        if stream.is_video or not crops or self.change is not None:
            return 1
        sides_px = (min(crop.width * stream.width_px, crop.height * stream.height_px) for crop in crops)
        return shrink_for(min(sides_px), size_px)


@dataclass(frozen=True)
class ReadingPlan:
    """What a ``ClipReader`` will decode and cut."""

    reader: ClipReader
    num_clips: int
    crops: Sequence[Sequence[Crop]]
    """For each view its crops."""
    sources: Sequence[_Source]
    """For each view where its frames come from."""
    frames: Mapping[_Source, Sequence[int]]
    """Positions of all frames of each source, view after view and clip after clip."""

    def read(self) -> list[list[CutClip]]:
        """Decode and cut; returns and errors as in ``ClipReader.read``."""
        reader = self.reader
        decode = read_pictures if reader.decoded is None else reader.decoded.read_pictures
        # One call per stream: clips and views that overlap share the decoded frames.
        root, decoder = reader.root, reader.decoder
        pictures = {
            (name, shrink): iter(
                decode(root, reader.streams[name], frames, stream_name=name, decoder=decoder, shrink=shrink)
            )
            for (name, shrink), frames in self.frames.items()
        }
        cuts: list[list[CutClip]] = []
        for view, of_view, source in zip(reader.views, self.crops, self.sources, strict=True):
            cuts.append([])
            for number in range(self.num_clips if of_view else 0):
                clip: Sequence[Picture] = list(islice(pictures[source], view.num_frames))
                if reader.change is not None:
                    clip = reader.change.pictures(number, clip)
                cuts[-1] += [cut_view(clip, crop, modality=view.kind, size_px=view.size_px) for crop in of_view]
        return cuts
