"""What distillation costs on a GPU, in one table: run it through ``scripts/bench_gpu.sh``, which finds a Python first.

loss     the similarity loss against its three matrix products: fp32, TF32, bf16; 128,000 and 1,000,000 anchors
step     a step of a 3D ResNet and of a ViT with a live and with a cached teacher against the bare step, with and
         without torch.compile
loading  clips/s of the loader from prepared files, and the share of a training's time that waits for it (data_wait)
knn      exact nearest neighbours against a plain search and against faiss, if it is installed
embed    clips/s of the forward pass

Each part is a process of its own with a time limit, prints its rows as they come and keeps them in OUT/PART.jsonl;
OUT/log.txt has all that was printed. A row that cannot be measured says why. Without a GPU, or with --small, the same
code runs at sizes for a CPU.

    python scripts/bench_gpu.py --out bench_gpu
    python scripts/bench_gpu.py --small --parts loss step --out bench_gpu
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_data import make_videos
from bench_distill import bare_step, distillation_step, noise, products, random_cache, streamed, timed_seconds
from bench_knn import plain_brute_force
from torch import Tensor

from crossdistill.data.dataset import Entry, PairedClips, make_loader
from crossdistill.data.manifest import Manifest
from crossdistill.data.sampling import TrainingBatches
from crossdistill.distillation.teachers import CachedTeacher, FrozenTeacher
from crossdistill.encoders import Encoder, create_encoder
from crossdistill.encoders.execution import Execution
from crossdistill.errors import UserError
from crossdistill.evaluation.embedder import Embedder
from crossdistill.evaluation.neighbours import nearest_neighbours
from crossdistill.types import PairedBatch
from crossdistill.utils.environment import describe_environment
from data_prep.pipeline.prepare import PrepareOptions, SourceVideo, prepare_videos

LIMIT_SECONDS = {"loss": 60, "step": 240, "loading": 120, "knn": 60, "embed": 60}
"""The longest time of each part. Together they are 9 minutes."""
FAILURES = (ImportError, OSError, RuntimeError, UserError, ValueError)
"""Errors that leave out one row."""


@dataclass(frozen=True)
class Pair:
    """A student, its teacher and the view of both."""

    student: str
    teacher: str
    view: dict[str, int]
    batch_size: int
    is_compiled_too: bool = True


@dataclass(frozen=True)
class Sizes:
    """What is measured on one kind of device."""

    loss_batch: int
    loss_dim: int
    loss_banks: tuple[int, ...]
    pairs: tuple[Pair, ...]
    bank: int
    repeats: int
    loader_workers: int
    loader_view: dict[str, int]
    loader_student: str
    loader_batch: int
    num_videos: int
    knn: tuple[int, int]
    """Gallery and queries."""
    embedded: tuple[tuple[str, dict[str, int], int], ...]
    """Encoder, view, batch."""


CLIP = {"num_frames": 8, "size_px": 112}
GPU = Sizes(
    loss_batch=256,
    loss_dim=512,
    loss_banks=(128_000, 1_000_000),
    pairs=(
        Pair("rgb_r3d18", "rgb_r3d50", CLIP, 64),
        Pair("image_timm:vit_small_patch16_224", "image_timm:vit_base_patch16_224", {}, 128),
    ),
    bank=16_384,
    repeats=10,
    loader_workers=16,
    loader_view=CLIP,
    loader_student="rgb_r3d18",
    loader_batch=64,
    num_videos=512,
    knn=(1_000_000, 2_000),
    embedded=(("rgb_r3d18", CLIP, 128), ("rgb_r3d50", CLIP, 128), ("image_timm:vit_small_patch16_224", {}, 256)),
)
SMALL = Sizes(
    loss_batch=32,
    loss_dim=64,
    loss_banks=(2_000, 16_000),
    pairs=(
        Pair("rgb_tiny3d_8", "rgb_r3d10", {"num_frames": 4, "size_px": 32}, 4),
        Pair("image_timm:vit_tiny_patch16_224", "image_resnet18", {"size_px": 32}, 4, is_compiled_too=False),
    ),
    bank=256,
    repeats=2,
    loader_workers=2,
    loader_view={"num_frames": 4, "size_px": 32},
    loader_student="rgb_tiny3d_8",
    loader_batch=8,
    num_videos=32,
    knn=(5_000, 100),
    embedded=(("rgb_r3d10", {"num_frames": 4, "size_px": 32}, 8),),
)


@dataclass(frozen=True)
class Bench:
    """Where and at which sizes a part measures, and where its rows go."""

    sizes: Sizes
    device: torch.device
    file: Path
    workers: int

    def row(self, what: str, **figures: float | str) -> None:
        """Print one row and keep it."""
        print(f"  {what}: " + ", ".join(f"{name} {_text(value)}" for name, value in figures.items()), flush=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **figures}) + "\n")

    @contextlib.contextmanager
    def or_reason(self, what: str) -> Iterator[None]:
        """Turn an error of the block into a row that names it."""
        try:
            yield
        except FAILURES as error:
            self.row(what, skipped=" ".join(str(error).split())[:200] or type(error).__name__)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def seconds(self, functions: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Return the median of the time of each function, in turns."""
        timed = timed_seconds(functions, repeats=self.sizes.repeats, device=self.device)
        return {name: statistics.median(values) for name, values in timed.items()}


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def bench_loss(bench: Bench) -> None:
    """Forward and backward of the loss against its products."""
    sizes = bench.sizes
    for precision in ("fp32", "tf32", "bf16"):
        if precision == "tf32" and bench.device.type == "cpu":
            bench.row("loss, tf32", skipped="a CPU has no TF32")
            continue
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        for num_anchors in sizes.loss_banks:
            what = f"loss, {precision}, B {sizes.loss_batch}, D {sizes.loss_dim}, K {num_anchors}"
            with bench.or_reason(what):
                inputs = _loss_inputs(sizes.loss_batch, sizes.loss_dim, num_anchors, dtype, bench.device)
                seconds = bench.seconds(
                    {"products": lambda given=inputs: products(*given), "loss": lambda given=inputs: streamed(*given)}
                )
                ratio = seconds["loss"] / seconds["products"]
                bench.row(what, products_ms=1e3 * seconds["products"], loss_ms=1e3 * seconds["loss"], ratio=ratio)
    torch.set_float32_matmul_precision("highest")


def _loss_inputs(batch: int, dim: int, num_anchors: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    student = torch.randn(batch, dim, **place, requires_grad=True)
    anchors = [F.normalize(torch.randn(num_anchors, dim, **place), dim=1) for _ in range(2)]
    return [student, torch.randn(batch, dim, **place), *anchors]


def bench_step(bench: Bench) -> None:
    """Steps with a live and a cached teacher against the bare step."""
    for pair in bench.sizes.pairs:
        for variant in ("", "compiled", "channels first"):
            if variant == "compiled" and not pair.is_compiled_too:
                continue
            names = [f"step, {pair.student} from {pair.teacher}", f"batch {pair.batch_size}", variant]
            what = ", ".join(filter(None, names))
            with bench.or_reason(what), tempfile.TemporaryDirectory() as folder:
                _measure_steps(bench, pair, what, variant, Path(folder))


def _measure_steps(bench: Bench, pair: Pair, what: str, variant: str, folder: Path) -> None:
    torch.manual_seed(0)
    is_compiled, layout = variant == "compiled", "no" if variant == "channels first" else "auto"
    student, teacher = create_encoder(pair.student, **pair.view), create_encoder(pair.teacher, **pair.view)
    execution = Execution.choose(student, device=bench.device, layout=layout)
    frozen = FrozenTeacher(teacher, Execution.choose(teacher, device=bench.device, layout=layout))
    num_clips = 1024
    keys = torch.stack([torch.randperm(num_clips)[: pair.batch_size], torch.zeros(pair.batch_size)], dim=1).long()
    batch = PairedBatch(
        student=noise(student, pair.batch_size),
        teachers=(noise(teacher, pair.batch_size),),
        sample_ids=keys[:, 0],
        labels=keys[:, 0],
        sample_keys=keys,
    ).to(bench.device)
    cached = CachedTeacher(random_cache(folder, teacher, num_clips), bench.device, split="1")
    if is_compiled:
        frozen.compile()
    steps: dict[str, Callable[[], object]] = {
        "bare": bare_step(student, execution, batch, is_compiled=is_compiled),
        "cached": distillation_step(student, cached, execution, batch, bench.sizes.bank, is_compiled=is_compiled),
        "live": distillation_step(student, frozen, execution, batch, bench.sizes.bank, is_compiled=is_compiled),
    }
    started = time.perf_counter()
    for step in steps.values():
        step()
    first_seconds = time.perf_counter() - started
    seconds = bench.seconds(steps)
    bench.row(
        what,
        precision=execution.precision,
        bare_ms=1e3 * seconds["bare"],
        cached_ratio=seconds["cached"] / seconds["bare"],
        live_ratio=seconds["live"] / seconds["bare"],
        clips_per_second=pair.batch_size / seconds["live"],
        first_steps_seconds=first_seconds,
    )
    if bench.device.type == "cuda":
        bench.row(f"{what}, peak memory", gib=torch.cuda.max_memory_allocated() / 2**30)
        torch.cuda.reset_peak_memory_stats()


def bench_loading(bench: Bench) -> None:
    """Clips/s of the loader alone, then of a training that waits for it."""
    sizes = bench.sizes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with bench.or_reason("loading, videos"):
            manifest = _prepare(folder, sizes.num_videos)
            view = create_encoder(sizes.loader_student, **sizes.loader_view).view
            entries = [Entry(manifest.root, video, -1) for video in manifest.videos if video.is_usable]
            dataset = PairedClips(entries, student_view=view)
            batches = TrainingBatches(
                num_samples=len(entries), batch_size=sizes.loader_batch, num_epochs=10_000, seed=0
            )
            speed = _loader_speed(make_loader(dataset, batches, num_workers=bench.workers), bench)
            size = f"{view.num_frames}x{view.size_px}"
            bench.row(f"loading, {bench.workers} workers, clips {size} of 456x256", clips_per_second=speed)
            student = create_encoder(sizes.loader_student, **sizes.loader_view)
            loader = make_loader(dataset, batches, num_workers=bench.workers, pin_memory=bench.device.type == "cuda")
            wait, speed = _training_wait(loader, student, bench)
            what = f"loading, bare training of {sizes.loader_student}, {bench.workers} workers"
            bench.row(what, clips_per_second=speed, data_wait=wait)


def _prepare(folder: Path, num_videos: int) -> Manifest:
    """Prepare videos of 456x256; many names share each file."""
    originals = folder / "originals"
    originals.mkdir()
    files = make_videos(originals)
    sources = [SourceVideo(f"v{n}", {"rgb": files[n % len(files)]}) for n in range(num_videos)]
    options = PrepareOptions(out=folder / "prepared", modalities=("rgb",))
    with contextlib.redirect_stdout(io.StringIO()):
        return prepare_videos("bench", sources, classes=(), options=options)


def _loader_speed(loader: Any, bench: Bench) -> float:
    source = iter(loader)
    next(source)  # the workers have started
    started, num_clips = time.perf_counter(), 0
    while time.perf_counter() - started < 2.0 * bench.sizes.repeats:
        num_clips += len(next(source))
    return num_clips / (time.perf_counter() - started)


def _training_wait(loader: Any, student: Encoder, bench: Bench) -> tuple[float, float]:
    """Share of the time that a bare training waits for its loader, and its clips/s."""
    execution = Execution.choose(student, device=bench.device)
    student.train()
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-9, fused=True)
    source, waited, num_clips = iter(loader), 0.0, 0
    next(source)
    started = time.perf_counter()
    while time.perf_counter() - started < 2.0 * bench.sizes.repeats:
        asked = time.perf_counter()
        batch = next(source)
        waited += time.perf_counter() - asked
        execution.embed(student, batch.to(bench.device).student).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
        num_clips += len(batch)
    seconds = time.perf_counter() - started
    return waited / seconds, num_clips / seconds


def bench_knn(bench: Bench) -> None:
    """Ours, a plain search on the same device, and faiss on CPU and GPU."""
    num_gallery, num_queries = bench.sizes.knn
    k, dim = 20, 512
    gallery = F.normalize(torch.randn(num_gallery, dim, device=bench.device), dim=1)
    queries = F.normalize(torch.randn(num_queries, dim, device=bench.device), dim=1)
    rivals: dict[str, Callable[[], object]] = {
        "crossdistill": lambda: nearest_neighbours(queries_bd=queries, gallery_nd=gallery, k=k),
        "plain product and topk": lambda: plain_brute_force(queries, gallery, k),
    }
    sizes = f"{num_queries} queries, {num_gallery} × {dim}"
    for name, search in rivals.items():
        with bench.or_reason(f"knn, {name}, {sizes}"):
            bench.row(f"knn, {name}, {sizes}", seconds=bench.seconds({name: search})[name])
    if importlib.util.find_spec("faiss") is None:
        bench.row(f"knn, faiss, {sizes}", skipped="faiss is not installed")
        return
    import faiss

    index = faiss.IndexFlatIP(dim)
    index.add(gallery.cpu().numpy())
    indices = {"faiss on the CPU": index}
    if hasattr(faiss, "StandardGpuResources") and bench.device.type == "cuda":
        indices["faiss on the GPU"] = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    for name, each in indices.items():
        with bench.or_reason(f"knn, {name}, {sizes}"):
            array = queries.cpu().numpy()
            seconds = bench.seconds({name: lambda given=each, array=array: given.search(array, k)})
            bench.row(f"knn, {name}, {sizes}", seconds=seconds[name])


def bench_embed(bench: Bench) -> None:
    """Clips/s of the forward pass, the copy to the device included."""
    for name, view, batch_size in bench.sizes.embedded:
        with bench.or_reason(f"embed, {name}"):
            encoder = create_encoder(name, **view)
            embedder = Embedder(encoder, Execution.choose(encoder, device=bench.device))
            clips = noise(encoder, batch_size)
            seconds = bench.seconds({name: lambda run=embedder, given=clips: run(given)})[name]
            size = f"{encoder.view.num_frames}x{encoder.view.size_px}"
            precision = embedder.execution.precision
            bench.row(f"embed, {name}, {size}, {precision}", clips_per_second=batch_size / seconds)


PARTS: dict[str, Callable[[Bench], None]] = {
    "loss": bench_loss,
    "step": bench_step,
    "loading": bench_loading,
    "knn": bench_knn,
    "embed": bench_embed,
}


def run_part(name: str, arguments: list[str], out: Path, limit_seconds: float) -> None:
    """Run a part in a process of its own, show and keep what it prints, and end it at its limit."""
    command = [sys.executable, "-W", "ignore", __file__, "--part", name, "--out", str(out), *arguments]
    (out / f"{name}.jsonl").unlink(missing_ok=True)
    started = time.perf_counter()
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, limit_seconds)
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            last = line.strip() or last
            print(line, end="", flush=True)
            log.write(line)
        status = process.wait()
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds = time.perf_counter() - started
    if status:
        reason = f"ended at its limit of {limit_seconds:.0f} s" if status == -signal.SIGKILL else last[:200]
        with (out / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": f"{name}, rest", "skipped": reason}) + "\n")
    print(f"  ({name}: {seconds:.0f} s)", flush=True)


def table(out: Path, parts: Iterable[str]) -> str:
    """Return the rows of some parts as one Markdown table."""
    lines = ["| what | figures |", "|---|---|"]
    for name in parts:
        file = out / f"{name}.jsonl"
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            figures = json.loads(line)
            what = figures.pop("what")
            text = ", ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in figures.items())
            lines.append(f"| {what} | {text} |")
    return "\n".join(lines)


def main() -> None:
    """Run the parts one after another, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench_gpu"), help="folder of rows, log and table")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; always taken without a GPU")
    parser.add_argument("--workers", type=int, help="loader processes; 16, or 2 for a CPU, if absent")
    parser.add_argument("--repeats", type=int, help="repeats of each measurement")
    parser.add_argument("--limit-scale", type=float, default=1.0, help="factor of the time limits, for a busy machine")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = SMALL if args.small or device.type == "cpu" else GPU
    sizes = replace(sizes, repeats=args.repeats or sizes.repeats)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part is not None:
        torch.manual_seed(0)
        print(args.part, flush=True)
        rows = args.out / f"{args.part}.jsonl"
        PARTS[args.part](Bench(sizes, device, rows, args.workers or sizes.loader_workers))
        return
    environment = describe_environment()
    named = {key: environment[key] for key in ("cpu", "num_cpu_cores", "gpus", "torch") if key in environment}
    print(json.dumps(named), flush=True)
    (args.out / "machine.json").write_text(json.dumps(environment, indent=1, default=str), encoding="utf-8")
    (args.out / "log.txt").write_text(json.dumps(named) + "\n", encoding="utf-8")
    passed = ["--small"] * args.small
    for option in ("workers", "repeats"):
        value = getattr(args, option)
        passed += [] if value is None else [f"--{option}", str(value)]
    for name in args.parts:
        run_part(name, passed, args.out, LIMIT_SECONDS[name] * args.limit_scale)
    text = table(args.out, args.parts)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main()
