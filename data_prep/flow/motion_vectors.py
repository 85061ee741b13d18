"""Optical flow from the motion vectors that the video codec stored: coarse, and faster than DIS.

FFmpeg returns one vector per block of 8 or 16 pixels for H.264, MPEG-4 Part 2 (XviD, DivX), MPEG-1/2 and similar
codecs. It returns none for HEVC, VP9 and AV1; such videos are skipped.

A vector points from a block to the reference picture that it was predicted from. FFmpeg says whether that picture is
past or future, but not how far away it is. So each block has several candidates for the motion of one frame:

* The vectors of the second frame of the pair: those to past references, negated, and those to future references.
* If the second frame is a B picture, also the vectors of the next P picture, on the assumption of constant motion:
  the B pictures of MPEG-4 have no usable vectors (all are zero).
* Each of them divided by 1 to 4 frames.

Each block takes the candidate that maps the second frame best onto the first one, compared at a quarter or half of the
resolution. If several match about equally well, it takes the one for the known distance to the previous reference.

Blocks without a vector (intra-coded) get zero motion, and so does a frame without any vector (an I picture). Vectors
belong to blocks of the second frame and are used at the same place of the first. Interlaced pictures are not supported:
their vectors count the lines of one field.

Shapes: H height, W width of the picture; h, w of the grid of candidates, a quarter or half of the stored size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from crossdistill.data.containers import Orientation
from data_prep.flow.base import FlowFunction, FlowMethod
from data_prep.frames import Frame, Gray, Motion
from data_prep.recipe import Recipe, UnusableVideo

Field = NDArray[np.float32]
"""Vectors [..., 2], x and y in pixels."""

CELL_PX = 8
"""Side of a cell. The sides of blocks are multiples of it."""
SMALL_PICTURE_PX = 192
MAX_DISTANCE_FRAMES = 4
MATCH_WINDOW_CELLS = 5
# Gray levels by which another candidate must match better than the first one. It is above the noise of the codec.
MATCH_MARGIN = 0.3
# A video may begin without vectors (still scene, I pictures). After this many pairs, its codec has none.
MAX_PAIRS_WITHOUT_VECTORS = 7


def block_field(motion: Motion, *, is_past: bool) -> Field | None:
    """Arrange the vectors of a picture, to past or to future references, on a grid of cells of 8 pixels.

    The field [H / 8, W / 8, 2] (rounded up) leads from each cell to the place that it was predicted from, in pixels of
    the decoded picture. Cells without a vector are 0. None if there is no vector at all.
    """
    vectors = motion.vectors[(motion.vectors["source"] < 0) == is_past]
    if not len(vectors):
        return None
    height, width = -(-motion.height_px // CELL_PX), -(-motion.width_px // CELL_PX)
    widths, heights = vectors["w"], vectors["h"]
    left = (vectors["dst_x"] - widths // 2) // CELL_PX
    top = (vectors["dst_y"] - heights // 2) // CELL_PX
    # In FFmpeg today, source is -1 or 1 at every distance. Its documentation allows other values.
    unit = vectors["motion_scale"].astype(np.float32) * np.abs(vectors["source"])
    vectors_px = np.empty(len(vectors), dtype=np.complex64)
    vectors_px.real, vectors_px.imag = vectors["motion_x"] / unit, vectors["motion_y"] / unit
    most_down, most_across = (-(-int(side.max()) // CELL_PX) for side in (heights, widths))
    # The field is larger than the picture, because blocks can extend over its edges.
    field = np.zeros((height + most_down, width + most_across), dtype=np.complex64)
    is_inside = (left >= 0) & (top >= 0) & (left < width) & (top < height)
    start = top * field.shape[1] + left
    for down in range(most_down):
        for across in range(most_across):
            covered = is_inside & (down * CELL_PX < heights) & (across * CELL_PX < widths)
            field.reshape(-1)[start[covered] + (down * field.shape[1] + across)] = vectors_px[covered]
    return np.ascontiguousarray(field[:height, :width]).view(np.float32).reshape(height, width, 2)


def upright_field(field: Field, motion: Motion, *, width_px: int, height_px: int) -> Field:
    """Turn, mirror and scale a ``block_field`` [H / 8, W / 8, 2] of the decoded picture to the stored picture.

    ``motion`` has the decoded size and the orientation of the stored picture, in whose pixels the result [h, w, 2] is.
    """
    orientation = motion.orientation
    decoded_px = motion.width_px, motion.height_px
    positions = _cells_of_grid(decoded_px, orientation, _grid_size(width_px, height_px))
    turned = _as_complex(field).take(positions)
    upright = turned.view(np.float32).reshape(*turned.shape, 2)
    if orientation.is_transposed:
        upright = np.ascontiguousarray(upright[..., ::-1])
    shown_px = orientation.size_px(*decoded_px)
    across, down = (-1 if flips else 1 for flips in (orientation.flips_x, orientation.flips_y))
    return _scaled(upright, across * width_px / shown_px[0], down * height_px / shown_px[1])


@lru_cache(maxsize=4)
def _cells_of_grid(decoded_px: tuple[int, int], orientation: Orientation, grid: tuple[int, int]) -> NDArray[np.int64]:
    """Compute [h, w]: for each place of the upright grid, the index into a flattened ``block_field``."""
    width_px, height_px = decoded_px
    num_columns, num_rows = orientation.size_px(*grid)
    rows = ((np.arange(num_rows) + 0.5) / num_rows * height_px).astype(np.int64) // CELL_PX
    columns = ((np.arange(num_columns) + 0.5) / num_columns * width_px).astype(np.int64) // CELL_PX
    cells = rows[:, None] * -(-width_px // CELL_PX) + columns
    return np.ascontiguousarray(orientation.apply(cells))


def _as_complex(field: Field) -> NDArray[np.complex64]:
    """View a field [..., 2] as complex numbers [...]. Indexing one complex number takes a third of the time of two."""
    return field.view(np.complex64)[..., 0]


def _scaled(field: Field, across: float, down: float) -> Field:
    """Multiply x and y of a field [h, w, 2] by one factor each. OpenCV takes a tenth of the time of NumPy here."""
    if across == down == 1:
        return field
    return np.asarray(cv2.multiply(field, (across, down, 0.0, 0.0)), dtype=np.float32)  # type: ignore[call-overload]


def _grid_size(width_px: int, height_px: int) -> tuple[int, int]:
    """Number of columns and rows of the grid."""
    # A quarter of a small picture has too few pixels to distinguish the candidates.
    shrink = 2 if min(width_px, height_px) < SMALL_PICTURE_PX else 4
    return max(1, round(width_px / shrink)), max(1, round(height_px / shrink))


@dataclass(frozen=True, eq=False)
class Candidates:
    """Candidates for the motion from one frame to the next: fields, each with several factors."""

    fields: list[Field]
    """Fields [h, w, 2]."""
    choices: list[tuple[int, float]]
    """One (index into ``fields``, factor) per candidate, the most likely first. Empty without motion vectors."""


def find_candidates(second: Frame) -> Candidates:
    """Find the candidates for the motion from the previous frame to this one."""
    fields: list[Field] = []
    choices_of_fields: list[list[tuple[int, float]]] = []
    for motion in (second.motion_ahead, second.motion):
        for is_past in (True, False) if motion is not None else ():
            assert motion is not None
            field = _stored_field(motion, is_past, *second.size_px)
            if field is None:
                continue
            sign, distances = (-1.0, [motion.frames_back]) if is_past else (1.0, [1])
            distances += range(1, MAX_DISTANCE_FRAMES + 1)
            if not field.any():  # zero motion is the same at every distance
                distances = [1] * len(distances)
            choices_of_fields.append([(len(fields), sign / distance) for distance in distances])
            fields.append(field)
    # The known distance of the first field comes first, then distance 1 of all fields, distance 2, and so on.
    first = [choices[0] for choices in choices_of_fields[:1]]
    by_distance = zip(*(choices[1:] for choices in choices_of_fields), strict=True)
    others = [choice for same_distance in by_distance for choice in same_distance]
    return Candidates(fields, list(dict.fromkeys(first + others)))


def best_match(first: Gray, second: Gray, candidates: Candidates, *, width_px: int, height_px: int) -> Field:
    """Choose at every place the candidate that maps the second picture best onto the first: a field [h, w, 2].

    Both pictures [h, w] are uint8 and shrunk to the grid of the candidates. There is at least one candidate; the first
    is preferred. Candidates and result are in pixels of the stored size. A median filter removes outliers.
    """
    height, width = first.shape
    places = _places(width, height)
    on_grid = [_scaled(field, width / width_px, height / height_px) for field in candidates.fields]
    window = (MATCH_WINDOW_CELLS, MATCH_WINDOW_CELLS)
    least = np.full((height, width), np.inf, dtype=np.float32)
    chosen = np.zeros((height, width), dtype=np.uint8)
    for choice, (index, factor) in enumerate(candidates.choices):
        source = cv2.scaleAdd(on_grid[index], factor, places)
        moved = cv2.remap(second, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
        error = cv2.boxFilter(cv2.absdiff(moved, first), cv2.CV_32F, window)
        # `choice` increases, so the maximum over all choices that improved a place is the last and best one.
        is_better = np.asarray(cv2.compare(error, least, cv2.CMP_LT), dtype=np.uint8)  # 255 for true
        np.maximum(chosen, is_better & np.uint8(choice), out=chosen)
        np.minimum(error if choice else error - np.float32(MATCH_MARGIN), least, out=least)
    indices = np.array([index for index, _ in candidates.choices])
    factors = np.array([factor for _, factor in candidates.choices], np.float32)
    picked = indices[chosen] * (height * width) + np.arange(height * width).reshape(height, width)
    best = _as_complex(np.stack(candidates.fields)).take(picked) * factors[chosen]
    smooth = [cv2.medianBlur(np.ascontiguousarray(part), 3) for part in (best.real, best.imag)]
    return np.asarray(cv2.merge(smooth), dtype=np.float32)


@lru_cache(maxsize=2)
def _places(width: int, height: int) -> Field:
    """Compute [h, w, 2]: the column and row of every place of the grid."""
    return np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=-1)


@lru_cache(maxsize=4)  # the field of a P picture is needed for it and for the B pictures before it
def _stored_field(motion: Motion, is_past: bool, width_px: int, height_px: int) -> Field | None:
    field = block_field(motion, is_past=is_past)
    return None if field is None else upright_field(field, motion, width_px=width_px, height_px=height_px)


@lru_cache(maxsize=2)  # the next pair needs the second frame too
def _shrink(frame: Frame) -> Gray:
    """Shrink a frame to the grid."""
    small = cv2.resize(frame.gray, _grid_size(*frame.size_px), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)


def _create(recipe: Recipe) -> FlowFunction:
    num_pairs, has_vectors = 0, False

    def estimate(first: Frame, second: Frame) -> NDArray[np.float32]:
        nonlocal num_pairs, has_vectors
        width_px, height_px = second.size_px
        candidates = find_candidates(second)
        num_pairs, has_vectors = num_pairs + 1, has_vectors or bool(candidates.choices)
        if not has_vectors and num_pairs >= MAX_PAIRS_WITHOUT_VECTORS:
            raise UnusableVideo("no motion vectors: FFmpeg finds none in this file; choose another --flow")
        if not candidates.choices:
            return np.zeros((height_px, width_px, 2), dtype=np.float32)
        flow = best_match(_shrink(first), _shrink(second), candidates, width_px=width_px, height_px=height_px)
        return np.asarray(cv2.resize(flow, (width_px, height_px), interpolation=cv2.INTER_LINEAR), dtype=np.float32)

    return estimate


MOTION_VECTORS = FlowMethod(create=_create, sources=("rgb",), needs_motion_vectors=True)
