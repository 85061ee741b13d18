"""The streamed CompRess loss against a plain one and against bare matrix products: time and peak memory.

python scripts/bench_loss.py [--batch 256] [--dim 512] [--bank 128000]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from crossdistill.environment import describe_environment
from crossdistill.objectives import compress_loss

TEMPERATURE = 0.04


def streamed(student: Tensor, teacher: Tensor, student_anchors: Tensor, teacher_anchors: Tensor) -> None:
    """Forward and backward of ours."""
    compress_loss(
        student=student,
        teacher=teacher,
        student_anchors=student_anchors,
        teacher_anchors=teacher_anchors,
        temperature=TEMPERATURE,
    ).backward()


def plain(student: Tensor, teacher: Tensor, student_anchors: Tensor, teacher_anchors: Tensor) -> None:
    """Forward and backward of the formula by autograd."""
    logits_t = F.normalize(teacher, dim=1) @ teacher_anchors.T / TEMPERATURE
    logits_s = F.normalize(student, dim=1) @ student_anchors.T / TEMPERATURE
    F.kl_div(logits_s.log_softmax(1), logits_t.softmax(1), reduction="batchmean").backward()


def products(student: Tensor, teacher: Tensor, student_anchors: Tensor, teacher_anchors: Tensor) -> None:
    """The three matrix products that any implementation needs: two of logits, one of the gradient."""
    with torch.no_grad():
        logits = teacher @ teacher_anchors.T
        logits = student @ student_anchors.T
        logits @ student_anchors


def peak_bytes(function: Callable[..., None], inputs: list[Tensor]) -> int:
    """Largest sum of live allocations of tensors made inside the function."""
    if inputs[0].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(*inputs)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function(*inputs)
    live = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def main() -> None:
    """Interleaved repeats, medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("batch", 256), ("dim", 512), ("bank", 128_000), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(sys.argv[1:])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    student = torch.randn(options.batch, options.dim, device=device, requires_grad=True)
    teacher = torch.randn(options.batch, options.dim, device=device)
    anchors = [F.normalize(torch.randn(options.bank, options.dim, device=device), dim=1) for _ in range(2)]
    inputs = [student, teacher, *anchors]
    functions = {"products": products, "plain": plain, "streamed": streamed}
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(options.repeats + 1):  # the first is a warm-up
        for name, function in functions.items():
            started = time.perf_counter()
            function(*inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    environment = describe_environment()
    print({key: environment[key] for key in ("cpu", "cores", "gpus", "torch") if key in environment})
    print(f"B {options.batch}, D {options.dim}, K {options.bank}, forward + backward, median of {options.repeats}")
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    for name, function in functions.items():
        megabytes = peak_bytes(function, inputs) / 2**20
        ratio = median[name] / median["products"]
        print(f"{name:<9} {median[name]:.3f} s  {ratio:.2f} x products  peak {megabytes:.0f} MiB")


if __name__ == "__main__":
    main()
