"""Cost of a network: parameters, multiply-adds, time on this machine and size of its weight file."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from crossdistill.encoders import Encoder
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.export.formats import export_student
from crossdistill.predict.exported import open_in_all, seconds_per_clip
from crossdistill.quantization.quantize import noise_clips
from crossdistill.report.networks import Network
from crossdistill.types import View

BATCH_SIZE = 16
MAX_SECONDS = 1.5  # of one timing, for single clips or for batches
MAX_PASSES = 50
EXPORTED_CLIPS = 2  # that an exported file is compared on


@dataclass(frozen=True)
class Cost:
    """Cost of one network."""

    role: str
    encoder: str
    bits: str | None
    num_parameters: int
    gmacs: float
    """Multiply-adds of convolutions and matrix products for one clip, in units of 1e9."""
    latency_seconds: float
    """Time for one clip, with normalisation and without decoding."""
    clips_per_second: float
    """Throughput with batches of ``BATCH_SIZE``."""
    num_bytes: int | None
    """Size of the weight file; None if the network has no file."""
    device: str
    exported_seconds: float | None = None
    """Time for one clip in the fastest runtime, from normalised frames; None if the network was not exported."""
    runtime: str = ""
    """That runtime, or the sentence that says why the network was not exported."""

    @property
    def network(self) -> tuple[object, ...]:
        """What makes a network the same as another one, whatever its weights: encoder, bits and size of its input."""
        return (self.encoder, self.bits, self.num_parameters, self.gmacs)


def fastest(costs: Sequence[Cost]) -> Cost:
    """Return one cost of several measurements of the same network, with the shortest times."""
    exported = [cost for cost in costs if cost.exported_seconds is not None]
    best = min(exported, key=lambda cost: cost.exported_seconds or 0, default=costs[0])
    return replace(
        costs[0],
        latency_seconds=min(cost.latency_seconds for cost in costs),
        clips_per_second=max(cost.clips_per_second for cost in costs),
        exported_seconds=best.exported_seconds,
        runtime=best.runtime,
    )


def with_common_times(costs: Sequence[Cost]) -> list[Cost]:
    """Give equal networks equal times, the shortest: measured times differ by what else the machine did."""
    best = {one.network: fastest([cost for cost in costs if cost.network == one.network]) for one in costs}
    times = ("latency_seconds", "clips_per_second", "exported_seconds", "runtime")
    return [replace(cost, **{name: getattr(best[cost.network], name) for name in times}) for cost in costs]


def measure_cost(network: Network, *, in_runtimes: bool = False) -> Cost:
    """Count and time one network: the fastest of several passes, which depends least on other work on the machine.

    If ``in_runtimes``, the network is exported too, and timed in each runtime that is installed.
    """
    encoder = network.encoder.eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    execution = Execution.choose(encoder, device=device)
    seconds, batch_seconds = (_fastest_pass(encoder, execution, batch_size=size) for size in (1, BATCH_SIZE))
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    path = network.weights_file
    exported_seconds, runtime = _fastest_runtime(encoder) if in_runtimes else (None, "")
    return Cost(
        role=network.role,
        encoder=encoder.name,
        bits=encoder.bits,
        num_parameters=encoder.num_parameters,
        gmacs=count_gmacs(encoder, execution),
        latency_seconds=seconds,
        clips_per_second=BATCH_SIZE / batch_seconds,
        num_bytes=path.stat().st_size if path is not None and path.is_file() else None,
        device=named.replace(" 1 threads", " 1 thread"),
        exported_seconds=exported_seconds,
        runtime=runtime,
    )


def _fastest_runtime(encoder: Encoder) -> tuple[float | None, str]:
    """Seconds of one clip on the CPU in the fastest runtime, and its name; or None, and why it was not exported."""
    clips = noise_clips(encoder.view, EXPORTED_CLIPS)
    with tempfile.TemporaryDirectory(prefix="crossdistill-") as folder:
        path = Path(folder, "network.onnx")
        try:
            export_student(copy.deepcopy(encoder).cpu(), path, clips)
            opened, _ = open_in_all(path)
        except UserError as error:
            return None, str(error)
        return min((seconds_per_clip(one.forward, clips[:1]), one.runtime) for one in opened)


def count_gmacs(encoder: Encoder, execution: Execution) -> float:
    """Count the multiply-adds of one clip, in units of 1e9."""
    # FlopCounterMode hooks into autograd, and brevitas' quantised weights require gradients.
    frozen = copy.deepcopy(encoder).requires_grad_(False)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        execution.embed(frozen, _clips(encoder, 1).to(execution.device))
    return counter.get_total_flops() / 2e9


def _fastest_pass(encoder: Encoder, execution: Execution, *, batch_size: int) -> float:
    """Seconds of the fastest pass. The first one does not count: it includes initialisation."""
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
    return min(seconds)


def _clips(encoder: Encoder, num: int) -> View:
    """Random clips in the stored format."""
    view = encoder.view
    shape = (num, view.kind.channels, view.num_frames, view.size_px, view.size_px)
    values = torch.randint(1, 255, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return View(values, torch.ones(num, view.kind.channels))
