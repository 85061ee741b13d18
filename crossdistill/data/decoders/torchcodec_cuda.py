"""Decode clips with torchcodec on an NVIDIA GPU, for large originals whose decoding is slower than training.

Every process of a run decodes on its own GPU, and so do its loader workers. Each worker has a CUDA context of its own,
which takes memory of the GPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from crossdistill.data.decoders import torchcodec
from crossdistill.data.file_range import FileRange
from crossdistill.data.manifest import Stream
from crossdistill.data.streams import Picture, StreamFormat


def device_of_process() -> str:
    """Return the GPU of this process, or of the process whose loader worker this is."""
    # A worker does not inherit the current device, but the variable that launchers set.
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def check() -> None:
    """Decode one frame on the GPU; RuntimeError without a GPU, or where torchcodec cannot use it."""
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no NVIDIA GPU")
    torchcodec.check(device_of_process())


def read_pictures(
    source: FileRange, stream: Stream, frames: Sequence[int], stream_format: StreamFormat
) -> list[Picture]:
    """Read T frames [H, W, C] by position in ``stream.pts``, in the memory of the CPU."""
    return torchcodec.read_pictures(source, stream, frames, stream_format, device=device_of_process())
