"""Compression by real encoders: JPEG for each frame, H.264 and MPEG-2 for the frames of the clip as one video.

Shapes: T frames, H height, W width.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import cv2
import numpy as np

from crossdistill.evaluation.perturbations.clip import Clip

FRAME_RATE = 25  # MPEG-2 allows only a few


def jpeg(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Compress every frame by libjpeg; ``strength`` is the quality, of which 100 is the best."""
    return np.stack([_jpeg_frame(frame, round(strength)) for frame in clip_thwc])


def h264(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Compress the clip by x264; ``strength`` is the constant rate factor, of which 51 is the worst."""
    # One thread, and no mbtree, whose result varies from run to run for small pictures.
    options = {"crf": f"{strength:g}", "preset": "medium", "x264-params": "threads=1:mbtree=0"}
    return _through(clip_thwc, "libx264", options)


def mpeg2(clip_thwc: Clip, strength: float, generator: np.random.Generator) -> Clip:
    """Compress the clip by FFmpeg's MPEG-2 encoder; ``strength`` is the fixed quantiser, of which 31 is the worst."""
    return _through(clip_thwc, "mpeg2video", {"qmin": f"{strength:g}", "qmax": f"{strength:g}"})


def _jpeg_frame(frame_hwc: Clip, quality: int) -> Clip:
    _, coded = cv2.imencode(".jpg", frame_hwc[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None, "it was encoded just now"
    return decoded[..., ::-1].astype(np.uint8, copy=False)


def _through(clip_thwc: Clip, codec: str, options: dict[str, str]) -> Clip:
    """Encode the frames as one video in memory, and decode it."""
    _, height, width, _ = clip_thwc.shape
    # Both codecs need even sides: odd ones repeat their last row or column.
    padded_thwc = np.pad(clip_thwc, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, mode="w", format="matroska") as writer:
        stream = writer.add_stream(codec, rate=FRAME_RATE, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = padded_thwc.shape[1:3]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, FRAME_RATE)
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(padded_thwc):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FRAME_RATE)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
    file.seek(0)
    with av.open(file, mode="r") as reader:
        decoded: Clip = np.stack([frame.to_ndarray(format="rgb24") for frame in reader.decode(video=0)])
    assert len(decoded) == len(clip_thwc), f"{codec} returned {len(decoded)} of {len(clip_thwc)} frames"
    return decoded[:, :height, :width]
