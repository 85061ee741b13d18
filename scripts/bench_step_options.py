"""What the options of a training step change: --compile, --gradient-checkpointing, --optimizer and its fused kernels.

Each row trains one encoder on made clips (forward, backward, optimizer). Steps are processor time on a CPU, so that
other work on the machine does not count, and wall-clock time on a GPU. ``first`` is the first step, with the compiler
and its child processes. ``kept`` is what autograd keeps from the forward to the backward pass, without the weights; on
a GPU it is the peak of allocated memory. Compiled code is taken from no cache.

    python scripts/bench_step_options.py [NAME ...]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_distill import noise

from crossdistill.encoders import Encoder, create_encoder
from crossdistill.encoders.compilation import compiled
from crossdistill.encoders.execution import Execution
from crossdistill.encoders.recomputation import recompute_activations
from crossdistill.utils.environment import describe_environment

# Name, view, batch.
CASES = (
    ("rgb_r3d10", {"num_frames": 8, "size_px": 64}, 16),
    ("rgb_r3d18", {"num_frames": 8, "size_px": 48}, 8),
    ("image_resnet18", {"size_px": 112}, 16),
    ("image_timm:vit_tiny_patch16_224", {"size_px": 112}, 16),
)


@dataclass(frozen=True)
class Row:
    """One way to train."""

    name: str
    is_compiled: bool = False
    is_recomputed: bool = False
    optimizer: Callable[[Encoder], torch.optim.Optimizer] = lambda encoder: sgd(encoder, fused=True)


def sgd(encoder: Encoder, **kernel: bool) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(encoder.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, **kernel)


def adamw(encoder: Encoder, **kernel: bool) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(encoder.parameters(), lr=1e-6, **kernel)


STEPS = (
    Row("plain"),
    Row("gradient checkpointing", is_recomputed=True),
    Row("compiled", is_compiled=True),
    Row("compiled, gradient checkpointing", is_compiled=True, is_recomputed=True),
)
KERNELS = {"fused": {"fused": True}, "for-each": {"foreach": True}, "loop": {"foreach": False}}


def seconds(device: torch.device) -> float:
    """The clock: processor time of this process and its ended children, or the time of the day on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def kept_mib(encoder: Encoder, run: Callable[[], torch.Tensor]) -> float:
    """Memory that autograd keeps after a forward pass, each storage once, without the encoder's own."""
    own = {value.untyped_storage().data_ptr() for value in (*encoder.parameters(), *encoder.buffers())}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output
    return sum(found.values()) / 2**20


def measure(row: Row, name: str, view: dict[str, int], batch: int, *, repeats: int, device: torch.device) -> str:
    """Train for a few steps and return a line of the table."""
    torch.manual_seed(0)
    torch.compiler.reset()
    encoder = create_encoder(name, **view).train()
    execution = Execution.choose(encoder, device=device)
    if row.is_recomputed:
        recompute_activations(encoder)
    network = compiled(encoder, name=name) if row.is_compiled else encoder
    optimizer = row.optimizer(encoder)
    clips = noise(encoder, batch).to(device)

    def step() -> float:
        started = seconds(device)
        execution.embed(network, clips).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return seconds(device) - started

    first = step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [step() for _ in range(repeats)]
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        memory = kept_mib(encoder, lambda: execution.embed(network, clips))
    return f"| {name} | {row.name} | {first:.2f} | {statistics.median(times):.4f} | {memory:.0f} |"


def optimizer_seconds(create: Callable[..., torch.optim.Optimizer], encoder: Encoder, kernel: dict[str, bool]) -> float:
    """Median time of the optimizer alone."""
    device = next(encoder.parameters()).device
    for parameter in encoder.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer, times = create(encoder, **kernel), []
    for _ in range(12):
        started = seconds(device)
        for _ in range(5):
            optimizer.step()
        times.append((seconds(device) - started) / 5)
    return statistics.median(times[2:])


def main() -> None:
    """Print the machine, the steps and the optimizers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="encoders of the list; all if absent")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    environment = describe_environment()
    print({key: environment[key] for key in ("cpu", "num_cpu_cores", "gpus", "torch") if key in environment})
    cases = [case for case in CASES if not args.names or case[0] in args.names]
    print("| encoder | step | first, s | s | kept, MiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        torch._inductor.config.compile_threads = 1  # no pool of compilers, whose time would be lost
        for name, view, batch in cases:
            for row in STEPS:
                print(measure(row, name, view, batch, repeats=args.repeats, device=device), flush=True)
    print(
        "\n| encoder | optimizer | " + " | ".join(f"{kernel}, ms" for kernel in KERNELS) + " |\n|---|---|---|---|---|"
    )
    for name, view, _ in cases:
        encoder = create_encoder(name, **view).to(device)
        for create in (sgd, adamw):
            times = [1e3 * optimizer_seconds(create, encoder, kernel) for kernel in KERNELS.values()]
            print(f"| {name} | {create.__name__} | " + " | ".join(f"{each:.2f}" for each in times) + " |", flush=True)


if __name__ == "__main__":
    main()
