"""Decode clips with torchcodec, which needs FFmpeg's shared libraries on the machine."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

import av
import numpy as np

from crossdistill.data.decoders import CannotServeError, arrange, require_exact, require_plain
from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture, StreamFormat

TEST_SIDE_PX = 64


def check(device: str = "cpu") -> None:
    """Decode one frame; without FFmpeg's libraries the import or this first use raises RuntimeError or OSError."""
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(_one_frame_file(), dimension_order="NHWC", device=device, custom_frame_mappings=None)
    except TypeError as error:
        raise RuntimeError("torchcodec is older than 0.7, which takes no timestamps") from error
    shape = tuple(decoder.get_frame_at(0).data.shape)
    if shape != (TEST_SIDE_PX, TEST_SIDE_PX, 3):
        raise RuntimeError(f"it decodes a frame of {TEST_SIDE_PX}x{TEST_SIDE_PX} to {shape}")


def _one_frame_file() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width = video.height = TEST_SIDE_PX
        video.pix_fmt = "yuv420p"
        gray = np.full((TEST_SIDE_PX, TEST_SIDE_PX, 3), 128, dtype=np.uint8)
        container.mux(video.encode(av.VideoFrame.from_ndarray(gray, format="rgb24")))
        container.mux(video.encode())
    return file.getvalue()


def frame_mappings(stream: Stream) -> str:
    """Return timestamps and keyframes of the manifest as torchcodec takes them, so that it does not scan the file.

    A frame is found by its timestamp and shown until the next one. The last is shown as long as the one before.
    """
    steps = np.diff(stream.pts)
    durations = np.append(steps, steps[-1] if len(steps) else 1)
    is_key = np.zeros(stream.num_frames, dtype=np.int64)
    is_key[stream.keyframes] = 1
    rows = zip(stream.pts.tolist(), durations.tolist(), is_key.tolist(), strict=True)
    frames = [{"pts": pts, "duration": duration, "key_frame": key} for pts, duration, key in rows]
    return json.dumps({"frames": frames})


def read_pictures(
    source: FileRange, stream: Stream, frames: Sequence[int], stream_format: StreamFormat, *, device: str = "cpu"
) -> list[Picture]:
    """Read T frames [H, W, C] by position in ``stream.pts``; torchcodec applies the rotation.

    ``device`` decodes. The pictures are in the memory of the CPU in any case.
    """
    from torchcodec.decoders import VideoDecoder

    require_plain(stream)
    wanted = sorted(set(frames))
    try:
        decoder = VideoDecoder(
            source.url,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            custom_frame_mappings=frame_mappings(stream),
            device=device,
        )
        batch = decoder.get_frames_at(wanted)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise CannotServeError("it fails on the file") from error
    # Its own number of frames is the header's, which may be wrong; the timestamps of the decoded frames tell.
    require_exact(stream, num_frames=stream.num_frames, frames=wanted, times_seconds=batch.pts_seconds.cpu().numpy())
    return arrange(batch.data.cpu().numpy(), wanted=wanted, frames=frames, stream=stream, stream_format=stream_format)
