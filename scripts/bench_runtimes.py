"""Networks in every runtime, float and int8: milliseconds, file size and agreement on one core.

    python scripts/bench_runtimes.py                                     four networks, as a table
    python scripts/bench_runtimes.py depth_tiny3d_8:16x48 --batch 1 --csv > docs/results/runtimes.csv

The networks have fresh weights and see noise, on which their BatchNorm statistics and int8 ranges are set too. Runtimes
take turns with one thread each, and the clock counts this process's own seconds, which other work on the machine
changes little. The int8 network in PyTorch is the simulation that is evaluated in training.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from crossdistill.encoders import Encoder, create_encoder
from crossdistill.export import onnx, openvino
from crossdistill.export.export import FORMATS
from crossdistill.export.formats import export_student
from crossdistill.export.metadata import EMBEDDINGS
from crossdistill.export.network import Forward, module_forward
from crossdistill.quantization.calibrate import calibrate
from crossdistill.quantization.quantize import noise_clips, quantize
from crossdistill.utils.environment import describe_environment

CASES = ("rgb_r3d10:8x64", "rgb_r3d18:8x64", "image_resnet18:1x112", "image_mobilenet_v2:1x112")
CASE = re.compile(r"(\w+):(\d+)x(\d+)")
NUM_CALIBRATION_CLIPS = 32
OPENERS = {"onnx": onnx.open_model, "openvino": openvino.open_model}
NAMES = {"pytorch": "PyTorch", "onnx": "onnxruntime", "openvino": "OpenVINO"}

warnings.simplefilter("ignore")


def make_encoders(name: str, num_frames: int, size_px: int) -> dict[str, Encoder]:
    """A network of fresh weights, and its int8 version."""
    torch.manual_seed(0)
    encoder = create_encoder(name, num_frames=num_frames, size_px=size_px)
    clips = noise_clips(encoder, NUM_CALIBRATION_CLIPS)
    with torch.no_grad():
        for _ in range(3):
            encoder.train()(clips[:16])
    encoder.eval()
    quantised = quantize(copy.deepcopy(encoder), "w8a8").eval()
    calibrate(quantised, clips.split(8))
    return {"fp32": encoder, "int8": quantised}


def size_mb(path: Path, to: str) -> float:
    """Size of an exported file, with the file beside it."""
    second = FORMATS[to].second_suffix
    return sum(file.stat().st_size for file in [path, *([path.with_suffix(second)] if second else [])]) / 1e6


def median_ms(runners: Mapping[str, Callable[[Tensor], object]], clips: Tensor, repeats: int) -> dict[str, float]:
    """Median milliseconds of processor time of each runtime, measured in turns."""
    spent: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run(clips)
    for _ in range(repeats):
        for name, run in runners.items():
            started = time.process_time()
            run(clips)
            spent[name].append(time.process_time() - started)
    return {name: 1e3 * statistics.median(seconds) for name, seconds in spent.items()}


@dataclass(frozen=True)
class Row:
    """One network in one runtime."""

    network: str
    view: str
    runtime: str
    bits: str
    ms: str
    speedup: str
    file_mb: str
    cosine: str


def case_of(text: str) -> tuple[str, int, int]:
    """Read the name, the frames and the pixels of ``rgb_r3d10:8x64``."""
    match = CASE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} has no view: give network:FRAMESxPIXELS, for example {CASES[0]}")
    return match[1], int(match[2]), int(match[3])


def rows_of(case: tuple[str, int, int], batch: int, repeats: int) -> Iterator[Row]:
    """Time one network in every runtime.

    Args:
        case: The network, its frames and its pixels.
        batch: Clips of one call.
        repeats: Calls of each runtime.
    """
    name, num_frames, size_px = case
    encoders = make_encoders(name, num_frames, size_px)
    clips = noise_clips(encoders["fp32"], NUM_CALIBRATION_CLIPS + batch)[-batch:]
    runners: dict[str, Forward] = {}
    sizes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for bits, encoder in encoders.items():
            runners[f"pytorch {bits}"] = module_forward(encoder)
            for to, opener in OPENERS.items():
                path = Path(folder, FORMATS[to].default_name)
                export_student(encoder, path, clips, to=to)
                sizes[f"{to} {bits}"] = f"{size_mb(path, to):.2f}"
                runners[f"{to} {bits}"] = opener(path, num_threads=1)[0]
        found = median_ms(runners, clips, repeats)
    expected = runners["pytorch fp32"](clips)[EMBEDDINGS]
    for key, ms in found.items():
        runtime, bits = key.split()
        cosine = float(F.cosine_similarity(runners[key](clips)[EMBEDDINGS], expected).min())
        speedup = f"{found['pytorch fp32'] / ms:.2f}"
        view = f"{num_frames}x{size_px}x{size_px}"
        yield Row(name, view, NAMES[runtime], bits, f"{ms:.2f}", speedup, sizes.get(key, ""), f"{cosine:.5f}")


def main() -> None:
    """Export, compare and time every network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", type=case_of, help="network:FRAMESxPIXELS; four networks by default")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4, help="clips of one call")
    parser.add_argument("--csv", action="store_true", help="print CSV instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    environment = describe_environment()
    about = {key: environment[key] for key in ("cpu", "cores", "torch") if key in environment}
    print(about, f"; {options.batch} clips, one thread; cosine: the smallest with PyTorch fp32", file=sys.stderr)
    if options.csv:
        print(",".join(field.name for field in fields(Row)))
    else:
        print("| network | view | runtime | bits | ms | ÷ PyTorch fp32 | file, MB | cosine |")
        print("|---|---|---|---|--:|--:|--:|--:|")
    for case in options.cases or map(case_of, CASES):
        for row in rows_of(case, options.batch, options.repeats):
            cells = list(astuple(row))
            print(",".join(cells) if options.csv else f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
