"""Run as a child process: does a decoder give the frames that a plain loop over the file gives?

python decoder_agreement.py DECODER FILE ...  prints a line of JSON per file, as soon as it is known: so a
decoder that never returns is stopped by the caller's time limit, and the file is known.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np

from crossdistill.data.decode import index_video
from crossdistill.data.decoders import CannotServeError, get_decoder
from crossdistill.data.file_range import FileRange
from crossdistill.data.sequential import PictureReader
from crossdistill.data.streams import get_stream_format

NUM_READS = 8
# Every n-th pixel is compared, so that about this many are left on the short side.
COMPARED_SIDE_PX = 64


def agreement(decoder: str, path: Path) -> dict[str, Any]:
    """Read some frames in random order with repetition and find each among all frames of the file.

    ``wrong`` lists (position asked for, position found), ``worst`` is the largest mean difference in levels.
    """
    stream = index_video(path)
    positions = np.random.default_rng(0).integers(0, stream.num_frames, NUM_READS).tolist()
    try:
        read = get_decoder(decoder).read_pictures
        found = np.stack(read(FileRange(path), stream, positions, get_stream_format("rgb")))
    except CannotServeError as error:
        return {"reason": str(error)}
    assert found.shape == (NUM_READS, stream.height_px, stream.width_px, 3) and found.dtype == np.uint8
    distances = np.zeros((NUM_READS, stream.num_frames))
    step = max(1, min(found.shape[1:3]) // COMPARED_SIDE_PX)
    thinned = found[:, ::step, ::step].astype(np.int16)
    reader = PictureReader("rgb24")
    with av.open(str(path)) as container:
        for n, frame in enumerate(container.decode(video=0)):
            picture = reader.read(frame)[::step, ::step]
            distances[:, n] = np.abs(thinned - picture.astype(np.int16)).mean(axis=(1, 2, 3))
    own = distances[np.arange(NUM_READS), positions]
    wrong = [
        (position, int(row.argmin()))
        for position, row in zip(positions, distances, strict=True)
        if row[position] > row.min()
    ]
    return {"reason": "", "wrong": wrong, "worst": float(own.max())}


if __name__ == "__main__":
    for name in sys.argv[2:]:
        print(json.dumps({"file": name, **agreement(sys.argv[1], Path(name))}), flush=True)
