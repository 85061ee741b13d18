"""Exported students against PyTorch: agreement and clips/s of ONNX, TorchScript and torch.export on this CPU.

python scripts/bench_export.py [NAME ...] [--threads 1] [--seconds 1]  prints a table; one 2D CNN, two 3D CNNs, one
video transformer, all of fresh weights and on noise. Runtimes take turns; with one thread the clock counts this
process's own seconds, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from crossdistill.encoders import Encoder, create_encoder
from crossdistill.export.formats import FORMATS, export_student
from crossdistill.export.network import Forward, module_forward
from crossdistill.export.onnx import open_session, run_session
from crossdistill.quantization.quantize import noise_clips
from crossdistill.utils.environment import describe_environment

# Name, frames, pixels. The small VideoMAE stands for a student: 6 layers of 192, patches of 16, tubelets of 2.
CASES = (
    ("image_mobilenet_v2", 1, 112),
    ("rgb_r3d10", 8, 64),
    ("rgb_r3d18", 8, 64),
    ("rgb_hf:videomae", 8, 64),
)
RUNTIMES = ("onnx", "torchscript", "torch-export")
BATCH = 4
NUM_ROUNDS = 4

warnings.simplefilter("ignore")


def make_encoder(name: str, num_frames: int, size_px: int, folder: Path) -> Encoder:
    """A student of fresh weights."""
    torch.manual_seed(0)
    if name.endswith(":videomae"):
        import transformers

        config = transformers.VideoMAEConfig(
            **{"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768},
            image_size=size_px,
            num_frames=num_frames,
        )
        config.save_pretrained(folder / "videomae")
        return create_encoder(f"rgb_hf:{folder / 'videomae'}").eval()
    return create_encoder(name, num_frames=num_frames, size_px=size_px).eval()


def open_runtime(to: str, path: Path, encoder: Encoder, num_threads: int) -> Forward:
    """An exported file with as many threads as PyTorch has."""
    if to != "onnx":
        return FORMATS[to].open(path, encoder)
    session = open_session(path, num_threads=num_threads)
    return lambda clips: run_session(session, clips)


def clips_per_second(
    runners: dict[str, Callable[[Tensor], object]], clips: Tensor, seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Each runtime's clips/s, measured in turns."""
    spent, done = dict.fromkeys(runners, 0.0), dict.fromkeys(runners, 0)
    for run in runners.values():
        run(clips)
    for _ in range(NUM_ROUNDS):
        for name, run in runners.items():
            started = clock()
            while clock() - started < seconds / NUM_ROUNDS:
                run(clips)
                done[name] += len(clips)
            spent[name] += clock() - started
    return {name: done[name] / spent[name] for name in runners}


def main() -> None:
    """Export, compare and time every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each runtime and network")
    options = parser.parse_args(sys.argv[1:])
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    environment = describe_environment()
    print({key: environment[key] for key in ("cpu", "cores", "torch") if key in environment})
    print(
        f"batch {BATCH}, {options.threads} thread(s); times PyTorch's clips/s, largest difference of the largest value"
    )
    print("| student | view | PyTorch | " + " | ".join(RUNTIMES) + " |\n|---|---|---|" + "---|" * len(RUNTIMES))
    for name, num_frames, size_px in CASES:
        if options.names and name not in options.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            encoder = make_encoder(name, num_frames, size_px, Path(folder))
            clips = noise_clips(encoder, BATCH)
            runners: dict[str, Callable[[Tensor], object]] = {"PyTorch": module_forward(encoder)}
            differences = {}
            for to in RUNTIMES:
                path = Path(folder, to)
                differences[to] = export_student(encoder, path, clips, to=to).max_difference
                runners[to] = open_runtime(to, path, encoder, options.threads)
            speeds = clips_per_second(runners, clips, options.seconds, clock)
        cells = [f"{speeds[to] / speeds['PyTorch']:.2f} x ({differences[to]:.0e})" for to in RUNTIMES]
        view = f"{num_frames}x{size_px}x{size_px}"
        print(f"| {name} | {view} | {speeds['PyTorch']:.1f} clips/s | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
