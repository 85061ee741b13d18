"""A camera as short video files, one after the other: what reads files then reads cameras too."""

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

MILLISECOND = Fraction(1, 1000)
STORED_AS = "rgb"


@contextmanager
def open_camera(index: int, *, capture: Callable[[int], Any] = cv2.VideoCapture) -> Iterator[Any]:
    """Open a camera by its number and close it afterwards.

    Args:
        index: 0 is the first.
        capture: Opens it; OpenCV's, or one that looks like it.

    Raises:
        UserError: It cannot be opened.
    """
    # Its warnings about each way to open a camera say less than the one sentence below.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    device = capture(index)
    try:
        if not device.isOpened():
            raise UserError(f"camera {index} cannot be opened: check that it is there and that no other program has it")
        yield device
    finally:
        device.release()


def record(device: Any, path: Path, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> int:
    """Write what a camera shows for a while as a video file with the times at which frames came.

    Args:
        device: As ``open_camera`` gives it.
        path: The file, which is there afterwards unless no frame came.
        seconds: How long.
        clock: In seconds.

    Returns:
        How many frames were written; fewer than expected where the camera was unplugged.
    """
    started, previous_ms, num_frames = clock(), -1, 0
    with StreamWriter(path, get_stream_format(STORED_AS), time_base=MILLISECOND) as writer:
        while (elapsed := clock() - started) < seconds:
            is_read, picture = device.read()
            if not is_read:
                break
            height, width = (side // 2 * 2 for side in picture.shape[:2])  # H.264 takes even sides
            previous_ms = max(round(1000 * elapsed), previous_ms + 1)
            writer.write(cv2.cvtColor(picture[:height, :width], cv2.COLOR_BGR2RGB), previous_ms)
            num_frames += 1
    return num_frames


def recordings(device: Any, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[Path]:
    """Record again and again; each file is removed when the next is asked for. Ends when the camera gives no frame."""
    with tempfile.TemporaryDirectory(prefix="crossdistill-") as folder:
        path = Path(folder, "camera.mp4")
        while record(device, path, seconds=seconds, clock=clock):
            yield path
            path.unlink(missing_ok=True)
