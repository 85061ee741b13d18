"""What distillation costs beyond training the student, as ratios in one run.

loss    the streamed CompRess loss against a plain one and against bare matrix products: time and peak memory
step    a step with a cached teacher, and one with a teacher that runs, against the student's bare training step

python scripts/bench_distill.py [loss|step …] [--help]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import crossdistill
from crossdistill.distillation.cache_folders import create_caches
from crossdistill.distillation.distiller import Distiller
from crossdistill.distillation.teacher_cache import TeacherCache
from crossdistill.distillation.teachers import CachedTeacher, FrozenTeacher
from crossdistill.encoders import Encoder, create_encoder
from crossdistill.encoders.compilation import compiled
from crossdistill.encoders.execution import Execution
from crossdistill.objectives import compress_loss
from crossdistill.types import Anchors, PairedBatch, View
from crossdistill.utils.environment import describe_environment

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


def timed_seconds(
    functions: dict[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Each function's time in every repeat; repeats are interleaved, and a first one is a warm-up.

    On a CPU it is the processor's time, of all threads together, so that other work on the machine does not count.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            started = clock()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(clock() - started)
    return {name: values[1:] for name, values in seconds.items()}


def bench_loss(options: argparse.Namespace, device: torch.device) -> None:
    """Print time and peak memory of the loss."""
    student = torch.randn(options.batch, options.dim, device=device, requires_grad=True)
    teacher = torch.randn(options.batch, options.dim, device=device)
    anchors = [F.normalize(torch.randn(options.bank, options.dim, device=device), dim=1) for _ in range(2)]
    inputs = [student, teacher, *anchors]
    functions = {"products": products, "plain": plain, "streamed": streamed}
    calls = {name: lambda function=function: function(*inputs) for name, function in functions.items()}
    print(
        f"loss: B {options.batch}, D {options.dim}, K {options.bank}, forward + backward, median of {options.repeats}"
    )
    seconds = timed_seconds(calls, repeats=options.repeats, device=device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, function in functions.items():
        megabytes = peak_bytes(function, inputs) / 2**20
        ratio = median[name] / median["products"]
        print(f"  {name:<9} {median[name]:.3f} s  {ratio:.2f} x products  peak {megabytes:.0f} MiB")


def random_cache(folder: Path, teacher: Encoder, num_clips: int) -> TeacherCache:
    """A cache of one view of noise, for its speed."""
    key = {
        "teacher": teacher.name,
        "teacher_weights_sha256": "noise",
        "teacher_view": dataclasses.asdict(teacher.view),
        "embed_dim": teacher.embed_dim,
        "seed": 0,
        "num_clips": num_clips,
        "clips_per_shard": 1024,
        "dtype": "fp16",
    }
    create_caches(folder, [TeacherCache.planned(folder, key, num_augmentations=1)], [teacher.classifier])
    cache = TeacherCache(folder)
    for shard in cache.missing():
        rows = torch.randn(shard.num_clips, teacher.embed_dim)
        cache.write(shard, cache.rows_of({"features": rows}), {})
    return cache


def noise(encoder: Encoder, num_clips: int) -> View:
    """A stored view without content, as a loader gives it."""
    view = encoder.view
    shape = (num_clips, view.num_frames, view.size_px, view.size_px, view.kind.channels)
    values = torch.randint(0, 255, shape, dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    return View(values, torch.ones(num_clips, view.kind.channels))


def bench_step(options: argparse.Namespace, device: torch.device) -> None:
    """Print what a step costs with a teacher of either kind."""
    view = {"num_frames": options.frames, "size_px": options.size}
    student = create_encoder(options.student, **view)
    teacher = create_encoder(options.teacher, **view)
    execution = Execution.choose(student, device=device)
    frozen = FrozenTeacher(teacher, Execution.choose(teacher, device=device))
    keys = torch.stack(
        [torch.randperm(options.num_clips)[: options.step_batch], torch.zeros(options.step_batch)], dim=1
    )
    batch = PairedBatch(
        student=noise(student, options.step_batch),
        teachers=(noise(teacher, options.step_batch),),
        sample_ids=keys[:, 0].long(),
        labels=keys[:, 0].long(),
        sample_keys=keys.long(),
    ).to(device)

    with tempfile.TemporaryDirectory() as folder:
        cached = CachedTeacher(random_cache(Path(folder), teacher, options.num_clips), device, split="1")
        steps = {
            "bare": bare_step(student, execution, batch),
            "cached": distillation_step(student, cached, execution, batch, options.step_bank),
            "live": distillation_step(student, frozen, execution, batch, options.step_bank),
            "teacher": lambda: frozen.embed(batch),
        }
        seconds = timed_seconds(steps, repeats=options.repeats, device=device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"step: {options.student} from {options.teacher}, {options.step_batch} clips of {options.frames} frames, "
        f"{options.size} px, compress-1q, bank {options.step_bank} (full), median of {options.repeats}"
    )
    print(f"  bare training step      {median['bare']:.3f} s  forward, backward, optimizer")
    print(f"  with a cached teacher   {median['cached']:.3f} s  {median['cached'] / median['bare']:.3f} x bare")
    # Steps that were timed next to each other, because each is long beside the difference that is asked for.
    overheads = sorted(
        (live - cached) / median["teacher"] for live, cached in zip(seconds["live"], seconds["cached"], strict=True)
    )
    print(f"  teacher's forward pass  {median['teacher']:.3f} s")
    print(
        f"  with a live teacher     {median['live']:.3f} s  {statistics.median(overheads):.3f} x that pass more than "
        f"with a cached one ({overheads[0]:.3f} to {overheads[-1]:.3f})"
    )


def bare_step(
    student: Encoder, execution: Execution, batch: PairedBatch, *, is_compiled: bool = False
) -> Callable[[], None]:
    """Forward, backward and optimizer of the student alone, under a loss that costs nothing."""
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-9, momentum=0.9, fused=True)
    network = compiled(student, name=student.name) if is_compiled else student

    def step() -> None:
        execution.embed(network, batch.student).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    student.train()
    return step


def distillation_step(
    student: Encoder,
    teacher: CachedTeacher | FrozenTeacher,
    execution: Execution,
    batch: PairedBatch,
    bank_size: int,
    *,
    is_compiled: bool = False,
) -> Callable[[], None]:
    """The same with a teacher and a full bank."""
    distiller = Distiller(
        student=student,
        teachers=[teacher],
        objective=crossdistill.create_terms(["compress-1q"]),
        bank_size=bank_size,
        student_execution=execution,
    )
    optimizer = torch.optim.SGD(distiller.trainable.parameters(), lr=1e-9, momentum=0.9, fused=True)
    if is_compiled:
        distiller.wrap(lambda module: compiled(module, name=student.name))
    bank = distiller.comparisons[0].bank
    assert bank is not None
    anchors = torch.randn(bank_size, teacher.encoder.embed_dim, device=execution.device)
    bank.enqueue(Anchors(anchors, None, torch.arange(bank_size, device=execution.device)))
    distiller.trainable.train()

    def step() -> None:
        output = distiller(batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        distiller.after_step()

    return step


def main() -> None:
    """Print the machine, then what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benches = {"loss": bench_loss, "step": bench_step}
    parser.add_argument("what", nargs="*", default=list(benches), help="loss, step; both if absent")
    numbers = {
        "batch": 256,
        "dim": 512,
        "bank": 128_000,
        "step-batch": 8,
        "step-bank": 16_384,
        "frames": 8,
        "size": 112,
    }
    for name, default in {**numbers, "num-clips": 10_000, "repeats": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--student", default="rgb_r3d18")
    parser.add_argument("--teacher", default="rgb_r3d50")
    options = parser.parse_args()
    if unknown := set(options.what) - set(benches):
        parser.error(f"unknown benchmark {sorted(unknown)[0]!r}: loss or step")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    environment = describe_environment()
    print({key: environment[key] for key in ("cpu", "cores", "gpus", "torch") if key in environment})
    print(f"{'processor time' if device.type == 'cpu' else 'wall-clock time'}, {torch.get_num_threads()} threads")
    for name in options.what:
        benches[name](options, device)


if __name__ == "__main__":
    main()
