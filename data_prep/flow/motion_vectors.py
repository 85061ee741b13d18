"""Optical flow from the motion vectors that the codec stored: coarse, and quicker to have than DIS.

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
picture counts. Each field is laid out once, and a candidate is no more than a factor of it until it is chosen;
pictures are compared as bytes.

Blocks without a vector (intra-coded) have zero motion, and so has a frame without any (an I picture).
Vectors belong to blocks of the second frame and are taken for the same places of the first. Field-coded
(interlaced) pictures are not handled: their vectors count lines of a field.

Shapes: H height, W width; h, w those of the grid of candidates, a quarter or half of the stored size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from data_prep.flow.base import FlowFunction, FlowMethod
from data_prep.frames import Frame, Gray, Motion
from data_prep.recipe import Recipe, UnusableVideo

Field = NDArray[np.float32]
"""[..., 2], x and y in pixels."""

CELL_PX = 8
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


def block_field(motion: Motion, *, is_past: bool) -> Field | None:
    """Lay out the vectors of a picture on a grid of cells of 8 pixels, as the decoder has it (not turned).

    Args:
        motion: Of one picture.
        is_past: Whether to take the vectors to past references, or else those to future ones.

    Returns:
        [H / 8, W / 8, 2], rounded up: from a block to where it was predicted from, in pixels of the
        decoded picture; 0 where there is no vector. None if there is not one.
    """
    vectors = motion.vectors[(motion.vectors["source"] < 0) == is_past]
    if not len(vectors):
        return None
    height, width = -(-motion.height_px // CELL_PX), -(-motion.width_px // CELL_PX)
    widths, heights = vectors["w"], vectors["h"]
    left = (vectors["dst_x"] - widths // 2) // CELL_PX
    top = (vectors["dst_y"] - heights // 2) // CELL_PX
    # Today FFmpeg's source is -1 or 1 whatever the distance; its documentation leaves room for more.
    unit = vectors["motion_scale"].astype(np.float32) * np.abs(vectors["source"])
    vectors_px = np.empty(len(vectors), dtype=np.complex64)
    vectors_px.real, vectors_px.imag = vectors["motion_x"] / unit, vectors["motion_y"] / unit
    most_down, most_across = (-(-int(side.max()) // CELL_PX) for side in (heights, widths))
    # Room beyond the edges for blocks that reach over them; those that begin there belong nowhere.
    field = np.zeros((height + most_down, width + most_across), dtype=np.complex64)
    is_inside = (left >= 0) & (top >= 0) & (left < width) & (top < height)
    start = top * field.shape[1] + left
    for down in range(most_down):
        for across in range(most_across):
            covered = is_inside & (down * CELL_PX < heights) & (across * CELL_PX < widths)
            field.reshape(-1)[start[covered] + (down * field.shape[1] + across)] = vectors_px[covered]
    return np.ascontiguousarray(field[:height, :width]).view(np.float32).reshape(height, width, 2)


def upright_field(field: Field, motion: Motion, *, width_px: int, height_px: int) -> Field:
    """Turn and scale a field from the decoded picture to the stored one.

    Args:
        field: [H / 8, W / 8, 2] of the decoded picture, see ``block_field``.
        motion: Says the decoded size and how the stored picture was turned.
        width_px: Of the stored picture.
        height_px: Of the stored picture.

    Returns:
        [h, w, 2], in pixels of the stored picture.
    """
    num_turns = motion.rotation_degrees // 90
    decoded_px = motion.width_px, motion.height_px
    positions = _cells_of_grid(decoded_px, num_turns, _grid_size(width_px, height_px))
    turned = _as_complex(field).take(positions)
    if num_turns:
        turned *= np.complex64((-1j) ** num_turns)
    shown_px = decoded_px[::-1] if num_turns % 2 else decoded_px
    upright = turned.view(np.float32).reshape(*turned.shape, 2)
    return _stretched(upright, width_px / shown_px[0], height_px / shown_px[1])


@lru_cache(maxsize=4)
def _cells_of_grid(decoded_px: tuple[int, int], num_turns: int, grid: tuple[int, int]) -> NDArray[np.int64]:
    """[h, w]: the cell of a flattened ``block_field`` that each place of the upright grid shows."""
    width_px, height_px = decoded_px
    num_columns, num_rows = grid[::-1] if num_turns % 2 else grid
    rows = ((np.arange(num_rows) + 0.5) / num_rows * height_px).astype(np.int64) // CELL_PX
    columns = ((np.arange(num_columns) + 0.5) / num_columns * width_px).astype(np.int64) // CELL_PX
    return np.ascontiguousarray(np.rot90(rows[:, None] * -(-width_px // CELL_PX) + columns, k=num_turns))


def _as_complex(field: Field) -> NDArray[np.complex64]:
    """[...] of a field [..., 2], the same memory: picking x and y as one number takes a third of the time."""
    return field.view(np.complex64)[..., 0]


def _stretched(field: Field, across: float, down: float) -> Field:
    """A field [h, w, 2] times one factor each for x and y; OpenCV takes a tenth of NumPy's time here."""
    if across == down == 1:
        return field
    return np.asarray(cv2.multiply(field, (across, down, 0.0, 0.0)), dtype=np.float32)  # type: ignore[call-overload]


def _grid_size(width_px: int, height_px: int) -> tuple[int, int]:
    """Columns and rows."""
    shrink = SMALL_GRID_SHRINK if min(width_px, height_px) < SMALL_PICTURE_PX else GRID_SHRINK
    return max(1, round(width_px / shrink)), max(1, round(height_px / shrink))


@dataclass(frozen=True, eq=False)
class Candidates:
    """What the motion from one frame to the next may be: fields, each times several factors."""

    fields: list[Field]
    """Each [h, w, 2]."""
    choices: list[tuple[int, float]]
    """Position in ``fields`` and factor, the likeliest first."""

    def field(self, choice: int) -> Field:
        """[h, w, 2] of one candidate."""
        position, factor = self.choices[choice]
        return self.fields[position] * np.float32(factor)


def candidates(second: Frame) -> Candidates:
    """What the motion from the frame before may be; no choice where the codec stored no vector."""
    fields: list[Field] = []
    choices: list[list[tuple[int, float]]] = []
    for motion in (second.motion_ahead, second.motion):
        for is_past in (True, False) if motion is not None else ():
            assert motion is not None
            field = _stored_field(motion, is_past, *second.size_px)
            if field is None:
                continue
            sign, distances = (-1.0, [motion.frames_back]) if is_past else (1.0, [1])
            distances += range(1, MAX_DISTANCE_FRAMES + 1)
            if not field.any():  # the same whatever it is divided by
                distances = [1] * len(distances)
            choices.append([(len(fields), sign / distance) for distance in distances])
            fields.append(field)
    likeliest = [those[0] for those in choices[:1]]
    by_distance = [
        choice for same_distance in zip(*(those[1:] for those in choices), strict=True) for choice in same_distance
    ]
    return Candidates(fields, list(dict.fromkeys(likeliest + by_distance)))


def best_match(first: Gray, second: Gray, found: Candidates, *, width_px: int, height_px: int) -> Field:
    """At every place the candidate that maps the second picture best onto the first.

    Args:
        first: [h, w], uint8, shrunk to the grid of the candidates.
        second: [h, w], uint8, likewise.
        found: At least one; the first one is preferred.
        width_px: Of the stored pictures, whose pixels the candidates count in.
        height_px: Of the stored pictures.

    Returns:
        [h, w, 2], without single places that stick out.
    """
    height, width = first.shape
    places = _places(width, height)
    on_grid = [_stretched(field, width / width_px, height / height_px) for field in found.fields]
    window = (MATCH_WINDOW_CELLS, MATCH_WINDOW_CELLS)
    least = np.full((height, width), np.inf, dtype=np.float32)
    chosen = np.zeros((height, width), dtype=np.uint8)
    for choice, (position, factor) in enumerate(found.choices):
        source = cv2.scaleAdd(on_grid[position], factor, places)
        moved = cv2.remap(second, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
        error = cv2.boxFilter(cv2.absdiff(moved, first), cv2.CV_32F, window)
        # The numbers of candidates rise, so the largest that was better than all before it is the best.
        is_better = np.asarray(cv2.compare(error, least, cv2.CMP_LT), dtype=np.uint8)  # 255 where it is
        np.maximum(chosen, is_better & np.uint8(choice), out=chosen)
        np.minimum(error if choice else error - np.float32(MATCH_MARGIN), least, out=least)
    positions, factors = np.array([p for p, _ in found.choices]), np.array([f for _, f in found.choices], np.float32)
    picked = positions[chosen] * (height * width) + np.arange(height * width).reshape(height, width)
    best = _as_complex(np.stack(found.fields)).take(picked) * factors[chosen]
    smooth = [cv2.medianBlur(np.ascontiguousarray(part), 3) for part in (best.real, best.imag)]
    return np.asarray(cv2.merge(smooth), dtype=np.float32)


@lru_cache(maxsize=2)
def _places(width: int, height: int) -> Field:
    """[h, w, 2]: every place of the grid, its column and row."""
    return np.stack(np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)), axis=-1)


@lru_cache(maxsize=4)  # B pictures ask for that of the picture after them, and then that one does
def _stored_field(motion: Motion, is_past: bool, width_px: int, height_px: int) -> Field | None:
    field = block_field(motion, is_past=is_past)
    return None if field is None else upright_field(field, motion, width_px=width_px, height_px=height_px)


def _shrinker() -> Callable[[Frame], Gray]:
    """A function that shrinks a frame to the grid, once: the second of a pair is the first of the next."""
    last_frame: Frame | None = None
    last_picture: Gray = np.empty((0, 0), dtype=np.uint8)

    def shrink(frame: Frame) -> Gray:
        nonlocal last_frame, last_picture
        if frame is not last_frame:
            small = cv2.resize(frame.gray, _grid_size(*frame.size_px), interpolation=cv2.INTER_AREA)
            last_frame, last_picture = frame, np.asarray(small, dtype=np.uint8)
        return last_picture

    return shrink


def _create(recipe: Recipe) -> FlowFunction:
    num_pairs, has_vectors = 0, False
    shrink = _shrinker()

    def estimate(first: Frame, second: Frame) -> NDArray[np.float32]:
        nonlocal num_pairs, has_vectors
        width_px, height_px = second.size_px
        found = candidates(second)
        num_pairs, has_vectors = num_pairs + 1, has_vectors or bool(found.choices)
        if not has_vectors and num_pairs >= PATIENCE_PAIRS:
            raise UnusableVideo("no motion vectors: FFmpeg finds none in this file; choose another --flow")
        if not found.choices:
            return np.zeros((height_px, width_px, 2), dtype=np.float32)
        flow = best_match(shrink(first), shrink(second), found, width_px=width_px, height_px=height_px)
        return np.asarray(cv2.resize(flow, (width_px, height_px), interpolation=cv2.INTER_LINEAR), dtype=np.float32)

    return estimate


MOTION_VECTORS = FlowMethod(create=_create, sources=("rgb",), needs_motion_vectors=True)
