"""Frames of a stream, a video or a camera, and the clips that end with each new one.

Shapes: T frames of a clip, H height, W width.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2

from crossdistill.data.sequential import PictureReader, decode_frames
from crossdistill.data.streams import Picture

T = TypeVar("T")
FRAMES_AHEAD = 8
"""Frames that are decoded while the network runs."""


@dataclass(frozen=True)
class Frame:
    """A frame of a stream. Its picture [H, W, 3] is made on demand, because clips do not need every frame."""

    seconds: float
    picture: Callable[[], Picture]


def video_frames(path: Path) -> Iterator[Frame]:
    """Yield the frames of a colour video. After the last one, raise an ``UnreadableVideoError`` if it is damaged."""
    reader = PictureReader("rgb24")
    for pts, time_base, frame in decode_frames(path, num_threads=1):
        yield Frame(float(pts * time_base), functools.partial(reader.read, frame))


def camera_frames(device: Any, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Frame]:
    """Yield the frames of an opened camera, with the times since the first, until it gives no more."""
    started = None
    while True:
        is_read, picture = device.read()
        if not is_read:
            return
        now = clock()
        started = now if started is None else started
        yield Frame(now - started, functools.partial(cv2.cvtColor, picture, cv2.COLOR_BGR2RGB))


def read_ahead(frames: Iterator[T]) -> Iterator[T]:
    """Yield what an iterator yields, which runs in a thread of its own."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        end = object()
        waiting = deque(pool.submit(next, frames, end) for _ in range(FRAMES_AHEAD))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, frames, end))
            yield item  # type: ignore[misc]


class ClipWindow(Generic[T]):
    """Keeps what clips need of the newest frames. A clip has T frames at a stride and ends with the newest.

    Args:
        num_frames: T.
        stride: Distance between two frames of a clip, in frames of the stream.
        every: Distance between the ends of two clips, in frames of the stream.

    Example:
        >>> window = ClipWindow(num_frames=3, stride=2, every=4)
        >>> [(n, clip) for n in range(10) if window.wants(n) and (clip := window.push(n, f"frame {n}"))]
        [(4, ['frame 0', 'frame 2', 'frame 4']), (8, ['frame 4', 'frame 6', 'frame 8'])]
    """

    def __init__(self, *, num_frames: int, stride: int, every: int) -> None:
        self.every = every
        self.step = math.gcd(stride, every)  # distance between two frames that clips need
        self.first_end = (num_frames - 1) * stride
        self._item_stride = stride // self.step
        self._items: deque[T] = deque(maxlen=self.first_end // self.step + 1)

    def wants(self, position: int) -> bool:
        """Whether a clip needs the frame at a position of the stream."""
        return position % self.step == 0

    def push(self, position: int, item: T) -> list[T]:
        """Add what belongs to a wanted frame. Return the T items of the clip that ends with it; [] if none does."""
        self._items.append(item)
        is_end = position >= self.first_end and (position - self.first_end) % self.every == 0
        return list(self._items)[:: self._item_stride] if is_end else []
