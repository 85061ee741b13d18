"""Small video files for tests, and a slow, simple reader as a reference."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def texture(height: int, width: int, *, seed: int = 0, grain_px: float = 1.5) -> Frames:
    """Make a random colour texture [H, W, 3] that is smooth enough to be tracked and that wraps around."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    tiled = cv2.GaussianBlur(np.tile(noise, (3, 3, 1)), (0, 0), grain_px)[height : 2 * height, width : 2 * width]
    return np.clip(128 + tiled * (50 / tiled.std()), 0, 255).astype(np.uint8)


def moving_frames(num_frames: int, *, height: int = 48, width: int = 64, step_xy=(1, 0), seed: int = 0) -> Frames:
    """Make [T, H, W, 3]: a texture that moves by ``step_xy`` pixels per frame and wraps around."""
    base = texture(height, width, seed=seed)
    return np.stack([np.roll(base, (t * step_xy[1], t * step_xy[0]), axis=(0, 1)) for t in range(num_frames)])


def write_video(
    path: Path,
    frames: Frames,
    *,
    codec: str = "mpeg4",
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    options: dict[str, str] | None = None,
) -> Path:
    """Write frames [T, H, W, 3] with a codec and its options, at given timestamps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = i if pts is None else pts[i], time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def mark_rotated(path: Path) -> None:
    """Mark an .mp4 file to be shown rotated by 90 degrees clockwise, as upright phones do."""
    set_display_matrix(path, 0, 1, -1, 0)


def set_display_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Let players show pixel (x, y) of an .mp4 file at (a x + c y, b x + d y)."""
    data = bytearray(path.read_bytes())
    one = 0x10000
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def break_packet(path: Path, position: int) -> Path:
    """Overwrite the n-th packet of a file, so that it cannot be decoded."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][position]
        start, size = packet.pos, packet.size
    assert start is not None
    data = bytearray(path.read_bytes())
    data[start : start + size] = size * b"\xff"
    path.write_bytes(data)
    return path


def join_files(path: Path, parts: Sequence[Path]) -> Path:
    """Join files byte by byte, which transport streams allow."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def bomb(path: Path, *, side_px: int, says_px: int = 64) -> Path:
    """A file of 10 PNG pictures, whose container declares another size than the pictures have."""
    width = height = side_px

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(height * (1 + -(-width // 8))))
    picture = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with av.open(str(path), "w") as container:
        video = container.add_stream("png", rate=25)
        video.width, video.height, video.pix_fmt, video.time_base = says_px, says_px, "gray", Fraction(1, 25)
        for pts in range(10):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = video, pts, pts, True
            container.mux(packet)
    return path


def truncate(path: Path, share: float) -> Path:
    """Shorten a file to a share of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def decode_everything(path: Path, wanted: set[int] | None = None) -> tuple[list[int | None], dict[int, Frames]]:
    """Decode a file from start to end without seeking; return raw timestamps, and pictures by position."""
    pts: list[int | None] = []
    pictures = {}
    with av.open(str(path)) as container:
        for position, frame in enumerate(container.decode(video=0)):
            pts.append(frame.pts)
            if wanted is None or position in wanted:
                upright = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
                pictures[position] = upright
    return pts, pictures
