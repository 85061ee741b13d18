"""The ``.skeleton`` files of NTU RGB+D: text, the joints of every body in every frame of a Kinect 2.

A file is the number of frames; for each frame the number of bodies; for each body a line that begins with its identity,
the number of joints (25), and a line for each joint that begins with x, y and z in metres.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import UnreadableVideoError

SUFFIX = ".skeleton"
NUM_KINECT2_JOINTS = 25
# The joints of a Kinect 1 in its order: head, neck, spine, hip, left arm, right arm, left leg, right leg. The middle of
# the shoulders is what a Kinect 1 calls neck. A Kinect 2 has thumbs and tips of hands in addition.
KINECT1_JOINTS = (3, 20, 1, 0, *range(4, 20))

Bodies = dict[str, NDArray[np.float64]]
"""Identity of each body of one frame to its joints [25, 3] in metres."""


def read_bodies(path: Path) -> list[Bodies]:
    """Read the bodies of every frame; raise ``UnreadableVideoError`` for a damaged file."""
    try:
        lines = iter(path.read_text(encoding="ascii").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableVideoError(f"{path}: cannot be read ({error})") from error
    try:
        return [_read_frame(lines) for _ in range(int(next(lines)))]
    except StopIteration as error:
        raise UnreadableVideoError(f"{path}: is cut short") from error
    except (ValueError, IndexError) as error:
        raise UnreadableVideoError(f"{path}: is damaged ({error})") from error


def _read_frame(lines: Iterator[str]) -> Bodies:
    bodies: Bodies = {}
    for _ in range(int(next(lines))):
        identity, num_joints = next(lines).split()[0], int(next(lines))
        if num_joints != NUM_KINECT2_JOINTS:
            raise ValueError(f"a body has {num_joints} joints instead of {NUM_KINECT2_JOINTS}")
        rows = [next(lines).split()[:3] for _ in range(num_joints)]
        joints = np.asarray([[float(value) for value in row] for row in rows])
        if joints.shape != (num_joints, 3) or not np.isfinite(joints).all():
            raise ValueError("a joint has no position")
        bodies[identity] = joints
    return bodies


def main_body(path: Path) -> NDArray[np.float64]:
    """Return the joints [20, 3, T] in metres of the body that is in most frames, with the joints of a Kinect 1.

    Of equally frequent bodies it is the one that appears first. In frames without it, it stays where it was; before its
    first frame, where it will be.

    Raises:
        UnreadableVideoError: The file is damaged, or no frame has a body.
    """
    frames = read_bodies(path)
    counts = Counter(identity for bodies in frames for identity in bodies)
    if not counts:
        raise UnreadableVideoError(f"{path}: has no body in any of its {len(frames)} frames")
    identity = counts.most_common(1)[0][0]
    current = next(bodies[identity] for bodies in frames if identity in bodies)
    found = []
    for bodies in frames:
        current = bodies.get(identity, current)
        found.append(current[list(KINECT1_JOINTS)])
    return np.stack(found, axis=2)
