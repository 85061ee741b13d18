"""A camera as a series of short video files, so that code that reads files reads cameras too."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2

from crossdistill.data.streams import StreamWriter, get_stream_format
from crossdistill.errors import UserError


@contextmanager
def open_camera(index: int, *, capture: Callable[[int], Any] = cv2.VideoCapture) -> Iterator[Any]:
    """Open the camera with a number from 0, or raise a ``UserError``; close it after the block."""
    # OpenCV warns about each backend that it tries. The one sentence below says all.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    device = capture(index)
    try:
        if not device.isOpened():
            raise UserError(f"camera {index} cannot be opened: connect it, and close other programs that use it")
        yield device
    finally:
        device.release()


def record(device: Any, path: Path, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> int:
    """Record an opened camera as a video file, whose frames get the times at which they arrived.

    Return the number of frames, which is smaller than expected if the camera was unplugged. Without a frame there is no
    file.
    """
    started, previous_ms, num_frames = clock(), -1, 0
    with StreamWriter(path, get_stream_format("rgb"), time_base=Fraction(1, 1000)) as writer:
        while (elapsed := clock() - started) < seconds:
            is_read, picture = device.read()
            if not is_read:
                break
            height, width = (side // 2 * 2 for side in picture.shape[:2])  # H.264 needs even sides
            previous_ms = max(round(1000 * elapsed), previous_ms + 1)  # timestamps must rise
            writer.write(cv2.cvtColor(picture[:height, :width], cv2.COLOR_BGR2RGB), previous_ms)
            num_frames += 1
    return num_frames


def recordings(device: Any, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[Path]:
    """Yield recordings until the camera gives no more frames; each file is removed when the next is requested."""
    with tempfile.TemporaryDirectory(prefix="crossdistill-") as folder:
        path = Path(folder, "camera.mp4")
        while record(device, path, seconds=seconds, clock=clock):
            yield path
            path.unlink(missing_ok=True)
