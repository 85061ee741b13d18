"""Decode clips with torchcodec, which needs FFmpeg's shared libraries on the machine."""

from __future__ import annotations

import io
from collections.abc import Sequence

import av
import numpy as np

from crossdistill.data.decoders import CannotServeError, arrange, require_exact, require_plain
from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture, StreamFormat

TEST_SIDE_PX = 64


def check() -> None:
    """Decode one frame; without FFmpeg's libraries the import or this first use raises RuntimeError or OSError."""
    from torchcodec.decoders import VideoDecoder

    shape = tuple(VideoDecoder(_one_frame_file(), dimension_order="NHWC").get_frame_at(0).data.shape)
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


def read_pictures(
    source: FileRange, stream: Stream, frames: Sequence[int], stream_format: StreamFormat
) -> list[Picture]:
    """Read T frames [H, W, C] by position in ``stream.pts``; torchcodec applies the rotation."""
    from torchcodec.decoders import VideoDecoder

    require_plain(stream)
    wanted = sorted(set(frames))
    try:
        # "exact" scans the packets when the file is opened; "approximate" computes positions from the average rate.
        decoder = VideoDecoder(source.url, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        if len(decoder) != stream.num_frames:
            raise CannotServeError("its number of frames is not the number that can be decoded")
        batch = decoder.get_frames_at(wanted)
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        raise CannotServeError("it fails on the file") from error
    require_exact(stream, num_frames=len(decoder), frames=wanted, times_seconds=batch.pts_seconds.numpy())
    return arrange(batch.data.numpy(), wanted=wanted, frames=frames, stream=stream, stream_format=stream_format)
