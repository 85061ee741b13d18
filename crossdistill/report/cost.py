"""What a network costs on this machine."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.report.spaces import Network
from crossdistill.types import View

BATCH_SIZE = 16
MAX_SECONDS = 1.5
"""Of each of the two timings."""
MAX_PASSES = 50


@dataclass(frozen=True)
class Cost:
    """Of one network."""

    role: str
    encoder: str
    bits: str | None
    """Of a quantised network, for example ``w4a8``."""
    num_parameters: int
    gmacs: float
    """Multiply-adds of convolutions and matrix products for one clip, in thousand millions."""
    latency_seconds: float
    """Of one clip, normalisation included, decoding not."""
    clips_per_second: float
    """In batches of ``BATCH_SIZE``."""
    num_bytes: int | None
    """Of the file with its weights; None where there is none of its own."""
    device: str


def measure(network: Network) -> Cost:
    """Count and time one network: the fastest of several passes, which other work on the machine disturbs least."""
    encoder = network.encoder.eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    execution = Execution.choose(encoder, device=device)
    seconds = _seconds_of_passes(encoder, execution, batch_size=1)
    batch_seconds = _seconds_of_passes(encoder, execution, batch_size=BATCH_SIZE)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    path = network.weights_file
    return Cost(
        role=network.role,
        encoder=encoder.name,
        bits=encoder.bits,
        num_parameters=encoder.num_parameters,
        gmacs=count_gmacs(encoder, execution),
        latency_seconds=min(seconds),
        clips_per_second=BATCH_SIZE / min(batch_seconds),
        num_bytes=path.stat().st_size if path is not None and path.is_file() else None,
        device=named.replace(" 1 threads", " 1 thread"),
    )


def count_gmacs(encoder: Encoder, execution: Execution) -> float:
    """Multiply-adds of one clip, by a pass of the network as it is."""
    # The counter follows gradients, and brevitas' weights have some.
    frozen = copy.deepcopy(encoder).requires_grad_(False)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        execution.embed(frozen, _clips(encoder, 1).to(execution.device))
    return counter.get_total_flops() / 2e9


def _seconds_of_passes(encoder: Encoder, execution: Execution, *, batch_size: int) -> list[float]:
    """Seconds of passes after the first, which sets things up."""
    clips = _clips(encoder, batch_size).to(execution.device)
    seconds: list[float] = []
    with torch.inference_mode():
        for number in range(MAX_PASSES):
            start = time.perf_counter()
            execution.embed(encoder, clips)
            if execution.device.type == "cuda":
                torch.cuda.synchronize(execution.device)
            if number > 0:
                seconds.append(time.perf_counter() - start)
            if sum(seconds) > MAX_SECONDS:
                break
    return seconds


def _clips(encoder: Encoder, num: int) -> View:
    """Clips of noise as they are stored."""
    view = encoder.view
    shape = (num, view.kind.channels, view.num_frames, view.size_px, view.size_px)
    values = torch.randint(1, 255, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return View(values, torch.ones(num, view.kind.channels))
