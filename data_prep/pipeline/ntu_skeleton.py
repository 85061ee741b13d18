"""The ``.skeleton`` files of NTU RGB+D: text, the joints of every body in every frame of a Kinect 2.

A file is the number of frames; for each frame the number of bodies; for each body a line that begins with its identity,
the number of joints (25), and a line for each joint that begins with x, y and z in metres.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdistill.errors import UnreadableVideoError

SUFFIX = ".skeleton"
NUM_KINECT2_JOINTS = 25
# The joints of a Kinect 1 in its order: head, neck, spine, hip, left arm, right arm, left leg, right leg. The middle of
# the shoulders is what a Kinect 1 calls neck. A Kinect 2 has thumbs and tips of hands in addition.
KINECT1_JOINTS = (3, 20, 1, 0, *range(4, 20))

# The thresholds are those of the code of CTR-GCN (``get_raw_denoised_data.py``), which most work on NTU RGB+D uses.
LONGEST_NOISE_FRAMES = 11
WIDE = 0.8
"""Width of a body, as a share of its height, above which a frame looks like furniture."""
SHARE_OF_WIDE_FRAMES = 0.69754
MAX_BODIES = 2

Bodies = dict[str, NDArray[np.float64]]
"""Identity of each body of one frame to its joints [25, 3] in metres."""
Track = dict[int, NDArray[np.float64]]
"""Number of each frame in which a body is to its joints [25, 3] in metres."""


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


def main_bodies(path: Path) -> NDArray[np.float64]:
    """Return the joints [20, 3, T, M] in metres of one or two bodies, with the joints of a Kinect 1.

    Bodies that look like noise are left out if others are left: those in 11 frames or fewer, then those that are wider
    than 0.8 of their height in most frames (furniture). Of the others, the one that moves most is first. A body without
    a frame in common with it is the same person, whom the Kinect lost and found again; another one is the second
    person. In frames without a person, the person stays where it was; before its first frame, where it will be.

    Raises:
        UnreadableVideoError: The file is damaged, or no frame has a body.
    """
    frames = read_bodies(path)
    tracks: dict[str, Track] = {}
    for number, bodies in enumerate(frames):
        for identity, joints in bodies.items():
            tracks.setdefault(identity, {})[number] = joints
    if not tracks:
        raise UnreadableVideoError(f"{path}: has no body in any of its {len(frames)} frames")
    people: list[Track] = []
    for track in sorted(_without_noise(list(tracks.values())), key=_motion, reverse=True):
        same = next((person for person in people if person.keys().isdisjoint(track)), None)
        if same is not None:
            same.update(track)
        elif len(people) < MAX_BODIES:
            people.append(dict(track))
    return np.stack([_in_all_frames(person, len(frames)) for person in people], axis=3)


def _without_noise(tracks: Sequence[Track]) -> Sequence[Track]:
    """Leave out short tracks, then wide ones, unless none would be left."""
    tracks = [track for track in tracks if len(track) > LONGEST_NOISE_FRAMES] or tracks
    return [t for t in tracks if _is_wide(t).mean() < SHARE_OF_WIDE_FRAMES] or tracks


def _is_wide(track: Track) -> NDArray[np.bool_]:
    """Return for each frame of a track whether the body is wide for its height."""
    width, height = np.ptp(np.stack(list(track.values())), axis=1)[:, :2].T
    return np.asarray(width > WIDE * height)


def _motion(track: Track) -> float:
    """Sum the variances of x, y and z over joints and frames; those that are not wide if that is less."""
    joints = np.stack(list(track.values()))
    parts = [part.reshape(-1, 3) for part in (joints, joints[~_is_wide(track)]) if len(part)]
    return float(min(part.var(axis=0).sum() for part in parts))


def _in_all_frames(person: Track, num_frames: int) -> NDArray[np.float64]:
    """Return the joints [20, 3, T] of a Kinect 1 in every frame."""
    current, found = person[min(person)], []
    for number in range(num_frames):
        current = person.get(number, current)
        found.append(current[list(KINECT1_JOINTS)])
    return np.stack(found, axis=2)
