"""Optical flow from the motion vectors that the codec stored: coarse, and about as quick to have as DIS.

FFmpeg hands out one vector per block of 8 or 16 pixels, for H.264, MPEG-4 Part 2 (XviD, DivX), MPEG-1/2 and their
kin; HEVC, VP9 and AV1 give none, and such videos are skipped. A vector points from a block to the picture that
it was predicted from, and says whether that one is past or future, but not how far away: H.264 refers to several
pictures, and what lies between depends on the encoder. So for every block there are several candidates for
the motion of one frame:

* the vectors of the second frame of the pair: past references (P and B pictures), negated, and future
  references (B pictures);
* where the second frame is a B picture, the vectors of the next P picture. MPEG-4's B pictures come
  without usable vectors (all zero), so motion is taken as constant between their neighbours;
* each divided by 1 to 4 frames.

Taken is the candidate that maps the second frame best onto the first, compared at a quarter of the
resolution (at half in small pictures); where they match alike, the distance to the previous reference
picture counts.

Blocks without a vector (intra-coded) have zero motion, and so has a frame without any (an I picture).
Vectors belong to blocks of the second frame and are taken for the same places of the first. Field-coded
(interlaced) pictures are not handled: their vectors count lines of a field.

Shapes: H height, W width; h, w those of the grid of candidates, a quarter or half of the stored size.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.flow.base import FlowFunction, FlowMethod
from data_prep.frames import Frame, Gray, Motion
from data_prep.recipe import Recipe, UnusableVideo

Field = NDArray[np.float32]
"""[..., 2], x and y in pixels."""

CELL_PX = 4
"""Blocks are multiples of it."""
GRID_SHRINK = 4
# At a quarter of them too little of small pictures is left to tell the candidates apart.
SMALL_PICTURE_PX = 192
SMALL_GRID_SHRINK = 2
MAX_DISTANCE_FRAMES = 4
MATCH_WINDOW_CELLS = 5
# Shades of gray by which another candidate must match better: noise alone must not decide.
MATCH_MARGIN = 0.3
# Vectors may be absent at the start, where nothing moves yet or pictures are I; after so many pairs there are none.
PATIENCE_PAIRS = 7


@lru_cache(maxsize=4)  # B pictures ask for that of the picture after them, and then that one does
def block_field(motion: Motion, *, is_past: bool) -> Field | None:
    """Lay out the vectors of a picture on a grid of cells of 4 pixels, as the decoder has it (not turned).

    Args:
        motion: Of one picture.
        is_past: Whether to take the vectors to past references, or else those to future ones.

    Returns:
        [H / 4, W / 4, 2], rounded up: from a block to where it was predicted from, in pixels of the
        decoded picture; 0 where there is no vector. None if there is not one.
    """
    vectors = motion.vectors[(motion.vectors["source"] < 0) == is_past]
    if not len(vectors):
        return None
    height, width = -(-motion.height_px // CELL_PX), -(-motion.width_px // CELL_PX)
    field = np.zeros((height, width, 2), dtype=np.float32)
    # Today FFmpeg's source is -1 or 1 whatever the distance; its documentation leaves room for more.
    unit = vectors["motion_scale"].astype(np.float32) * np.abs(vectors["source"])
    vectors_px = np.stack([vectors["motion_x"] / unit, vectors["motion_y"] / unit], axis=-1).astype(np.float32)
    widths, heights = (vectors[side].astype(np.int64) for side in ("w", "h"))
    left = (vectors["dst_x"] - widths // 2) // CELL_PX
    top = (vectors["dst_y"] - heights // 2) // CELL_PX
    for down in range(int(heights.max()) // CELL_PX):
        for across in range(int(widths.max()) // CELL_PX):
            row, column = top + down, left + across
            covered = (down * CELL_PX < heights) & (across * CELL_PX < widths)
            covered &= (row >= 0) & (row < height) & (column >= 0) & (column < width)
            field[row[covered], column[covered]] = vectors_px[covered]
    return field


def upright_field(field: Field, motion: Motion, *, width_px: int, height_px: int) -> Field:
    """Turn and scale a field from the decoded picture to the stored one.

    Args:
        field: [H / 4, W / 4, 2] of the decoded picture, see ``block_field``.
        motion: Says the decoded size and how the stored picture was turned.
        width_px: Of the stored picture.
        height_px: Of the stored picture.

    Returns:
        [h, w, 2], in pixels of the stored picture.
    """
    num_turns = motion.rotation_degrees // 90
    grid = _grid_size(width_px, height_px)
    num_columns, num_rows = grid[::-1] if num_turns % 2 else grid
    rows = ((np.arange(num_rows) + 0.5) / num_rows * motion.height_px).astype(np.int64) // CELL_PX
    columns = ((np.arange(num_columns) + 0.5) / num_columns * motion.width_px).astype(np.int64) // CELL_PX
    turned = np.rot90(field[rows[:, None], columns], k=num_turns)
    for _ in range(num_turns):
        turned = np.stack([turned[..., 1], -turned[..., 0]], axis=-1)
    decoded = (motion.height_px, motion.width_px) if num_turns % 2 else (motion.width_px, motion.height_px)
    return turned * np.array([width_px / decoded[0], height_px / decoded[1]], dtype=np.float32)


def _grid_size(width_px: int, height_px: int) -> tuple[int, int]:
    """Columns and rows."""
    shrink = SMALL_GRID_SHRINK if min(width_px, height_px) < SMALL_PICTURE_PX else GRID_SHRINK
    return max(1, round(width_px / shrink)), max(1, round(height_px / shrink))


def candidates(second: Frame) -> list[Field]:
    """Fields [h, w, 2] of what the motion from the frame before may be, the likeliest first."""
    width_px, height_px = second.size_px
    found: list[tuple[Field, int]] = []
    for motion in (second.motion_ahead, second.motion):
        for is_past in (True, False) if motion is not None else ():
            assert motion is not None
            field = block_field(motion, is_past=is_past)
            if field is not None:
                field = upright_field(field, motion, width_px=width_px, height_px=height_px)
                found.append((-field if is_past else field, motion.frames_back if is_past else 1))
    divided = [field / np.float32(distance) for field, distance in found[:1]]  # the likeliest
    for distance in range(1, MAX_DISTANCE_FRAMES + 1):
        divided += [field / np.float32(distance) for field, _ in found]
    return divided


def best_match(first: Gray, second: Gray, fields: list[Field]) -> Field:
    """At every cell the field that maps the second picture best onto the first.

    Args:
        first: [H, W], uint8.
        second: [H, W], uint8.
        fields: Each [h, w, 2] in pixels of the pictures; the first one is preferred.

    Returns:
        [h, w, 2], without single cells that stick out.
    """
    height, width = fields[0].shape[:2]
    small_first, small_second = (
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        for picture in (first, second)
    )
    cells_x, cells_y = width / first.shape[1], height / first.shape[0]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    errors = []
    for field in fields:
        across, down = columns + field[..., 0] * cells_x, rows + field[..., 1] * cells_y
        moved = cv2.remap(small_second, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        errors.append(cv2.blur(np.abs(moved - small_first), (MATCH_WINDOW_CELLS, MATCH_WINDOW_CELLS)))
    errors[0] = errors[0] - MATCH_MARGIN
    chosen = np.argmin(errors, axis=0)
    best = np.take_along_axis(np.stack(fields), chosen[None, :, :, None], axis=0)[0]
    return np.stack([cv2.medianBlur(np.ascontiguousarray(best[..., axis]), 3) for axis in (0, 1)], axis=-1)


def _create(recipe: Recipe) -> FlowFunction:
    num_pairs, has_vectors = 0, False

    def estimate(first: Frame, second: Frame) -> NDArray[np.float32]:
        nonlocal num_pairs, has_vectors
        width_px, height_px = second.size_px
        fields = candidates(second)
        num_pairs, has_vectors = num_pairs + 1, has_vectors or bool(fields)
        if not has_vectors and num_pairs >= PATIENCE_PAIRS:
            raise UnusableVideo("no motion vectors: FFmpeg finds none in this file; choose another --flow")
        if not fields:
            return np.zeros((height_px, width_px, 2), dtype=np.float32)
        flow = best_match(first.gray, second.gray, fields)
        return np.asarray(cv2.resize(flow, (width_px, height_px), interpolation=cv2.INTER_LINEAR), dtype=np.float32)

    return estimate


MOTION_VECTORS = FlowMethod(create=_create, sources=("rgb",), needs_motion_vectors=True)
