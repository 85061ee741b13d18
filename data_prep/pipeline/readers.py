"""Readers: yield the frames of a source file or folder at the stored size.

A reader is a function of (path, recipe, frame rate) that yields frames in display order; ``READERS`` has one per
modality. It raises ``UnreadableVideoError`` for a source that it cannot read, or after the last frame before damage.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import scipy.io
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from crossdistill.data.containers import DECODE_ERRORS, Orientation, OrientationReader, open_video
from crossdistill.data.sequential import decode_frames
from crossdistill.data.streams import STREAM_FORMATS, Picture, quantise_joints
from crossdistill.errors import UnreadableVideoError
from data_prep.flow import FLOW_METHODS
from data_prep.frames import NO_VECTORS, ColourFrame, DepthFrame, Frame, JointsFrame, Motion, look_ahead
from data_prep.pipeline.ntu_skeleton import SUFFIX, main_bodies
from data_prep.recipe import Recipe, UnusableVideo

MIN_SIDE_PX = 16
"""Smallest side of a picture. Codecs and optical flow refuse much smaller ones."""
STORED_COLOUR = STREAM_FORMATS["rgb"].pixel_format
MATLAB_DEPTH_KEY = "d_depth"
MATLAB_JOINTS_KEY = "d_skel"
NUM_JOINTS = 20
"""Joints of a body that the Kinect 1 tracks."""
DEFAULT_FRAME_RATE = Fraction(30)
"""Frame rate of Kinect cameras."""
# Some intact files have a frame or two fewer than their header declares. A smaller share means that the end is missing.
INTACT_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Input:
    """The source of one modality of a video."""

    path: str
    frames_per_second: float | None = None
    """Frame rate of sources that do not store one: folders of pictures, arrays."""
    offset: int = 0
    """First byte of a picture in a tar shard."""
    num_bytes: int | None = None
    """Number of bytes of a picture in a tar shard; None for a whole file."""


Reader = Callable[[Path, Recipe, Fraction | None], Iterator[Frame]]


def target_size(width_px: int, height_px: int, short_side_px: int) -> tuple[int, int]:
    """Compute the stored width and height: both even, as H.264 needs, and never enlarged.

    Raise ``UnusableVideo`` if the picture is too small.

    Example:
        >>> target_size(1080, 1920, 256)
        (256, 456)
    """
    if min(width_px, height_px) < MIN_SIDE_PX:
        raise UnusableVideo(f"too small: {width_px}x{height_px} pixels")
    scale = min(1.0, short_side_px / min(width_px, height_px))
    if scale == 1.0:
        return width_px // 2 * 2, height_px // 2 * 2
    return round(width_px * scale / 2) * 2, round(height_px * scale / 2) * 2


def read_video(path: Path, recipe: Recipe, frame_rate: Fraction | None = None) -> Iterator[ColourFrame]:
    """Read a video file: upright frames in the colour format of the encoder, shrunk by area averaging.

    The size is that of the first frame. A stream has one size, so later frames of another size are resampled to it.
    ``frame_rate`` is not used, because a video file stores its timestamps.
    """
    wants_motion = FLOW_METHODS[recipe.flow].needs_motion_vectors
    frames = _upright_frames(path, recipe, wants_motion=wants_motion)
    return look_ahead(frames) if wants_motion else frames


def _upright_frames(path: Path, recipe: Recipe, *, wants_motion: bool) -> Iterator[ColourFrame]:
    converter, turner, orientations, size = VideoReformatter(), VideoReformatter(), OrientationReader(), None
    for pts, time_base, frame in decode_frames(path, num_threads=1, with_motion_vectors=wants_motion):
        orientation = orientations.read(frame)
        motion = _motion_vectors(frame, orientation) if wants_motion else None
        if not orientation.is_upright:
            picture: Picture = turner.reformat(frame, format="rgb24", threads=1).to_ndarray()
            upright = np.ascontiguousarray(orientation.apply(picture))
            frame = av.VideoFrame.from_ndarray(upright, format="rgb24")
        if size is None:
            size = target_size(frame.width, frame.height, recipe.short_side_px)
        if (frame.width, frame.height, frame.format.name) != (*size, STORED_COLOUR):
            frame = converter.reformat(frame, *size, STORED_COLOUR, interpolation=Interpolation.AREA, threads=1)
        yield ColourFrame(pts, time_base, frame, motion)


def _motion_vectors(frame: av.VideoFrame, orientation: Orientation) -> Motion:
    data = frame.side_data.get("MOTION_VECTORS")
    vectors = NO_VECTORS if data is None else data.to_ndarray()
    is_bidirectional = frame.pict_type in (PictureType.B, PictureType.BI)
    return Motion(vectors, frame.width, frame.height, orientation, is_bidirectional)


def read_depth(path: Path, recipe: Recipe, frame_rate: Fraction | None = None) -> Iterator[DepthFrame]:
    """Read the frames of a depth camera: a folder of 16-bit PNG files, a MATLAB array, or a 16-bit video."""
    read = _png_folder if path.is_dir() else _matlab_array if path.suffix.lower() == ".mat" else _gray16_video
    time_base = 1 / (frame_rate or DEFAULT_FRAME_RATE)
    size = None
    for pts, depth_mm in enumerate(read(path)):
        if size is None:
            size = target_size(depth_mm.shape[1], depth_mm.shape[0], recipe.short_side_px)
        if (depth_mm.shape[1], depth_mm.shape[0]) != size:
            # Nearest neighbour, because a mean is wrong: nothing is halfway between a body and the wall behind it,
            # and 0 means "not measured".
            depth_mm = np.asarray(cv2.resize(depth_mm, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint16)
        yield DepthFrame(pts, time_base, np.ascontiguousarray(depth_mm))


def _png_folder(folder: Path) -> Iterator[NDArray[np.uint16]]:
    paths = [path for path in folder.iterdir() if path.suffix.lower() == ".png" and path.name[0] != "."]
    for path in sorted(paths, key=_natural_order):
        try:
            picture = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
        except (OSError, cv2.error) as error:
            raise UnreadableVideoError(f"{folder}: {path.name} cannot be read ({error})") from error
        if picture is None or picture.dtype != np.uint16 or picture.ndim != 2:
            raise UnreadableVideoError(f"{folder}: {path.name} is not a 16-bit gray PNG")
        yield np.asarray(picture, dtype=np.uint16)


def _natural_order(path: Path) -> list[int | str]:
    """Sort key by the numbers in a name: 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _matlab_array(path: Path) -> Iterator[NDArray[np.uint16]]:
    """Read an array [H, W, T] with the key ``d_depth``, as UTD-MHAD publishes it."""
    array = _load_matlab(path, MATLAB_DEPTH_KEY)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.integer):
        raise UnreadableVideoError(f"{path}: {MATLAB_DEPTH_KEY!r} is {array.dtype} {array.shape}, not uint16 [H, W, T]")
    for t in range(array.shape[2]):
        yield np.ascontiguousarray(array[:, :, t]).astype(np.uint16)


def _load_matlab(path: Path, key: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = scipy.io.loadmat(path, variable_names=[key])[key]
    except KeyError as error:
        raise UnreadableVideoError(f"{path}: has no array {key!r}") from error
    except (OSError, ValueError, TypeError, NotImplementedError, MemoryError) as error:
        raise UnreadableVideoError(f"{path}: is no MATLAB file ({error})") from error
    except Exception as error:  # SciPy raises many more types on damaged files, such as zlib.error
        raise UnreadableVideoError(f"{path}: is damaged ({error})") from error
    return array


def _gray16_video(path: Path) -> Iterator[NDArray[np.uint16]]:
    for _, _, frame in decode_frames(path, num_threads=1):
        if not frame.format.name.startswith("gray1"):
            raise UnreadableVideoError(f"{path}: is {frame.format.name}, not 16-bit gray, so it is no depth")
        yield np.asarray(frame.to_ndarray(format="gray16le"), dtype=np.uint16)


def read_skeleton(path: Path, recipe: Recipe, frame_rate: Fraction | None = None) -> Iterator[JointsFrame]:
    """Read joints, a column for each body: a ``.skeleton`` file of NTU RGB+D, or a MATLAB array as in UTD-MHAD.

    The array is [20, 3, T] in metres with the key ``d_skel``, of one body.
    """
    if path.suffix.lower() == SUFFIX:
        joints_metres = main_bodies(path)
    else:
        joints_metres = _load_matlab(path, MATLAB_JOINTS_KEY)[..., None]
    shape = joints_metres.shape[:-1]
    if joints_metres.ndim != 4 or shape[:2] != (NUM_JOINTS, 3):
        raise UnreadableVideoError(f"{path}: {MATLAB_JOINTS_KEY!r} is {shape}, not [{NUM_JOINTS}, 3, T]")
    if not np.issubdtype(joints_metres.dtype, np.floating) or not np.isfinite(joints_metres).all():
        raise UnreadableVideoError(f"{path}: {MATLAB_JOINTS_KEY!r} holds positions that are no numbers of metres")
    time_base = 1 / (frame_rate or DEFAULT_FRAME_RATE)
    for pts, joints in enumerate(quantise_joints(joints_metres).transpose(2, 0, 3, 1)):
        yield JointsFrame(pts, time_base, np.ascontiguousarray(joints))


READERS: dict[str, Reader] = {"rgb": read_video, "depth": read_depth, "skeleton": read_skeleton}


@dataclass(frozen=True)
class DeclaredLength:
    """Length of a source according to its header."""

    num_frames: int = 0
    """0 if the header does not declare it."""
    seconds: float = 0.0
    """0 if the header does not declare it, or if it declares the number of frames."""

    def shortfall(self, num_frames: int, seconds: float) -> str:
        """Describe how much of the source was read, or return an empty string if that is nearly all."""
        if num_frames < INTACT_SHARE * self.num_frames:
            return f"{num_frames} of {self.num_frames} frames"
        if seconds < INTACT_SHARE * self.seconds:
            return f"{num_frames} frames, {seconds:.3g} of {self.seconds:.3g} s"
        return ""


def declared_length(path: Path) -> DeclaredLength:
    """Read the length that the header of a source declares."""
    if path.is_dir() or path.suffix.lower() in (".mat", SUFFIX):
        return DeclaredLength()
    try:
        container, video = open_video(path)
        with container:
            if not video.frames:  # Matroska, WebM and transport streams have no number of frames
                return DeclaredLength(seconds=_declared_seconds(container, video))
            frames = video.frames
            if "mp4" in container.format.name and video.duration and video.average_rate and video.time_base:
                # The edit list of an MP4 file can hide frames at its start, which decoders then do not return.
                frames = min(frames, round(video.duration * video.time_base * video.average_rate))
            return DeclaredLength(num_frames=frames)
    except (UnreadableVideoError, *DECODE_ERRORS):
        return DeclaredLength()


def _declared_seconds(container: av.container.InputContainer, video: av.VideoStream) -> float:
    """Duration of the video stream, or of the file if it has no other stream, such as longer sound."""
    match = re.fullmatch(r"(\d+):(\d+):([\d.]+)", video.metadata.get("DURATION", ""))
    if match is not None:
        return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
    if container.duration and len(container.streams) == 1 and "matroska" in container.format.name:
        return float(container.duration / av.time_base)
    return 0.0
